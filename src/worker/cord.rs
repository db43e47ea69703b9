//! By which one worker ends another, which is of another user and behind other walls:
//! the one that serves a disk has to be sure that the one that was to go on with it
//! does not, whatever has become of that.
//!
//! It is a pipe whose reader the kernel ends when something is written to it: with the
//! privileges of the reader, which has asked for that itself, and before it put up its
//! walls. So no worker may send signals, and each can be ended by whoever it has given
//! the other end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};

/// `fcntl(2)`: which signal tells that a descriptor can be read. From
/// asm-generic/fcntl.h, which the libc crate does not have.
const F_SETSIG: libc::c_int = 10;

/// Ends this process when somebody pulls it, for as long as it is there.
pub struct Cord {
    _reader: OwnedFd,
    /// Kept, so that the end of whoever else has it is no news.
    writer: OwnedFd,
}

impl Cord {
    /// Ties it to this process.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn tie() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let set = |what, value: libc::c_int| {
            // SAFETY: the descriptor is open, and these take a number.
            match unsafe { libc::fcntl(reader.as_raw_fd(), what, value) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        set(libc::F_SETOWN, std::process::id().cast_signed())?;
        set(F_SETSIG, libc::SIGKILL)?;
        let flags = rustix::fs::fcntl_getfl(&reader)?;
        rustix::fs::fcntl_setfl(
            &reader,
            flags | OFlags::from_bits_retain(libc::O_ASYNC as u32),
        )?;
        Ok(Cord {
            _reader: reader,
            writer,
        })
    }

    /// The other end.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn end(&self) -> io::Result<OwnedFd> {
        self.writer.try_clone()
    }
}

/// Ends the process that has tied it, if it has not let go of it.
pub fn pull(end: impl AsFd) {
    // It fails when nobody has the other end.
    let _ = rustix::io::write(end, &[1]);
}
