//! A worker's side of the connection to its manager, and its control loop:
//! managers come and go, the disk is served until somebody wants it to end.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{SocketFlags, sockopt};

use super::packet;
use super::parcel::{Parcel, Role};
use super::protocol::{
    Answer, Call, Fault, Hello, Message, PROTOCOL, Report, Request, Start, Status,
};
use crate::engine::Disk;
use crate::secret::Dek;
use crate::vhost::Stopper;

/// A manager that is connected.
pub struct Connection(OwnedFd);

impl Connection {
    /// Over this socket, after a greeting.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn greet(socket: OwnedFd, serving: bool) -> io::Result<Self> {
        let connection = Connection(socket);
        let mut parcel = Parcel::default();
        let own = rustix::process::getpid();
        let flags = rustix::process::PidfdFlags::empty();
        parcel.add(Role::Process, rustix::process::pidfd_open(own, flags)?);
        let hello = Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            serving,
        };
        connection.say(Message::Hello(hello), &parcel)?;
        Ok(connection)
    }

    /// The user that the manager runs as.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn peer_uid(&self) -> io::Result<u32> {
        Ok(sockopt::socket_peercred(&self.0)?.uid.as_raw())
    }

    /// Answers a call.
    ///
    /// # Errors
    /// As [`Connection::say`].
    pub fn answer(&self, id: u64, answer: Answer, parcel: &Parcel) -> io::Result<()> {
        self.say(Message::Answer { id, answer }, parcel)
    }

    /// Tells the manager something. Never waits for one that does not listen.
    ///
    /// # Errors
    /// When the manager is gone, or has left so much unread that there is no
    /// room for more.
    pub fn say(&self, message: Message, parcel: &Parcel) -> io::Result<()> {
        let report = Report {
            message,
            fds: parcel.roles(),
        };
        let bytes = serde_json::to_vec(&report)?;
        packet::send(&self.0, &bytes, &parcel.fds())
    }

    /// The next call, or nothing when the manager has closed.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none yet; when what came is
    /// not a call.
    pub fn next_call(&self) -> io::Result<Option<(Call, Parcel)>> {
        let Some(packet) = packet::receive(&self.0)? else {
            return Ok(None);
        };
        let call: Call = serde_json::from_slice(&packet.bytes)?;
        let parcel = Parcel::of(&call.fds, packet.fds)?;
        Ok(Some((call, parcel)))
    }

    /// Waits until there is something to receive.
    ///
    /// # Errors
    /// When there is nothing for that long.
    pub fn wait(&self, patience: Timespec) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut fds, Some(&patience)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What the threads of the data plane tell the control loop.
pub struct News {
    wake: OwnedFd,
    front_end: AtomicBool,
    changed: AtomicBool,
    ended: Mutex<Option<Option<Fault>>>,
}

impl News {
    /// None so far.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(News {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            front_end: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            ended: Mutex::new(None),
        }))
    }

    /// A front end has come or gone.
    pub fn front_end(&self, connected: bool) {
        self.front_end.store(connected, Ordering::SeqCst);
        self.changed();
    }

    /// Something else has changed that managers are told.
    pub fn changed(&self) {
        self.changed.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// The data plane has ended.
    pub fn ended(&self, fault: Option<Fault>) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
        self.wake();
    }

    fn wake(&self) {
        // It only fails when it has been woken 2^64 times.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn take_end(&self) -> Option<Option<Fault>> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.take()
    }
}

/// What a next worker of the disk would need, for managers that ask for it.
pub struct Estate {
    /// What this one was started with.
    pub start: Start,
    /// The files of the volume, the socket for front ends, and the memories.
    pub parcel: Parcel,
    /// The key, unless it is not to be kept.
    pub dek: Option<Dek>,
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
    pub stopper: Stopper,
    /// The call that wants it to end.
    pub stopping: Option<u64>,
}

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
                self.stopper.stop();
            }
            if ready[NEWS] {
                let _ = rustix::io::read(&self.news.wake, &mut [0u8; 8]);
            }
            if let Some(fault) = self.news.take_end() {
                self.say_farewell(fault.clone());
                return Ok(fault);
            }
            if self.news.changed.swap(false, Ordering::SeqCst) {
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
            PollFd::new(&self.news.wake, PollFlags::IN),
            PollFd::new(&self.managers, PollFlags::IN),
        ];
        if let Some(manager) = &self.manager {
            fds.push(PollFd::new(&manager.0, PollFlags::IN));
        }
        match poll(&mut fds, None) {
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

    fn status(&self) -> Status {
        Status {
            front_end: self.news.front_end.load(Ordering::SeqCst),
            errors: self.disk.errors(),
            sync_failed: self.disk.sync_has_failed(),
        }
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
            Ok(Some((call, _parcel))) => {
                if let Err(error) = self.handle(call) {
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

    fn handle(&mut self, call: Call) -> io::Result<()> {
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
            Request::Stop => {
                tracing::info!("stopping: requests in flight are completed first");
                self.stopping = Some(call.id);
                self.stopper.stop();
                Ok(())
            }
            // Nobody starts a worker twice.
            Request::Start(_) | Request::Unknown => {
                manager.answer(call.id, Answer::Unsupported, &none)
            }
        }
    }

    /// Takes the next manager. The one before it is gone, or has to go.
    fn accept(&mut self) {
        let accepted = rustix::net::accept_with(&self.managers, SocketFlags::CLOEXEC);
        let greeted = accepted
            .map_err(io::Error::from)
            .and_then(|socket| Connection::greet(socket, true));
        let connection = match greeted {
            Ok(connection) => connection,
            Err(error) => return tracing::debug!(%error, "a manager left before it was greeted"),
        };
        match connection.peer_uid() {
            Ok(uid) if uid == self.manager_uid => {
                tracing::info!("a manager has connected");
                self.manager = Some(connection);
                self.stopping = None;
            }
            Ok(uid) => tracing::warn!(uid, "somebody else than the manager was turned away"),
            Err(error) => tracing::warn!(%error, "a manager cannot be told from others"),
        }
    }

    fn say_farewell(&mut self, fault: Option<Fault>) {
        match self.stopping {
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

/// The byte in which it is remembered that an fdatasync has failed: it
/// outlives the process that saw it.
pub struct Memo(File);

impl Memo {
    /// Over that file.
    pub fn new(file: OwnedFd) -> Self {
        Memo(file.into())
    }

    /// Whether one has failed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn has_failed(&self) -> io::Result<bool> {
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&self.0, &mut byte, 0)?;
        Ok(byte != [0])
    }

    /// One has failed.
    pub fn note(&self) {
        // The byte is there already, so that no memory is needed for it.
        if let Err(error) = std::os::unix::fs::FileExt::write_all_at(&self.0, &[1], 0) {
            tracing::error!(%error, "a restart of this worker would forget the failed fdatasync");
        }
    }
}
