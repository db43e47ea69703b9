//! Two kinds of lock on the files of a volume.
//!
//! - The **use lock**: an open-file-description lock over the whole file,
//!   exclusive for writers, shared for readers. It is held as long as the
//!   volume is open, passes to whoever is given the descriptor, and dies with
//!   the last of them. QEMU takes locks of the same family on its images, so
//!   that `qemu-img` and sealblk keep off each other's files.
//! - The **header lock**: `flock`, for the moments in which a header is read
//!   or rewritten. cryptsetup takes the same lock on header files and udev on
//!   block devices, so nobody sees a header half written.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

/// How long to wait for whoever reads or writes a header: they take
/// milliseconds, unless they are stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// File systems that turn `flock` into the same kind of server-side lock as
/// the use lock; releasing one there would release the other.
const NETWORK_FILE_SYSTEMS: [u64; 4] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x517b];

/// How long to try for the use lock. Its users hold it for hours, so this is
/// not to wait for them: a process that is being started by one that has just
/// closed the volume shares the lock for the instant between fork and exec.
const INSTANT: Duration = Duration::from_millis(250);

/// Takes the use lock. `Ok(false)`: somebody else has it.
///
/// # Errors
/// When the file system has no locks.
pub fn take_use(file: &File, exclusive: bool) -> io::Result<bool> {
    let deadline = Instant::now() + INSTANT;
    loop {
        match try_use(file, exclusive)? {
            true => return Ok(true),
            false if Instant::now() >= deadline => return Ok(false),
            false => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn try_use(file: &File, exclusive: bool) -> io::Result<bool> {
    let range = whole_file(exclusive);
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and
    // the kernel only reads the struct that the pointer refers to.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Whether somebody else has the use lock, of either kind. Takes none itself.
///
/// # Errors
/// When the file system has no locks.
pub fn in_use(file: &File) -> io::Result<bool> {
    let mut range = whole_file(true);
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and
    // the kernel writes the answer into the struct, which is ours alone.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut range) } {
        0 => Ok(range.l_type != libc::F_UNLCK as libc::c_short),
        _ => Err(io::Error::last_os_error()),
    }
}

fn whole_file(exclusive: bool) -> libc::flock {
    libc::flock {
        l_type: match exclusive {
            true => libc::F_WRLCK as libc::c_short,
            false => libc::F_RDLCK as libc::c_short,
        },
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Looks for the process that holds a use lock on `file`. The kernel does
/// not say it for this kind of lock, so this reads what `/proc` shows of
/// every process; `None` when that is not permitted or nobody is found.
pub fn holder(file: &File) -> Option<u32> {
    let meta = file.metadata().ok()?;
    let device = meta.dev();
    let wanted = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device),
        meta.ino()
    );
    let holds = |info: std::fs::DirEntry| {
        std::fs::read_to_string(info.path()).is_ok_and(|text| {
            text.lines()
                .filter(|line| line.starts_with("lock:") && line.contains("OFDLCK"))
                .any(|line| line.split_whitespace().any(|word| word == wanted))
        })
    };
    let own = std::process::id();
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .find(|pid| {
            std::fs::read_dir(format!("/proc/{pid}/fdinfo"))
                .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(holds)))
        })
}

/// The header lock, held until dropped.
pub struct HeaderLock<'a> {
    file: Option<&'a File>,
}

impl<'a> HeaderLock<'a> {
    /// Waits for the header lock, but not for ever. `Ok(None)`: somebody held
    /// it all the time.
    ///
    /// # Errors
    /// When the file system has no locks.
    pub fn take(file: &'a File, exclusive: bool) -> io::Result<Option<Self>> {
        let fs = rustix::fs::fstatfs(file)?;
        if NETWORK_FILE_SYSTEMS.contains(&(fs.f_type as u64)) {
            return Ok(Some(HeaderLock { file: None }));
        }
        let operation = match exclusive {
            true => FlockOperation::NonBlockingLockExclusive,
            false => FlockOperation::NonBlockingLockShared,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(file, operation) {
                Ok(()) => return Ok(Some(HeaderLock { file: Some(file) })),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            // flock has no time-out of its own.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for HeaderLock<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file {
            // Closing the file releases it too; there is nothing else to do.
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writer_or_many_readers() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || {
            let options = || File::options().read(true).write(true).to_owned();
            options().open(named.path()).unwrap()
        };
        let (a, b, c) = (open(), open(), open());
        assert!(try_use(&a, true).unwrap());
        assert!(!try_use(&b, true).unwrap());
        assert!(!try_use(&b, false).unwrap());
        drop(a);
        assert!(try_use(&b, false).unwrap());
        assert!(try_use(&c, false).unwrap());
        assert!(!try_use(&open(), true).unwrap());
        assert!(in_use(&open()).unwrap());
        drop((b, c));
        assert!(!in_use(&open()).unwrap());
    }

    #[test]
    fn the_use_lock_does_not_disturb_header_locks() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (named.as_file(), named.reopen().unwrap());
        assert!(try_use(a, true).unwrap());
        let held = HeaderLock::take(&b, true).unwrap();
        assert!(held.is_some());
        drop(held);
        assert!(HeaderLock::take(a, true).unwrap().is_some());
    }
}
