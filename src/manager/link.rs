//! The manager's side of a connection to a worker.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::watched::watched;
use crate::quota::Quota;
use crate::worker::packet;
use crate::worker::parcel::{Parcel, Role};
use crate::worker::protocol::{Answer, Call, Hello, Message, PROTOCOL, Report, Request};

/// Connections that may wait for a worker to accept them.
const BACKLOG: i32 = 8;

/// How long a worker may take for an answer that takes it no work.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The most that a worker may say before it answers.
const MAX_EARLY: usize = 64;

/// How much of what a worker says is heard: so much at once, and then one message
/// in that time, which is twice what a worker tells by itself
/// (`worker::control`). What one says beyond that stays in its
/// socket, so that a worker that was taken over keeps nobody from others.
const HEARD: Quota = Quota::new(512, Duration::from_millis(10));

/// The most that is heard of a worker that has ended, and for how long at most.
const MAX_LAST_WORDS: usize = 1024;
const LAST_WORDS: Duration = Duration::from_secs(5);

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// The two ends of a new connection: ours, and what the worker gets.
///
/// # Errors
/// When there are no more descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// A socket at which a worker is to accept managers. What was at `path` is
/// replaced: the directory is ours, and nobody lives there any more.
///
/// # Errors
/// What the operating system refuses.
pub fn bind(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects to the worker that accepts managers at `path`; nothing when there
/// is none.
///
/// # Errors
/// When there is somebody, and it is not a worker of ours, or has too many
/// connections waiting.
pub fn connect(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let peer = sockopt::socket_peercred(&socket)?.uid;
    match peer == rustix::process::geteuid() {
        true => Ok(Some(socket)),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("the socket is user {}'s", peer.as_raw()),
        )),
    }
}

/// A connection to a worker.
pub struct Link {
    socket: AsyncFd<OwnedFd>,
    next_id: u64,
    /// What came while an answer was awaited.
    early: VecDeque<Message>,
    heard: Quota,
}

impl Link {
    /// A connection over `socket`, once the worker has said who it is.
    ///
    /// # Errors
    /// When nothing comes in time, or something else than a worker is there.
    pub async fn open(socket: OwnedFd) -> io::Result<(Self, Hello, OwnedFd)> {
        let mut link = Link {
            socket: watched(socket, Interest::READABLE | Interest::WRITABLE)?,
            next_id: 1,
            early: VecDeque::new(),
            heard: HEARD,
        };
        match in_time(link.receive()).await? {
            Some((Message::Hello(hello), mut parcel)) if hello.protocol == PROTOCOL => {
                let process = parcel.need(Role::Process)?;
                Ok((link, hello, process))
            }
            Some((Message::Hello(hello), _)) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "the worker is of sealblk {:?} and speaks version {} of the protocol, and this manager version {PROTOCOL}",
                    hello.version, hello.protocol
                ),
            )),
            Some(_) => Err(invalid("the worker did not say who it is")),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Asks the worker for something that takes it no time.
    ///
    /// # Errors
    /// When the connection is broken, or nothing comes in time.
    pub async fn call(&mut self, request: Request, parcel: Parcel) -> io::Result<(Answer, Parcel)> {
        let id = self.send(request, parcel).await?;
        in_time(self.answer(id)).await
    }

    /// Sends a request, and returns its number. The descriptors are closed
    /// here once they are on their way.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn send(&mut self, request: Request, parcel: Parcel) -> io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let call = Call {
            id,
            request,
            fds: parcel.roles(),
        };
        let bytes = serde_json::to_vec(&call)?;
        in_time(self.socket.async_io(Interest::WRITABLE, |socket| {
            packet::send(socket, &bytes, &parcel.fds())
        }))
        .await?;
        Ok(id)
    }

    /// Passes over what the worker said of how it fares before its last answer,
    /// which is newer.
    pub fn forget_news(&mut self) {
        self.early
            .retain(|message| !matches!(message, Message::Changed { .. }));
    }

    pub(super) async fn answer(&mut self, wanted: u64) -> io::Result<(Answer, Parcel)> {
        loop {
            match self.receive().await? {
                Some((Message::Answer { id, answer }, parcel)) if id == wanted => {
                    return Ok((answer, parcel));
                }
                // It is only ever the answer to the first call, and may be long.
                Some((
                    Message::Answer {
                        answer: Answer::Adopted { .. },
                        ..
                    },
                    _,
                )) => {}
                // To a call that is not waited for here, or was given up.
                Some(_) if self.early.len() >= MAX_EARLY => {
                    return Err(invalid("the worker talks and does not answer"));
                }
                Some((message, _)) => self.early.push_back(message),
                None => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
    }

    /// What a worker that has ended had said until then. It is not waited for more:
    /// another process may have its end of the connection.
    pub async fn last_words(&mut self) -> Vec<Message> {
        let mut said = Vec::new();
        let hear = async {
            while said.len() < MAX_LAST_WORDS
                && let Ok(Some(message)) = self.next().await
            {
                said.push(message);
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, hear).await;
        said
    }

    /// What the worker says next, or nothing when it has closed. Nothing is
    /// lost when this is not waited for to the end.
    ///
    /// # Errors
    /// When what came is not understood.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        match self.early.pop_front() {
            Some(message) => Ok(Some(message)),
            None => Ok(self.receive().await?.map(|(message, _)| message)),
        }
    }

    async fn receive(&mut self) -> io::Result<Option<(Message, Parcel)>> {
        // Whoever stops waiting here has lost nothing, and counts nothing.
        let pause = self.heard.wait(Instant::now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let packet = self
            .socket
            .async_io(Interest::READABLE, |socket| packet::receive(socket));
        let Some(packet) = packet.await? else {
            return Ok(None);
        };
        self.heard.note(Instant::now());
        let report: Report = serde_json::from_slice(&packet.bytes)?;
        Ok(Some((report.message, Parcel::of(&report.fds, packet.fds)?)))
    }
}

async fn in_time<T>(waiting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the worker says nothing for {} s", PATIENCE.as_secs()),
        )),
    }
}
