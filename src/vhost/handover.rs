//! A session with a front end that goes from one process to another, connection
//! and all: the front end does not notice.
//!
//! What is handed over is what the front end has said, no more: every ring is
//! stopped, with nothing in flight, so that its position says all. The next process
//! believes it as little as it believes a front end: memory is mapped, and rings are
//! looked up in it, by the code that takes the front end's messages.
//!
//! The `vhost` crate keeps what was negotiated to itself. It is told once more, by
//! the messages that a front end would send, over a pair of sockets; then the
//! connection is put in the place of our end of that pair.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::message::{VhostUserInflight, VhostUserMemoryRegion};

use super::ring::RingFacts;
use super::session::Session;

/// The version of [`Facts`], and of the order of the descriptors with them.
pub const HAND_OVER: u32 = 1;

/// What a front end has said, but for its descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The features that are in force.
    pub negotiated: u64,
    /// Those of the last message that set them.
    pub features: u64,
    /// The same of the protocol.
    pub protocol_features: u64,
    /// The `writeback` byte of the configuration space.
    pub writeback: bool,
    /// The memory: guest physical address, bytes, address in the front end, offset
    /// in the file.
    pub regions: Vec<[u64; 4]>,
    /// The memory for what is in flight: bytes, offset, queues, entries.
    pub inflight: Option<(u64, u64, u16, u16)>,
    /// The rings.
    pub rings: Vec<RingFacts>,
    /// Whether it has given a channel for notices.
    pub channel: bool,
    /// The capacity that it has read, in sectors.
    pub read: Option<u64>,
    /// Whether it was reminded of another one.
    pub reminded: bool,
}

/// A session that is handed over. The descriptors are the connection, the memory
/// regions, the memory for what is in flight, for each ring kick, call and err, and
/// the channel, as far as there are such.
#[derive(Debug)]
pub struct Exported {
    /// What was said.
    pub facts: Facts,
    /// What came with it.
    pub fds: Vec<OwnedFd>,
}

/// Something is not as it was written to be.
fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Exported {
    /// The session over `stream`, whose rings have been stopped.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub(super) fn of(session: &Session, stream: &UnixStream) -> io::Result<Self> {
        let mut fds = vec![stream.try_clone()?.into()];
        let facts = session.export(&mut fds)?;
        Ok(Exported { facts, fds })
    }
}

/// Takes the descriptors in their order.
struct Fds(std::vec::IntoIter<OwnedFd>);

impl Fds {
    fn next(&mut self) -> io::Result<OwnedFd> {
        let missing = || invalid("a session came without all its descriptors");
        self.0.next().ok_or_else(missing)
    }

    fn next_if(&mut self, there: bool) -> io::Result<Option<File>> {
        there.then(|| self.next().map(File::from)).transpose()
    }
}

