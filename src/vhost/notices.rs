//! Telling the front end that the configuration of its disk has changed, and
//! knowing what it has read of it.
//!
//! A front end that wants to be told gives a socket for that
//! (`VHOST_USER_SET_BACKEND_REQ_FD`). It is sent
//! `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG` there, reads the configuration anew
//! (`VHOST_USER_GET_CONFIG`), and interrupts its guest. What it has read is
//! remembered: that is the only sign that the message arrived.
//!
//! The `vhost` crate takes that socket and has no such message. So the socket is
//! copied from the message before the crate gets it: who peeks at a message gets
//! descriptors of its own.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::cmsg_space;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg,
    sendmsg,
};

/// Bytes of the header of a message: request, flags and size, of 32 bits each
/// in the byte order of the host.
const HEADER_BYTES: usize = 12;

/// `VHOST_USER_SET_BACKEND_REQ_FD`, of the front end.
const SET_BACKEND_REQ_FD: u32 = 21;

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, of the back end.
const CONFIG_CHANGE: u32 = 2;

/// Version 1, and no answer wanted: that would have to be waited for, by
/// somebody who does not keep the front end waiting meanwhile.
const FLAGS: u32 = 1;

/// Is told when there is something new to know of a front end.
type Hook = Box<dyn Fn() + Send + Sync>;

/// What the front end that is connected knows of its disk, and how it is told.
#[derive(Default)]
pub struct Notices {
    state: Mutex<State>,
    on_change: OnceLock<Hook>,
}

#[derive(Default)]
struct State {
    /// Where it is told. None: it does not want to be, or there is none.
    channel: Option<OwnedFd>,
    /// The capacity that it has read, in sectors.
    read: Option<u64>,
    /// It was told because it may not know.
    reminded: bool,
}

/// What became of a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// No front end is there that wants to be told.
    NoChannel,
    /// The front end does not take it.
    Failed,
}

impl Notices {
    /// Has `hook` called whenever something changes here. The first one counts.
    pub fn on_change(&self, hook: Hook) {
        let _ = self.on_change.set(hook);
    }

    /// The capacity, in sectors, that the front end has read. None: it has read
    /// none, or there is no front end.
    pub fn read_capacity(&self) -> Option<u64> {
        self.lock().read
    }

    /// Whether a front end is there that can be told.
    pub fn has_channel(&self) -> bool {
        self.lock().channel.is_some()
    }

    /// Another front end, or none any more.
    pub fn begin(&self) {
        *self.lock() = State::default();
    }

