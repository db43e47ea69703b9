//! What becomes of requests that fail at the disk below: they are answered with
//! an error, or wait and are tried again, and all others with them or not.
//!
//! A request that waits keeps its slot, and neither a buffer nor an operation:
//! set aside (`engine::retry`) it is tried again as a whole pass over what failed
//! of it, under whatever keys and limits hold by then. It is written down as in
//! flight all the time, where the front end keeps that, so that the next process
//! tries it again as well. A disk is *stopped* as long as one of its requests
//! waits that shall stop it; [`hold`](super::hold) keeps the others back.
//!
//! | what fails | what becomes of it |
//! |---|---|
//! | `EINTR`, `EAGAIN` | it is tried again under every policy, for half a minute; then it is as any other |
//! | `EINVAL`, `EBADF`, `EFAULT`, `EOPNOTSUPP`, `ENOSYS` | answered with an error: no time mends it |
//! | an fdatasync, with any other error | answered with an error, and all flushes after it: what the kernel has dropped once, a second fdatasync says nothing of |
//! | all else | as the [policy](OnError) says |
//!
//! Where nothing has failed, this costs a look at an empty list.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::hold::Hold;
use super::slots::OpKind;

/// What is done when the disk below fails, as QEMU's `werror` and `rerror`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The guest has an I/O error.
    #[default]
    Report,
    /// The request waits, and all that come after it, until it succeeds or
    /// somebody says that it shall fail.
    Stop,
    /// The same where there is no space left, and [`OnError::Report`] for all else.
    Enospc,
    /// The request waits, and others go on.
    Retry,
}

/// For how long what is transient is tried again under every policy.
const TRANSIENT: Duration = Duration::from_secs(30);

/// So often it is tried at once, before that.
pub(super) const AT_ONCE: u8 = 8;

/// How soon a request is tried again, at first and at most: it doubles.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An operation that the disk below has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it was.
    pub operation: Work,
    /// Where, in bytes of the disk.
    pub position: u64,
    /// How long.
    pub bytes: u64,
    /// What the kernel said; 0 when the file or device ended there.
    pub errno: i32,
}

/// What an operation does, as people are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Deallocates.
    Deallocate,
    /// Makes durable.
    Flush,
    /// Something that a later version does.
    #[serde(other)]
    Unknown,
}

impl Work {
    /// As it stands in messages and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Work::Read => "read",
            Work::Write => "write",
            Work::Deallocate => "deallocate",
            Work::Flush => "flush",
            Work::Unknown => "operation",
        }
    }
}

impl From<OpKind> for Work {
    fn from(kind: OpKind) -> Self {
        match kind {
            OpKind::Read => Work::Read,
            OpKind::Write => Work::Write,
            OpKind::Punch => Work::Deallocate,
            OpKind::Sync => Work::Flush,
        }
    }
}

impl Failure {
    /// What failed, and why, in words.
    pub fn error(&self) -> io::Error {
        match self.errno {
            0 => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file or device ends before that",
            ),
            errno => io::Error::from_raw_os_error(errno),
        }
    }
}

/// What is to be done with a request that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is answered with an error.
    Report,
    /// It waits.
    Wait,
    /// It waits, and the disk is stopped.
    Stop,
}

/// The requests of a disk that wait because the disk below fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Whether all requests wait: the disk is stopped.
    pub stopped: bool,
    /// Since when: seconds since 1970.
    pub since: u64,
    /// How many wait because they have failed.
    pub waiting: u64,
    /// How often one of them was tried, in all.
    pub attempts: u64,
    /// What failed last.
    pub last: Failure,
}

/// What was counted since the disk was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Times that it was stopped.
    #[serde(default)]
    pub stops: u64,
    /// Failed requests that were to wait.
    #[serde(default)]
    pub waited: u64,
    /// Times that operations were too long in flight.
    #[serde(default)]
    pub stuck: u64,
}

/// Is told that a disk has stopped, or goes on.
type Hook = Box<dyn Fn() + Send + Sync>;

/// What the queues of a disk share of their trouble.
pub struct Trouble {
    policy: OnError,
    hold: Arc<Hold>,
    /// Counts the orders to try again at once.
    tries: AtomicU64,
    /// Counts the orders to fail what waits.
    failures: AtomicU64,
    state: Mutex<State>,
    hook: Option<Hook>,
}

