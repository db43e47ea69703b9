//! Which volumes this host knows to need which key set.
//!
//! One small file for each volume that was made or attached here, or whose
//! header was backed up. It answers whether a key set or a version of a key can
//! go; nothing depends on it for opening a volume. Commands and the manager
//! write it: each change is made under a lock, to what the file says then.
#![forbid(unsafe_code)]

mod backups;
mod erased;

pub use backups::Backup;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Target;
use crate::durable;
use crate::timestamp::Timestamp;
use crate::volume::token::Wrap;

/// A volume that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The volume.
    pub uuid: Uuid,
    /// Where it was seen last.
    pub path: PathBuf,
    /// The file with its header, if that is detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<PathBuf>,
    /// The key sets that its key is wrapped by, its own one first.
    pub key_sets: Vec<String>,
    /// What its wraps were when they were seen last. Nothing: nobody looked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wraps: Vec<KnownWrap>,
    /// Backups of its header that were made here and not forgotten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backups: Vec<Backup>,
    /// When it was erased. It needs no key any more; its backups do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<Timestamp>,
}

/// What is known of a wrap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownWrap {
    /// The key set whose key wrapped it.
    pub key_set: String,
    /// Which key of which service, in which version.
    #[serde(flatten)]
    pub by: Target,
}

impl From<&Wrap> for KnownWrap {
    fn from(wrap: &Wrap) -> Self {
        KnownWrap {
            key_set: wrap.key_set.clone(),
            by: Target::of(wrap),
        }
    }
}

impl Known {
    /// A volume in `key_set` at that place, with these wraps.
    pub fn new(
        uuid: Uuid,
        (path, header): (PathBuf, Option<PathBuf>),
        key_set: &str,
        wraps: &[Wrap],
    ) -> Self {
        let known = Known {
            uuid,
            path,
            header,
            key_sets: vec![key_set.to_owned()],
            wraps: Vec::new(),
            backups: Vec::new(),
            erased: None,
        };
        known.with_wraps(wraps.iter().map(KnownWrap::from).collect())
    }

    /// The same volume with wraps as they were seen just now.
    #[must_use]
    pub fn with_wraps(mut self, wraps: Vec<KnownWrap>) -> Self {
        self.key_sets.truncate(1);
        for wrap in &wraps {
            if !self.key_sets.contains(&wrap.key_set) {
                self.key_sets.push(wrap.key_set.clone());
            }
        }
        self.wraps = wraps;
        self
    }

    /// What wraps its key for `key_set`, as it was seen last.
    pub fn wrapped_by<'k>(&'k self, key_set: &'k str) -> impl Iterator<Item = &'k Target> {
        let of = move |wrap: &&KnownWrap| wrap.key_set == key_set;
        self.wraps.iter().filter(of).map(|wrap| &wrap.by)
    }
}

/// The known volumes of a host.
#[derive(Clone, Debug)]
pub struct Ledger(PathBuf);

impl Ledger {
    /// The ledger in the state directory `state`.
    pub fn below(state: &Path) -> Self {
        Ledger(state.join("volumes"))
    }

    /// The directory that it is in.
    pub fn path_of_all(&self) -> &Path {
        &self.0
    }

    fn path(&self, uuid: Uuid) -> PathBuf {
        self.0.join(format!("{uuid}.json"))
    }

    /// Takes note of a volume. The backups that are known of it stay known,
    /// whatever `known` says of them.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&self, known: &Known) -> io::Result<()> {
        // Those who attach a disk again need not wait for anybody.
        let same = |before: Known| {
            before
                == Known {
                    backups: before.backups.clone(),
                    ..known.clone()
                }
        };
        if known.backups.is_empty() && read(&self.path(known.uuid)).is_ok_and(same) {
            return Ok(());
        }
        self.change(known.uuid, |before| {
            let mut after = known.clone();
            after.backups = before.map_or_else(Vec::new, |before| before.backups);
            for backup in &known.backups {
                backups::add(&mut after.backups, backup.clone());
            }
            Some(after)
        })
    }

    /// Makes of what is known of a volume something else, while nobody else
    /// does. `None` leaves it as it is.
    fn change(
        &self,
        uuid: Uuid,
        change: impl FnOnce(Option<Known>) -> Option<Known>,
    ) -> io::Result<()> {
        durable::directory(&self.0)?;
        // It goes when the file is closed.
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.0.join(".lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let path = self.path(uuid);
        let before = match read(&path) {
            Ok(before) => Some(before),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(
                    path = %path.display(),
                    "an entry of the ledger was damaged, and is written anew; backups that it knew are not known any more: {error}"
                );
                None
            }
            Err(error) => return Err(error),
        };
        match change(before) {
            Some(after) => durable::replace(&path, &serde_json::to_vec_pretty(&after)?, 0o600),
            None => Ok(()),
        }
    }

    /// Forgets a volume.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(&self, uuid: Uuid) -> io::Result<()> {
        durable::remove_if_there(&self.path(uuid))
    }

    /// The known volumes that need `key_set`, by path. Backups of headers do
    /// not count: see [`Ledger::backups_needing`].
    ///
    /// # Errors
    /// When the ledger cannot be read, or an entry is damaged: then nobody
    /// knows what it says, and the key set may be needed.
    pub fn needing(&self, key_set: &str) -> io::Result<Vec<Known>> {
        let mut found = self.all()?;
        found.retain(|known| known.key_sets.iter().any(|name| name == key_set));
        Ok(found)
    }

    /// What is known of a volume.
    ///
    /// # Errors
    /// When its entry cannot be read, or is damaged.
    pub fn find(&self, uuid: Uuid) -> io::Result<Option<Known>> {
        match read(&self.path(uuid)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }

    /// All known volumes, by path.
    ///
    /// # Errors
    /// As [`Ledger::needing`].
    pub fn all(&self) -> io::Result<Vec<Known>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            // What a crash left in the making has another ending.
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let known = read(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("{path:?}: {error}")))?;
            found.push(known);
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }
}

fn read(path: &Path) -> io::Result<Known> {
    serde_json::from_slice(&fs::read(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_found_by_each_of_their_key_sets() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::below(state.path());
        assert_eq!(ledger.needing("prod").unwrap(), []);
        let known = |path: &str, key_sets: &[&str]| Known {
            uuid: Uuid::new_v4(),
            path: path.into(),
            header: None,
            key_sets: key_sets.iter().map(|name| (*name).into()).collect(),
            wraps: Vec::new(),
            backups: Vec::new(),
            erased: None,
        };
        let (a, b) = (known("/a", &["prod", "safe"]), known("/b", &["prod"]));
        for known in [&b, &a, &a] {
            ledger.note(known).unwrap();
        }
        assert_eq!(ledger.needing("prod").unwrap(), [a.clone(), b]);
        assert_eq!(ledger.needing("safe").unwrap(), std::slice::from_ref(&a));
        assert_eq!(ledger.needing("other").unwrap(), []);
        ledger.forget(a.uuid).unwrap();
        ledger.forget(a.uuid).unwrap();
        assert_eq!(ledger.needing("safe").unwrap(), []);
        fs::write(state.path().join("volumes/x.json"), "{").unwrap();
        ledger.needing("prod").unwrap_err();
    }
}
