//! Making, changing and removing key sets, and what must not be done to one
//! that is in use.
//!
//! The manager does this for whoever asks through its API, and the commands of
//! `sealblk keyset` do it themselves where no manager runs. The definitions are
//! the configuration's: what is written here is a file for each key set beside
//! it (`config::KeySetFiles`), and what stands in the configuration file itself
//! is left to whoever wrote that.
#![forbid(unsafe_code)]

mod rotate;
mod service;
mod switch;

pub use rotate::ToDo;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::control::Load;
use crate::config::{self, Config, check_references};
use crate::error::{Explain, Failure, Kind, io_kind};
use crate::keys::ledger::{Known, Ledger};
use crate::keys::{Context, Definition, KeySets, Name};
use crate::kms::KeyVersion;
use crate::rotation::Rotation;
use crate::volume::{Inspection, Location};
use uuid::Uuid;

/// Why a key set stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none of that name.
    #[error("there is no key set {0:?}")]
    Unknown(String),
    /// There is one already.
    #[error("there is a key set {name:?} already, in {}", path.display())]
    Exists {
        /// Its name.
        name: String,
        /// Where it is defined.
        path: PathBuf,
    },
    /// It is defined in the configuration file, or built in.
    #[error("key set {name:?} is {}", defined(.path.as_ref()))]
    NotOurs {
        /// Its name.
        name: String,
        /// The file that defines it; none for the built-in one.
        path: Option<PathBuf>,
    },
    /// Volumes of this host need it.
    #[error("key set {name:?} is needed by {}", needed(.volumes))]
    InUse {
        /// Its name.
        name: String,
        /// The volumes.
        volumes: Vec<PathBuf>,
    },
    /// Another key set names it for break-glass access.
    #[error("key set {name:?} is named by key set {by:?} for break-glass access")]
    BreakGlass {
        /// Its name.
        name: String,
        /// The other one.
        by: String,
    },
    /// It cannot be edited into one of another provider.
    #[error("the provider of key set {name:?} cannot be edited while volumes need it: {why}")]
    NeedsSwitch {
        /// Its name.
        name: String,
        /// Which volumes.
        why: String,
    },
    /// It was switched, and volumes still need what it was before.
    #[error(
        "key set {name:?} is being switched: volumes still need what it was before (provider {from})"
    )]
    SwitchUnderWay {
        /// Its name.
        name: String,
        /// The provider from before.
        from: &'static str,
    },
    /// Wraps of the new key could not be told from those of the old one.
    #[error(
        "the new key of key set {name:?} has the same provider, name ({key:?}) and version ({version:?}) as the one that has wrapped its volumes: nobody could tell which of the two a volume needs"
    )]
    LookAlike {
        /// Its name.
        name: String,
        /// The key.
        key: String,
        /// The version.
        version: String,
    },
    /// Nobody could open these volumes again.
    #[error("switching key set {name:?} would lock out {}: their keys are not in memory, and its service does not open them: {why}", needed(.volumes))]
    LockedOut {
        /// Its name.
        name: String,
        /// The volumes.
        volumes: Vec<PathBuf>,
        /// What the service says.
        why: String,
    },
    /// The ledger has no such volume.
    #[error("volume {0} is not in the ledger")]
    NoVolume(Uuid),
    /// The volume is attached.
    #[error("volume {volume} is attached, as the disk {disk:?}")]
    Attached {
        /// The volume.
        volume: Uuid,
        /// The disk.
        disk: String,
    },
    /// Its file cannot be written or removed, or the ledger not be read.
    #[error("cannot use {}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn defined(path: Option<&PathBuf>) -> String {
    match path {
        Some(path) => format!("defined in {}", path.display()),
        None => "built in".into(),
    }
}

/// How many volumes are named in an error.
const NAMED_MAX: usize = 5;

