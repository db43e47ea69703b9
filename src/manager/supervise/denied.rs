//! What becomes of a disk whose key is denied, and that it goes on when it is
//! not any more.
//!
//! A disk that is paused, or fails, keeps its worker and its key: it goes on at
//! a word. One that is detached keeps its place on record, its name, and the
//! lock of its volume, and nothing else. In this order: the worker completes
//! what is in flight, makes it durable, wipes its key and ends; the manager
//! wipes its own; the socket goes, so that QEMU finds nobody there, rather than
//! somebody who does not answer. A manager that ends meanwhile leaves a record,
//! and the next one asks for a key that it does not get.
//!
//! Only a grant lets go what is held: not silence, and not another manager.
#![forbid(unsafe_code)]

use std::io;

use tokio::sync::mpsc::Receiver;

use super::{Fate, Supervisor};
use crate::audit::Event;
use crate::engine::hold::Mode;
use crate::error::{Failure, Kind, io_kind};
use crate::keys::OnDenied;
use crate::manager::access::{Need, Verdict};
use crate::manager::disks::{Command, Pace, blocking};
use crate::manager::model::{Detach, DiskState, Problem};
use crate::manager::worker_process::Worker;
use crate::worker::parcel::Parcel;
use crate::worker::protocol::{Answer, Request, Status};

/// What a verdict means for the disk.
enum Wish {
    /// Nothing is known, or not for long enough: it stays as it is.
    Same,
    /// Its requests are treated so.
    Mode(Mode),
    /// It is not served, and there is no key of it.
    Nothing,
}

impl Supervisor {
    fn verdict(&self) -> Option<Verdict> {
        let volume = self.held.as_ref()?.spec.uuid;
        let need = Need::of(&self.entry.key()?, volume);
        match self.shared.access.verdict(&need)? {
            // Its key was unwrapped after that: the next answer will say more.
            Verdict::Denied(it) if self.entry.believed().is_some_and(|at| at > it.heard) => None,
            verdict => Some(verdict),
        }
    }

    fn wish(&self) -> Wish {
        let denial = match self.verdict() {
            None => return Wish::Same,
            Some(Verdict::Granted) => return Wish::Mode(Mode::Run),
            Some(Verdict::Denied(denial)) if !denial.in_force => return Wish::Same,
            Some(Verdict::Denied(denial)) => denial,
        };
        match denial.on_denied {
            OnDenied::Continue => Wish::Mode(Mode::Run),
            OnDenied::Pause => Wish::Mode(Mode::Pause),
            OnDenied::Fail => Wish::Mode(Mode::Fail),
            // A key that the service does not have may never come back, and
            // what was wiped here could not be brought back by anybody.
            OnDenied::Detach if denial.gone => Wish::Mode(Mode::Pause),
            OnDenied::Detach => Wish::Nothing,
        }
    }

    /// Shows what is known of the key.
    pub(super) fn show_verdict(&self) {
        match self.verdict() {
            None => {}
            Some(Verdict::Granted) => self.entry.update(|info| info.denial = None),
            Some(Verdict::Denied(denial)) => self.entry.update(|info| {
                info.denial = Some(denial.info());
                info.last_error = Some(denial.problem.clone());
            }),
        }
    }

