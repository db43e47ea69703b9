//! Another process as the worker of a disk, while that is served: it goes on with the
//! front end where the old one stops.
//!
//! The two settle between themselves who serves (`worker::elder`, `worker::heir`), so
//! that it harms nothing when this manager ends meanwhile. Here a process is started
//! that is ready to go on, the old one is told to hand over to it, and it is awaited
//! what both say of the outcome. There is always one of them left, unless it died.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::stop::Replies;
use super::{Fate, Supervisor};
use crate::error::{Failure, Kind, io_kind};
use crate::manager::disks::{Command, Step, system};
use crate::manager::model::{Detach, UpgradeDisk, UpgradedDisk};
use crate::manager::worker_process::{self, Heir, Worker};
use crate::secret::Dek;
use crate::worker::parcel::{Parcel, Role};
use crate::worker::protocol::{Answer, Contents, Message, Request, Status};

/// Who is told what became of another worker.
pub type Upgraded = oneshot::Sender<Result<UpgradedDisk, Failure>>;

/// How long requests in flight may take to complete. The guest waits meanwhile, which
/// it must not do for long; nothing is handed over then.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the two may take for the rest, before the new one is given up.
const PATIENCE: Duration = Duration::from_secs(25);

/// How long the old process may take to end when it serves no more.
const ENDING: Duration = Duration::from_secs(5);

/// Who serves the disk after an attempt.
enum Outcome {
    /// The new worker, after a pause of so many microseconds, if that is known.
    New(Box<Worker>, Option<u64>),
    /// The old one, as before.
    Old(Failure),
    /// Nobody: both processes are gone.
    Nobody(Failure),
    /// The old one, as it seems, and there is no connection to it.
    Unknown(Failure),
}

/// What an old worker says of a hand-over.
enum Given {
    /// It was one, with a pause of so many microseconds.
    Yes(u64),
    /// It goes on.
    No(Failure),
    /// It says nothing any more.
    Gone,
}

impl Supervisor {
    /// Replaces the worker, and tells `reply` what became of it.
    pub(super) async fn upgrade(
        &mut self,
        mut old: Worker,
        wanted: UpgradeDisk,
        reply: Upgraded,
        commands: &mut Receiver<Command>,
    ) -> Fate {
        let before = old.version.clone();
        let program = self.program.clone();
        self.program = wanted.binary.clone().or(program.clone());
        let mut outcome = self.try_upgrade(&mut old).await;
        if let Outcome::Old(failure) = &outcome
            && failure.kind() == Kind::Unsupported
            && wanted.reconnect
            && self.record.ephemeral.is_none()
        {
            tracing::warn!("its front end has to connect anew: {failure}");
            return self.reconnect(old, &before, reply, commands).await;
        }
        if !self.shared.settings.keep_deks {
            self.dek = None;
            self.moving = None;
        }
        let (fate, told) = match &mut outcome {
            Outcome::New(..) => {
                self.end_old(old).await;
                let Outcome::New(worker, pause) = outcome else {
                    return Fate::Stuck;
                };
                let version = worker.version.clone();
                tracing::info!(
                    before,
                    version,
                    pause_us = pause,
                    "another worker serves the disk"
                );
                self.shared.settings.step(Step::HandedOver);
                let fate = self.serves(*worker);
                let done = UpgradedDisk {
                    disk: self.entry.info(),
                    before,
                    version,
                    pause_us: pause,
                };
                (fate, Ok(done))
            }
            Outcome::Old(failure) => {
                self.program = program;
                tracing::warn!("its worker stays: {failure}");
                (Fate::Served(Box::new(old)), Err(copy(failure)))
            }
            Outcome::Nobody(failure) => {
                self.program = program;
                let how = old.process.ended().await;
                let fate = self.died(&how, None, Duration::ZERO);
                (fate, Err(copy(failure)))
            }
            Outcome::Unknown(failure) => {
                self.program = program;
                self.maybe_alive = true;
                self.lost = Some(old.process);
                (Fate::Again(Duration::ZERO), Err(copy(failure)))
            }
        };
        // Who asked may not be waiting any more.
        let _ = reply.send(told);
        fate
    }