impl Session {
    fn export(&self, fds: &mut Vec<OwnedFd>) -> io::Result<Facts> {
        if self.is_logging() {
            // The log would be left behind.
            let why = "the front end has begun to move its guest to another host";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        let mut facts = Facts {
            negotiated: self.negotiated,
            features: self.features,
            protocol_features: self.protocol_features,
            writeback: self.writeback,
            ..Facts::default()
        };
        for (region, file) in self.map.regions() {
            let VhostUserMemoryRegion {
                guest_phys_addr,
                memory_size,
                user_addr,
                mmap_offset,
            } = region;
            let told = [guest_phys_addr, memory_size, user_addr, mmap_offset];
            facts.regions.push(told);
            fds.push(file.try_clone()?.into());
        }
        if let Some((told, file)) = self.inflight.as_ref().and_then(|kept| kept.told()) {
            let VhostUserInflight {
                mmap_size,
                mmap_offset,
                num_queues,
                queue_size,
            } = told;
            facts.inflight = Some((mmap_size, mmap_offset, num_queues, queue_size));
            fds.push(file.try_clone()?.into());
        }
        for queue in &self.queues {
            let (ring, files) = queue.export()?;
            facts.rings.push(ring);
            fds.extend(files.into_iter().flatten().map(OwnedFd::from));
        }
        let (channel, read, reminded) = self.notices.export()?;
        facts.channel = channel.is_some();
        (facts.read, facts.reminded) = (read, reminded);
        fds.extend(channel);
        Ok(facts)
    }

    /// Takes over what a front end has said to another process, and begins to serve
    /// its rings. What was negotiated has been said anew.
    fn import(&mut self, facts: &Facts, fds: &mut Fds) -> io::Result<()> {
        let mut files = Vec::new();
        let regions: Vec<VhostUserMemoryRegion> = facts
            .regions
            .iter()
            .map(|&[guest, bytes, user, offset]| {
                VhostUserMemoryRegion::new(guest, bytes, user, offset)
            })
            .collect();
        for _ in &regions {
            files.push(fds.next()?.into());
        }
        self.map = super::memory::MemoryMap::of(&regions, files)?;
        if let Some((bytes, offset, queues, entries)) = facts.inflight {
            let kept = VhostUserInflight::new(bytes, offset, queues, entries);
            let file = fds.next()?.into();
            let kept = super::inflight::Inflight::map(&kept, file, self.queues.len())?;
            self.inflight = Some(kept);
        }
        if facts.rings.len() != self.queues.len() {
            return Err(invalid("the session has another number of queues"));
        }
        for (queue, ring) in self.queues.iter_mut().zip(&facts.rings) {
            let files = [
                fds.next_if(ring.kick)?,
                fds.next_if(ring.call)?,
                fds.next_if(ring.err)?,
            ];
            queue.import(ring, files)?;
        }
        let channel = fds.next_if(facts.channel)?.map(OwnedFd::from);
        self.notices.import((channel, facts.read, facts.reminded));
        self.negotiated = facts.negotiated;
        self.set_writeback(facts.writeback);
        self.start_queues().map_err(io::Error::other)
    }
}

/// A session that was taken over, with its connection.
pub(super) struct Imported {
    pub session: Arc<Mutex<Session>>,
    pub handler: BackendReqHandler<Mutex<Session>>,
    pub stream: UnixStream,
}

impl Imported {
    /// Takes over what another process handed over, into a `session` that is new.
    /// Rings run from here on.
    ///
    /// # Errors
    /// When the session cannot be one of this disk, or cannot be served here.
    pub(super) fn new(session: Session, exported: Exported) -> io::Result<Self> {
        let Exported { facts, fds } = exported;
        let mut fds = Fds(fds.into_iter());
        let stream = UnixStream::from(fds.next()?);
        let session = Arc::new(Mutex::new(session));
        let (theirs, ours) = UnixStream::pair()?;
        let descriptor = ours.as_raw_fd();
        let mut handler = BackendReqHandler::from_stream(ours, session.clone());
        negotiate(&mut handler, &theirs, &facts)?;
        put(&stream, descriptor)?;
        let mut imported = session.lock().unwrap_or_else(PoisonError::into_inner);
        imported.import(&facts, &mut fds)?;
        drop(imported);
        Ok(Imported {
            session,
            handler,
            stream,
        })
    }
}

/// Puts a copy of `stream` in the place of a descriptor that somebody else owns and
/// goes on with, as if it had been that from the start.
fn put(stream: &UnixStream, descriptor: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open: its owner, the handler, lives in our caller and
    // has not been used since. For the time of the call there are two owners, of
    // which one is only lent: `into_raw_fd` gives it back without closing it.
    let mut lent = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let flags = rustix::io::DupFlags::CLOEXEC;
    let put = rustix::io::dup3(stream, &mut lent, flags);
    let _ = lent.into_raw_fd();
    Ok(put?)
}

/// Bytes of the header of a message: request, flags, size; and of a number.
const HEADER: usize = 12;
const NUMBER: usize = 8;

/// Requests by their numbers in the protocol.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;

/// Says to `handler` what was negotiated, as the front end did. Before any ring has
/// been set up, so that none is started.
fn negotiate(
    handler: &mut BackendReqHandler<Mutex<Session>>,
    mut theirs: &UnixStream,
    facts: &Facts,
) -> io::Result<()> {
    let mut say = |request: u32, number: Option<u64>| -> io::Result<()> {
        let size = number.map_or(0, |_| NUMBER as u32);
        // Version 1, and no acknowledgement wanted.
        let mut message: Vec<u8> = [request, 1, size].map(u32::to_ne_bytes).concat();
        message.extend(number.iter().flat_map(|number| number.to_ne_bytes()));
        theirs.write_all(&message)?;
        handler.handle_request().map_err(io::Error::other)?;
        if number.is_none() {
            theirs.read_exact(&mut [0; HEADER + NUMBER])?;
        }
        Ok(())
    };
    say(GET_FEATURES, None)?;
    if facts.features != 0 {
        say(SET_FEATURES, Some(facts.features))?;
    }
    say(GET_PROTOCOL_FEATURES, None)?;
    if facts.protocol_features != 0 {
        say(SET_PROTOCOL_FEATURES, Some(facts.protocol_features))?;
    }
    Ok(())
}
