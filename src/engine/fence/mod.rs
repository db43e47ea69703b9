//! The two ways in which the data of a disk may be stored while it is moved
//! from one to the other (`docs/rekey.md`), the boundary between them, and what
//! keeps guests out of the region next to it.
//!
//! A [`Fence`] belongs to a disk, and is always there; most disks have one way
//! for all their data, and nothing is closed. A [`Keeper`] closes, advances and
//! opens it for whoever moves the data ([`crate::rekey::Fence`]). Each queue
//! thread works with a view (`View`) of its own, and looks for a newer one in one
//! place of its loop only, when a number says that there is one: so a request
//! costs no lock, no shared counter and no allocation, and where nothing moves
//! all this is one look at a number in each turn of the loop and one at a flag
//! for each operation.
//!
//! Why a unit is never taken for what it is not:
//!
//! - An operation (a piece of a request) is on one side of the boundary, and
//!   begins only if its view closes none of its units.
//! - A region is the keeper's once every queue has said that it has the view in
//!   which it is closed, and no operation in flight that touches it.
//! - The boundary moves over the keeper's region only. So the way in which a
//!   unit is stored never changes while an operation on it is in flight, and a
//!   view that is late differs from the newest one only in regions that it
//!   holds to be closed.
//! - A queue that sleeps with nothing in flight is not waited for, nor woken: it
//!   takes the newest view before it begins anything.
//! - A second way, or the loss of one, changes the way of no unit.
#![forbid(unsafe_code)]

mod error;
mod keeper;
mod local;
mod plan;
#[cfg(test)]
mod tests;
mod view;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use error::Error;
pub use keeper::Keeper;
pub(super) use local::Local;
pub(super) use plan::Plan;
pub(super) use view::{Access, Cut, Failing, View};

use super::hold::{Hold, State};
use crate::crypt::Transform;
use crate::rekey::Position;

/// Below the boundary the new way, from it on the old one. The same where there
/// is only one.
type Transforms = [Arc<Transform>; 2];

/// What the queues of a disk share to store each unit in its way.
#[derive(Debug)]
pub struct Fence {
    /// Where the plan is: who closes a region stops for a freeze, and a freeze
    /// waits for who has closed one.
    hold: Arc<Hold>,
    transforms: Mutex<Transforms>,
    /// Counts the plans: a queue whose view has another number has to look.
    era: AtomicU64,
    /// The longest wait of a request that has gone on, in microseconds.
    longest_wait: AtomicU64,
}

impl Fence {
    /// All data is stored in this way.
    pub fn new(hold: Arc<Hold>, transform: Transform) -> Self {
        let transform = Arc::new(transform);
        Fence {
            hold,
            transforms: Mutex::new([transform.clone(), transform]),
            era: AtomicU64::new(0),
            longest_wait: AtomicU64::new(0),
        }
    }

    fn transforms(&self) -> MutexGuard<'_, Transforms> {
        self.transforms
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the queues that are awake, and who waits, know that the plan has
    /// changed. The number of the new one.
    fn tell(&self, mut state: MutexGuard<'_, State>) -> u64 {
        state.plan.era += 1;
        let era = state.plan.era;
        self.era.store(era, Ordering::SeqCst);
        state.wake();
        drop(state);
        self.hold.announce_to_waiters();
        era
    }

    /// Requests that touch what is closed fail from now on.
    fn lose(&self, mut state: MutexGuard<'_, State>) {
        let closed = &state.plan.closed[Access::Write as usize];
        tracing::error!(
            from = closed.start,
            to = closed.end,
            "moving this part of the disk has failed: its requests fail until it is recovered"
        );
        state.plan.failing = Some(Failing::ForGood);
        state.plan.mending = false;
        self.tell(state);
    }

