//! What people want of operations on all data of volumes, on disk: one small file
//! for each volume, by its UUID.
//!
//! Whether an operation is under way, and how far it is, is said by the volume
//! itself, its header and its journal. So nothing is lost with a file here but a
//! place in the queue, and that it was to rest, or not to be too fast.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::durable;
use crate::error::{Failure, Kind as ErrorKind, io_kind};
use crate::manager::model::Problem;
use crate::plane::moving::{Go, Pace};
use crate::rekey::{Direction, Kind};
use crate::timestamp::Timestamp;

const VERSION: u32 = 1;
const SUFFIX: &str = ".json";

/// What is wanted of one volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    version: u32,
    /// What is to be done to its data.
    pub kind: Kind,
    /// Whether that has begun, or was about to.
    pub begun: bool,
    /// Its place in the queue: lower ones come first.
    pub turn: u64,
    /// Whether it goes on.
    #[serde(default)]
    pub go: Go,
    /// How fast it may be.
    #[serde(default)]
    pub pace: Pace,
    /// Which way, if somebody has said so. Otherwise as its journal says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// When somebody asked for it.
    pub asked: Timestamp,
    /// Why it cannot begin, until somebody asks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

impl Job {
    /// One that was found under way, and of which nobody here has said anything.
    /// What makes data plain does not go on by itself.
    pub fn found(kind: Kind) -> Self {
        Job {
            version: VERSION,
            kind,
            begun: true,
            turn: 0,
            go: match kind {
                Kind::Rekey | Kind::Encrypt => Go::Run,
                Kind::Decrypt => Go::Pause,
            },
            pace: Pace::default(),
            direction: None,
            asked: Timestamp::now(),
            problem: None,
        }
    }

    /// Whether it waits for its turn.
    pub fn is_queued(&self) -> bool {
        !self.begun && self.problem.is_none()
    }
}

/// What is wanted of all volumes.
#[derive(Debug)]
pub struct Jobs {
    directory: PathBuf,
    jobs: Mutex<BTreeMap<Uuid, Job>>,
}

impl Jobs {
    /// Those in the state directory `state`. One that cannot be read is left
    /// alone, and told.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join("rekeys");
        durable::directory(&directory)?;
        let mut jobs = BTreeMap::new();
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let stem = name.and_then(|name| name.strip_suffix(SUFFIX));
            // What a crash left half written has another suffix.
            let Some(volume) = stem.and_then(|stem| Uuid::try_parse(stem).ok()) else {
                continue;
            };
            match durable::read_json(&path, VERSION, |job: &Job| job.version) {
                Ok(Some(job)) => _ = jobs.insert(volume, job),
                Ok(None) => {}
                Err(error) => tracing::error!(
                    path = %path.display(), %error,
                    "what was wanted of the data of a volume cannot be read"
                ),
            }
        }
        Ok(Jobs {
            directory,
            jobs: Mutex::new(jobs),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, volume: Uuid) -> PathBuf {
        self.directory.join(format!("{volume}{SUFFIX}"))
    }

    /// What is wanted of a volume.
    pub fn get(&self, volume: Uuid) -> Option<Job> {
        self.lock().get(&volume).cloned()
    }

    /// All of them, those whose turn is first at the beginning.
    pub fn all(&self) -> Vec<(Uuid, Job)> {
        let jobs = self.lock();
        let mut all: Vec<_> = jobs.iter().map(|(id, job)| (*id, job.clone())).collect();
        all.sort_by_key(|(_, job)| job.turn);
        all
    }

    /// One more that waits for its turn, behind all others. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn queue(&self, volume: Uuid, kind: Kind, pace: Pace) -> Result<Job, Failure> {
        let last = self.lock().values().map(|job| job.turn).max();
        let job = Job {
            begun: false,
            turn: last.unwrap_or(0) + 1,
            go: Go::Run,
            pace,
            ..Job::found(kind)
        };
        self.put(volume, job.clone())?;
        Ok(job)
    }

    /// Writes down what is wanted of a volume. When this returns, it survives a
    /// crash of the host. Blocks.
    ///
    /// # Errors
    /// When it cannot be written. What was there before is still there.
    pub fn put(&self, volume: Uuid, job: Job) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(&job).map_err(io::Error::from);
        // One after the other: what is in memory is what was written last.
        let mut jobs = self.lock();
        text.and_then(|text| durable::replace(&self.path(volume), &text, 0o600))
            .map_err(|error| self.failed("write", volume, &error))?;
        jobs.insert(volume, job);
        Ok(())
    }

    /// Nothing more is wanted of a volume. Blocks.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn remove(&self, volume: Uuid) -> Result<(), Failure> {
        let mut jobs = self.lock();
        durable::remove_if_there(&self.path(volume))
            .map_err(|error| self.failed("remove", volume, &error))?;
        jobs.remove(&volume);
        Ok(())
    }

    fn failed(&self, what: &str, volume: Uuid, error: &io::Error) -> Failure {
        Failure::new(
            match io_kind(error) {
                ErrorKind::Internal => ErrorKind::Io,
                kind => kind,
            },
            format!("cannot {what} {}: {error}", self.path(volume).display()),
            Some(format!(
                "check the mode and owner of {}, and the space that is left there",
                self.directory.display()
            )),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_outlives_the_process_in_its_order() {
        let directory = tempfile::tempdir().unwrap();
        let jobs = Jobs::open(directory.path()).unwrap();
        let volumes: Vec<Uuid> = (0..5).map(|n| Uuid::from_u128(100 - n)).collect();
        for volume in &volumes {
            jobs.queue(*volume, Kind::Rekey, Pace::default()).unwrap();
        }
        let mut first = jobs.get(volumes[0]).unwrap();
        first.begun = true;
        first.go = Go::Pause;
        jobs.put(volumes[0], first.clone()).unwrap();
        jobs.remove(volumes[3]).unwrap();
        jobs.remove(volumes[3]).unwrap();
        let expected = jobs.all();
        drop(jobs);
        std::fs::write(directory.path().join("rekeys/half.json.new"), "{").unwrap();
        let torn = directory
            .path()
            .join(format!("rekeys/{}.json", Uuid::nil()));
        std::fs::write(&torn, "{").unwrap();

        let jobs = Jobs::open(directory.path()).unwrap();
        assert_eq!(jobs.all(), expected);
        assert_eq!(jobs.get(volumes[0]), Some(first));
        let waiting: Vec<Uuid> = jobs
            .all()
            .into_iter()
            .filter(|(_, job)| job.is_queued())
            .map(|(volume, _)| volume)
            .collect();
        assert_eq!(waiting, [volumes[1], volumes[2], volumes[4]]);
        assert!(torn.exists(), "what cannot be read is not destroyed");
    }

    #[test]
    fn data_is_not_made_plain_unless_somebody_here_says_so() {
        assert_eq!(Job::found(Kind::Rekey).go, Go::Run);
        assert_eq!(Job::found(Kind::Encrypt).go, Go::Run);
        assert_eq!(Job::found(Kind::Decrypt).go, Go::Pause);
    }
}