fn needed(volumes: &[PathBuf]) -> String {
    let named: Vec<String> = volumes
        .iter()
        .take(NAMED_MAX)
        .map(|path| path.display().to_string())
        .collect();
    let more = volumes.len().saturating_sub(NAMED_MAX);
    match more {
        0 => named.join(", "),
        more => format!("{} and {more} more volumes", named.join(", ")),
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Unknown(_) => Kind::NotFound,
            Error::Exists { .. } | Error::InUse { .. } | Error::BreakGlass { .. } => Kind::Refused,
            Error::NotOurs { .. } => Kind::Usage,
            Error::NeedsSwitch { .. } | Error::LockedOut { .. } | Error::LookAlike { .. } => {
                Kind::Refused
            }
            Error::SwitchUnderWay { .. } | Error::Attached { .. } => Kind::Busy,
            Error::NoVolume(_) => Kind::NotFound,
            Error::File { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Unknown(_) => "see what there is: sealblk keyset list".into(),
            Error::Exists { name, .. } => {
                format!("change it with `sealblk keyset edit {name}`, or choose another name")
            }
            Error::NotOurs {
                path: Some(path), ..
            } => format!("change it in {}", path.display()),
            Error::NotOurs { name, .. } => format!(
                "define one of that name in its place: sealblk keyset create {name} --provider …"
            ),
            Error::InUse { .. } => {
                "volumes that are gone for good can be disregarded with --force; without the key \
                 set none of them can be opened"
                    .into()
            }
            Error::BreakGlass { by, .. } => {
                format!("give that one another: sealblk keyset edit {by} --set break_glass=NAME")
            }
            Error::NeedsSwitch { name, .. } => format!(
                "have the volumes follow: sealblk keyset switch {name} --provider …"
            ),
            Error::SwitchUnderWay { name, .. } => format!(
                "see which: sealblk keyset ledger {name}; attach them, or make their service work, \
                 and forget those that are gone for good (sealblk keyset forget-volume)"
            ),
            Error::LookAlike { name, .. } => format!(
                "make another version of the new key, or give it another name; if it is the very same \
                 key at other endpoints, name those: sealblk keyset edit {name} --endpoint …"
            ),
            Error::LockedOut { .. } => {
                "attach them while their service works, and do not detach what is attached; volumes \
                 that are lost anyway can be disregarded with --force"
                    .into()
            }
            Error::NoVolume(_) => "`sealblk keyset ledger` names the volumes that are known".into(),
            Error::Attached { .. } => "detach it first".into(),
            Error::File { path, .. } => {
                format!("run it as the user that owns {}", path.display())
            }
        })
    }
}

/// A key set, as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Its name.
    pub name: Name,
    /// Its definition.
    pub definition: Definition,
    /// Its settings, as they are written down.
    pub settings: toml::Table,
    /// The file that defines it; none for the built-in one.
    pub defined_in: Option<PathBuf>,
    /// Whether that is a file of its own, which can be changed by command.
    pub own_file: bool,
}

/// Changes to the settings of a key set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Settings that get another value.
    pub set: toml::Table,
    /// Settings that are taken away.
    pub unset: Vec<String>,
}

/// Who looks after the key sets.
pub struct Admin {
    load: Load,
    /// The last one that could be read.
    good: Mutex<Arc<Config>>,
    key_sets: Arc<KeySets>,
    rotation: Arc<Rotation>,
    /// Who carries on in the background what is begun.
    to_do: OnceLock<ToDo>,
    /// Who is told that a switch is over.
    on_settled: OnceLock<OnSettled>,
    /// Who ends a switch has this.
    settling: tokio::sync::Mutex<()>,
}

