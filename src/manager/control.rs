//! What the manager runs with, and reading the configuration again: what can
//! change changes, and what cannot is named.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::api::Api;
use super::model::{Reloaded, UpgradedManager};
use super::replace::{self, Successor};
use super::roles::Roles;
use super::services::{Control, Disks, Facts, KeySets};
use crate::config::{self, Config};
use crate::error::{Failure, Kind};
use crate::logging;
use crate::timestamp::Timestamp;

/// Reads the configuration as it was read when the process started.
pub type Load = Arc<dyn Fn() -> Result<Config, config::Error> + Send + Sync>;

/// Settings that this room takes itself.
const OWN: [&str; 2] = ["daemon.roles", "log.level"];

/// The manager as the API sees it.
pub struct Manager {
    since: Timestamp,
    socket: PathBuf,
    state_dir: PathBuf,
    run_dir: PathBuf,
    load: Load,
    log: logging::Handle,
    state: Mutex<State>,
    /// Who is told of changes. Empty until they are there.
    targets: OnceLock<Targets>,
    instance: String,
    /// What it is to be replaced by.
    successor: mpsc::Sender<Successor>,
}

struct State {
    /// The file that was read last.
    file: Option<PathBuf>,
    /// The settings that are in force.
    in_force: BTreeMap<String, String>,
    /// Those that are different in the file.
    needs_restart: Vec<String>,
}

