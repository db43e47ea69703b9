//! Volumes that were erased.
#![forbid(unsafe_code)]

use std::io;

use uuid::Uuid;

use super::{Known, Ledger};
use crate::timestamp::Timestamp;

impl Ledger {
    /// A volume was erased: no key set is needed for it any more. What is known
    /// of it stays known if there are backups of its header, which open it yet.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn erased(&self, uuid: Uuid, at: Timestamp) -> io::Result<()> {
        match self.find(uuid)? {
            Some(known) if !known.backups.is_empty() => self.note(&Known {
                erased: Some(at),
                key_sets: Vec::new(),
                wraps: Vec::new(),
                ..known
            }),
            _ => self.forget(uuid),
        }
    }

    /// The same of a volume that is plain by now. Its header says so: that it
    /// stands here otherwise is only told.
    pub fn decrypted(&self, uuid: Uuid, since: Timestamp) {
        if let Err(error) = self.erased(uuid, since) {
            tracing::warn!(
                volume = %uuid, %error,
                "the ledger still says that the volume needs a key: \
                 sealblk keyset forget-volume {uuid}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::keys::ledger::Backup;

    #[test]
    fn an_erased_volume_needs_no_key_set_and_its_backups_stay_known() {
        let state = tempfile::tempdir().unwrap();
        let ledger = Ledger::below(state.path());
        let mut known = Known {
            uuid: Uuid::new_v4(),
            path: "/a".into(),
            header: None,
            key_sets: vec!["prod".into()],
            wraps: Vec::new(),
            backups: vec![Backup {
                path: "/safe/a.header".into(),
                time: Timestamp::now(),
                update: 3,
                needs: Vec::new(),
                key_store: None,
            }],
            erased: None,
        };
        ledger.note(&known).unwrap();
        // Whoever attaches it knows of no backup.
        known.backups.clear();
        ledger.note(&known).unwrap();
        let at = Timestamp::now();
        ledger.erased(known.uuid, at).unwrap();
        assert_eq!(ledger.needing("prod").unwrap(), []);
        let told = ledger.find(known.uuid).unwrap().unwrap();
        assert_eq!(told.erased, Some(at));
        assert_eq!(told.backups[0].path, Path::new("/safe/a.header"));
        let other = Known {
            uuid: Uuid::new_v4(),
            ..known
        };
        ledger.note(&other).unwrap();
        ledger.erased(other.uuid, at).unwrap();
        assert_eq!(ledger.find(other.uuid).unwrap(), None);
    }
}
