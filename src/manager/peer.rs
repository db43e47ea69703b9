//! Who is at the other end of a connection, as the kernel knows it: nothing
//! that a client sends counts.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A connected process, at the moment when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its number. `None` where it lives in a pid namespace of its own.
    pub pid: Option<u32>,
}

impl Peer {
    /// The peer of a connected unix socket.
    ///
    /// # Errors
    /// What `getsockopt(2)` says.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let socket = socket.as_fd();
        let credentials = credentials(socket)?;
        Ok(Peer {
            uid: credentials.uid,
            gid: credentials.gid,
            groups: groups(socket)?,
            pid: u32::try_from(credentials.pid).ok().filter(|pid| *pid != 0),
        })
    }

    /// Whether it is in that group, by its own or a supplementary one.
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

/// User, group and process (`SO_PEERCRED`). Asked for by hand, since the
/// process has number 0 when it has none here, and not every library knows.
fn credentials(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let size = size_of::<libc::ucred>();
    let mut bytes = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    // SAFETY: the pointer is to `bytes` writable bytes, of a type for which
    // any bits are a value, and `bytes` is a live object.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut bytes,
        )
    };
    match result {
        0 if bytes as usize == size => Ok(credentials),
        0 => Err(io::Error::from(io::ErrorKind::InvalidData)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The supplementary groups (`SO_PEERGROUPS`, Linux 4.13).
fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // Most processes have a few; the kernel's limit is 65,536.
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let room = groups.len() * size_of::<libc::gid_t>();
        let mut bytes = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: the pointer is to `bytes` writable bytes, of a type for
        // which any bits are a value, and `bytes` is a live object.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        match io::Error::last_os_error() {
            // It says how much room it needs.
            error if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                groups.resize(count, 0);
            }
            error => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn this_process_is_its_own_peer() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        assert_eq!(peer.pid, Some(std::process::id()));
        let groups: Vec<u32> = rustix::process::getgroups()
            .unwrap()
            .into_iter()
            .map(|group| group.as_raw())
            .collect();
        assert_eq!(peer.groups, groups);
        assert!(peer.is_in(peer.gid));
        assert!(!peer.is_in(4_000_000_000));
    }
}
