//! The fence as one queue thread has it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::view::{Access, agree};
use super::{Fence, View};
use crate::engine::hold::Member;

/// An operation in flight: what it does, where, and with how many bytes.
type InFlight = (Access, u64, u64);

/// A queue thread's view, and what the keeper has been told by it.
#[derive(Debug)]
pub struct Local {
    fence: Arc<Fence>,
    view: View,
    /// Operations in flight touch what the view closes: the keeper waits.
    pending: bool,
}

impl Local {
    /// For a queue that has nothing in flight, and is woken by this.
    pub fn new(fence: Arc<Fence>, member: &Member, wake: Arc<OwnedFd>) -> Self {
        let mut state = fence.hold.state();
        state.note_wake(member.number(), wake);
        let view = View::new(&state.plan, &fence.transforms());
        state.note(member.number(), view.era(), true);
        drop(state);
        // Whoever waits for all queues waits for this one since it has joined.
        fence.hold.announce_to_waiters();
        Local {
            fence,
            view,
            pending: false,
        }
    }

    /// What holds for operations that begin, or end, now.
    #[inline]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether there is nothing to be learned, nor to be told.
    #[inline]
    pub fn is_settled(&self) -> bool {
        !self.pending && self.view.era() == self.fence.era.load(Ordering::Acquire)
    }

    /// Takes the newest view, and tells the keeper whether its region is clear
    /// of operations in flight. True when there is a newer view.
    pub fn follow(
        &mut self,
        member: &Member,
        in_flight: impl Iterator<Item = InFlight> + Clone,
    ) -> bool {
        let mut state = self.fence.hold.state();
        let newer = state.plan.era != self.view.era();
        if newer {
            let view = View::new(&state.plan, &self.fence.transforms());
            debug_assert!(
                in_flight
                    .clone()
                    .all(|(_, start, len)| agree(&self.view, &view, start, len)),
                "the boundary moves over no operation in flight"
            );
            // What goes here may be the last that has a key.
            self.view = view;
        }
        let touches = |(access, start, len)| self.view.is_closed(access, start, len);
        self.pending = in_flight.clone().any(touches);
        state.note(member.number(), self.view.era(), !self.pending);
        drop(state);
        self.fence.hold.announce_to_waiters();
        newer
    }

    /// The queue is going to sleep with nothing in flight: nobody has to wait for
    /// it, nor wake it. It [follows](Local::follow) when it is awake again, before
    /// anything else.
    pub fn doze(&self, member: &Member) {
        self.fence.hold.state().doze(member.number());
        self.fence.hold.announce_to_waiters();
    }

    /// A request went on that had waited for so long.
    pub fn waited(&self, microseconds: u64) {
        self.fence.waited(microseconds);
    }
}
