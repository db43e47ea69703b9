//! Configuration: from raw text and raw flags to one checked structure.
//!
//! `file` reads the configuration file, `cli` the flags; both produce the same
//! [`Options`], flags win, and what comes out ([`Serve`], [`Log`], the key set
//! definitions) is complete and free of contradictions. Nothing after it
//! checks again, and nothing else in the program reads files or the
//! environment to find out what to do.

mod audit;
#[cfg(feature = "aws-kms")]
mod aws;
#[cfg(feature = "azure-keyvault")]
mod azure;
#[cfg(feature = "broker")]
pub mod broker;
#[cfg(feature = "broker")]
mod broker_key_set;
mod choices;
mod cpus;
pub mod daemon;
mod error;
mod file;
#[cfg(feature = "gcp-kms")]
mod gcp;
mod group;
#[cfg(feature = "k8s-kms")]
mod k8s;
mod key_set_files;
mod key_stores;
mod kmip;
mod limits;
mod options;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod policy;
mod serve;
mod service;
pub mod user;
mod values;
mod vault;
pub mod verify;

pub use audit::Audit;
pub use choices::{Cache, Direct, Discard, LogFormat, LogLevel, OnError};
pub use cpus::Cpus;
pub use daemon::Daemon;
pub use error::Error;
#[cfg(feature = "broker")]
pub(crate) use file::text_of;
pub use group::Group;
pub use key_set_files::KeySetFiles;
pub use limits::Limits;
pub use options::Options;
pub(crate) use options::path_parser;
pub use policy::FIELDS as POLICY_FIELDS;
pub use serve::{Disk, Serve};
pub(crate) use service::Period;
pub use values::{Engine, FilePath, Poll, QueueSize, Queues, Serial, SocketMode, StuckAfter};
pub use verify::Verify;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit as audit_log;
use crate::key_store::{self, KeyStores};
use crate::keys::{self, Definition, KeySets, Source};
use crate::kms;

/// The configuration file that is read if it exists and no other is named.
pub const DEFAULT_PATH: &str = "/etc/sealblk/sealblk.toml";

/// The directory of key set files, beside the configuration file unless
/// something else is configured.
const KEY_SET_DIR: &str = "key-sets.d";

/// Everything that is configured before a command adds its own flags.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read, if any.
    pub path: Option<PathBuf>,
    /// What the key sets are. There is always one named [`keys::DEFAULT`].
    pub key_sets: BTreeMap<keys::Name, Definition>,
    /// The file that defines each key set. The built-in one has none.
    pub defined_in: BTreeMap<keys::Name, PathBuf>,
    /// The key sets as they stood in these files.
    pub tables: BTreeMap<keys::Name, toml::Table>,
    /// Where those of the key sets are that have a file of their own.
    pub key_set_files: KeySetFiles,
    /// What the key stores are.
    pub key_stores: BTreeMap<key_store::Name, key_store::Definition>,
    /// What and how to log.
    pub log: Log,
    /// Whether and where uses of keys are recorded.
    pub audit: Audit,
    /// The `[serve]` table.
    pub serve: Options,
    /// The `[daemon]` table.
    pub daemon: Daemon,
    /// The `[verify]` table.
    pub verify: Verify,
    /// The `[broker]` table, if there is one.
    #[cfg(feature = "broker")]
    pub broker: Option<broker::Broker>,
}

/// What and how to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// For people or for machines.
    pub format: LogFormat,
}

/// The flags that every command has, and that override the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The key file of the key set [`keys::DEFAULT`].
    pub key_file: Option<PathBuf>,
    /// The log level.
    pub log_level: Option<LogLevel>,
    /// The log format.
    pub log_format: Option<LogFormat>,
    /// The socket of the manager.
    pub daemon: Option<FilePath>,
}

impl Default for Config {
    /// The configuration of a host that has no configuration file.
    fn default() -> Self {
        Config {
            path: None,
            key_sets: BTreeMap::from([(keys::Name::default(), platform_key())]),
            defined_in: BTreeMap::new(),
            tables: BTreeMap::new(),
            key_set_files: KeySetFiles::new(Path::new(DEFAULT_PATH).with_file_name(KEY_SET_DIR)),
            key_stores: BTreeMap::new(),
            log: Log::default(),
            audit: Audit::default(),
            serve: Options::default(),
            daemon: Daemon::default(),
            verify: Verify::default(),
            #[cfg(feature = "broker")]
            broker: None,
        }
    }
}

/// The built-in default key set.
fn platform_key() -> Definition {
    let path = kms::file::DEFAULT_PATH.into();
    Definition::new(Source::File { path }, None)
}

impl Config {
    /// Reads the file `named`, or else the one at [`DEFAULT_PATH`] if there
    /// is one, and puts the overrides on top.
    ///
    /// # Errors
    /// When the named file is missing, or a file cannot be read or is wrong.
    pub fn load(named: Option<&Path>, overrides: Overrides) -> Result<Self, Error> {
        let mut config = match named {
            Some(path) => file::read(path)?,
            None => match file::read(Path::new(DEFAULT_PATH)) {
                Err(Error::Missing { .. }) => Config::default(),
                other => other?,
            },
        };
        config.add_key_set_files()?;
        if let Some(path) = overrides.key_file {
            let set = config.key_sets.entry(keys::Name::default());
            set.or_insert_with(platform_key).source = Source::File { path };
        }
        config.log.level = overrides.log_level.unwrap_or(config.log.level);
        config.log.format = overrides.log_format.unwrap_or(config.log.format);
        if let Some(socket) = overrides.daemon {
            let socket = PathBuf::from(socket);
            daemon::check_socket(&socket).map_err(|why| {
                Error::contradiction(
                    why,
                    "put it into a directory with a shorter path, such as /run/sealblk",
                )
            })?;
            config.daemon.socket = socket;
        }
        Ok(config)
    }