    /// Tries to have another process go on.
    async fn try_upgrade(&mut self, old: &mut Worker) -> Outcome {
        if self.freezing.as_ref().is_some_and(|it| it.is_asked()) {
            return Outcome::Old(Failure::new(
                Kind::Busy,
                "the disk is being frozen",
                Some("wait until it is frozen or thawed, and try again".into()),
            ));
        }
        let mut heir = match self.begin_heir(old).await {
            Ok(heir) => heir,
            Err(failure) => return Outcome::Old(failure),
        };
        self.shared.settings.step(Step::HeirPrepared);
        let asked = self.ask_to_hand_over(old, &mut heir).await;
        self.shared.settings.step(Step::HandOverTold);
        let (given, taken) = self.await_both(old, &mut heir, asked).await;
        match (given, taken) {
            (given, Ok(status)) => {
                let Heir {
                    link,
                    process,
                    version,
                    ..
                } = heir;
                let pause = match given {
                    Some(Given::Yes(pause)) => Some(pause),
                    _ => None,
                };
                let worker = Worker {
                    link,
                    process,
                    status,
                    version,
                };
                Outcome::New(Box::new(worker), pause)
            }
            // It was not heard that the new worker serves, and it is gone by now.
            (Some(Given::Yes(_)), Err(failure)) => Outcome::Nobody(failure),
            (Some(Given::No(failure)), Err(_)) => Outcome::Old(failure),
            (Some(Given::Gone) | None, Err(failure)) => {
                match tokio::time::timeout(ENDING, old.process.ended()).await {
                    Ok(_) => Outcome::Nobody(failure),
                    Err(_) => Outcome::Unknown(failure),
                }
            }
        }
    }

    /// Starts a process that is ready to go on.
    async fn begin_heir(&mut self, old: &mut Worker) -> Result<Heir, Failure> {
        let contents = self.contents();
        let dek = match contents {
            Contents::Ephemeral => Some(Arc::new(bequeathed(old).await?)),
            Contents::Lost => None,
            Contents::Volume => {
                if self.dek.is_none() {
                    self.unwrap().await.map_err(|trouble| trouble.failure)?;
                }
                self.dek.clone()
            }
        };
        let Some(plan) = self.plan(self.mode, None, dek) else {
            let what = "a worker was to be started without a volume or its key";
            return Err(Failure::new(Kind::Internal, what, None));
        };
        worker_process::start_heir(plan, &self.shared.settings).await
    }

