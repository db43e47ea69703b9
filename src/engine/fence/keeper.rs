//! The hands of whoever moves the data.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Fence;
use super::view::Access;
use crate::engine::hold::State;
use crate::rekey::{self, Direction};

/// Closes and opens the fence of a disk. There is one at most.
///
/// What is closed when it is dropped stays closed, and requests that touch it
/// fail from then on: nobody knows how it is stored. The next keeper can mend
/// that, when it has recovered what the journal covers: by closing all of it
/// for reading, and advancing over it.
#[derive(Debug)]
pub struct Keeper {
    fence: Arc<Fence>,
    /// The move that it is for.
    since: u64,
}

impl Keeper {
    pub(super) fn new(fence: Arc<Fence>, since: u64) -> Self {
        Keeper { fence, since }
    }

    /// Whether something may be closed now.
    fn may(&self, state: &State) -> bool {
        let plan = &state.plan;
        let idle = plan.halted || plan.lost || plan.read_only;
        self.keeps(state) && !idle && state.is_open()
    }

    /// Whether it is still this move that the plan is about.
    fn keeps(&self, state: &State) -> bool {
        state.plan.moving && state.plan.since == self.since
    }

    /// Whether a region may be closed now: the disk is not frozen, held, lost
    /// or stopped.
    pub fn may_go_on(&self) -> bool {
        self.may(&self.fence.hold.state())
    }

    /// Waits for so long, or until [no region may be closed](Keeper::may_go_on).
    /// True when one may.
    pub fn pause(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let state = self
            .fence
            .hold
            .wait_until(deadline, |state| !self.may(state));
        self.may(&state)
    }

    /// Waits for so long, or until a region may be closed. True when it may.
    pub fn wait_to_go_on(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        self.may(
            &self
                .fence
                .hold
                .wait_until(deadline, |state| self.may(state)),
        )
    }

    fn close(&self, access: Access, direction: Direction, bytes: u64) -> bool {
        let hold = &self.fence.hold;
        let mut state = hold.state();
        if !self.may(&state) {
            return false;
        }
        let Some(region) = state.plan.region(direction, bytes) else {
            tracing::error!(bytes, "a region of no whole sectors cannot be closed");
            return false;
        };
        if !state.plan.is_closed(access, &region) {
            let before = state.plan.closed.clone();
            state.plan.close(access, &region);
            let era = self.fence.tell(state);
            state = hold.wait(|state| !self.may(state) || state.all_are_clear(era));
            if !self.may(&state) {
                state.plan.closed = before;
                self.fence.tell(state);
                return false;
            }
        }
        if access == Access::Read {
            state.plan.cleared = region;
        }
        true
    }
}

impl rekey::Fence for Keeper {
    fn close_for_writing(&self, direction: Direction, bytes: u64) -> bool {
        self.close(Access::Write, direction, bytes)
    }

    fn close_for_reading(&self, direction: Direction, bytes: u64) -> bool {
        self.close(Access::Read, direction, bytes)
    }

    fn advance(&self, direction: Direction, bytes: u64) {
        let mut state = self.fence.hold.state();
        if !self.keeps(&state) {
            return;
        }
        let region = state.plan.region(direction, bytes);
        if !region.is_some_and(|region| state.plan.advance(direction, &region)) {
            tracing::error!(
                bytes,
                "what was not closed cannot have been moved: its requests fail from now on"
            );
            debug_assert!(false, "a region is closed for reading before it is moved");
            state.plan.failing = true;
        }
        self.fence.tell(state);
    }

    fn open(&self) {
        let mut state = self.fence.hold.state();
        if self.keeps(&state) {
            state.plan.open();
            self.fence.tell(state);
        }
    }

    fn longest_wait(&self) -> u64 {
        self.fence.longest_wait.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut state = self.fence.hold.state();
        if !self.keeps(&state) {
            return;
        }
        state.plan.kept = false;
        if state.plan.is_open() {
            return;
        }
        tracing::error!(
            from = state.plan.closed[Access::Write as usize].start,
            to = state.plan.closed[Access::Write as usize].end,
            "moving this part of the disk has failed: its requests fail until it is recovered"
        );
        state.plan.failing = true;
        self.fence.tell(state);
    }
}
