//! The worker that serves a disk hands it over to another one, and goes on by itself
//! if that one does not.
//!
//! A thread does it, since it waits for requests in flight. In this order: no request
//! is begun any more, as for a freeze, which can be taken back as long as something is
//! in flight; the front end is not listened to, and the rings are stopped; the marks
//! and the turn are let go of; the session is sent. What was written is not made
//! durable for it: that is the guest's to ask for, and whoever goes on flushes the
//! same file.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::cord;
use super::news::News;
use super::parcel::Parcel;
use super::peer::{Elder, Heir, Peer, Session};
use super::protocol::{Fault, Frozen, HAND_OVER};
use super::turn::{self, Turn};
use crate::engine::Disk;
use crate::error::{Kind, io_kind};
use crate::vhost::{Handed, Rest};

/// How long the other process may take from having the session until it serves. It
/// takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to be gone once it was killed, before that is told.
const DYING: Duration = Duration::from_secs(1);

/// So often, and then nothing can be taken back: somebody else serves.
const TRIES: u32 = 30;

/// What is handed over, and to whom.
pub struct Estate {
    pub disk: Arc<Disk>,
    pub rest: Rest,
    pub turn: Turn,
    /// What data is moved through, if it is.
    pub mover: Option<File>,
    pub managers: OwnedFd,
    pub peer: Peer,
    /// What ends the other process. One of an earlier version has none: the manager
    /// ends it, if it has to be.
    pub heir: Option<OwnedFd>,
    pub frozen: Option<Frozen>,
    pub drain: Duration,
}

/// A hand-over that is under way.
pub struct HandOver {
    /// The call that is answered.
    pub call: u64,
    outcome: Receiver<Result<Duration, Fault>>,
}

fn fault(kind: Kind, message: impl Into<String>, help: &str) -> Fault {
    Fault {
        message: message.into(),
        help: Some(help.into()),
        kind,
    }
}

fn failed(what: &str, error: &io::Error) -> Fault {
    let message = format!("{what}: {error}");
    fault(io_kind(error), message, "the disk is served on; try again")
}

/// Why it cannot go to a process that has it in another way.
///
/// # Errors
/// Unless it is this version.
pub fn check_version(version: u32) -> Result<(), Fault> {
    match version {
        HAND_OVER => Ok(()),
        _ => Err(fault(
            Kind::Unsupported,
            format!(
                "this worker hands disks over as version {HAND_OVER}, and the new one takes them \
                 as version {version}"
            ),
            "let the front end connect anew instead: `sealblk upgrade --reconnect`",
        )),
    }
}

impl HandOver {
    /// Begins.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn begin(call: u64, estate: Estate, news: Arc<News>) -> Result<Self, Fault> {
        let (result, outcome) = mpsc::channel();
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new().name("hand-over".into());
        let started = thread.spawn(move || {
            let _span = span.entered();
            let given = estate.give();
            let left = given.is_ok();
            // What there is of it now is there before this wakes anybody.
            let _ = result.send(given);
            drop(result);
            news.wake();
            if left {
                estate.rest.leave();
            }
        });
        match started {
            Ok(_) => Ok(HandOver { call, outcome }),
            Err(error) => Err(failed("cannot start a thread", &error)),
        }
    }

    /// What has become of it, if that is known: how long nothing was carried out, or
    /// why it was not handed over. Told once.
    pub fn look(&self) -> Option<Result<Duration, Fault>> {
        match self.outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(fault(
                Kind::Internal,
                "the thread that hands the disk over has panicked",
                "detach the disk when its guest has ended",
            ))),
        }
    }
}

