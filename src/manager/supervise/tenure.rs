//! A disk whose guest comes from another host, or goes to one.
//!
//! The worker takes the volume and lets it go, at the moment at which the guest's
//! disk starts or stops; this follows, and keeps it on record, so that no next
//! manager serves by itself what another host has. What nobody here writes while the
//! volume is not this host's, `Held` and `volume::tenure` see to.
//!
//! A disk whose guest has gone for good, since its front end has left, has no worker
//! and no key any more. It stays on record, and is shown, until it is detached.
#![forbid(unsafe_code)]

use std::time::Instant;

use tokio::sync::mpsc::Receiver;

use super::{Fate, Supervisor};
use crate::audit::Event;
use crate::error::Failure;
use crate::manager::disks::{Command, Step, blocking};
use crate::manager::held::KeyFacts;
use crate::manager::model::{Detach, DiskState, Problem};
use crate::manager::worker_process::Worker;
use crate::volume::Standing;
use crate::worker::protocol::{Fault, Status};

impl Supervisor {
    /// Takes note of what a worker says of its volume. True when its guest has gone
    /// to another host, and its front end with it.
    pub(super) fn hear_standing(&mut self, status: &Status) -> bool {
        let had_front_end = self.entry.info().front_end;
        self.standing = status.standing;
        self.standing == Standing::Moved && had_front_end && !status.front_end
    }

    /// The volume was not taken, or not let go.
    pub(super) fn hear_problem(&self, fault: Fault) {
        let problem = Problem::from(&Failure::from(fault));
        self.entry.update(|info| info.last_error = Some(problem));
    }

    /// Writes down what was heard, if it is something new.
    pub(super) async fn settle_standing(&mut self) {
        if self.record.standing == self.standing {
            return;
        }
        let pause = self.settling.wait(Instant::now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        self.settling.note(Instant::now());
        self.record.standing = self.standing;
        if self.recorded {
            let (shared, record) = (self.shared.clone(), self.record.clone());
            let written = blocking(move || shared.state.write(&record)).await;
            let written = written.and_then(|written| Ok(written?));
            if let Err(failure) = written {
                tracing::error!("who has the volume is not on record: {failure}");
            }
        }
        let (disk, volume) = (&self.record.name, self.entry.info().uuid);
        match self.standing {
            Standing::Held => {
                self.entry.update(|info| info.last_error = None);
                self.shared.record(Event::DiskTaken { disk, volume });
                self.read_anew().await;
            }
            Standing::Moved => self.shared.record(Event::DiskMoved { disk, volume }),
            Standing::Incoming => {}
        }
        if let Some(status) = self.unsettled.take() {
            self.entry.set_status(status);
        }
        self.shared.settings.step(Step::StandingSettled);
    }

    /// The volume was another host's, which may have made it larger, or have its key
    /// wrapped in another way.
    async fn read_anew(&mut self) {
        self.fresh = None;
        let Some(held) = self.held.clone() else {
            return;
        };
        let header = self.keep_header().await;
        let of = held.clone();
        let read = blocking(move || {
            let volume = of.volume()?;
            // Wraps in a key store are not in the header.
            let here = volume.token().key_store.is_none();
            Ok::<_, Failure>((volume.layout().size, here.then(|| KeyFacts::of(&volume))))
        });
        let read = read.await.and_then(|read| read);
        drop(header);
        match read {
            Ok((size, key)) => {
                held.set_size(size);
                self.entry.update(|info| info.size = Some(size));
                if let Some(key) = key {
                    let key = key.after(self.key.as_ref());
                    self.entry.set_key(&key);
                    self.key = Some(key);
                }
            }
            Err(failure) => tracing::warn!("the header of a disk that came: {failure}"),
        }
    }

    /// The worker is gone: what it was about to write down of a volume, or has not
    /// unlocked, is nobody's.
    pub(super) fn free_what_is_not_held(&self) {
        if let Some(held) = &self.held
            && held.standing() != Standing::Held
            && let Err(error) = held.files.let_go()
        {
            tracing::error!("{error}");
        }
    }

    /// The guest goes on at another host, and its front end has left: the worker
    /// ends, the keys are wiped, and what is left waits to be detached.
    pub(super) async fn part(&mut self, worker: Worker, commands: &mut Receiver<Command>) -> Fate {
        let how = Detach { force: true };
        let (replies, outcome) = self.end(worker, how, Vec::new(), commands).await;
        if let Err(failure) = &outcome {
            tracing::error!("its worker did not end well: {failure}");
        }
        self.free_what_is_not_held();
        if !replies.is_empty() {
            return self.release(replies, outcome).await;
        }
        self.dek = None;
        self.moving = None;
        self.fresh = None;
        self.held = None;
        self.entry.forget_volume();
        if let Some(front_ends) = self.front_ends.take() {
            let removed = blocking(move || front_ends.file.remove(&front_ends.socket)).await;
            if let Err(failure) = removed {
                tracing::error!("its socket is not removed: {failure}");
            }
        }
        tracing::info!("its guest has gone to another host: the key of the disk was wiped");
        self.rest_moved()
    }

    /// Waits to be detached.
    pub(super) fn rest_moved(&mut self) -> Fate {
        self.entry.update(|info| {
            info.state = DiskState::Moved;
            info.pid = None;
            info.front_end = false;
        });
        self.tell_begun();
        Fate::Stuck
    }
}
