//! Rotation: the volumes of a host follow the keys of their key sets.
//!
//! The service of a key set says which version of its key wraps now. What has
//! to be done follows from comparing that with what the ledger knows of the
//! volumes, so that nothing is lost when whoever does it ends: it is found
//! again. The order:
//!
//! 1. with a group key: that is wrapped under the new version, proven, and put
//!    on record (`keys::KeySets::renew`), by a number of calls that does not
//!    depend on the number of volumes;
//! 2. the job is noted (`job`): what is to be, and what was before;
//! 3. each volume follows (`follow`, carried out by [`crate::rewrap`]), so many a
//!    second, and the ledger takes note of it;
//! 4. when no volume that is known has anything else, the job is finished.
//!
//! Volumes that cannot be reached are tried again whenever the service is asked
//! the next time. `report` says which volumes need which version.
//!
//! Who reaches volumes ([`Volumes`]) and who is told of all this ([`Told`]) is
//! not known here: the manager, or a command that runs without one.
#![forbid(unsafe_code)]

mod error;
mod follow;
mod here;
mod job;
mod report;
mod told;
mod work;

pub use error::Error;
pub use follow::Follow;
pub use here::Here;
pub use job::{Job, Jobs};
pub use report::{Holder, HolderState, KeySetLedger, RotationState, VersionUse};
pub use told::{News, Told};
pub use work::Work;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use uuid::Uuid;

use crate::error::Failure;
use crate::keys::ledger::{Known, Ledger};
use crate::keys::{Context, KeySets};
use crate::rewrap::{Change, Rewrapped};

/// How many volumes follow in a second unless something else is configured.
pub const DEFAULT_RATE: u32 = 50;

/// Who reaches volumes, wherever they are.
#[async_trait]
pub trait Volumes: std::fmt::Debug + Send + Sync {
    /// Carries out `change` on a volume.
    ///
    /// # Errors
    /// When it cannot be reached now, or the change cannot be carried out. It
    /// opens as it did then.
    async fn rewrap(
        &self,
        context: &Context,
        known: &Known,
        change: Arc<dyn Change>,
    ) -> Result<Rewrapped, Failure>;

    /// The disk that it is attached as, if it is.
    fn disk(&self, known: &Known) -> Option<String>;

    /// Whether its key is in memory, so that no service is needed for it.
    async fn has_key(&self, known: &Known) -> bool;
}

/// The rotation of the key sets of a host.
#[derive(Debug)]
pub struct Rotation {
    keys: Arc<KeySets>,
    ledger: Ledger,
    jobs: Jobs,
    volumes: Arc<dyn Volumes>,
    told: Arc<dyn Told>,
    /// How many volumes follow in a second.
    rate: u32,
    /// Why volumes have not followed.
    problems: Mutex<BTreeMap<Uuid, Problem>>,
    /// Who works on which key set.
    turns: Mutex<BTreeMap<String, Arc<Turns>>>,
}

/// Why a volume has not followed.
#[derive(Clone, Debug)]
struct Problem {
    text: String,
    at: Instant,
}

/// One at a time works on a key set.
#[derive(Debug, Default)]
struct Turns {
    /// Who decides what is to be done, and writes that down.
    begin: tokio::sync::Mutex<()>,
    /// Who has volumes follow, which takes a while.
    follow: tokio::sync::Mutex<()>,
}

impl Rotation {
    /// The rotation of `keys`, with its state in the directory `state`.
    pub fn new(
        keys: Arc<KeySets>,
        state: &Path,
        volumes: Arc<dyn Volumes>,
        told: Arc<dyn Told>,
        rate: u32,
    ) -> Self {
        Rotation {
            keys,
            ledger: Ledger::below(state),
            jobs: Jobs::below(state),
            volumes,
            told,
            rate: rate.max(1),
            problems: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    /// The key sets.
    pub fn keys(&self) -> &KeySets {
        &self.keys
    }

    /// Who reaches the volumes.
    pub fn volumes(&self) -> &Arc<dyn Volumes> {
        &self.volumes
    }

    /// The volumes that are known.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Where the rotations are.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    fn problems(&self) -> MutexGuard<'_, BTreeMap<Uuid, Problem>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self, key_set: &str) -> Arc<Turns> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(key_set.into()).or_default().clone()
    }
}

/// Runs what reads and writes small files where that harms nobody.
async fn off<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, io::Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}