impl Estate {
    fn give(&self) -> Result<Duration, Fault> {
        let begun = Instant::now();
        let deadline = begun + self.drain;
        let hold = self.disk.hold().clone();
        let era = match self.frozen {
            // Nothing is in flight.
            Some(_) => None,
            None => Some(hold.freeze().ok_or_else(|| {
                let help = "wait until it is frozen or thawed, and try again";
                fault(Kind::Busy, "the disk is being frozen", help)
            })?),
        };
        let thaw = |era: Option<u64>| {
            if era.is_some() {
                hold.thaw();
            }
        };
        if let Some(era) = era
            && !hold.wait_until_quiet_by(era, deadline)
        {
            hold.thaw();
            return Err(self.slow("requests in flight do not complete"));
        }
        let handed = match self.rest.begin(deadline) {
            Ok(handed) => handed,
            Err(error) => {
                self.rest.go_on();
                thaw(era);
                return Err(match error.kind() {
                    io::ErrorKind::TimedOut => self.slow("the front end is in a message"),
                    _ => failed("the session cannot be handed over", &error),
                });
            }
        };
        let drained = begun.elapsed();
        let given = self.let_go().and_then(|()| self.offer(handed));
        match given {
            Ok(()) => {
                let pause = begun.elapsed();
                tracing::info!(?drained, ?pause, "another process serves the disk");
                Ok(pause)
            }
            Err(fault) => {
                if self.take_back() {
                    tracing::warn!("the disk is served on, as before: {fault}");
                    self.rest.go_on();
                    thaw(era);
                } else {
                    tracing::error!("somebody else serves the disk: this process ends");
                    self.rest.leave();
                }
                Err(fault)
            }
        }
    }

    fn slow(&self, what: &str) -> Fault {
        fault(
            Kind::Busy,
            format!("{what} within {:?}: it is not handed over", self.drain),
            "the disk is served on as before; look what the disk below is doing, and try again",
        )
    }

    /// From here on the other process may begin.
    fn let_go(&self) -> Result<(), Fault> {
        let unlock = || -> io::Result<()> {
            if !self.disk.shape().read_only {
                turn::unmark(self.disk.store().files(), self.mover.as_ref())?;
            }
            self.turn.release()
        };
        unlock().map_err(|error| failed("the locks of the disk cannot be released", &error))
    }

    /// Offers the session, until the other process serves, or cannot any more.
    fn offer(&self, exported: Handed) -> Result<(), Fault> {
        let lost = |error: &io::Error| failed("the new worker does not take the disk", error);
        let managers = self.managers.try_clone().map_err(|error| lost(&error))?;
        let session = Session {
            exported,
            frozen_ms: self.frozen.map(|frozen| frozen.left_ms),
            managers,
        };
        let given = self.peer.give(session);
        if given.is_err() {
            // It may have a part of it, and does nothing with that.
            self.end_heir();
        }
        given.map_err(|error| lost(&error))?;
        let heard = match self.peer.await_next(Some(Instant::now() + PATIENCE)) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let _ = self.peer.say(Elder::Cancel, &Parcel::default());
                self.end_heir();
                // It has begun to serve at the last moment, or is gone.
                self.peer.await_next(None)
            }
            heard => heard,
        };
        match heard {
            Ok(Some((Heir::Serving, _))) => Ok(()),
            Ok(Some((Heir::Failed { fault }, _))) => Err(fault),
            Ok(None) => Err(fault(
                Kind::Internal,
                "the new worker ended before it served",
                "its last words are in the log of the manager",
            )),
            Err(error) => {
                // What it says is not understood: it is none of ours.
                self.end_heir();
                Err(lost(&error))
            }
        }
    }

    fn end_heir(&self) {
        if let Some(cord) = &self.heir {
            cord::pull(cord);
        }
    }

    /// Takes the turn and the marks again, which takes no time: nobody has them but
    /// a process that is ending. False: somebody has.
    fn take_back(&self) -> bool {
        for _ in 0..TRIES {
            let marked = self.turn.take(DYING).and_then(|taken| {
                if !taken || self.disk.shape().read_only {
                    return Ok(taken);
                }
                turn::mark(self.disk.store().files(), self.mover.as_ref(), DYING)
            });
            match marked {
                Ok(true) => return true,
                Ok(false) => tracing::warn!("waiting for the process that was to go on"),
                Err(error) => tracing::error!(%error, "the locks of the disk cannot be taken"),
            }
            self.end_heir();
        }
        false
    }
}
