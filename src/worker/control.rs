//! The control loop of a worker: managers come and go, the disk is served until
//! somebody wants it to end.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, sockopt};

use super::connection::Connection;
use super::elder::{self, HandOver};
use super::freeze::{self, Freezer};
use super::moving::Mover;
use super::news::News;
use super::parcel::{Parcel, Role};
use super::peer::Peer;
use super::protocol::{Answer, Call, Contents, Fault, Message, Request, Start, Status};
use super::turn::Turn;
use crate::engine::{Disk, Lookout};
use crate::error::{Failure, Kind};
use crate::migration::Migration;
use crate::quota::Quota;
use crate::secret::Dek;
use crate::units::SECTOR_BYTES;
use crate::vhost::{Notices, Rest, Sent, Stopper};
use crate::volume::Standing;

/// What a next worker of the disk would need, for managers that ask for it.
pub struct Estate {
    /// What this one was started with.
    pub start: Start,
    /// The files of the volume, the socket for front ends, and the memories.
    pub parcel: Parcel,
    /// The key, unless it is not to be kept.
    pub dek: Option<Dek>,
    /// The key of an ephemeral disk, for the worker that goes on with it and for
    /// nobody else.
    pub own: Option<Dek>,
}

impl Estate {
    fn parcel(&self) -> io::Result<Parcel> {
        let mut parcel = Parcel::default();
        for (role, fd) in self.parcel.roles().into_iter().zip(self.parcel.fds()) {
            parcel.share(role, fd)?;
        }
        if let Some(dek) = &self.dek {
            parcel.add(Role::Dek, dek.pass()?);
        }
        Ok(parcel)
    }
}

/// The control loop of a worker that serves its disk.
pub struct Control {
    pub manager: Option<Connection>,
    /// The user whose processes may be managers.
    pub manager_uid: u32,
    pub managers: OwnedFd,
    pub signals: UnixStream,
    pub news: Arc<News>,
    pub estate: Estate,
    pub disk: Arc<Disk>,
    pub notices: Arc<Notices>,
    pub stopper: Stopper,
    /// Whether somebody wants it to end.
    pub stopping: bool,
    /// The call that does.
    pub stop_call: Option<u64>,
    pub freezer: Freezer,
    /// The call that is answered when the disk is frozen.
    pub freeze_call: Option<u64>,
    /// Moves its data, if somebody wants that.
    pub mover: Mover,
    /// Takes its volume and lets it go, if it may move between hosts.
    pub migration: Option<Arc<Migration>>,
    /// Comes to rest, to be handed over.
    pub rest: Rest,
    /// What says that nobody else serves. Managers of earlier versions give none.
    pub turn: Option<Turn>,
    /// That is under way. Nothing else is begun meanwhile.
    pub hand_over: Option<HandOver>,
    /// It has succeeded: for how many microseconds nothing was carried out.
    pub handed_over: Option<u64>,
    /// Sees what its queues cannot say themselves.
    pub lookout: Lookout,
    /// How often managers are told of changes, which a front end can bring about.
    pub telling: Quota,
}

/// Changes that are told at once, and how long the next ones wait then. A manager
/// hears twice as much.
pub(super) const TELLING: Quota = Quota::new(16, Duration::from_millis(20));

/// The polls, in their order.
const SIGNALS: usize = 0;
const NEWS: usize = 1;
const MANAGERS: usize = 2;
const MANAGER: usize = 3;