/// Who is told that a key set needs nothing any more of what it was before.
pub type OnSettled = Box<dyn Fn(&Name) + Send + Sync>;

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// Looks after the key sets of the configuration that `load` reads, which
    /// `key_sets` has in use. It is read anew each time: others may change it.
    /// `config` is what it read last.
    /// Volumes follow by `rotation`.
    pub fn new(
        load: Load,
        config: Config,
        key_sets: Arc<KeySets>,
        rotation: Arc<Rotation>,
    ) -> Self {
        Admin {
            load,
            good: Mutex::new(Arc::new(config)),
            key_sets,
            rotation,
            to_do: OnceLock::new(),
            on_settled: OnceLock::new(),
            settling: tokio::sync::Mutex::default(),
        }
    }

    /// The rotation of the key sets.
    pub fn rotation(&self) -> &Arc<Rotation> {
        &self.rotation
    }

    /// Whom to tell when a key set needs nothing any more of what it was
    /// before it was switched.
    pub fn on_settled(&self, tell: OnSettled) {
        // The first one stays.
        let _ = self.on_settled.set(tell);
    }

    fn settled(&self, name: &Name) {
        if let Some(tell) = self.on_settled.get() {
            tell(name);
        }
    }

    fn read(&self) -> Result<Config, config::Error> {
        let config = (self.load)()?;
        *self.good.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config.clone());
        Ok(config)
    }

    /// For those who only look: they see what is in force while somebody has
    /// broken the configuration.
    fn look(&self) -> Arc<Config> {
        // The one that is good is there now, or still.
        let _ = self.read();
        let good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        good.clone()
    }

    /// All key sets, by name.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub fn list(&self) -> Result<Vec<Shown>, Failure> {
        let config = self.look();
        config
            .key_sets
            .keys()
            .map(|name| shown(&config, name))
            .collect()
    }

    /// One key set.
    ///
    /// # Errors
    /// When there is none of that name, or the configuration cannot be read.
    pub fn show(&self, name: &Name) -> Result<Shown, Failure> {
        shown(&self.look(), name)
    }

    /// Makes a key set. With `check`, its service has to wrap and unwrap
    /// first, and its group key is made.
    ///
    /// # Errors
    /// When there is one of that name, the settings are wrong, or the service
    /// fails. Nothing is written then.
    pub async fn create(
        &self,
        context: &Context,
        name: &Name,
        settings: toml::Table,
        check: bool,
    ) -> Result<Shown, Failure> {
        let config = self.read()?;
        // The built-in one, which this would take the place of.
        if config.key_sets.contains_key(name) && !config.defined_in.contains_key(name) {
            let new = config.key_set_files.check(name, &settings)?;
            if config.key_sets.get(name).map(|old| &old.source) != Some(&new.source) {
                switch::refuse_edit(name, refuse_if_needed(&config, name))?;
            }
        }
        if let Some(path) = config.defined_in.get(name) {
            return Err(Error::Exists {
                name: name.to_string(),
                path: path.clone(),
            }
            .into());
        }
        self.put(context, config, name, &settings, check, false)
            .await
    }

    /// Changes the settings of a key set.
    ///
    /// # Errors
    /// When there is none of that name in a file of its own, the result would
    /// be wrong, its volumes could not be opened, or the service fails. It
    /// stays as it was then.
    pub async fn edit(
        &self,
        context: &Context,
        name: &Name,
        changes: Changes,
        check: bool,
    ) -> Result<Shown, Failure> {
        let config = self.read()?;
        let before = ours(&config, name)?;
        let mut settings = before.settings;
        settings.extend(changes.set);
        for setting in &changes.unset {
            settings.remove(setting);
        }
        let after = config.key_set_files.check(name, &settings)?;
        // The wraps in the volumes name the provider.
        if after.source.provider() != before.definition.source.provider() {
            switch::refuse_edit(name, refuse_if_needed(&config, name))?;
        }
        self.put(context, config, name, &settings, check, true)
            .await
    }

    /// Removes a key set. With `force`, also one that volumes need.
    ///
    /// # Errors
    /// When there is none of that name in a file of its own, or it is in use.
    pub fn remove(&self, name: &Name, force: bool) -> Result<(), Failure> {
        let mut config = self.read()?;
        ours(&config, name)?;
        let by = config
            .key_sets
            .iter()
            .find(|(_, set)| set.policy.break_glass.as_ref() == Some(name));
        if let Some((by, _)) = by {
            return Err(Error::BreakGlass {
                name: name.to_string(),
                by: by.to_string(),
            }
            .into());
        }
        if !force {
            refuse_if_needed(&config, name)?;
        }
        config
            .key_set_files
            .remove(name)
            .map_err(file_error(config.key_set_files.path(name)))?;
        self.key_sets.forget_group(name)?;
        let jobs = self.rotation.jobs();
        jobs.remove(name).map_err(file_error(jobs.path(name)))?;
        config.key_sets.remove(name);
        // The built-in one may come back in its place.
        self.key_sets.replace(self.read()?.key_sets);
        Ok(())
    }

    /// Has the service wrap and unwrap.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn check(&self, context: &Context, name: &Name) -> Result<KeyVersion, Failure> {
        Ok(self.key_sets.check(context, name.as_str()).await?)
    }

    /// Checks a new definition, writes it, and uses it from now on.
    async fn put(
        &self,
        context: &Context,
        mut config: Config,
        name: &Name,
        settings: &toml::Table,
        check: bool,
        replace: bool,
    ) -> Result<Shown, Failure> {
        let definition = config.key_set_files.check(name, settings)?;
        config.key_sets.insert(name.clone(), definition);
        check_references(&config.key_sets, &config.key_stores)?;
        if check {
            let trial = self.key_sets.beside(config.key_sets.clone());
            trial.check(context, name.as_str()).await?;
        }
        let path = config.key_set_files.path(name);
        config
            .key_set_files
            .write(name, settings, replace)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => Error::Exists {
                    name: name.to_string(),
                    path: path.clone(),
                },
                _ => Error::File {
                    path: path.clone(),
                    source,
                },
            })?;
        let config = self.read()?;
        self.key_sets.replace(config.key_sets.clone());
        shown(&config, name)
    }
}

