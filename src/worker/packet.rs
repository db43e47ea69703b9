//! Packets between manager and worker: bytes and descriptors, whole or not at
//! all, on a socket of type SOCK_SEQPACKET. Nothing here waits.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most bytes of a packet. Paths have at most 4096, and nothing else is long.
pub const MAX_BYTES: usize = 128 << 10;

/// The most descriptors of a packet: 64 queues, and a handful of others.
pub const MAX_FDS: usize = 96;

/// What was sent at once.
#[derive(Debug)]
pub struct Packet {
    /// The bytes, at least one.
    pub bytes: Vec<u8>,
    /// The descriptors, closed on `exec`.
    pub fds: Vec<OwnedFd>,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Sends a packet.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when there is no room for it, and what the
/// kernel says otherwise.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || bytes.len() > MAX_BYTES || fds.len() > MAX_FDS {
        return Err(invalid("a packet of an impossible size was to be sent"));
    }
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(invalid("more descriptors than a packet has room for"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    match sent == bytes.len() {
        true => Ok(()),
        false => Err(invalid("a packet was sent in part")),
    }
}

/// The next packet, or nothing when the other side has closed.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when there is none yet,
/// [`io::ErrorKind::InvalidData`] when it is larger than packets are.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        flags,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    // The kernel fills the space up to its alignment.
    if received.flags.intersects(cut) || fds.len() > MAX_FDS {
        return Err(invalid("a packet was larger than packets are"));
    }
    // Nobody sends empty ones.
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    Ok(Some(Packet { bytes, fds }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::fs::File;
    use std::io::Write;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn packets_arrive_whole_with_their_descriptors() {
        let (a, b) = pair();
        assert_eq!(
            receive(&b).unwrap_err().kind(),
            io::ErrorKind::WouldBlock,
            "receiving waits"
        );
        let file = tempfile::tempfile().unwrap();
        send(&a, b"one", &[file.as_fd(), a.as_fd()]).unwrap();
        send(&a, b"two", &[]).unwrap();
        let first = receive(&b).unwrap().unwrap();
        assert_eq!((&first.bytes[..], first.fds.len()), (&b"one"[..], 2));
        for fd in &first.fds {
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        let mut received = File::from(first.fds.into_iter().next().unwrap());
        received.write_all(b"x").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1, "another file");
        assert_eq!(receive(&b).unwrap().unwrap().bytes, b"two");
        drop(a);
        assert!(receive(&b).unwrap().is_none());
    }

    #[test]
    fn packets_are_bounded_on_both_sides() {
        let (a, b) = pair();
        let many = vec![a.as_fd(); MAX_FDS + 1];
        for (len, fds) in [(0, 0), (MAX_BYTES + 1, 0), (1, MAX_FDS + 1)] {
            assert!(
                send(&a, &vec![1; len], &many[..fds]).is_err(),
                "{len} {fds}"
            );
        }
        send(&a, &[1; MAX_BYTES], &many[..MAX_FDS]).unwrap();
        let whole = receive(&b).unwrap().unwrap();
        assert_eq!((whole.bytes.len(), whole.fds.len()), (MAX_BYTES, MAX_FDS));

        // One who does not keep to it.
        let large = vec![1; MAX_BYTES + 1];
        rustix::net::send(&a, &large, SendFlags::empty()).unwrap();
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        for count in [MAX_FDS + 1, MAX_FDS + 8] {
            let many = vec![a.as_fd(); count];
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS + 8))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
            let byte = [IoSlice::new(b"x")];
            sendmsg(&a, &byte, &mut control, SendFlags::empty()).unwrap();
            let error = receive(&b).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{count}");
        }
    }

    #[test]
    fn a_full_socket_is_told_and_not_waited_for() {
        let (a, _b) = pair();
        let error = loop {
            if let Err(error) = send(&a, &[1; 4096], &[]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