impl Control {
    /// Serves managers until the data plane has ended, and tells them how.
    ///
    /// # Errors
    /// What the data plane ended with, or why this loop cannot go on.
    pub fn run(mut self) -> Result<Option<Fault>, io::Error> {
        let mut signalled = false;
        loop {
            let ready = self.wait()?;
            if ready[SIGNALS] {
                drain(&self.signals);
                if signalled {
                    tracing::warn!(
                        "stopping at once: requests in flight stay unanswered; what was flushed is safe"
                    );
                    std::process::exit(crate::error::Kind::Internal.exit_status().into());
                }
                tracing::info!("stopping on a signal: requests in flight are completed first");
                signalled = true;
            }
            // Whoever goes on has the same connection: it is not to be closed now.
            if signalled && !self.stopping && self.hand_over.is_none() {
                self.stop();
            }
            if ready[NEWS] {
                self.news.clear();
            }
            self.look_after_hand_over();
            self.look_after_freeze();
            self.lookout.look();
            if let Some(progress) = self.mover.news(self.news.take_moved()) {
                self.tell(Message::Moving { progress });
            }
            if let Some(fault) = self.news.take_end() {
                self.say_farewell(fault.clone());
                return Ok(fault);
            }
            let may_tell = self.telling.wait(Instant::now()).is_zero();
            if may_tell && let Some(fault) = self.news.take_kept() {
                self.tell(Message::Kept { fault });
            }
            if may_tell && self.news.take_change() {
                self.telling.note(Instant::now());
                // It may have come larger than it was when this began.
                let size = self.disk.capacity() * SECTOR_BYTES;
                self.estate.start.spec.size = self.estate.start.spec.size.max(size);
                let status = self.status();
                self.tell(Message::Changed { status });
            }
            if ready[MANAGER] {
                self.listen();
            }
            // Last: the manager that was polled may be replaced here.
            if ready[MANAGERS] {
                self.accept();
            }
        }
    }

