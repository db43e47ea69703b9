//! The hands of whoever moves the data.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Fence;
use super::view::{Access, Failing};
use crate::engine::hold::State;
use crate::rekey::{self, Direction};

/// Closes and opens the fence of a disk. There is one at most.
///
/// When moving what is closed has failed, nobody knows how it is stored. Requests
/// that touch it wait until the keeper has found out, or have an error when it
/// [says so](Keeper::fail) meanwhile. They fail from the moment on in which it is
/// dropped: the next keeper can mend that, when it has recovered what the journal
/// covers, by closing all of it for reading, and advancing over it.
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

    /// What is closed stays so for as long as the disk below fails with `errno`:
    /// requests that touch it have that error, until it is opened. False when nothing
    /// is closed.
    pub fn fail(&self, errno: i32) -> bool {
        let mut state = self.fence.hold.state();
        if !self.keeps(&state) || state.plan.is_open() {
            return false;
        }
        state.plan.mending = false;
        let failing = Some(Failing::Below(errno));
        if std::mem::replace(&mut state.plan.failing, failing) == failing {
            // Nothing new to the queues; but a freeze may wait for this.
            self.fence.hold.announce_to_waiters();
            return true;
        }
        tracing::error!(
            from = state.plan.closed[Access::Write as usize].start,
            to = state.plan.closed[Access::Write as usize].end,
            "moving this part of the disk has failed: its requests fail as well, or wait, \
             until it can be read and written"
        );
        self.fence.tell(state);
        true
    }

    /// Nobody will learn how what is closed is stored: requests that touch it fail.
    pub fn give_up(&self) {
        let state = self.fence.hold.state();
        if self.keeps(&state) && !state.plan.is_open() {
            self.fence.lose(state);
        }
    }

    /// Whether what is closed may be read and written now, to find out how it is
    /// stored. Where requests [have an error](Keeper::fail) a freeze, or a key that is
    /// denied, does not wait for that, so that it is not begun then; but once it has
    /// begun, until it has failed again or nothing is closed.
    pub fn may_mend(&self) -> bool {
        let mut state = self.fence.hold.state();
        if !self.keeps(&state) || state.plan.failing.is_none() {
            return true;
        }
        state.plan.mending |= state.may_touch();
        state.plan.mending
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
            state.plan.failing = Some(Failing::ForGood);
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
        state.plan.mending = false;
        if state.plan.is_open() || state.plan.failing.is_some() {
            return self.fence.hold.announce_to_waiters();
        }
        self.fence.lose(state);
    }
}
