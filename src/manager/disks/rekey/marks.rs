//! How far the header of each volume was known to be: one small file for each whose
//! data was moved on this host.
//!
//! Who can write the disk can put an older header back, with its journal: the one
//! from before an operation, whose key is not that of the data any more, or one
//! from its middle, by which data that was moved would be taken for data that was
//! not. Nothing in such a header shows that. So what was seen of a header is kept
//! here: its number in the sense of LUKS2, which every rewrite raises, the operation,
//! and the number of a record of its journal. It lags behind what is true, so that a
//! crash makes no false alarm.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::durable;
use crate::error::{Failure, Kind};
use crate::volume::Volume;

const VERSION: u32 = 1;

/// While data is moved, its journal is noted so often.
const PERIOD: Duration = Duration::from_secs(10);

/// What was seen of the header of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    version: u32,
    /// The number of the header.
    header: u64,
    /// The last operation on its data.
    operation: Uuid,
    /// The number of a record of its journal.
    record: u64,
    /// Whether that operation has ended.
    ended: bool,
}

/// What was seen of the headers of all volumes.
#[derive(Debug)]
pub struct Marks {
    directory: PathBuf,
    noted: Mutex<BTreeMap<Uuid, Instant>>,
}

impl Marks {
    /// Those in the state directory `state`.
    pub fn below(state: &Path) -> Self {
        Marks {
            directory: state.join("marks"),
            noted: Mutex::default(),
        }
    }

    fn noted(&self) -> MutexGuard<'_, BTreeMap<Uuid, Instant>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, volume: Uuid) -> PathBuf {
        self.directory.join(format!("{volume}.json"))
    }

    fn read(&self, volume: Uuid) -> io::Result<Option<Mark>> {
        durable::read_json(&self.path(volume), VERSION, |mark: &Mark| mark.version)
    }

    fn write(&self, volume: Uuid, mark: &Mark) -> io::Result<()> {
        durable::directory(&self.directory)?;
        durable::replace(&self.path(volume), &serde_json::to_vec(mark)?, 0o600)
    }

    /// An operation has begun on the volume, or has ended, as its header says.
    /// Blocks. What cannot be noted is only told: the header counts.
    pub fn note(&self, volume: &Volume, operation: Uuid, ended: bool) {
        let before = self.read(volume.uuid()).ok().flatten();
        let same = before.filter(|mark| mark.operation == operation);
        let mark = Mark {
            version: VERSION,
            header: volume.description().seqid,
            operation,
            record: same.map_or(0, |mark| mark.record),
            ended,
        };
        self.tell(self.write(volume.uuid(), &mark), volume.uuid());
    }

    /// A record of the journal is durable. Blocks, now and then: when something
    /// `rests`, and every few seconds.
    pub fn note_record(&self, volume: Uuid, operation: Uuid, record: u64, rests: bool) {
        let due = |at: &Instant| at.elapsed() >= PERIOD;
        if !rests && !self.noted().get(&volume).is_none_or(due) {
            return;
        }
        self.noted().insert(volume, Instant::now());
        let Ok(Some(mark)) = self.read(volume) else {
            return;
        };
        if mark.operation != operation || mark.ended || mark.record >= record {
            return;
        }
        self.tell(self.write(volume, &Mark { record, ..mark }), volume);
    }

    fn tell(&self, written: io::Result<()>, volume: Uuid) {
        if let Err(error) = written {
            tracing::warn!(%volume, %error, "an older header of the volume would not be noticed");
        }
    }

    /// The least record that the journal of an operation has. Blocks.
    pub fn least_record(&self, volume: Uuid, operation: Uuid) -> u64 {
        let mark = self.read(volume).ok().flatten();
        mark.filter(|mark| mark.operation == operation && !mark.ended)
            .map_or(0, |mark| mark.record)
    }

    /// Refuses a header that is older than one that was seen. Blocks.
    ///
    /// # Errors
    /// When it is.
    pub fn check(&self, volume: &Volume) -> Result<(), Failure> {
        let mark = match self.read(volume.uuid()) {
            Ok(Some(mark)) => mark,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::error!(
                    volume = %volume.uuid(), %error,
                    "what was seen of its header cannot be read, and whether it is an older one not said"
                );
                return Ok(());
            }
        };
        let found = volume.description().seqid;
        let again = mark.ended && volume.rekey().is_some_and(|it| it.id == mark.operation);
        match found < mark.header || again {
            false => Ok(()),
            true => Err(older(volume, found, mark.header)),
        }
    }

    /// The volume may have any header.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn forget(&self, volume: Uuid) -> io::Result<()> {
        durable::remove_if_there(&self.path(volume))
    }
}