    /// The hands that close and open it. Nothing when they are taken, or no
    /// data is being moved.
    pub fn keeper(self: &Arc<Self>) -> Option<Keeper> {
        let mut state = self.hold.state();
        if !state.plan.moving || std::mem::replace(&mut state.plan.kept, true) {
            return None;
        }
        Some(Keeper::new(self.clone(), state.plan.since))
    }

    /// How far the data has been moved, while it is.
    pub fn position(&self) -> Option<Position> {
        let state = self.hold.state();
        let plan = &state.plan;
        plan.moving.then_some(Position {
            direction: plan.direction,
            boundary: plan.boundary,
        })
    }

    /// Lets the keeper close nothing more, until it is let go on: `close_*`
    /// return false, also where they wait already. What is closed stays so
    /// until the keeper, who has to come to rest, opens it.
    pub fn halt(&self) {
        self.set_halted(true);
    }

    /// Lets the keeper close again, if nothing else is against it.
    pub fn go_on(&self) {
        self.set_halted(false);
    }

    fn set_halted(&self, halted: bool) {
        self.hold.state().plan.halted = halted;
        self.hold.announce_to_waiters();
    }

    /// Whether nothing is closed: all data is in the way that it is said to be.
    pub fn is_at_rest(&self) -> bool {
        self.hold.state().plan.is_open()
    }

    /// Whether requests that touch what is closed fail, since moving it has
    /// failed.
    pub fn has_failed(&self) -> bool {
        self.hold.state().plan.failing.is_some()
    }

    /// Below the boundary units are stored as `new` says, from it on as before.
    pub(super) fn begin(
        &self,
        new: Arc<Transform>,
        position: Position,
        (size, read_only): (u64, bool),
    ) -> Result<(), Error> {
        let mut state = self.hold.state();
        if state.plan.moving {
            return Err(Error::UnderWay);
        }
        let mut transforms = self.transforms();
        let unit = transforms[0].params().sector_size;
        if new.params().sector_size != unit {
            return Err(Error::SectorSize {
                disk: unit,
                new: new.params().sector_size,
            });
        }
        let boundary = position.boundary;
        if boundary > size || !boundary.is_multiple_of(unit.bytes() as u64) {
            return Err(Error::Boundary { boundary, size });
        }
        // The way of a unit must not change under a request.
        if boundary != 0 && !state.queues.is_empty() {
            return Err(Error::Served);
        }
        transforms[1] = new;
        drop(transforms);
        let before = &state.plan;
        state.plan = Plan {
            since: before.era + 1,
            moving: true,
            read_only,
            direction: position.direction,
            boundary,
            size,
            unit: unit.bytes() as u64,
            ..before.none()
        };
        self.tell(state);
        Ok(())
    }

    /// All data is stored in one way again; the other is forgotten. Returns
    /// when no queue knows its key any more, and it is wiped.
    pub(super) fn end(&self) -> Result<(), Error> {
        let mut state = self.hold.state();
        let plan = &state.plan;
        if !plan.moving {
            return Err(Error::NothingMoves);
        }
        if !plan.is_open() {
            return Err(Error::NotAtRest);
        }
        let left = match plan.boundary {
            0 => 0,
            boundary if boundary == plan.size => 1,
            boundary => {
                return Err(Error::HalfWay {
                    boundary,
                    size: plan.size,
                });
            }
        };
        let mut transforms = self.transforms();
        let kept = transforms[left].clone();
        let gone = std::mem::replace(&mut *transforms, [kept.clone(), kept]);
        drop(transforms);
        // The hands, if anybody has them still, are of no use any more.
        state.plan = state.plan.none();
        let era = self.tell(state);
        drop(gone);
        // Also those who sleep.
        self.hold.announce();
        drop(self.hold.wait(|state| state.all_have_seen(era)));
        Ok(())
    }

    /// A request went on that had waited for so long.
    pub(super) fn waited(&self, microseconds: u64) {
        self.longest_wait.fetch_max(microseconds, Ordering::Relaxed);
    }
}
