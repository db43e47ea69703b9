//! Backups of headers: which there are, and what each needs to be of use.
//!
//! A backup opens its volume as long as the keys of its day do. So a version of
//! a key is free only when no backup needs it any more, and a volume that was
//! erased is not gone while somebody has one.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Known, KnownWrap, Ledger};
use crate::timestamp::Timestamp;
use crate::volume::Description;

/// A backup of the header of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Where it was written: an absolute path.
    pub path: PathBuf,
    /// When.
    pub time: Timestamp,
    /// The number of the header update that it holds.
    pub update: u64,
    /// What its wraps were wrapped by. None: they are in the key store, or the
    /// volume was erased.
    #[serde(default)]
    pub needs: Vec<KnownWrap>,
    /// The key store that it names in the place of wraps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_store: Option<String>,
}

impl Backup {
    /// A backup at `path`, made now, of a header that says `description`.
    pub fn new(path: PathBuf, description: &Description) -> Self {
        let token = &description.token;
        Backup {
            path,
            time: Timestamp::now(),
            update: description.seqid,
            needs: token.wraps.iter().map(KnownWrap::from).collect(),
            key_store: token.key_store.clone(),
        }
    }

    /// Whether somebody who has the right keys opens the volume with it alone.
    pub fn has_wraps(&self) -> bool {
        !self.needs.is_empty()
    }
}

/// Adds a backup; one with the same path is another one no more.
pub(super) fn add(backups: &mut Vec<Backup>, backup: Backup) {
    backups.retain(|other| other.path != backup.path);
    backups.push(backup);
}

