//! A disk that is frozen for a snapshot, and its timeout, which holds whatever
//! becomes of the manager.
//!
//! In this order: no request is begun any more, those in flight are completed,
//! what they wrote is made durable; then the disk is frozen, and whoever asked
//! for it is told. Waiting for that is a thread's work, since the control loop
//! has others to listen to, and the end of the time to keep.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::news::News;
use super::protocol::{Fault, Frozen};
use crate::engine::Disk;
use crate::error::Kind;

/// Freezes the disk of this worker, and thaws it.
pub struct Freezer {
    disk: Arc<Disk>,
    news: Arc<News>,
    current: Option<Current>,
}

/// A freeze that has not ended.
struct Current {
    era: u64,
    deadline: Instant,
    until: u64,
    /// What becomes of it, until that is known.
    outcome: Option<Receiver<Result<(), Fault>>>,
}

impl Freezer {
    /// For this disk. `news` wakes the control loop when it is to
    /// [look](Freezer::look).
    pub fn new(disk: Arc<Disk>, news: Arc<News>) -> Self {
        Freezer {
            disk,
            news,
            current: None,
        }
    }

    /// Begins to freeze the disk, for so many milliseconds.
    ///
    /// # Errors
    /// When it is frozen already, or there is no thread for it.
    pub fn begin(&mut self, timeout_ms: u64) -> Result<(), Fault> {
        let Some(era) = self.disk.hold().freeze() else {
            return Err(Fault {
                message: "the disk is frozen already".into(),
                help: Some("thaw it first, if whoever froze it is done with it".into()),
                kind: Kind::Busy,
            });
        };
        let timeout = Duration::from_millis(timeout_ms);
        let (result, outcome) = mpsc::channel();
        let (disk, news) = (self.disk.clone(), self.news.clone());
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new().name("freeze".into());
        let started = thread.spawn(move || {
            let _span = span.entered();
            if disk.hold().wait_until_quiet(era) {
                let _ = result.send(disk.sync_now().map_err(not_durable));
            }
            // What there is of it now is there before this wakes anybody.
            drop(result);
            news.wake();
        });
        if let Err(error) = started {
            self.disk.hold().thaw();
            return Err(Fault {
                message: format!("cannot start a thread: {error}"),
                help: Some("check the limits of the process".into()),
                kind: Kind::Io,
            });
        }
        let until = SystemTime::now() + timeout;
        self.current = Some(Current {
            era,
            deadline: Instant::now() + timeout,
            until: until
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            outcome: Some(outcome),
        });
        Ok(())
    }

    /// Lets the disk go on.
    ///
    /// # Errors
    /// When it is not frozen.
    pub fn thaw(&mut self) -> Result<(), Fault> {
        self.current = None;
        match self.disk.hold().thaw() {
            true => Ok(()),
            false => Err(Fault {
                message: "the disk is not frozen: nobody froze it, or its time is over".into(),
                help: Some(
                    "if a snapshot was taken meanwhile, it was not of a quiet disk: freeze it \
                     again, with a longer --timeout"
                        .into(),
                ),
                kind: Kind::Refused,
            }),
        }
    }

    /// How long the control loop may sleep.
    pub fn left(&self) -> Option<Duration> {
        let deadline = self.current.as_ref()?.deadline;
        // A little late rather than a little early, which would wake it twice.
        let left = deadline.saturating_duration_since(Instant::now());
        Some(left + Duration::from_millis(1))
    }

    /// The freeze, as managers are told of it.
    pub fn frozen(&self) -> Option<Frozen> {
        let current = self.current.as_ref()?;
        let left = current.deadline.saturating_duration_since(Instant::now());
        Some(Frozen {
            complete: current.outcome.is_none(),
            until: current.until,
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// What has become of the freeze since this was asked last: it is complete,
    /// or has failed or ended by itself. The disk goes on then.
    pub fn look(&mut self) -> Option<Result<(), Fault>> {
        let current = self.current.as_mut()?;
        let outcome = current.outcome.as_ref().map(Receiver::try_recv);
        let outcome = match outcome {
            Some(Ok(outcome)) => {
                current.outcome = None;
                outcome
            }
            _ if Instant::now() >= current.deadline => Err(over(current.outcome.is_some())),
            Some(Err(TryRecvError::Disconnected)) => Err(over(true)),
            Some(Err(TryRecvError::Empty)) | None => return None,
        };
        if outcome.is_err() {
            let era = current.era;
            self.current = None;
            if self.disk.hold().is_frozen(era) {
                self.disk.hold().thaw();
            }
        }
        Some(outcome)
    }
}

/// Its time is over, perhaps before it was complete.
fn over(incomplete: bool) -> Fault {
    let (message, help) = match incomplete {
        true => (
            "its time was over before all requests in flight were completed and durable",
            "what lies below the volume is slow, or hangs: try again with a longer --timeout",
        ),
        false => (
            "its time is over, and nobody has thawed the disk: its guest goes on",
            "a snapshot that was not complete by then is of no use: take it again",
        ),
    };
    Fault {
        message: message.into(),
        help: Some(help.into()),
        kind: Kind::Io,
    }
}

/// Somebody thawed it before it was complete.
pub fn thawed_early() -> Fault {
    Fault {
        message: "it was thawed before it was frozen".into(),
        help: Some("freeze it again".into()),
        kind: Kind::Busy,
    }
}

fn not_durable(error: std::io::Error) -> Fault {
    Fault {
        message: format!("what the guest wrote cannot be made durable: {error}"),
        help: Some("check the disk below, for example with `dmesg`".into()),
        kind: Kind::Io,
    }
}
