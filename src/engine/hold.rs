//! Whether the requests of a disk are carried out, wait, or fail: for as long
//! as its key is denied, for as long as it is frozen for a snapshot, and for as
//! long as it is stopped because the disk below fails ([`trouble`]).
//!
//! These are reasons of their own, and the limits of the disk ([`throttle`])
//! are another: a request is carried out when none of them is against it. For
//! the first two, what a queue had taken from its ring before is completed first, also what only
//! waited for its turn; from then on nothing more is taken. So what waits, waits
//! in the guest's own ring, where nothing can lose it: not the end of a session
//! or of this process, and stopping a queue waits for nothing. A queue that
//! holds sleeps until it is woken.
//!
//! Where nothing is held, all this is one look at a byte.
//!
//! Who moves the data of the disk ([`fence`]) comes to rest while anything is
//! held, and a freeze waits for that as well. So what is shared for both lies
//! under one lock, and whoever waits for one of them is told of the other.
//!
//! A disk that is stopped begins nothing, also of what was taken: that would
//! fail as well.
//!
//! [`throttle`]: super::throttle
//! [`trouble`]: super::trouble
//! [`fence`]: super::fence
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::fence::Plan;
use super::wakers::Wakers;

/// What is done with requests because of the key of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They are carried out.
    #[default]
    Run,
    /// They wait.
    Pause,
    /// They fail at once.
    Fail,
}

/// What a queue does with the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It takes it, and carries it out.
    Open,
    /// It takes none.
    Shut,
    /// It takes it, and answers that it failed.
    Failing,
    /// It takes none, and begins nothing that it has: the disk below fails.
    Stopped,
}

const OPEN: u8 = 0;
const SHUT: u8 = 1;
const FAILING: u8 = 2;
const STOPPED: u8 = 3;

/// What the queues of a disk share to hold its requests.
#[derive(Debug)]
pub struct Hold {
    gate: AtomicU8,
    /// Counts the freezes.
    era: AtomicU64,
    state: Mutex<State>,
    /// A queue has become quiet, has followed the fence or has ended; or what
    /// is held, or closed, has changed.
    changed: Condvar,
    wakers: Arc<Wakers>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    mode: Mode,
    frozen: bool,
    /// The disk below fails.
    stopped: bool,
    era: u64,
    /// The queues that run.
    pub(super) queues: Vec<QueueState>,
    next: u64,
    /// Where the data of the disk is being moved.
    pub(super) plan: Plan,
}

/// What a queue has said.
#[derive(Debug)]
pub(super) struct QueueState {
    number: u64,
    /// It is quiet in this freeze.
    quiet: bool,
    /// The number of the plan that it follows.
    seen: u64,
    /// The number of the last plan in which nothing of it was in flight that
    /// touches what is closed.
    clear: u64,
    /// It sleeps with nothing in flight, and takes the newest plan before it
    /// begins anything.
    dozes: bool,
    /// What wakes it.
    wake: Option<Arc<OwnedFd>>,
}

impl State {
    /// Whether requests are carried out.
    pub(super) fn is_open(&self) -> bool {
        self.gate() == OPEN
    }

    /// Whether anything may be done with the disk below: not while its key is denied,
    /// or a snapshot is taken.
    pub(super) fn may_touch(&self) -> bool {
        matches!(self.gate(), OPEN | STOPPED)
    }

    fn queue(&mut self, number: u64) -> Option<&mut QueueState> {
        self.queues.iter_mut().find(|queue| queue.number == number)
    }

    /// A queue is awake, and follows the plan of that number; and is clear of it
    /// or not.
    pub(super) fn note(&mut self, number: u64, era: u64, clear: bool) {
        if let Some(queue) = self.queue(number) {
            queue.dozes = false;
            queue.seen = era;
            if clear {
                queue.clear = era;
            }
        }
    }

    /// A queue can be woken by this.
    pub(super) fn note_wake(&mut self, number: u64, wake: Arc<OwnedFd>) {
        if let Some(queue) = self.queue(number) {
            queue.wake = Some(wake);
        }
    }

    /// A queue begins nothing before it has said which plan it follows then.
    pub(super) fn doze(&mut self, number: u64) {
        if let Some(queue) = self.queue(number) {
            queue.dozes = true;
        }
    }

    /// Wakes the queues that are to follow another plan at once.
    pub(super) fn wake(&self) {
        let awake = self.queues.iter().filter(|queue| !queue.dozes);
        for wake in awake.filter_map(|queue| queue.wake.as_ref()) {
            // An eventfd that is full wakes as well.
            let _ = rustix::io::write(&**wake, &1u64.to_ne_bytes());
        }
    }

    /// Whether all queues follow that plan, or a newer one.
    pub(super) fn all_have_seen(&self, era: u64) -> bool {
        self.queues.iter().all(|queue| queue.seen >= era)
    }

