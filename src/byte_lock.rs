//! Locks on single bytes of files, each held by an open file description.
//!
//! What one open file description has, no other can have, in this process or in any
//! other; the kernel lets go of it with the last descriptor of that description, and
//! not before the last request in flight that refers to it. So it can be told who of
//! several processes may do something, whatever dies: see `docs/architecture.md`.
//!
//! Bytes are chosen beyond the end of any file, so that nobody who locks what is in
//! a file is in the way.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// Where the bytes of the I/O locks begin, one for each queue (`volume::lock`).
pub const FIRST_QUEUE: i64 = 1 << 62;

/// The byte of who moves data, beyond those of any queue.
pub const MOVER: i64 = FIRST_QUEUE + (1 << 16);

/// The byte of who serves a disk, in memory that all its workers have.
pub const SERVER: i64 = 1 << 62;

/// Takes the lock on a byte. False: somebody else has it.
///
/// # Errors
/// When the file has no locks, or is not open for writing.
pub fn take(file: impl AsFd, byte: i64) -> io::Result<bool> {
    set(file, byte, libc::F_WRLCK)
}

/// Lets go of it, had or not.
///
/// # Errors
/// As [`take`].
pub fn release(file: impl AsFd, byte: i64) -> io::Result<()> {
    set(file, byte, libc::F_UNLCK).map(drop)
}

/// Tries to take it until that time is over. These locks have no time-out.
///
/// # Errors
/// As [`take`].
pub fn take_within(file: impl AsFd, byte: i64, time: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + time;
    let mut pause = Duration::from_micros(50);
    loop {
        match take(file.as_fd(), byte)? {
            true => return Ok(true),
            false if Instant::now() >= deadline => return Ok(false),
            false => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

fn set(file: impl AsFd, byte: i64, kind: libc::c_int) -> io::Result<bool> {
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and
    // the kernel only reads the struct that the pointer refers to.
    if unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &range) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_byte_is_of_one_open_file_description_until_that_is_gone() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).open(named.path()).unwrap()
        };
        let (first, second) = (open(), open());
        assert!(take(&first, SERVER).unwrap());
        assert!(take(&first, SERVER).unwrap(), "its own");
        assert!(!take(&second, SERVER).unwrap());
        assert!(take(&second, MOVER).unwrap(), "another byte");
        let shared = first.try_clone().unwrap();
        drop(first);
        let short = Duration::from_millis(5);
        assert!(!take_within(&second, SERVER, short).unwrap());
        release(&shared, SERVER).unwrap();
        assert!(take_within(&second, SERVER, Duration::ZERO).unwrap());
        assert!(!take(&shared, SERVER).unwrap());
        drop(second);
        assert!(take(&shared, SERVER).unwrap());
    }

    #[test]
    fn memory_has_such_locks_too() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let memo = File::from(rustix::fs::memfd_create("lock", flags).unwrap());
        let path = format!("/proc/self/fd/{}", memo.as_raw_fd());
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (first, second) = (open(), open());
        assert!(take(&first, SERVER).unwrap());
        assert!(!take(&second, SERVER).unwrap());
        assert!(!take(&memo, SERVER).unwrap());
    }
}