#[derive(Debug, Default)]
struct State {
    standing: Option<Standing>,
    counts: Counts,
}

impl Trouble {
    /// None so far.
    pub(super) fn new(policy: OnError, hold: Arc<Hold>) -> Self {
        Trouble {
            policy,
            hold,
            tries: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            state: Mutex::default(),
            hook: None,
        }
    }

    /// The same, which calls `hook` whenever a disk stops or goes on, when the
    /// first request waits, or none any more, and when one was tried in vain.
    pub(super) fn telling(mut self, hook: Hook) -> Self {
        self.hook = Some(hook);
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        if let Some(hook) = &self.hook {
            hook();
        }
    }

    /// What is done when the disk below fails.
    pub fn policy(&self) -> OnError {
        self.policy
    }

    /// What is to be done with a request of which an operation has failed with
    /// this, and that has waited for so long already.
    pub(super) fn verdict(&self, kind: OpKind, errno: i32, waited: Duration) -> Verdict {
        match errno {
            libc::EAGAIN | libc::EINTR if waited < TRANSIENT => return Verdict::Wait,
            _ if kind == OpKind::Sync => return Verdict::Report,
            libc::EINVAL | libc::EBADF | libc::EFAULT | libc::EOPNOTSUPP | libc::ENOSYS => {
                return Verdict::Report;
            }
            _ => {}
        }
        match (self.policy, errno) {
            (OnError::Stop, _) | (OnError::Enospc, libc::ENOSPC | libc::EDQUOT) => Verdict::Stop,
            (OnError::Retry, _) => Verdict::Wait,
            (OnError::Report | OnError::Enospc, _) => Verdict::Report,
        }
    }

    /// An operation of a request has failed, and the request is to wait: for the
    /// first time if it is `new`.
    pub(super) fn begin(&self, failure: Failure, new: bool, stops: bool) {
        let mut state = self.state();
        let before = state.standing;
        let standing = state.standing.get_or_insert(Standing {
            stopped: false,
            since: now(),
            waiting: 0,
            attempts: 0,
            last: failure,
        });
        standing.attempts += 1;
        standing.waiting += u64::from(new);
        standing.last = failure;
        standing.stopped |= stops;
        let after = *standing;
        let has_stopped = after.stopped && before.is_none_or(|before| !before.stopped);
        state.counts.waited += u64::from(new);
        state.counts.stops += u64::from(has_stopped);
        drop(state);
        let (error, position, bytes) = (failure.error(), failure.position, failure.bytes);
        let what = failure.operation.as_str();
        if has_stopped {
            self.hold.set_stopped(true);
            tracing::error!(
                %error, operation = what, position, bytes,
                "the disk below has failed: the disk is stopped, and its guest waits; it goes on \
                 by itself when that is over"
            );
        } else if before.is_none() {
            tracing::warn!(
                %error, operation = what, position, bytes,
                "the disk below has failed: the request waits, and is tried again"
            );
        }
        // Also who has asked to try again hears what came of it.
        if has_stopped || !new || before.is_none() {
            self.tell();
        }
    }

    /// A request that waited does not any more.
    pub(super) fn end(&self) {
        let mut state = self.state();
        let Some(standing) = &mut state.standing else {
            return;
        };
        standing.waiting = standing.waiting.saturating_sub(1);
        if standing.waiting > 0 {
            return;
        }
        let over = *standing;
        state.standing = None;
        drop(state);
        if over.stopped {
            self.hold.set_stopped(false);
        }
        tracing::info!(
            attempts = over.attempts,
            "no request waits for the disk below any more: the disk goes on"
        );
        self.tell();
    }

    /// What waits now, if something does.
    pub fn standing(&self) -> Option<Standing> {
        self.state().standing
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// An operation is in flight for too long.
    pub(super) fn count_stuck(&self) {
        self.state().counts.stuck += 1;
        self.tell();
    }

    /// That is over, or it is another one.
    pub(super) fn stuck_changed(&self) {
        self.tell();
    }

    /// Has what waits tried again at once. What comes of it shows.
    pub fn try_now(&self) {
        self.tries.fetch_add(1, Ordering::SeqCst);
        self.hold.announce();
    }

    /// Has what waits answered with an error, and the disk go on.
    pub fn give_up(&self) {
        self.failures.fetch_add(1, Ordering::SeqCst);
        self.hold.announce();
    }

    /// The orders that were given: to try again, and to fail.
    pub(super) fn orders(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::SeqCst);
        (count(&self.tries), count(&self.failures))
    }
}