    /// Which of the polled descriptors are readable.
    fn wait(&self) -> io::Result<[bool; 4]> {
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&*self.news, PollFlags::IN),
            PollFd::new(&self.managers, self.managers_wanted()),
        ];
        if let Some(manager) = &self.manager {
            fds.push(PollFd::new(manager, PollFlags::IN));
        }
        let used = self.news.has_front_end();
        let lookout = used.then(|| self.lookout.left());
        let timeout = match self.hand_over {
            Some(_) => [None, None, lookout],
            None => [self.freezer.left(), self.mover.left(), lookout],
        };
        // What has changed is told then, however often it has.
        let untold = self.news.has_change();
        let untold = untold.then(|| self.telling.wait(Instant::now()));
        let timeout = timeout.into_iter().chain([untold]);
        let timeout = timeout.flatten().min().map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok([false; 4]),
            Err(error) => return Err(error.into()),
        }
        let mut ready = [false; 4];
        for (ready, fd) in ready.iter_mut().zip(&fds) {
            *ready = !fd.revents().is_empty();
        }
        Ok(ready)
    }

    /// Who comes while the disk is handed over waits for whoever serves it then.
    fn managers_wanted(&self) -> PollFlags {
        match self.hand_over {
            Some(_) => PollFlags::empty(),
            None => PollFlags::IN,
        }
    }

    /// How it goes.
    pub(super) fn status(&self) -> Status {
        Status {
            front_end: self.news.has_front_end(),
            errors: self.disk.errors(),
            sync_failed: self.sync_failed(),
            stopping: self.stopping,
            size_read: self
                .notices
                .read_capacity()
                .and_then(|sectors| sectors.checked_mul(SECTOR_BYTES)),
            takes_notices: self.notices.has_channel(),
            mode: self.disk.hold().mode(),
            frozen: self.freezer.frozen(),
            standing: self.standing(),
            migrating: self.migration.as_ref().is_some_and(|it| it.is_moving()),
            trouble: self.disk.trouble().standing(),
            stuck: self.disk.watch().stuck(),
            troubles: self.disk.trouble().counts(),
        }
    }

    /// What this host has of the volume.
    pub(super) fn standing(&self) -> Standing {
        let migration = self.migration.as_ref();
        migration.map_or(Standing::Held, |migration| migration.standing())
    }

    /// The disk grows to `size` bytes, and its front end is told.
    fn resize(&mut self, size: u64) -> Answer {
        if let Err(error) = self.disk.grow(size) {
            let what = format!("the disk cannot be {size} bytes large: {error}");
            let failure = Failure::new(crate::error::io_kind(&error), what, None);
            return Answer::Failed {
                fault: Fault::from(&failure),
            };
        }
        // For the managers that come later.
        self.estate.start.spec.size = size;
        match self.notices.send() {
            Sent::Yes => tracing::info!(size, "the disk has grown, and the front end was told"),
            Sent::NoChannel | Sent::Failed => tracing::info!(
                size,
                "the disk has grown; no front end is there that could be told"
            ),
        }
        Answer::Status {
            status: self.status(),
        }
    }

    /// A lost disk fails flushes because it is lost, and that is said elsewhere.
    pub(super) fn sync_failed(&self) -> bool {
        self.estate.start.contents != Contents::Lost && self.disk.sync_has_failed()
    }

    /// Sees what has become of a freeze, and ends one whose time is over.
    fn look_after_freeze(&mut self) {
        // Whoever goes on keeps its time from there.
        if self.hand_over.is_some() {
            return;
        }
        let Some(outcome) = self.freezer.look() else {
            return;
        };
        let status = self.status();
        match (self.freeze_call.take(), outcome) {
            (Some(id), Ok(())) => self.tell(Message::Answer {
                id,
                answer: Answer::Status { status },
            }),
            (Some(id), Err(fault)) => {
                tracing::warn!("the disk is not frozen: {fault}");
                self.tell(Message::Answer {
                    id,
                    answer: Answer::Failed { fault },
                });
            }
            (None, Ok(())) => {}
            (None, Err(fault)) => tracing::warn!("the freeze of the disk has ended: {fault}"),
        }
        self.tell(Message::Changed { status });
    }

    /// Begins to hand the disk over to the process that came with the call.
    fn begin_hand_over(
        &self,
        call: u64,
        (version, drain): (u32, Duration),
        mut parcel: Parcel,
    ) -> Result<HandOver, Fault> {
        elder::check_version(version)?;
        let refuse = |what: &str, help: &str| {
            Err(Fault {
                message: what.into(),
                help: Some(help.into()),
                kind: Kind::Busy,
            })
        };
        if self.stopping || self.hand_over.is_some() {
            return refuse(
                "the worker is ending",
                "wait until the disk is served again",
            );
        }
        let frozen = self.freezer.frozen();
        if frozen.is_some_and(|frozen| !frozen.complete) {
            let help = "wait until it is frozen or thawed, and try again";
            return refuse("the disk is being frozen", help);
        }
        if self.standing() != Standing::Held
            || self.migration.as_ref().is_some_and(|it| it.is_moving())
        {
            return refuse(
                "the guest is on its way to another host, or from one",
                "wait until it has arrived, or the migration has ended, and try again",
            );
        }
        let Some(turn) = &self.turn else {
            return refuse(
                "an earlier version has started this worker, in a way that it cannot be replaced",
                "let the front end connect anew instead: `sealblk upgrade --reconnect`",
            );
        };
        let mut gather = || -> io::Result<elder::Estate> {
            Ok(elder::Estate {
                disk: self.disk.clone(),
                rest: self.rest.clone(),
                turn: turn.try_clone()?,
                mover: self.mover.file()?,
                managers: self.managers.try_clone()?,
                peer: Peer::new(parcel.need(Role::Peer)?),
                heir: parcel.take(Role::Cord),
                frozen,
                drain,
            })
        };
        let estate = gather().map_err(|error| Fault {
            message: format!("the disk cannot be handed over: {error}"),
            help: Some("check the limits of the process".into()),
            kind: crate::error::io_kind(&error),
        })?;
        HandOver::begin(call, estate, self.news.clone())
    }

    /// Sees what has become of a hand-over. One that has succeeded ends the data
    /// plane, which is told then.
    fn look_after_hand_over(&mut self) {
        let Some(hand_over) = &self.hand_over else {
            return;
        };
        if self.handed_over.is_some() {
            return;
        }
        let id = hand_over.call;
        match hand_over.look() {
            None => {}
            Some(Ok(pause)) => {
                self.mover.abandon();
                let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
                self.handed_over = Some(pause_us);
            }
            Some(Err(fault)) => {
                self.hand_over = None;
                let answer = Answer::Failed { fault };
                self.tell(Message::Answer { id, answer });
            }
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        // At rest, so that nothing is to be recovered.
        self.mover.rest();
        self.stopper.stop();
    }

    /// A manager that does not take what it is told is let go: it can connect
    /// anew, and is told everything then.
    fn tell(&mut self, message: Message) {
        if let Some(manager) = &self.manager
            && let Err(error) = manager.say(message, &Parcel::default())
        {
            self.let_go(&error);
        }
    }

    fn let_go(&mut self, error: &io::Error) {
        tracing::warn!(%error, "the connection to the manager is given up; the disk is served on");
        self.manager = None;
    }

    /// Takes one call of the manager.
    fn listen(&mut self) {
        let Some(manager) = &self.manager else {
            return;
        };
        match manager.next_call() {
            Ok(Some((call, parcel))) => {
                if let Err(error) = self.handle(call, parcel) {
                    self.let_go(&error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Reset: it did not take what it was told last.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => self.let_go(&error),
            Ok(None) | Err(_) => {
                tracing::info!("the manager is gone; the disk is served on");
                self.manager = None;
            }
        }
    }

    fn handle(&mut self, call: Call, parcel: Parcel) -> io::Result<()> {
        let Some(manager) = &self.manager else {
            return Ok(());
        };
        let none = Parcel::default();
        let status = self.status();
        match call.request {
            Request::Status => manager.answer(call.id, Answer::Status { status }, &none),
            Request::Adopt => {
                let parcel = self.estate.parcel()?;
                let start = Box::new(self.estate.start.clone());
                manager.answer(call.id, Answer::Adopted { start, status }, &parcel)
            }
            Request::Limit { limits } => {
                self.disk.throttle().set(&limits);
                // For the managers that come later.
                self.estate.start.spec.limits = limits;
                manager.answer(call.id, Answer::Status { status }, &none)
            }
            Request::Stop => {
                tracing::info!("stopping: requests in flight are completed first");
                self.stop_call = Some(call.id);
                self.stop();
                Ok(())
            }
            Request::Key => match &self.estate.dek {
                Some(dek) => {
                    let mut parcel = Parcel::default();
                    parcel.add(Role::Dek, dek.pass()?);
                    manager.answer(call.id, Answer::Key, &parcel)
                }
                None => {
                    let fault = Fault {
                        message: "the key is not kept".into(),
                        help: Some("set keep_deks = true, and attach the disk again".into()),
                        kind: Kind::Refused,
                    };
                    manager.answer(call.id, Answer::Failed { fault }, &none)
                }
            },
            Request::Baggage { baggage } => {
                self.estate.start.baggage = baggage;
                manager.answer(call.id, Answer::Status { status }, &none)
            }
            Request::Resize { size } => {
                let answer = self.resize(size);
                match &self.manager {
                    Some(manager) => manager.answer(call.id, answer, &none),
                    None => Ok(()),
                }
            }
            Request::Hold { mode } => {
                tracing::info!(
                    ?mode,
                    "requests are held or let go, for the key of the disk"
                );
                self.disk.hold().set(mode);
                let status = self.status();
                manager.answer(call.id, Answer::Status { status }, &none)
            }
            Request::Freeze { timeout_ms } => match self.freezer.begin(timeout_ms) {
                Ok(()) => {
                    tracing::info!(
                        timeout_ms,
                        "freezing: requests in flight are completed first"
                    );
                    self.freeze_call = Some(call.id);
                    Ok(())
                }
                Err(fault) => manager.answer(call.id, Answer::Failed { fault }, &none),
            },
            Request::Thaw => {
                let answer = match self.freezer.thaw() {
                    Ok(()) => {
                        tracing::info!("thawed");
                        if let Some(id) = self.freeze_call.take() {
                            let fault = freeze::thawed_early();
                            manager.answer(id, Answer::Failed { fault }, &none)?;
                        }
                        let status = self.status();
                        Answer::Status { status }
                    }
                    Err(fault) => Answer::Failed { fault },
                };
                manager.answer(call.id, answer, &none)
            }
            Request::Move { task } => {
                let answer = self.mover.begin(&mut self.estate, *task, parcel);
                manager.answer(call.id, answer, &none)
            }
            Request::Moving { orders } => {
                let answer = self.mover.order(&mut self.estate, orders);
                manager.answer(call.id, answer, &none)
            }
            Request::Moved => {
                let answer = match self.mover.end(&mut self.estate, parcel) {
                    Ok(()) => Answer::Status { status },
                    Err(fault) => Answer::Failed { fault },
                };
                manager.answer(call.id, answer, &none)
            }
            Request::HandOver { version, drain_ms } => {
                let drain = Duration::from_millis(drain_ms);
                match self.begin_hand_over(call.id, (version, drain), parcel) {
                    Ok(begun) => {
                        self.hand_over = Some(begun);
                        Ok(())
                    }
                    Err(fault) => manager.answer(call.id, Answer::Failed { fault }, &none),
                }
            }
            Request::Bequeath => match &self.estate.own {
                Some(dek) => {
                    let mut parcel = Parcel::default();
                    parcel.add(Role::Dek, dek.pass()?);
                    manager.answer(call.id, Answer::Key, &parcel)
                }
                None => manager.answer(call.id, Answer::Unsupported, &none),
            },
            Request::Resume { give_up } => {
                tracing::info!(give_up, "what waits for the disk below is looked after");
                match give_up {
                    true => self.disk.trouble().give_up(),
                    false => self.disk.trouble().try_now(),
                }
                // What moves data may have failed for the same reason.
                self.mover.try_again(&mut self.estate);
                manager.answer(call.id, Answer::Status { status }, &none)
            }
            // Nobody starts a worker twice.
            Request::Start(_) | Request::Succeed(_) | Request::Unknown => {
                manager.answer(call.id, Answer::Unsupported, &none)
            }
        }
    }

    /// Takes the next manager. The one before it is gone, or has to go.
    fn accept(&mut self) {
        let accepted = rustix::net::accept_with(&self.managers, SocketFlags::CLOEXEC);
        let known = accepted.and_then(|socket| {
            let uid = sockopt::socket_peercred(&socket)?.uid.as_raw();
            Ok((socket, uid))
        });
        // The greeting has a descriptor of this process: for nobody else.
        let socket = match known {
            Ok((socket, uid)) if uid == self.manager_uid => socket,
            Ok((_, uid)) => {
                return tracing::warn!(uid, "somebody else than the manager was turned away");
            }
            Err(error) => {
                return tracing::warn!(%error, "a manager cannot be told from others");
            }
        };
        match Connection::greet(socket, true) {
            Ok(connection) => {
                tracing::info!("a manager has connected");
                self.manager = Some(connection);
                self.stop_call = None;
                self.freeze_call = None;
            }
            Err(error) => tracing::debug!(%error, "a manager left before it was greeted"),
        }
    }

    fn say_farewell(&mut self, fault: Option<Fault>) {
        self.look_after_hand_over();
        if let (Some(HandOver { call, .. }), Some(pause_us)) = (&self.hand_over, self.handed_over) {
            let (id, answer) = (*call, Answer::HandedOver { pause_us });
            return self.tell(Message::Answer { id, answer });
        }
        match self.stop_call {
            Some(id) => self.tell(Message::Answer {
                id,
                answer: Answer::Stopped { fault },
            }),
            None => self.tell(Message::Ended { fault }),
        }
    }
}

/// Reads what woke us, which says nothing by itself.
fn drain(mut signals: &UnixStream) {
    let _ = io::Read::read(&mut signals, &mut [0; 64]);
}
