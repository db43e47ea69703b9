//! How a manager looks after disks.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Log, Options};
use crate::sandbox::{Uids, Walls};

/// Where a manager keeps what, and how patient it is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The desired state. Survives the host's end.
    pub state_dir: PathBuf,
    /// Sockets. Survives the manager's end, and not the host's.
    pub run_dir: PathBuf,
    /// The `[serve]` table of the configuration: what attached disks get
    /// unless they ask for something else.
    pub serve: Options,
    /// What workers log.
    pub log: Log,
    /// Whether the keys of attached disks are kept, so that a worker can be
    /// started again without the key service.
    pub keep_deks: bool,
    /// How many disks are attached at once, at most.
    pub concurrency: usize,
    /// How many have all their data moved at once, at most.
    pub rekey_concurrency: usize,
    /// How soon what failed for good is tried again all the same, if the disk
    /// shall be served.
    pub poll: Duration,
    /// How soon a service that is away is asked again.
    pub retry: Pace,
    /// How soon a worker that died is started again.
    pub restart: Pace,
    /// A worker that lived this long is started again at once.
    pub settled: Duration,
    /// How long a worker may take until it serves.
    pub start_timeout: Duration,
    /// How long requests may take to complete when a disk is detached by force.
    pub stop_timeout: Duration,
    /// The program that workers are.
    pub worker: PathBuf,
    /// What workers are shut in by.
    pub walls: Walls,
    /// Is called at every step of attaching and detaching. For tests that end
    /// the process there.
    pub on_step: Option<fn(Step)>,
}

/// A pause that doubles.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The first one.
    pub first: Duration,
    /// The longest one.
    pub most: Duration,
}

impl Pace {
    /// The pause after so many failures in a row: with up to a quarter more,
    /// so that those who failed together do not try again together.
    pub fn pause(&self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.min(20));
        let mut random = [0; 1];
        // Without randomness all come at once, which is no reason to fail.
        let _ = getrandom::fill(&mut random);
        let pause = doubled.min(self.most);
        pause + pause / 4 * u32::from(random[0]) / 256
    }
}

/// What is done in which order when a disk is attached, detached and resized. The crash
/// of a manager between any two of them loses no disk, and has none served twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The volume is open and locked.
    Opened,
    /// Its key is known.
    Unwrapped,
    /// The desired state has the disk. From here on a next manager attaches it.
    Recorded,
    /// Front ends can connect.
    Bound,
    /// Managers can connect to the worker that will be.
    ControlBound,
    /// The worker is there, and has nothing.
    Spawned,
    /// It has been sent all it needs. From here on a next manager finds it.
    Told,
    /// It serves.
    Serving,
    /// It was told to stop.
    Stopping,
    /// It has ended, with everything durable.
    Stopped,
    /// Both sockets are gone.
    Unbound,
    /// The desired state does not have the disk any more.
    Forgotten,
    /// The data file of a disk that grows is long enough.
    Extended,
    /// Its header says the new size.
    HeaderResized,
    /// Its worker serves it.
    Resized,
    /// An operation on all data of a disk has a journal.
    JournalMade,
    /// Its header says that the operation is under way.
    RekeyBegun,
    /// Its worker moves data.
    RekeyTold,
    /// All data was moved, and the header says so.
    RekeyFinished,
    /// Its worker has forgotten the other key.
    RekeyForgotten,
    /// A new worker has all that it needs to go on, but for the front end.
    HeirPrepared,
    /// The old one has been told to hand the disk over.
    HandOverTold,
    /// The new one serves it.
    HandedOver,
    /// That this host has the volume now, or has it no more, is on record.
    StandingSettled,
}

impl Settings {
    /// Settings for these directories, with defaults for the rest.
    pub fn new(state_dir: PathBuf, run_dir: PathBuf) -> Self {
        Settings {
            state_dir,
            run_dir,
            serve: Options::default(),
            log: Log::default(),
            keep_deks: true,
            concurrency: 8,
            rekey_concurrency: 1,
            poll: Duration::from_secs(60),
            retry: Pace {
                first: Duration::from_secs(1),
                most: Duration::from_secs(60),
            },
            restart: Pace {
                first: Duration::from_millis(100),
                most: Duration::from_secs(10),
            },
            settled: Duration::from_secs(60),
            start_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(30),
            worker: "/proc/self/exe".into(),
            walls: Walls {
                uids: Some(Uids::DEFAULT),
                required: false,
            },
            on_step: None,
        }
    }

    /// A step has been made.
    pub(in crate::manager) fn step(&self, step: Step) {
        if let Some(hook) = self.on_step {
            hook(step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pace = Pace {
            first: Duration::from_millis(100),
            most: Duration::from_secs(10),
        };
        for (failures, least) in [(0, 100), (1, 200), (6, 6400), (7, 10_000), (1000, 10_000)] {
            let least = Duration::from_millis(least);
            for _ in 0..20 {
                let pause = pace.pause(failures);
                assert!(least <= pause && pause <= least + least / 4, "{pause:?}");
            }
        }
    }
}