    /// A copy of the channel, what was read, and whether the front end was reminded:
    /// for who serves it next.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn export(&self) -> io::Result<(Option<OwnedFd>, Option<u64>, bool)> {
        let state = self.lock();
        let channel = state.channel.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok((channel, state.read, state.reminded))
    }

    /// Takes over what another process [knew](Notices::export) of the front end.
    pub fn import(&self, (channel, read, reminded): (Option<OwnedFd>, Option<u64>, bool)) {
        *self.lock() = State {
            channel,
            read,
            reminded,
        };
        self.changed();
    }

    /// The front end has given a channel.
    pub fn opened(&self, channel: OwnedFd) {
        self.lock().channel = Some(channel);
        self.changed();
    }

    /// The front end has read that capacity.
    pub fn capacity_was_read(&self, sectors: u64) {
        if self.lock().read.replace(sectors) != Some(sectors) {
            self.changed();
        }
    }

    /// Tells the front end that its configuration has changed.
    pub fn send(&self) -> Sent {
        Self::send_to(&mut self.lock())
    }

    /// The front end begins to use the disk, which has `sectors`. One that has
    /// not read that is told, once: it has read the configuration over an
    /// earlier connection, perhaps of an earlier process, and keeps to that; or
    /// it was told when it was not using the disk, which QEMU passes over.
    pub fn remind(&self, sectors: u64) {
        let mut state = self.lock();
        if state.read != Some(sectors) && !state.reminded {
            state.reminded = true;
            Self::send_to(&mut state);
        }
    }

    fn send_to(state: &mut State) -> Sent {
        let Some(channel) = &state.channel else {
            return Sent::NoChannel;
        };
        let words = [CONFIG_CHANGE, FLAGS, 0];
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let mut nothing = SendAncillaryBuffer::default();
        match sendmsg(channel, &[IoSlice::new(&message)], &mut nothing, flags) {
            Ok(HEADER_BYTES) => Sent::Yes,
            // Half a message would be the beginning of the next.
            Ok(_) => {
                state.channel = None;
                Sent::Failed
            }
            Err(error) => {
                tracing::warn!(%error, "the front end cannot be told that its disk has changed");
                Sent::Failed
            }
        }
    }

    fn changed(&self) {
        if let Some(hook) = self.on_change.get() {
            hook();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the next message, which stays where it is, and returns a copy of
/// the channel in it, if it is one that gives a channel. What is wrong with a
/// message is found by who takes it.
pub fn channel_in_next_message(front_end: &UnixStream) -> Option<OwnedFd> {
    let mut header = [0; HEADER_BYTES];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    let received: io::Result<usize> = retry_on_intr(|| {
        recvmsg(
            front_end,
            &mut [IoSliceMut::new(&mut header)],
            &mut control,
            flags,
        )
    })
    .map(|received| received.bytes)
    .map_err(io::Error::from);
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    // Those that are not wanted are closed with this.
    let descriptor = descriptors.next().and_then(|mut rights| rights.next());
    let request = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
    match (received, request) {
        (Ok(HEADER_BYTES), SET_BACKEND_REQ_FD) => descriptor,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::SendAncillaryMessage;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn put(socket: &UnixStream, request: u32, fds: &[&UnixStream]) {
        let words = [request, 1, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
        let sent = sendmsg(
            socket,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::empty(),
        );
        assert_eq!(sent, Ok(HEADER_BYTES));
    }

    #[test]
    fn a_channel_is_copied_and_the_message_left_for_its_reader() {
        let (theirs, mut ours) = UnixStream::pair().unwrap();
        let (mut channel, other) = UnixStream::pair().unwrap();
        put(&theirs, SET_BACKEND_REQ_FD, &[&other]);
        let copied = channel_in_next_message(&ours).expect("a channel");
        let mut message = [0; HEADER_BYTES];
        ours.read_exact(&mut message).unwrap();
        assert_eq!(message[..4], SET_BACKEND_REQ_FD.to_ne_bytes());

        let notices = Notices::default();
        assert_eq!(notices.send(), Sent::NoChannel);
        notices.opened(copied);
        assert_eq!(notices.send(), Sent::Yes);
        channel.read_exact(&mut message).unwrap();
        let words = [2u32, 1, 0].map(u32::to_ne_bytes).concat();
        assert_eq!(message[..], words);

        // Others that come with descriptors, or the right one without.
        for (request, fds) in [(12, vec![&other]), (5, vec![&other; 3]), (21, vec![])] {
            put(&theirs, request, &fds);
            assert!(channel_in_next_message(&ours).is_none(), "{request}");
            ours.read_exact(&mut message).unwrap();
        }
        drop(theirs);
        assert!(channel_in_next_message(&ours).is_none(), "at the end");
    }

    #[test]
    fn a_front_end_is_reminded_once_of_what_it_has_not_read() {
        let calls = Arc::new(AtomicU32::new(0));
        let notices = Notices::default();
        notices.on_change({
            let calls = calls.clone();
            Box::new(move || _ = calls.fetch_add(1, Ordering::SeqCst))
        });
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut told = || theirs.read(&mut [0; HEADER_BYTES]).is_ok_and(|n| n > 0);
        notices.opened(ours.into());
        notices.capacity_was_read(8);
        notices.capacity_was_read(8);
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        notices.remind(8);
        assert!(!told(), "it knows");
        notices.remind(16);
        assert!(told());
        notices.remind(16);
        assert!(!told(), "it was told");
        notices.capacity_was_read(16);
        assert_eq!(notices.read_capacity(), Some(16));
        notices.begin();
        assert_eq!(
            (notices.read_capacity(), notices.has_channel()),
            (None, false)
        );
        assert_eq!(notices.send(), Sent::NoChannel);
    }

    #[test]
    fn a_front_end_that_reads_no_notices_is_not_waited_for() {
        let (_theirs, ours) = UnixStream::pair().unwrap();
        let notices = Notices::default();
        notices.opened(ours.into());
        while notices.send() == Sent::Yes {}
        assert_ne!(notices.send(), Sent::Yes);
    }
}
