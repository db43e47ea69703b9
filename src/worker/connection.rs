//! A worker's side of the connection to a manager.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use super::packet;
use super::parcel::{Parcel, Role};
use super::protocol::{Answer, Call, Hello, Message, PROTOCOL, Report};

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
            version: crate::version::version().into(),
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

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
