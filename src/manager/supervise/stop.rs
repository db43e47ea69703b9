//! Away with a disk: its worker is stopped, and what is left of it removed,
//! the record last.
#![forbid(unsafe_code)]

use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use super::{Fate, Supervisor};
use crate::error::{Failure, Kind};
use crate::manager::disks::{Command, Step, blocking};
use crate::manager::model::{Detach, DiskState};
use crate::manager::worker_process::{Worker, control_path};
use crate::worker::parcel::Parcel;
use crate::worker::protocol::{Answer, Fault, Message, Request};

/// Who is told that a disk was detached.
pub(super) type Replies = Vec<oneshot::Sender<Result<(), Failure>>>;

/// How soon a worker that could not be taken away is looked for again.
const SHORTLY: Duration = Duration::from_secs(1);

fn tell(replies: Replies, outcome: Result<(), &Failure>) {
    // A failure has one owner, and there may be several who wait.
    let outcome = outcome.map_err(Fault::from);
    for reply in replies {
        // Who asked may not be waiting any more.
        let _ = reply.send(outcome.clone().map_err(Failure::from));
    }
}

impl Supervisor {
    /// Detaches a disk that is not served.
    pub(super) async fn take_away(
        &mut self,
        how: Detach,
        reply: oneshot::Sender<Result<(), Failure>>,
    ) -> Fate {
        if self.maybe_alive {
            match self.lost.take() {
                Some(process) if how.force => {
                    process.kill();
                    process.ended().await;
                    self.maybe_alive = false;
                }
                lost => {
                    self.lost = lost;
                    let _ = reply.send(Err(Failure::new(
                        Kind::Busy,
                        "the worker of the disk does not answer, and may be serving it",
                        Some("end its process (`fuser -v` of the volume names it), or wait".into()),
                    )));
                    return Fate::Again(SHORTLY);
                }
            }
        }
        self.entry.set_state(DiskState::Stopping);
        self.release(vec![reply], Ok(())).await
    }

    /// The disk cannot be had, and nobody wants to wait for it.
    pub(super) async fn give_up(&mut self, failure: Failure) -> Fate {
        tracing::warn!("the disk is not attached: {failure}");
        self.entry.fail(DiskState::Stopping, &failure);
        let begun = self.begun.take();
        let fate = self.release(Vec::new(), Ok(())).await;
        if let Some(begun) = begun {
            let _ = begun.send(Err(failure));
        }
        fate
    }

    /// Stops the worker, and then takes the disk away.
    pub(super) async fn stop(
        &mut self,
        worker: Worker,
        how: Detach,
        reply: oneshot::Sender<Result<(), Failure>>,
        commands: &mut Receiver<Command>,
    ) -> Fate {
        let (replies, outcome) = self.end(worker, how, vec![reply], commands).await;
        self.release(replies, outcome).await
    }

    /// Stops the worker, and tells how it ended, and who else wants the disk
    /// away by now.
    pub(super) async fn end(
        &mut self,
        mut worker: Worker,
        how: Detach,
        mut replies: Replies,
        commands: &mut Receiver<Command>,
    ) -> (Replies, Result<(), Failure>) {
        self.entry.set_state(DiskState::Stopping);
        // Should it not be heard, the process has ended, or will be ended.
        let sent = worker.link.send(Request::Stop, Parcel::default()).await;
        self.shared.settings.step(Step::Stopping);
        let stop_timeout = self.shared.settings.stop_timeout;
        let patience = match (how.force, &sent) {
            (true, Ok(_)) => stop_timeout,
            (_, Err(_)) => Duration::ZERO,
            (false, Ok(_)) => Duration::MAX,
        };
        let end = tokio::time::sleep(patience);
        tokio::pin!(end);
        let mut linked = true;
        let mut farewell = None;
        let mut killed = false;
        let ended = loop {
            tokio::select! {
                message = worker.link.next(), if linked => match message {
                    Ok(Some(message)) => farewell = farewell.or(last_words(message)),
                    Ok(None) | Err(_) => linked = false,
                },
                ended = worker.process.ended() => break ended,
                () = &mut end, if !killed => {
                    tracing::warn!("the requests of the disk do not complete: its worker is killed");
                    worker.process.kill();
                    killed = true;
                }
                Some(command) = commands.recv() => match command {
                    Command::Detach { how, reply } => {
                        replies.push(reply);
                        if how.force {
                            end.as_mut().reset(tokio::time::Instant::now() + stop_timeout);
                        }
                    }
                    other => {
                        let busy = "the disk is being detached";
                        other.refuse(Failure::new(Kind::Busy, busy, None));
                    }
                },
            }
        };
        for message in worker.link.last_words().await {
            farewell = farewell.or(last_words(message));
        }
        self.shared.settings.step(Step::Stopped);
        self.give_up_freezing();
        self.freezing = None;
        let outcome = match farewell {
            Some(None) => Ok(()),
            Some(Some(fault)) => Err(fault.into()),
            None if killed && how.force => Ok(()),
            None => Err(Failure::new(
                Kind::Io,
                format!(
                    "the worker process {ended} while it was stopping: \
                     what was not flushed may be lost"
                ),
                Some("its last words are in the log of the manager".into()),
            )),
        };
        (replies, outcome)
    }

    /// Removes what is left, the record last, and tells who asked for that.
    /// The disk is gone even if it did not end well.
    pub(super) async fn release(&mut self, replies: Replies, outcome: Result<(), Failure>) -> Fate {
        match self.remove().await {
            Ok(()) => {
                self.shared.registry.remove(&self.record.name, &self.entry);
                match &outcome {
                    Ok(()) => tracing::info!("detached"),
                    Err(failure) => tracing::error!("detached, and not all is well: {failure}"),
                }
                tell(replies, outcome.as_ref().copied());
                if let Some(begun) = self.begun.take() {
                    let _ = begun.send(Err(Failure::new(
                        Kind::Busy,
                        "the disk was detached before it was attached",
                        None,
                    )));
                }
                Fate::Gone
            }
            Err(failure) => {
                tracing::error!("the disk is not served, and is still on record: {failure}");
                self.entry.fail(DiskState::Failed, &failure);
                tell(replies, Err(&failure));
                Fate::Stuck
            }
        }
    }

    async fn remove(&mut self) -> Result<(), Failure> {
        self.freezing = None;
        // Nobody is rewriting the header any more when the lock goes.
        self.give_back_space().await;
        self.end_plain().await;
        let header = self.entry.header.lock().await;
        let reading = self.entry.reading.write().await;
        self.entry.forget_volume();
        self.fresh = None;
        self.held = None;
        self.dek = None;
        self.moving = None;
        drop(reading);
        drop(header);
        let front_ends = self.front_ends.take();
        let control = control_path(&self.shared.workers, &self.record);
        let (shared, name) = (self.shared.clone(), self.record.name.clone());
        let recorded = self.recorded;
        blocking(move || -> Result<(), Failure> {
            if let Some(front_ends) = front_ends {
                front_ends.file.remove(&front_ends.socket);
            }
            let _ = std::fs::remove_file(control);
            shared.settings.step(Step::Unbound);
            if recorded {
                shared.state.remove(&name)?;
                shared.settings.step(Step::Forgotten);
            }
            Ok(())
        })
        .await??;
        self.recorded = false;
        Ok(())
    }
}

/// What a worker said of its end, if this is it.
fn last_words(message: Message) -> Option<Option<Fault>> {
    match message {
        Message::Ended { fault }
        | Message::Answer {
            answer: Answer::Stopped { fault },
            ..
        } => Some(fault),
        _ => None,
    }
}