fn older(volume: &Volume, found: u64, seen: u64) -> Failure {
    Failure::new(
        Kind::Refused,
        format!(
            "{} is an older header of the volume: it has number {found}, and number {seen} was \
             seen on this host, since when its data was moved to another key",
            volume.header_path().display()
        ),
        Some(format!(
            "put the newest header back; this one would decrypt data with a key that it does not \
             have any more. If data and header were put back together, as a snapshot of both, say \
             so: sealblk keyset forget-volume {}",
            volume.uuid()
        )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Dek;
    use crate::units::Bytes;
    use crate::volume::{CreateOptions, Location, Plan, Wrap};

    fn volume(directory: &Path) -> Volume {
        let location = Location {
            data: directory.join("data"),
            header: None,
        };
        let options = CreateOptions {
            size: Some(Bytes(1 << 20)),
            header_area: Bytes(64 << 10),
            ..CreateOptions::default()
        };
        let wrap: Wrap = serde_json::from_value(serde_json::json!({
            "key_set": "default", "provider": "file", "key_id": "k", "key_version": "v",
            "alg": "A256GCM", "bound": "aad:1", "bytes": "AAAA",
        }))
        .unwrap();
        let plan = Plan::new(&location, options).unwrap();
        plan.write(&Dek::generate().unwrap(), "default", vec![wrap])
            .unwrap()
    }

    #[test]
    fn an_older_header_is_refused_until_the_volume_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let marks = Marks::below(directory.path());
        let mut volume = volume(directory.path());
        marks.check(&volume).unwrap();
        let old = std::fs::read(volume.data_path()).unwrap();
        // Any rewrite raises the number.
        volume.set_token(volume.token().clone()).unwrap();
        let operation = Uuid::from_u128(7);
        marks.note(&volume, operation, true);
        marks.check(&volume).unwrap();
        volume.set_token(volume.token().clone()).unwrap();
        marks.check(&volume).unwrap();
        let path = volume.data_path().to_owned();
        drop(volume);
        std::fs::write(&path, old).unwrap();
        let location = Location {
            data: path,
            header: None,
        };
        let volume = Volume::open(&location, crate::volume::Access::ReadOnly).unwrap();
        let refused = marks.check(&volume).unwrap_err();
        assert_eq!(refused.kind(), Kind::Refused, "{refused}");
        assert!(
            refused.help().unwrap().contains("forget-volume"),
            "{refused}"
        );
        marks.forget(volume.uuid()).unwrap();
        marks.forget(volume.uuid()).unwrap();
        marks.check(&volume).unwrap();
    }

    #[test]
    fn records_are_noted_of_the_operation_that_is_under_way() {
        let directory = tempfile::tempdir().unwrap();
        let marks = Marks::below(directory.path());
        let volume = volume(directory.path());
        let (uuid, one, other) = (volume.uuid(), Uuid::from_u128(1), Uuid::from_u128(2));
        marks.note_record(uuid, one, 5, true);
        assert_eq!(marks.least_record(uuid, one), 0, "nothing is known of it");
        marks.note(&volume, one, false);
        marks.note_record(uuid, one, 9, true);
        marks.note_record(uuid, one, 7, true);
        marks.note_record(uuid, other, 70, true);
        assert_eq!(marks.least_record(uuid, one), 9);
        assert_eq!(marks.least_record(uuid, other), 0);
        // While it moves, not every one is written.
        marks.note_record(uuid, one, 10, false);
        assert_eq!(marks.least_record(uuid, one), 9);
        marks.note(&volume, one, true);
        assert_eq!(marks.least_record(uuid, one), 0);
    }
}
