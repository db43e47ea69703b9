//! Who serves front ends comes to rest between two messages, with all rings
//! stopped, and goes on or ends as it is told: for a hand-over to another process.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use super::handover::Exported;

/// What is handed over: the session with a front end, if one is connected.
pub type Handed = Option<Exported>;

/// What has become of the one who serves.
#[derive(Default)]
enum State {
    #[default]
    Serving,
    /// Somebody wants it to rest.
    Wanted,
    /// It rests, and this is what can be handed over.
    Resting(io::Result<Handed>),
    /// The same, taken by who wanted it.
    Taken,
    /// It shall end: another process goes on.
    Leave,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: OwnedFd,
}

/// Has the one who serves come to rest, from another thread.
#[derive(Clone)]
pub struct Rest(Arc<Shared>);

/// What is to be done after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Serve on.
    GoOn,
    /// End, and leave the front end to another process.
    Leave,
}

impl Rest {
    /// # Errors
    /// When no eventfd can be made.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Rest(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = &self.0.state;
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all rings are stopped, and gives what can be handed over. It
    /// rests until [`Rest::go_on`] or [`Rest::leave`].
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it does not come to rest until then: it goes
    /// on. When there are no descriptors for what is to be handed over: it rests.
    pub fn begin(&self, deadline: Instant) -> io::Result<Handed> {
        let mut state = self.lock();
        *state = State::Wanted;
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
        loop {
            if let State::Resting(_) = &*state {
                return match std::mem::replace(&mut *state, State::Taken) {
                    State::Resting(handed) => handed,
                    _ => Ok(None),
                };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                *state = State::Serving;
                return Err(io::ErrorKind::TimedOut.into());
            }
            let changed = &self.0.changed;
            (state, _) = changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// It goes on.
    pub fn go_on(&self) {
        *self.lock() = State::Serving;
        self.0.changed.notify_all();
    }

    /// It ends, without a word to the front end.
    pub fn leave(&self) {
        *self.lock() = State::Leave;
        self.0.changed.notify_all();
    }

    /// Rests if that is wanted, with what `hand` says that can be handed over.
    pub(super) fn rest(&self, hand: impl FnOnce() -> io::Result<Handed>) -> After {
        let _ = rustix::io::read(&self.0.wake, &mut [0u8; 8]);
        if !matches!(&*self.lock(), State::Wanted) {
            return After::GoOn;
        }
        let handed = hand();
        let mut state = self.lock();
        // It was given up meanwhile.
        if !matches!(&*state, State::Wanted) {
            return After::GoOn;
        }
        *state = State::Resting(handed);
        self.0.changed.notify_all();
        loop {
            match &*state {
                State::Serving => return After::GoOn,
                State::Leave => return After::Leave,
                State::Wanted | State::Resting(_) | State::Taken => {}
            }
            let changed = &self.0.changed;
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Readable when a rest may be wanted.
impl AsFd for Rest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}
