//! A disk that is frozen for a snapshot.
//!
//! The worker does it, and keeps its time: this only asks, and tells. As long
//! as it lasts nobody rewrites the header either, so that the whole volume is
//! quiet.
#![forbid(unsafe_code)]

use std::io;
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use super::{Limited, Supervisor};
use crate::audit::Event;
use crate::error::{Failure, Kind, io_kind};
use crate::manager::worker_process::Worker;
use crate::worker::parcel::Parcel;
use crate::worker::protocol::{Answer, Fault, Frozen, Request, Status};

/// How long the header of a disk that is to be frozen may be rewritten.
const PATIENCE: Duration = Duration::from_secs(5);

/// A freeze that was asked for, or is.
pub struct Freezing {
    /// The call that is answered when it is complete, and who waits for that.
    asked: Option<(u64, Limited)>,
    /// When it ends by itself.
    deadline: Instant,
    /// Keeps the header as it is. None after a restart of the manager amid a
    /// rewrite.
    header: Option<OwnedMutexGuard<()>>,
}

impl Freezing {
    /// Whether somebody waits for it to be complete.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    fn tell(&mut self, outcome: Result<super::DiskInfo, Failure>) {
        if let Some((_, reply)) = self.asked.take() {
            // Who asked may not be waiting any more.
            let _ = reply.send(outcome);
        }
    }
}

impl Supervisor {
    /// Nobody rewrites the header for as long as what is returned lives. A freeze
    /// has seen to that already: this task would wait for itself.
    pub(super) async fn keep_header(&self) -> Option<OwnedMutexGuard<()>> {
        match &self.freezing {
            Some(freezing) if freezing.header.is_some() => None,
            _ => Some(self.entry.header.clone().lock_owned().await),
        }
    }

    /// Begins to freeze the disk. `reply` is told when it is frozen.
    pub(super) async fn freeze(&mut self, worker: &mut Worker, timeout: Duration, reply: Limited) {
        match self.try_freeze(worker, timeout).await {
            Ok((call, mut freezing)) => {
                freezing.asked = Some((call, reply));
                self.freezing = Some(freezing);
            }
            Err(failure) => {
                tracing::warn!("the disk is not frozen: {failure}");
                let _ = reply.send(Err(failure));
            }
        }
    }

    async fn try_freeze(
        &mut self,
        worker: &mut Worker,
        timeout: Duration,
    ) -> Result<(u64, Freezing), Failure> {
        if self.freezing.is_some() {
            return Err(Failure::new(
                Kind::Busy,
                "the disk is frozen already",
                Some("thaw it first, if whoever froze it is done with it".into()),
            ));
        }
        let lock = self.entry.header.clone().lock_owned();
        let header = tokio::time::timeout(PATIENCE, lock).await.map_err(|_| {
            Failure::new(
                Kind::Busy,
                "the header of the disk is being rewritten",
                Some("try again".into()),
            )
        })?;
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Freeze { timeout_ms };
        let call = worker.link.send(request, Parcel::default()).await;
        let call = call.map_err(|error| not_heard(&error))?;
        tracing::info!(?timeout, "freezing");
        let freezing = Freezing {
            asked: None,
            deadline: Instant::now() + timeout,
            header: Some(header),
        };
        Ok((call, freezing))
    }

    /// Takes an answer of the worker, if it is that to a freeze.
    pub(super) fn frozen(&mut self, id: u64, answer: Answer) {
        let Some(freezing) = &mut self.freezing else {
            return;
        };
        if freezing.asked.as_ref().is_none_or(|(call, _)| *call != id) {
            return;
        }
        let failure = match answer {
            Answer::Status { status } => {
                tracing::info!("frozen");
                self.entry.set_status(status);
                freezing.tell(Ok(self.entry.info()));
                return;
            }
            Answer::Failed { fault } => fault.into(),
            _ => Failure::new(
                Kind::Unsupported,
                "the worker of the disk is of an earlier version, and cannot freeze it",
                Some("end its process: the next worker of the disk can".into()),
            ),
        };
        tracing::warn!("the disk is not frozen: {failure}");
        if let Some(mut freezing) = self.freezing.take() {
            freezing.tell(Err(failure));
        }
    }

    /// Sees by what the worker says whether the freeze has ended.
    pub(super) fn heed_freeze(&mut self, status: &Status) {
        match (&self.freezing, status.frozen) {
            (Some(freezing), None) if freezing.asked.is_none() => {
                tracing::warn!("nobody thawed the disk in its time: it goes on");
                self.freezing = None;
                self.note_thawed();
            }
            // Found with a worker of an earlier manager.
            (None, Some(frozen)) => self.freezing = Some(self.found_frozen(frozen)),
            _ => {}
        }
    }

    fn found_frozen(&self, frozen: Frozen) -> Freezing {
        Freezing {
            asked: None,
            deadline: Instant::now() + Duration::from_millis(frozen.left_ms),
            header: self.entry.header.clone().try_lock_owned().ok(),
        }
    }

    fn note_thawed(&self) {
        self.shared.record(Event::Thaw {
            disk: &self.record.name,
            volume: self.entry.info().uuid,
            expired: true,
        });
    }

    /// Lets the disk go on.
    pub(super) async fn thaw(&mut self, worker: &mut Worker, reply: Limited) {
        let outcome = match worker.link.call(Request::Thaw, Parcel::default()).await {
            Ok((Answer::Status { status }, _)) => {
                // Else it would be found frozen by what was said before.
                worker.link.forget_news();
                self.entry.set_status(status);
                // One that is not complete by now is told so by the worker.
                if self.freezing.as_ref().is_some_and(|it| it.asked.is_none()) {
                    self.freezing = None;
                }
                tracing::info!("thawed");
                Ok(self.entry.info())
            }
            Ok((Answer::Failed { fault }, _)) => Err(fault.into()),
            Ok(_) => Err(Failure::from(Fault {
                message: "the disk is not frozen: its worker is of an earlier version".into(),
                help: None,
                kind: Kind::Refused,
            })),
            Err(error) => Err(not_heard(&error)),
        };
        let _ = reply.send(outcome);
    }

    /// The worker is gone. A freeze that was complete goes on with the next
    /// one, for which it is for how many milliseconds that lasts.
    pub(super) fn frozen_at_start(&mut self) -> Option<u64> {
        let freezing = self.freezing.as_ref()?;
        let left = freezing.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.freezing = None;
            self.note_thawed();
            return None;
        }
        u64::try_from(left.as_millis()).ok()
    }

    /// The worker is gone, or the disk is to go: nobody waits for a freeze that
    /// was not complete.
    pub(super) fn give_up_freezing(&mut self) {
        if let Some(mut freezing) = self.freezing.take_if(|it| it.asked.is_some()) {
            freezing.tell(Err(Failure::new(
                Kind::Io,
                "the worker of the disk ended before it was frozen",
                Some("freeze it again".into()),
            )));
        }
    }
}

/// Why a disk that is not served is neither frozen nor thawed.
pub fn not_served() -> Failure {
    Failure::new(
        Kind::Busy,
        "the disk is not served at this moment",
        Some("`sealblk list` says what it is doing: try again when it is running".into()),
    )
}

fn not_heard(error: &io::Error) -> Failure {
    Failure::new(
        io_kind(error),
        format!("the worker of the disk does not answer: {error}"),
        Some("try again".into()),
    )
}