    /// Reads the key sets that have a file of their own, and checks that all
    /// go together.
    fn add_key_set_files(&mut self) -> Result<(), Error> {
        for (name, (definition, table)) in self.key_set_files.read_all()? {
            let path = self.key_set_files.path(&name);
            // The built-in one gives way; one that is written down does not.
            if let Some(other) = self.defined_in.get(&name) {
                return Err(Error::contradiction(
                    format!(
                        "key set {:?} is defined twice: in {} and in {}",
                        name.as_str(),
                        other.display(),
                        path.display(),
                    ),
                    "remove one of the two",
                ));
            }
            self.key_sets.insert(name.clone(), definition);
            self.tables.insert(name.clone(), table);
            self.defined_in.insert(name, path);
        }
        check_references(&self.key_sets, &self.key_stores)
    }

    /// The settings of a key set, as they stood in the file that defines it.
    pub fn settings_of(&self, name: &keys::Name) -> toml::Table {
        self.tables.get(name).cloned().unwrap_or_else(|| {
            let provider = kms::file::FileProvider::NAME;
            toml::Table::from_iter([("provider".to_owned(), provider.into())])
        })
    }

    /// The audit log of a command, if one is configured. It is opened with the
    /// first record.
    pub fn audit_log(&self) -> Option<Arc<audit_log::Log>> {
        let settings = self.audit.of_commands()?;
        Some(Arc::new(audit_log::Log::new(settings)))
    }

    /// Every setting that has a value, by its name in the file, as text. Two
    /// that are the same here are the same.
    pub fn settings(&self) -> BTreeMap<String, String> {
        fn put(all: &mut BTreeMap<String, String>, name: &str, value: &dyn fmt::Debug) {
            all.insert(name.into(), format!("{value:?}"));
        }
        let mut all = BTreeMap::new();
        // Taken apart, so that a new setting cannot be forgotten here.
        let Daemon {
            socket,
            socket_group,
            socket_mode,
            state_dir,
            run_dir,
            attach_concurrency,
            keep_deks,
            poll,
            rewrap_rate,
            rekey_concurrency,
            roles,
            worker_uids,
            require_sandbox,
            paths,
        } = &self.daemon;
        put(&mut all, "daemon.socket", socket);
        put(&mut all, "daemon.socket_group", socket_group);
        put(&mut all, "daemon.socket_mode", socket_mode);
        put(&mut all, "daemon.state_dir", state_dir);
        put(&mut all, "daemon.run_dir", run_dir);
        put(&mut all, "daemon.attach_concurrency", attach_concurrency);
        put(&mut all, "daemon.keep_deks", keep_deks);
        put(&mut all, "daemon.poll", poll);
        put(&mut all, "daemon.rewrap_rate", rewrap_rate);
        put(&mut all, "daemon.rekey_concurrency", rekey_concurrency);
        put(&mut all, "daemon.roles", roles);
        put(&mut all, "daemon.worker_uids", worker_uids);
        put(&mut all, "daemon.require_sandbox", require_sandbox);
        put(&mut all, "daemon.paths", paths);
        let Log { level, format } = &self.log;
        put(&mut all, "log.level", level);
        put(&mut all, "log.format", format);
        put(&mut all, "serve", &self.serve);
        let Verify { key, rate } = &self.verify;
        put(&mut all, "verify.key", key);
        put(&mut all, "verify.rate", rate);
        for (name, definition) in &self.key_sets {
            put(&mut all, &format!("key_sets.{name}"), definition);
        }
        for (name, definition) in &self.key_stores {
            put(&mut all, &format!("key_stores.{name}"), definition);
        }
        all
    }

    /// The key sets, ready to be used by a command, which records their use if
    /// it is to.
    pub fn key_sets(&self) -> KeySets {
        let log = self.audit_log().into_iter();
        KeySets::new(self.key_sets.clone())
            .with_state(&self.daemon.state_dir)
            .with_stores(KeyStores::new(self.key_stores.clone()))
            .with_witnesses(log.map(|log| log as Arc<dyn keys::Witness>).collect())
    }
}

/// Checks that the key set for break-glass access of each key set is another
/// one that exists, and so does its key store.
///
/// # Errors
/// When it is not.
pub fn check_references(
    key_sets: &BTreeMap<keys::Name, Definition>,
    key_stores: &BTreeMap<key_store::Name, key_store::Definition>,
) -> Result<(), Error> {
    for (name, definition) in key_sets {
        if let Some(store) = &definition.policy.key_store
            && !key_stores.contains_key(store)
        {
            return Err(Error::contradiction(
                format!(
                    "key set {:?} names key store {:?}, which is not defined",
                    name.as_str(),
                    store.as_str()
                ),
                "define it as [key_stores.NAME] in the configuration, or name another",
            ));
        }
        let Some(second) = &definition.policy.break_glass else {
            continue;
        };
        if second == name || !key_sets.contains_key(second) {
            return Err(Error::contradiction(
                format!(
                    "key set {:?} names {:?} for break-glass access, which is {}",
                    name.as_str(),
                    second.as_str(),
                    match second == name {
                        true => "itself",
                        false => "not defined",
                    }
                ),
                "name another key set that exists, best at another service",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