    /// Whether no queue has anything in flight that touches what that plan, or
    /// a newer one, closes.
    pub(super) fn all_are_clear(&self, era: u64) -> bool {
        let is_clear = |queue: &QueueState| queue.dozes || queue.clear >= era;
        self.queues.iter().all(is_clear)
    }

    fn gate(&self) -> u8 {
        match (self.mode, self.frozen) {
            // What fails touches nothing, frozen or not.
            (Mode::Fail, _) => FAILING,
            (Mode::Pause, _) | (_, true) => SHUT,
            (Mode::Run, false) if self.stopped => STOPPED,
            (Mode::Run, false) => OPEN,
        }
    }
}

impl Hold {
    /// Nothing is held yet. The threads that `wakers` knows are woken when that
    /// changes.
    pub fn new(wakers: Arc<Wakers>) -> Self {
        Hold {
            gate: AtomicU8::new(OPEN),
            era: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
            wakers,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this is so.
    pub(super) fn wait(&self, mut so: impl FnMut(&State) -> bool) -> MutexGuard<'_, State> {
        self.changed
            .wait_while(self.state(), |state| !so(state))
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this is so, or that time has come.
    pub(super) fn wait_until(
        &self,
        deadline: Instant,
        mut so: impl FnMut(&State) -> bool,
    ) -> MutexGuard<'_, State> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.changed
            .wait_timeout_while(self.state(), left, |state| !so(state))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Has everybody look at what has changed: the queues, and who waits for them.
    pub(super) fn announce(&self) {
        self.changed.notify_all();
        self.wakers.wake_all();
    }

    /// The same where it is nothing to the queues.
    pub(super) fn announce_to_waiters(&self) {
        self.changed.notify_all();
    }

    /// Lets the queues know what has become of `state`.
    fn tell(&self, state: MutexGuard<'_, State>) {
        self.era.store(state.era, Ordering::SeqCst);
        self.gate.store(state.gate(), Ordering::SeqCst);
        drop(state);
        self.announce();
    }

    /// What is done with the next request.
    #[inline]
    pub fn gate(&self) -> Gate {
        match self.gate.load(Ordering::Acquire) {
            OPEN => Gate::Open,
            FAILING => Gate::Failing,
            STOPPED => Gate::Stopped,
            _ => Gate::Shut,
        }
    }

    /// What is done because of the key.
    pub fn mode(&self) -> Mode {
        self.state().mode
    }

    /// Does something else because of the key, from now on.
    pub fn set(&self, mode: Mode) {
        let mut state = self.state();
        state.mode = mode;
        self.tell(state);
    }

    /// Begins nothing more, since the disk below fails; or goes on.
    pub(super) fn set_stopped(&self, stopped: bool) {
        let mut state = self.state();
        state.stopped = stopped;
        self.tell(state);
    }

    /// Takes no more requests until it is thawed. The number of this freeze;
    /// nothing when the disk is frozen already.
    pub fn freeze(&self) -> Option<u64> {
        let mut state = self.state();
        if state.frozen {
            return None;
        }
        state.frozen = true;
        state.era += 1;
        for queue in &mut state.queues {
            queue.quiet = false;
        }
        let era = state.era;
        self.tell(state);
        Some(era)
    }

    /// Goes on. False when the disk is not frozen.
    pub fn thaw(&self) -> bool {
        let mut state = self.state();
        let frozen = std::mem::take(&mut state.frozen);
        self.tell(state);
        frozen
    }

    /// Waits until no queue has a request in flight, and who moves the data is
    /// at rest. False when the freeze of this number ended before that.
    pub fn wait_until_quiet(&self, era: u64) -> bool {
        let lasts = |state: &State| state.frozen && state.era == era;
        let quiet = |state: &State| {
            state.queues.iter().all(|queue| queue.quiet) && !state.plan.is_under_way()
        };
        lasts(&self.wait(|state| !lasts(state) || quiet(state)))
    }

    /// The same, but not for longer than until that time. False when it is over.
    pub fn wait_until_quiet_by(&self, era: u64, deadline: Instant) -> bool {
        let lasts = |state: &State| state.frozen && state.era == era;
        let quiet = |state: &State| {
            state.queues.iter().all(|queue| queue.quiet) && !state.plan.is_under_way()
        };
        let done = |state: &State| !lasts(state) || quiet(state);
        let state = self.wait_until(deadline, done);
        lasts(&state) && quiet(&state)
    }

    /// Whether the freeze of this number has not ended.
    pub fn is_frozen(&self, era: u64) -> bool {
        let state = self.state();
        state.frozen && state.era == era
    }

    /// Whether it is frozen.
    pub fn has_freeze(&self) -> bool {
        self.state().frozen
    }

    /// Whether a queue has ended with something at the kernel.
    pub fn has_lost(&self) -> bool {
        self.state().plan.lost
    }

    /// A queue begins to run. It is waited for as long as what is returned lives.
    pub fn join(self: &Arc<Self>) -> Member {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.queues.push(QueueState {
            number,
            quiet: false,
            seen: 0,
            clear: 0,
            dozes: false,
            wake: None,
        });
        Member {
            hold: self.clone(),
            number,
            told: None,
        }
    }
}

/// A queue that runs.
#[derive(Debug)]
pub struct Member {
    hold: Arc<Hold>,
    number: u64,
    /// The freeze in which it was quiet already.
    told: Option<u64>,
}

impl Member {
    /// Which queue it is.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The queue ends, and the kernel may still write for it: no data may be
    /// moved any more.
    pub(super) fn lose(&self) {
        tracing::error!("a queue has ended with writes at the kernel: no data is moved any more");
        self.hold.state().plan.lost = true;
        self.hold.announce();
    }

    /// The queue has nothing in flight, and has seen that it is not to begin
    /// anything.
    pub fn quiet(&mut self) {
        if self.told == Some(self.hold.era.load(Ordering::Acquire)) {
            return;
        }
        let mut state = self.hold.state();
        let number = self.number;
        if let Some(queue) = state.queue(number) {
            queue.quiet = true;
        }
        self.told = Some(state.era);
        drop(state);
        self.hold.changed.notify_all();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let number = self.number;
        self.hold.state().queues.retain(|it| it.number != number);
        self.hold.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn hold() -> Arc<Hold> {
        Arc::new(Hold::new(Arc::default()))
    }

    #[test]
    fn reasons_are_independent() {
        let hold = hold();
        assert_eq!(hold.gate(), Gate::Open);
        hold.set(Mode::Pause);
        hold.freeze().unwrap();
        assert_eq!(hold.freeze(), None, "it is frozen already");
        assert!(hold.thaw());
        assert_eq!(hold.gate(), Gate::Shut, "its key is still denied");
        hold.freeze().unwrap();
        hold.set(Mode::Run);
        assert_eq!(hold.gate(), Gate::Shut, "it is still frozen");
        hold.set(Mode::Fail);
        assert_eq!(hold.gate(), Gate::Failing);
        hold.set_stopped(true);
        assert_eq!(hold.gate(), Gate::Failing, "no time mends its key");
        hold.set(Mode::Run);
        assert_eq!(hold.gate(), Gate::Shut, "it is frozen, stopped or not");
        assert!(hold.thaw());
        assert_eq!(hold.gate(), Gate::Stopped);
        hold.set_stopped(false);
        assert!(!hold.thaw(), "it is not frozen any more");
        assert_eq!(hold.gate(), Gate::Open);
    }

    #[test]
    fn a_freeze_waits_for_all_queues_and_for_each_freeze_anew() {
        let hold = hold();
        let mut queues = [hold.join(), hold.join(), hold.join()];
        for _ in 0..3 {
            let era = hold.freeze().unwrap();
            let waiter = {
                let hold = hold.clone();
                std::thread::spawn(move || hold.wait_until_quiet(era))
            };
            queues[0].quiet();
            queues[0].quiet();
            queues[1].quiet();
            std::thread::yield_now();
            assert!(!waiter.is_finished());
            queues[2].quiet();
            assert!(waiter.join().unwrap());
            assert!(hold.is_frozen(era));
            assert!(hold.thaw());
            assert!(!hold.is_frozen(era));
        }
    }

    #[test]
    fn a_queue_that_ends_and_a_thaw_are_waited_for_no_longer() {
        let hold = hold();
        let queue = hold.join();
        let era = hold.freeze().unwrap();
        let wait = |era| {
            let hold = hold.clone();
            std::thread::spawn(move || hold.wait_until_quiet(era))
        };
        let waiter = wait(era);
        drop(queue);
        assert!(waiter.join().unwrap());
        let _queue = hold.join();
        assert!(hold.thaw());
        let era = hold.freeze().unwrap();
        let waiter = wait(era);
        assert!(hold.thaw());
        assert!(!waiter.join().unwrap());
        assert!(!hold.wait_until_quiet(era), "that one has ended");
    }

    /// One that is paused and then frozen has been quiet all the time, and
    /// says so once more.
    #[test]
    fn a_paused_queue_is_quiet_in_the_freeze_that_follows() {
        let hold = hold();
        let mut queue = hold.join();
        hold.set(Mode::Pause);
        queue.quiet();
        let era = hold.freeze().unwrap();
        let start = Instant::now();
        let waiter = {
            let hold = hold.clone();
            std::thread::spawn(move || hold.wait_until_quiet(era))
        };
        queue.quiet();
        assert!(waiter.join().unwrap());
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