impl std::fmt::Debug for Trouble {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        to.debug_struct("Trouble")
            .field("policy", &self.policy)
            .field("state", &*state)
            .finish_non_exhaustive()
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::hold::Gate;
    use std::sync::atomic::AtomicUsize;

    const FAILURE: Failure = Failure {
        operation: Work::Write,
        position: 4096,
        bytes: 512,
        errno: libc::ENOSPC,
    };

    fn trouble(policy: OnError) -> Trouble {
        Trouble::new(policy, Arc::new(Hold::new(Arc::default())))
    }

    #[test]
    fn who_waits_for_what() {
        use OnError::{Enospc, Report, Retry, Stop};
        let now = Duration::ZERO;
        for (policy, errno, expected) in [
            (Report, libc::EIO, Verdict::Report),
            (Report, libc::ENOSPC, Verdict::Report),
            (Report, libc::EAGAIN, Verdict::Wait),
            (Stop, libc::EIO, Verdict::Stop),
            (Stop, libc::EDQUOT, Verdict::Stop),
            (Stop, 0, Verdict::Stop),
            (Stop, libc::EAGAIN, Verdict::Wait),
            (Stop, libc::EINVAL, Verdict::Report),
            (Enospc, libc::ENOSPC, Verdict::Stop),
            (Enospc, libc::EDQUOT, Verdict::Stop),
            (Enospc, libc::EIO, Verdict::Report),
            (Retry, libc::EIO, Verdict::Wait),
            (Retry, libc::EBADF, Verdict::Report),
        ] {
            let trouble = trouble(policy);
            for kind in [OpKind::Read, OpKind::Write, OpKind::Punch] {
                let verdict = trouble.verdict(kind, errno, now);
                assert_eq!(verdict, expected, "{policy:?} {kind:?} {errno}");
            }
            // Never tried again, unless it was not tried at all.
            let sync = match errno {
                libc::EAGAIN => Verdict::Wait,
                _ => Verdict::Report,
            };
            assert_eq!(trouble.verdict(OpKind::Sync, errno, now), sync);
        }
        // What is transient is not so for ever.
        for (policy, expected) in [
            (Report, Verdict::Report),
            (Stop, Verdict::Stop),
            (Retry, Verdict::Wait),
        ] {
            let verdict = trouble(policy).verdict(OpKind::Read, libc::EAGAIN, TRANSIENT);
            assert_eq!(verdict, expected);
        }
    }

    #[test]
    fn a_disk_is_stopped_as_long_as_a_request_waits() {
        static TOLD: AtomicUsize = AtomicUsize::new(0);
        let trouble = trouble(OnError::Stop).telling(Box::new(|| {
            TOLD.fetch_add(1, Ordering::SeqCst);
        }));
        trouble.begin(FAILURE, true, true);
        trouble.begin(FAILURE, true, true);
        // The first of them is tried once more, in vain.
        trouble.begin(FAILURE, false, true);
        assert_eq!(trouble.hold.gate(), Gate::Stopped);
        let standing = trouble.standing().unwrap();
        assert_eq!((standing.waiting, standing.attempts), (2, 3));
        trouble.end();
        assert_eq!(trouble.hold.gate(), Gate::Stopped);
        assert_eq!(TOLD.load(Ordering::SeqCst), 2);
        trouble.end();
        assert_eq!(trouble.hold.gate(), Gate::Open);
        assert_eq!((trouble.standing(), TOLD.load(Ordering::SeqCst)), (None, 3));
        // One more end than there were beginnings is no reason to go wrong.
        trouble.end();
        let counts = trouble.counts();
        assert_eq!((counts.stops, counts.waited), (1, 2));
    }

    #[test]
    fn a_request_that_waits_alone_stops_nobody() {
        let trouble = trouble(OnError::Retry);
        trouble.begin(FAILURE, true, false);
        assert_eq!(trouble.hold.gate(), Gate::Open);
        assert!(!trouble.standing().unwrap().stopped);
        trouble.end();
        assert_eq!(trouble.counts().stops, 0);
    }
}