impl Ledger {
    /// Takes note of a backup of the volume that is, or was, at `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_backup(
        &self,
        (path, header): (&Path, Option<&Path>),
        description: &Description,
        backup: Backup,
    ) -> io::Result<()> {
        self.change(description.uuid, |before| {
            let token = &description.token;
            let place = (path.to_owned(), header.map(Path::to_owned));
            let mut known = before.unwrap_or_else(|| Known {
                erased: token.keyless_since(),
                ..Known::new(description.uuid, place, &token.key_set, &token.wraps)
            });
            // A file has one backup in it: that of the last volume.
            add(&mut known.backups, backup);
            Some(known)
        })
    }

    /// The backups that are known of a volume, the oldest first.
    ///
    /// # Errors
    /// When the entry of the volume cannot be read, or is damaged.
    pub fn backups(&self, uuid: Uuid) -> io::Result<Vec<Backup>> {
        Ok(self
            .find(uuid)?
            .map_or_else(Vec::new, |known| known.backups))
    }

    /// All backups that need a key of `key_set`, each with the UUID of its
    /// volume.
    ///
    /// # Errors
    /// As [`Ledger::needing`].
    pub fn backups_needing(&self, key_set: &str) -> io::Result<Vec<(Uuid, Backup)>> {
        let needs = |backup: &Backup| backup.needs.iter().any(|need| need.key_set == key_set);
        let found = self.all()?.into_iter().flat_map(|known| {
            let of = move |backup| (known.uuid, backup);
            known.backups.into_iter().map(of)
        });
        Ok(found.filter(|(_, backup)| needs(backup)).collect())
    }

    /// Forgets the backups at `path`, because the file was destroyed, and
    /// returns the volumes that they were of.
    ///
    /// # Errors
    /// When the ledger cannot be read or written.
    pub fn forget_backup(&self, path: &Path) -> io::Result<Vec<Uuid>> {
        let mut forgotten = Vec::new();
        for known in self.all()? {
            if known.backups.iter().all(|backup| backup.path != path) {
                continue;
            }
            self.change(known.uuid, |now| {
                let mut now = now?;
                now.backups.retain(|backup| backup.path != path);
                Some(now)
            })?;
            forgotten.push(known.uuid);
        }
        Ok(forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Target;

    fn need(key_set: &str, version: &str) -> KnownWrap {
        KnownWrap {
            key_set: key_set.into(),
            by: Target {
                provider: "file".into(),
                key_id: "k".into(),
                key_version: version.into(),
                group: None,
            },
        }
    }

    fn backup(path: &str, needs: &[KnownWrap]) -> Backup {
        Backup {
            path: path.into(),
            time: "2031-02-28T23:59:59Z".parse().unwrap(),
            update: 3,
            needs: needs.to_vec(),
            key_store: None,
        }
    }

    fn known(path: &str, backups: &[Backup]) -> Known {
        Known {
            uuid: Uuid::new_v4(),
            path: path.into(),
            key_sets: vec!["prod".into()],
            backups: backups.to_vec(),
            ..Known::default()
        }
    }

    #[test]
    fn backups_are_found_by_what_they_need_until_they_are_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::below(state.path());
        assert_eq!(ledger.backups_needing("prod").unwrap(), []);
        let old = backup("/b/old", &[need("prod", "1"), need("safe", "7")]);
        let new = backup("/b/new", &[need("prod", "2")]);
        let bare = backup("/b/bare", &[]);
        let a = known("/a", &[old.clone(), bare.clone()]);
        let b = known("/b", std::slice::from_ref(&new));
        ledger.note(&a).unwrap();
        ledger.note(&b).unwrap();
        assert_eq!(
            ledger.backups_needing("prod").unwrap(),
            [(a.uuid, old.clone()), (b.uuid, new)]
        );
        assert_eq!(ledger.backups_needing("safe").unwrap(), [(a.uuid, old)]);
        assert_eq!(ledger.forget_backup(Path::new("/b/old")).unwrap(), [a.uuid]);
        let again = ledger.forget_backup(Path::new("/b/old")).unwrap();
        assert!(again.is_empty(), "{again:?}");
        assert_eq!(ledger.backups_needing("safe").unwrap(), []);
        assert_eq!(ledger.backups(a.uuid).unwrap(), [bare]);
        assert_eq!(ledger.backups(Uuid::new_v4()).unwrap(), []);
    }

    #[test]
    fn a_volume_that_is_noted_again_keeps_its_backups() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::below(state.path());
        let first = backup("/b/1", &[need("prod", "1")]);
        let mut volume = known("/a", std::slice::from_ref(&first));
        ledger.note(&volume).unwrap();
        // As an attach does it, from another place.
        volume.backups.clear();
        volume.path = "/moved".into();
        ledger.note(&volume).unwrap();
        let found = ledger.find(volume.uuid).unwrap().unwrap();
        assert_eq!(found.path, Path::new("/moved"));
        assert_eq!(found.backups, std::slice::from_ref(&first));
        // The same file once more is not another backup.
        let again = backup("/b/1", &[need("prod", "2")]);
        volume.backups = vec![again.clone()];
        ledger.note(&volume).unwrap();
        assert_eq!(ledger.backups(volume.uuid).unwrap(), [again]);
    }

    #[test]
    fn entries_from_before_backups_were_known_are_read() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::below(state.path());
        let uuid = Uuid::new_v4();
        let directory = state.path().join("volumes");
        std::fs::create_dir(&directory).unwrap();
        let text = format!(r#"{{"uuid": "{uuid}", "path": "/a", "key_sets": ["prod"]}}"#);
        std::fs::write(directory.join(format!("{uuid}.json")), text).unwrap();
        let found = ledger.find(uuid).unwrap().unwrap();
        assert_eq!(found.backups, []);
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json.get("backups"), None, "as before, without any");
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::below(state.path());
        let volume = known("/a", &[]);
        std::thread::scope(|scope| {
            for index in 0..8 {
                let (ledger, volume) = (&ledger, volume.clone());
                scope.spawn(move || {
                    let path = format!("/b/{index}");
                    let backups = vec![backup(&path, &[need("prod", "1")])];
                    ledger.note(&Known { backups, ..volume }).unwrap();
                });
            }
        });
        assert_eq!(ledger.backups(volume.uuid).unwrap().len(), 8);
    }
}