    async fn ask_to_hand_over(&self, old: &mut Worker, heir: &mut Heir) -> io::Result<u64> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let mut parcel = Parcel::default();
        parcel.add(Role::Peer, heir.peer.take().ok_or_else(gone)?);
        // Workers of earlier versions end it by this.
        parcel.add(Role::Process, heir.process.descriptor()?);
        if let Some(cord) = heir.cord.take() {
            parcel.add(Role::Cord, cord);
        }
        let request = Request::HandOver {
            version: heir.hand_over,
            drain_ms: u64::try_from(DRAIN.as_millis()).unwrap_or(u64::MAX),
        };
        old.link.send(request, parcel).await
    }

    /// Waits until it is known who serves. The new worker is gone if it does not.
    async fn await_both(
        &mut self,
        old: &mut Worker,
        heir: &mut Heir,
        asked: io::Result<u64>,
    ) -> (Option<Given>, Result<Status, Failure>) {
        let mut given = asked.is_err().then_some(Given::Gone);
        let call = asked.unwrap_or_default();
        let mut taken = None;
        let late = tokio::time::sleep(DRAIN + PATIENCE);
        tokio::pin!(late);
        let mut killed = false;
        while taken.is_none() {
            tokio::select! {
                message = old.link.next(), if given.is_none() => {
                    given = self.hear_old(message, call);
                    // Then the other end of the new one is closed, or serves.
                }
                message = heir.link.next() => taken = hear_heir(message, heir.call),
                () = &mut late, if !killed => {
                    heir.process.kill();
                    killed = true;
                }
            }
        }
        match taken.unwrap_or_else(|| Err(ended_early())) {
            Ok(status) => {
                // How long it took is worth a moment.
                let deadline = Instant::now() + ENDING;
                while given.is_none() {
                    let next = tokio::time::timeout_at(deadline, old.link.next()).await;
                    given = match next {
                        Ok(message) => self.hear_old(message, call),
                        Err(_) => Some(Given::Gone),
                    };
                }
                (given, Ok(status))
            }
            Err(failure) => {
                heir.process.kill();
                heir.process.ended().await;
                let deadline = Instant::now() + DRAIN + PATIENCE;
                while given.is_none() {
                    let next = tokio::time::timeout_at(deadline, old.link.next()).await;
                    given = match next {
                        Ok(message) => self.hear_old(message, call),
                        Err(_) => Some(Given::Gone),
                    };
                }
                (given, Err(failure))
            }
        }
    }

    /// What the old worker says, if it is about that.
    fn hear_old(&mut self, message: io::Result<Option<Message>>, call: u64) -> Option<Given> {
        match message {
            Ok(Some(Message::Answer { id, answer })) if id == call => Some(match answer {
                Answer::HandedOver { pause_us } => Given::Yes(pause_us),
                Answer::Failed { fault } => Given::No(fault.into()),
                _ => Given::No(Failure::new(
                    Kind::Unsupported,
                    "the worker of the disk is of an earlier version, and hands nothing over",
                    Some(
                        "let the front end connect anew instead: `sealblk upgrade --reconnect`"
                            .into(),
                    ),
                )),
            }),
            Ok(Some(message)) => {
                self.hear(message, &mut None);
                None
            }
            Ok(None) | Err(_) => Some(Given::Gone),
        }
    }

    /// The old process serves no more, and ends by itself.
    async fn end_old(&mut self, old: Worker) {
        if tokio::time::timeout(ENDING, old.process.ended())
            .await
            .is_err()
        {
            tracing::warn!("the old worker does not end: it is killed");
            old.process.kill();
            old.process.ended().await;
        }
    }

    /// Ends the old worker with nothing in flight, and starts the new one on the same
    /// socket.
    async fn reconnect(
        &mut self,
        old: Worker,
        before: &str,
        reply: Upgraded,
        commands: &mut Receiver<Command>,
    ) -> Fate {
        let none: Replies = Vec::new();
        let (replies, outcome) = self.end(old, Detach::default(), none, commands).await;
        if !replies.is_empty() {
            let gone = Failure::new(Kind::Busy, "the disk was detached meanwhile", None);
            let _ = reply.send(Err(gone));
            return self.release(replies, outcome).await;
        }
        if let Err(failure) = outcome {
            tracing::error!("the old worker did not end well: {failure}");
        }
        let fate = self.bring_up(commands).await;
        let told = match &fate {
            Fate::Served(worker) => Ok(UpgradedDisk {
                disk: self.entry.info(),
                before: before.to_owned(),
                version: worker.version.clone(),
                pause_us: None,
            }),
            _ => Err(Failure::new(
                Kind::Io,
                "the new worker does not serve yet",
                Some("`sealblk show` says why; it is tried again".into()),
            )),
        };
        let _ = reply.send(told);
        fate
    }
}

/// What the new worker says, if it is about whether it serves.
fn hear_heir(message: io::Result<Option<Message>>, call: u64) -> Option<Result<Status, Failure>> {
    match message {
        Ok(Some(Message::Answer { id, answer })) if id == call => match answer {
            Answer::Started { status } => Some(Ok(status)),
            Answer::Failed { fault } => Some(Err(fault.into())),
            _ => None,
        },
        Ok(Some(_)) => None,
        Ok(None) => Some(Err(ended_early())),
        Err(error) => Some(Err(Failure::new(
            io_kind(&error),
            format!("the new worker is not understood: {error}"),
            None,
        ))),
    }
}

fn ended_early() -> Failure {
    Failure::new(
        Kind::Internal,
        "the new worker ended before it served",
        Some("its last words are in the log of the manager".into()),
    )
}

/// The key of an ephemeral disk, which is passed on and not looked at.
async fn bequeathed(old: &mut Worker) -> Result<Dek, Failure> {
    let answer = old.link.call(Request::Bequeath, Parcel::default()).await;
    match answer.map_err(system("the worker of the disk does not answer"))? {
        (Answer::Key, mut parcel) => {
            let received = parcel.need(Role::Dek).and_then(Dek::receive);
            received.map_err(system("the key of the disk does not arrive"))
        }
        _ => Err(Failure::new(
            Kind::Unsupported,
            "the worker of this ephemeral disk is of an earlier version, and nobody else has its key",
            Some("it is upgraded when its guest has ended and it is attached again".into()),
        )),
    }
}

fn copy(failure: &Failure) -> Failure {
    let help = failure.help().map(str::to_owned);
    Failure::new(failure.kind(), failure.to_string(), help)
}
