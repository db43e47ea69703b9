//! What the worker that serves a disk and the one that is to go on say to each other:
//! JSON in packets with descriptors beside it, as with managers.
//!
//! In this order: the elder has let go of everything and sends the session; the heir
//! takes the turn, has the rings ready, says that it serves, and only then carries
//! anything out. So until the elder has read that, it may take everything back as it
//! was; whoever finds the other one gone, and nothing said, goes on or ends by that.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::packet;
use super::parcel::{Parcel, Role};
use super::protocol::Fault;
use crate::vhost::{Exported, Facts};

/// Descriptors in one packet.
const MOST_FDS: usize = 64;

/// Of the one that has served.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "elder", rename_all = "snake_case")]
pub enum Elder {
    /// Go on with this. The rest of its descriptors follows.
    Session {
        /// What the front end has said, if one is connected.
        facts: Option<Box<Facts>>,
        /// For how many milliseconds the disk stays frozen.
        frozen_ms: Option<u64>,
        /// How many descriptors there are in all.
        descriptors: usize,
    },
    /// More descriptors.
    More,
    /// Do not: it takes too long.
    Cancel,
}

/// Of the one that is to go on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "heir", rename_all = "snake_case")]
pub enum Heir {
    /// It serves.
    Serving,
    /// It does not, and has let go of everything.
    Failed {
        /// Why.
        fault: Fault,
    },
}

#[derive(Serialize, Deserialize)]
struct Packet<M> {
    #[serde(flatten)]
    message: M,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    fds: Vec<Role>,
}

/// The connection between the two.
pub struct Peer(OwnedFd);

/// What is handed over beside the files that the manager has given.
pub struct Session {
    /// The session with a front end, if one is connected.
    pub exported: Option<Exported>,
    /// For how many milliseconds the disk stays frozen.
    pub frozen_ms: Option<u64>,
    /// Where managers are accepted.
    pub managers: OwnedFd,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Peer {
    /// Over that socket.
    pub fn new(socket: OwnedFd) -> Self {
        Peer(socket)
    }

    /// Sends a message. Never waits.
    ///
    /// # Errors
    /// When the other one is gone.
    pub fn say(&self, message: impl Serialize, parcel: &Parcel) -> io::Result<()> {
        let fds = parcel.roles();
        let bytes = serde_json::to_vec(&Packet { message, fds })?;
        packet::send(&self.0, &bytes, &parcel.fds())
    }

    /// What the other one says next, or nothing when it is gone.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is nothing yet; when it is not
    /// understood.
    pub fn hear<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Parcel)>> {
        let received = match packet::receive(&self.0) {
            // It went with something unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            received => received?,
        };
        let Some(received) = received else {
            return Ok(None);
        };
        let packet: Packet<M> = serde_json::from_slice(&received.bytes)?;
        let parcel = Parcel::of(&packet.fds, received.fds)?;
        Ok(Some((packet.message, parcel)))
    }

    /// The same, waiting for it.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] at the deadline, if there is one.
    pub fn await_next<M: DeserializeOwned>(
        &self,
        deadline: Option<Instant>,
    ) -> io::Result<Option<(M, Parcel)>> {
        loop {
            match self.hear() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                heard => return heard,
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timeout = left.map(|left| Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a session.
    ///
    /// # Errors
    /// When the other one is gone.
    pub fn give(&self, session: Session) -> io::Result<()> {
        let Session {
            exported,
            frozen_ms,
            managers,
        } = session;
        let (facts, fds) = match exported {
            Some(Exported { facts, fds }) => (Some(Box::new(facts)), fds),
            None => (None, Vec::new()),
        };
        let first = Elder::Session {
            facts,
            frozen_ms,
            descriptors: fds.len(),
        };
        let mut parcel = Parcel::default();
        parcel.add(Role::Managers, managers);
        self.say(first, &parcel)?;
        let mut fds = fds.into_iter().peekable();
        while fds.peek().is_some() {
            let mut parcel = Parcel::default();
            for fd in fds.by_ref().take(MOST_FDS) {
                parcel.add(Role::Session, fd);
            }
            self.say(Elder::More, &parcel)?;
        }
        Ok(())
    }

    /// Waits for a session. Nothing: there will be none.
    ///
    /// # Errors
    /// When what comes is something else.
    pub fn receive(&self) -> io::Result<Option<Session>> {
        let (facts, frozen_ms, descriptors, mut parcel) = match self.await_next(None)? {
            Some((
                Elder::Session {
                    facts,
                    frozen_ms,
                    descriptors,
                },
                parcel,
            )) => (facts, frozen_ms, descriptors, parcel),
            Some((Elder::Cancel, _)) | None => return Ok(None),
            Some((Elder::More, _)) => return Err(invalid("a session came without its beginning")),
        };
        let managers = parcel.need(Role::Managers)?;
        let mut fds = Vec::new();
        while fds.len() < descriptors {
            match self.await_next(None)? {
                Some((Elder::More, mut parcel)) => fds.extend(parcel.take_all(Role::Session)),
                Some((Elder::Cancel, _)) | None => return Ok(None),
                Some((Elder::Session { .. }, _)) => return Err(invalid("a session came twice")),
            }
        }
        let exported = facts.map(|facts| Exported { facts: *facts, fds });
        Ok(Some(Session {
            exported,
            frozen_ms,
            managers,
        }))
    }

    /// Whether the other one does not want it any more.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.hear(), Ok(Some((Elder::Cancel, _))))
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