struct Targets {
    api: Api,
    disks: Arc<dyn Disks>,
    key_sets: Arc<dyn KeySets>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Manager");
        shown.field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Manager {
    /// A manager that runs with `config`, and listens at `socket`.
    ///
    /// What it is to be replaced by, if somebody wants that, goes to `successor`.
    pub fn new(
        config: &Config,
        socket: PathBuf,
        load: Load,
        log: logging::Handle,
        successor: mpsc::Sender<Successor>,
    ) -> Self {
        Manager {
            instance: uuid::Uuid::new_v4().to_string(),
            successor,
            since: Timestamp::now(),
            socket,
            state_dir: config.daemon.state_dir.clone(),
            run_dir: config.daemon.run_dir.clone(),
            load,
            log,
            state: Mutex::new(State {
                file: config.path.clone(),
                in_force: config.settings(),
                needs_restart: vec![],
            }),
            targets: OnceLock::new(),
        }
    }

    /// How the configuration is read.
    pub fn load(&self) -> Load {
        self.load.clone()
    }

    /// Whom to tell of changes, from now on.
    pub fn connect(&self, api: Api) {
        let disks = api.services().disks.clone();
        let key_sets = api.services().key_sets.clone();
        // The first ones stay.
        let _ = self.targets.set(Targets {
            api,
            disks,
            key_sets,
        });
    }

    /// Who may do what, as `config` says. Also what is wrong with that.
    pub fn roles(config: &Config) -> (Roles, Vec<String>) {
        let own = rustix::process::geteuid().as_raw();
        Roles::resolve(&config.daemon.roles, own)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    /// When it is wrong. Nothing has changed then.
    pub fn read_again(&self) -> Result<Reloaded, Failure> {
        // Held to the end: of two who do this at once, one is first.
        let mut state = self.state();
        let config = (self.load)()?;
        let mut taken: Vec<String> = OWN.map(str::to_owned).into();
        let (roles, warnings) = Self::roles(&config);
        self.log.set_level(config.log.level);
        if let Some(targets) = self.targets.get() {
            targets.api.set_roles(roles);
            taken.extend(targets.disks.reconfigure(&config));
            taken.extend(targets.key_sets.reconfigure(&config));
        }
        let mut reloaded = state.compare(config.settings(), &taken);
        state.file = config.path;
        reloaded.warnings = warnings;
        for setting in &reloaded.changed {
            tracing::info!(setting, "changed");
        }
        for setting in &reloaded.needs_restart {
            tracing::warn!(
                setting,
                "changed in the file, and needs a restart of the daemon"
            );
        }
        for warning in &reloaded.warnings {
            tracing::warn!("{warning}");
        }
        Ok(reloaded)
    }
}

impl State {
    /// Compares what is in the file with what is in force, which is brought up
    /// to date for what was `taken`.
    fn compare(&mut self, file: BTreeMap<String, String>, taken: &[String]) -> Reloaded {
        let mut reloaded = Reloaded::default();
        let names: BTreeSet<String> = self.in_force.keys().chain(file.keys()).cloned().collect();
        for name in names {
            let (old, new) = (self.in_force.get(&name), file.get(&name));
            if old == new {
                continue;
            }
            if !taken.iter().any(|taken| covers(taken, &name)) {
                reloaded.needs_restart.push(name);
                continue;
            }
            match new {
                Some(value) => self.in_force.insert(name.clone(), value.clone()),
                None => self.in_force.remove(&name),
            };
            reloaded.changed.push(name);
        }
        self.needs_restart.clone_from(&reloaded.needs_restart);
        reloaded
    }
}

/// Whether `taken` is the setting `name`, or a table that has it.
fn covers(taken: &str, name: &str) -> bool {
    name.strip_prefix(taken)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[async_trait]
impl Control for Manager {
    fn facts(&self) -> Facts {
        let state = self.state();
        Facts {
            instance: self.instance.clone(),
            since: self.since,
            config: state.file.clone(),
            socket: self.socket.clone(),
            state_dir: self.state_dir.clone(),
            run_dir: self.run_dir.clone(),
            needs_restart: state.needs_restart.clone(),
        }
    }

    async fn reload(&self) -> Result<Reloaded, Failure> {
        // Users are looked up, in a directory service perhaps.
        tokio::task::block_in_place(|| self.read_again())
    }

    async fn upgrade(&self, binary: Option<PathBuf>) -> Result<UpgradedManager, Failure> {
        let tried = tokio::task::spawn_blocking(move || {
            let program = binary.map_or_else(replace::own_place, Ok)?;
            replace::probe(&program)
        });
        let failed = |_| Failure::new(Kind::Internal, "the work on it ended", None);
        let successor = tried.await.map_err(failed)??;
        let upgraded = UpgradedManager {
            binary: successor.program.clone(),
            before: crate::version::version().into(),
            version: successor.probe.version.clone(),
            instance: self.instance.clone(),
        };
        self.successor
            .try_send(successor)
            .map_err(|_| Failure::new(Kind::Busy, "the manager is being replaced already", None))?;
        Ok(upgraded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn each_difference_is_either_changed_or_needs_a_restart() {
        let mut state = State {
            file: None,
            in_force: settings(&[
                ("daemon.socket", "a"),
                ("key_sets.x", "1"),
                ("key_sets.y", "1"),
                ("log.level", "info"),
            ]),
            needs_restart: vec![],
        };
        let taken = ["log.level".to_owned(), "key_sets".to_owned()];
        let file = settings(&[
            ("daemon.socket", "b"),
            ("key_sets.x", "2"),
            ("key_sets.z", "1"),
            ("log.level", "info"),
        ]);
        let reloaded = state.compare(file.clone(), &taken);
        assert_eq!(reloaded.changed, ["key_sets.x", "key_sets.y", "key_sets.z"]);
        assert_eq!(reloaded.needs_restart, ["daemon.socket"]);
        // The same file again: what waits for a restart still does.
        let reloaded = state.compare(file.clone(), &taken);
        assert_eq!(reloaded.changed, [""; 0]);
        assert_eq!(state.needs_restart, ["daemon.socket"]);
        // And no longer, when it was written back.
        let mut file = file;
        file.insert("daemon.socket".into(), "a".into());
        state.compare(file, &taken);
        assert_eq!(state.needs_restart, [""; 0]);
    }

    #[test]
    fn tables_cover_their_settings_and_no_others() {
        assert!(covers("key_sets", "key_sets.a"));
        assert!(covers("log.level", "log.level"));
        assert!(!covers("log", "logs.x"));
        assert!(!covers("log.level", "log"));
    }
}