    /// Whether a disk that is not served for want of its key need not be tried.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self.verdict(), Some(Verdict::Denied(_)))
    }

    /// Whether it can be had, as far as is known.
    pub(super) fn is_granted(&self) -> bool {
        matches!(self.verdict(), Some(Verdict::Granted))
    }

    /// How a worker that is started now treats requests.
    pub(super) fn mode_at_start(&mut self) -> Mode {
        match self.wish() {
            Wish::Same => {}
            Wish::Mode(mode) => self.mode = mode,
            // It will be taken away, and does nothing until then.
            Wish::Nothing => self.mode = Mode::Pause,
        }
        self.mode
    }

    /// Does what the verdict on its key means for a disk that is served. True
    /// when it is not to be served any more.
    pub(super) async fn heed(&mut self, worker: &mut Worker) -> bool {
        self.show_verdict();
        let mode = match self.wish() {
            Wish::Same => return false,
            Wish::Nothing => return true,
            Wish::Mode(mode) => mode,
        };
        if mode == self.mode {
            return false;
        }
        match hold(worker, mode).await {
            Ok(status) => {
                self.mode = mode;
                self.entry.set_status(status);
                match mode {
                    Mode::Run => self.note_released(),
                    Mode::Pause => self.note_held("pause"),
                    Mode::Fail => self.note_held("fail"),
                }
            }
            Err(failure) => {
                tracing::error!("its requests are treated as before: {failure}");
                let problem = Problem::from(&failure);
                self.entry.update(|info| info.last_error = Some(problem));
            }
        }
        false
    }

    fn note_held(&self, action: &str) {
        let info = self.entry.info();
        let key_set = self.key_set_denied();
        tracing::error!(action, key_set, "the key of the disk is denied");
        self.shared.record(Event::DiskHeld {
            disk: &self.record.name,
            volume: info.uuid,
            key_set: &key_set,
            action,
        });
    }

    pub(super) fn note_released(&self) {
        tracing::info!("the key of the disk can be used again: it goes on");
        self.shared.record(Event::DiskReleased {
            disk: &self.record.name,
            volume: self.entry.info().uuid,
        });
    }

    fn key_set_denied(&self) -> String {
        match self.verdict() {
            Some(Verdict::Denied(denial)) => denial.key_set.clone(),
            _ => self.entry.info().key_set.unwrap_or_default(),
        }
    }

    /// Takes the disk away from its front end, and wipes its key. It stays on
    /// record, and comes back when its key can be used.
    pub(super) async fn withdraw(
        &mut self,
        worker: Worker,
        commands: &mut Receiver<Command>,
    ) -> Fate {
        self.note_held("detach");
        // One that does not end is not waited for: what it has is to be wiped.
        let how = Detach { force: true };
        let (replies, outcome) = self.end(worker, how, Vec::new(), commands).await;
        if let Err(failure) = &outcome {
            tracing::error!("its worker did not end well: {failure}");
        }
        self.dek = None;
        self.moving = None;
        self.fresh = None;
        self.moving_waits();
        self.shared.keys.forget_group_keys();
        if !replies.is_empty() {
            // Somebody detached it meanwhile.
            return self.release(replies, outcome).await;
        }
        self.withdrawn = true;
        self.mode = Mode::Run;
        if let Some(front_ends) = self.front_ends.take() {
            let removed = blocking(move || front_ends.file.remove(&front_ends.socket)).await;
            if let Err(failure) = removed {
                tracing::error!("its socket is not removed: {failure}");
            }
        }
        let since = self.entry.info().denial.map(|denial| denial.since);
        tracing::error!(
            since,
            "the disk is not served: its key is denied, and was wiped"
        );
        self.entry.update(|info| {
            info.state = DiskState::Denied;
            info.pid = None;
            info.front_end = false;
            info.frozen = None;
            info.trouble = None;
            info.stuck = None;
        });
        let poll = self.shared.settings.poll;
        let (first, most) = (poll, poll);
        Fate::Again(Pace { first, most }.pause(0))
    }
}

async fn hold(worker: &mut Worker, mode: Mode) -> Result<Status, Failure> {
    const LATER: &str =
        "end its process to have it so at once: the next worker of the disk does it";
    let failed = |kind, what: String| {
        let message = format!("the worker does not hold its requests: {what}");
        Err(Failure::new(kind, message, Some(LATER.into())))
    };
    let request = Request::Hold { mode };
    match worker.link.call(request, Parcel::default()).await {
        Ok((Answer::Status { status }, _)) => Ok(status),
        Ok((Answer::Failed { fault }, _)) => failed(fault.kind, fault.message),
        Ok(_) => failed(Kind::Unsupported, "it is of an earlier version".into()),
        Err(error) => failed(io_kind(&error), io::Error::to_string(&error)),
    }
}