fn shown(config: &Config, name: &Name) -> Result<Shown, Failure> {
    let Some(definition) = config.key_sets.get(name) else {
        return Err(Error::Unknown(name.to_string()).into());
    };
    let defined_in = config.defined_in.get(name).cloned();
    Ok(Shown {
        name: name.clone(),
        definition: definition.clone(),
        settings: config.settings_of(name),
        own_file: defined_in.as_ref() == Some(&config.key_set_files.path(name)),
        defined_in,
    })
}

/// A key set that has a file of its own.
fn ours(config: &Config, name: &Name) -> Result<Shown, Failure> {
    let shown = shown(config, name)?;
    match shown.own_file {
        true => Ok(shown),
        false => Err(Error::NotOurs {
            name: name.to_string(),
            path: shown.defined_in,
        }
        .into()),
    }
}

/// Fails if volumes that are still there need the key set.
fn refuse_if_needed(config: &Config, name: &Name) -> Result<(), Failure> {
    let ledger = Ledger::below(&config.daemon.state_dir);
    let needing = ledger
        .needing(name.as_str())
        .map_err(file_error(config.daemon.state_dir.clone()))?;
    let volumes: Vec<PathBuf> = needing
        .iter()
        .filter(|known| is_there(known))
        .map(|known| known.path.clone())
        .collect();
    match volumes.is_empty() {
        true => Ok(()),
        false => Err(Error::InUse {
            name: name.to_string(),
            volumes,
        }
        .into()),
    }
}

/// Whether a known volume may still be where it was: not if nothing is there,
/// or another volume.
fn is_there(known: &Known) -> bool {
    if matches!(known.path.try_exists(), Ok(false)) {
        return false;
    }
    let location = Location {
        data: known.path.clone(),
        header: known.header.clone(),
    };
    let description = Inspection::of(&location).and_then(|inspection| inspection.description());
    description.map_or(true, |description| description.uuid == known.uuid)
}

fn file_error(path: PathBuf) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { path, source }
}

/// What [`Changes`] a merge patch (RFC 7396) means: null takes a setting away.
///
/// # Errors
/// When a value cannot be written in TOML.
pub fn changes_of(patch: serde_json::Map<String, serde_json::Value>) -> Result<Changes, Failure> {
    let (unset, set): (BTreeMap<_, _>, BTreeMap<_, _>) =
        patch.into_iter().partition(|(_, value)| value.is_null());
    Ok(Changes {
        set: settings_of(set)?,
        unset: unset.into_keys().collect(),
    })
}

/// Settings in TOML from the same in JSON.
///
/// # Errors
/// When a value cannot be written in TOML.
pub fn settings_of(
    json: impl IntoIterator<Item = (String, serde_json::Value)>,
) -> Result<toml::Table, Failure> {
    json.into_iter()
        .map(|(name, value)| match toml::Value::try_from(value) {
            Ok(value) => Ok((name, value)),
            Err(error) => Err(Failure::new(
                Kind::Usage,
                format!("setting {name:?} has a value that no setting has: {error}"),
                Some("give text, numbers, truth values, lists and tables".into()),
            )),
        })
        .collect()
}
