//! Three kinds of lock on the files of a volume.
//!
//! - The **use lock**: an open-file-description lock over the whole file,
//!   exclusive for writers, shared for readers. It is held as long as the
//!   volume is open, passes to whoever is given the descriptor, and dies with
//!   the last of them. QEMU takes locks of the same family on its images, so
//!   that `qemu-img` and sealblk keep off each other's files.
//! - The **I/O locks**: of the same family, each on a byte that no file is long
//!   enough to have. Each descriptor that guests' data is written through, or
//!   moved, has one, which the use lock makes room for. Such a lock is released when the
//!   kernel drops the open file description, and a write in flight refers to it:
//!   so this outlives a process that was killed for as long as a write of it may
//!   still reach the disk, and the use lock does not. Nobody who wants the volume
//!   has it before they are gone.
//! - The **header lock**: `flock`, for the moments in which a header is read
//!   or rewritten. cryptsetup takes the same lock on header files and udev on
//!   block devices, so nobody sees a header half written.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::byte_lock;

/// How long to wait for whoever reads or writes a header: they take
/// milliseconds, unless they are stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// File systems that turn `flock` into the same kind of server-side lock as
/// the use lock; releasing one there would release the other.
const NETWORK_FILE_SYSTEMS: [u64; 4] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x517b];

/// How long to try for the use lock. Its users hold it for hours, so this is
/// not to wait for them: a process that is being started by one that has just
/// closed the volume shares the lock for the instant between fork and exec.
const INSTANT: Duration = Duration::from_secs(1);

/// How long to wait for what a process that was killed has in flight. A disk
/// that answers at all has done that by then, as a rule.
const DYING: Duration = Duration::from_secs(10);

/// After which time it is worth telling that something is waited for.
const NOTABLE: Duration = Duration::from_secs(1);

/// Where the bytes of the I/O locks begin, one for each queue.
const IO: i64 = byte_lock::FIRST_QUEUE;

/// What came of asking for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is ours.
    Yes,
    /// Somebody else has it.
    No,
    /// Nobody has it, but something that a process began before it ended is
    /// still in flight.
    Dying,
}

/// Takes the use lock.
///
/// # Errors
/// When the file system has no locks.
pub fn take_use(file: &File, exclusive: bool) -> io::Result<Taken> {
    let kind = if exclusive { Kind::Write } else { Kind::Read };
    if !within(INSTANT, || set(file, kind, Part::Use))? {
        return Ok(Taken::No);
    }
    if within(NOTABLE, || set(file, kind, Part::Io))? {
        return Ok(Taken::Yes);
    }
    tracing::warn!("waiting for what a process that has ended is still writing");
    if within(DYING, || set(file, kind, Part::Io))? {
        return Ok(Taken::Yes);
    }
    set(file, Kind::None, Part::Use)?;
    Ok(Taken::Dying)
}

/// Whether nothing is in flight any more of what was written through others, by
/// a process that has ended, for one who has the use lock for writing. Waits for
/// that, but not for long.
///
/// # Errors
/// When the file system has no locks.
pub fn is_quiet(holder: &File) -> io::Result<bool> {
    within(NOTABLE, || set(holder, Kind::Write, Part::Io))
}

/// Marks `files` as those that data is written through, for one who has found
/// that it [is quiet](is_quiet). False: it is not.
///
/// # Errors
/// When the file system has no locks.
pub fn mark_io(holder: &File, files: &[File]) -> io::Result<bool> {
    set(holder, Kind::None, Part::Io)?;
    for (file, number) in files.iter().zip(0..) {
        if !set(file, Kind::Write, Part::One(number))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Lets go all locks that the descriptor has, of any kind, which stay those of
/// nobody: whoever wants the volume may have it at once.
///
/// # Errors
/// When the file system has no locks.
pub fn let_go(file: &File) -> io::Result<()> {
    set(file, Kind::None, Part::All).map(drop)
}

/// The byte of who moves data, beyond those of any queue.
const MOVER: i64 = byte_lock::MOVER - IO;

/// Marks `file` as the one that data is moved through, beside those of the queues.
/// False: another one is, still.
///
/// # Errors
/// When the file system has no locks.
pub fn mark_mover(file: &File) -> io::Result<bool> {
    within(NOTABLE, || set(file, Kind::Write, Part::One(MOVER)))
}

/// Tries until it is so, or that time is over. These locks have no time-out of
/// their own.
fn within(time: Duration, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    let deadline = Instant::now() + time;
    let mut pause = Duration::from_micros(100);
    loop {
        match done()? {
            true => return Ok(true),
            false if Instant::now() >= deadline => return Ok(false),
            false => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

#[derive(Clone, Copy)]
enum Kind {
    None,
    Read,
    Write,
}

/// What of a file is locked.
#[derive(Clone, Copy)]
enum Part {
    Use,
    Io,
    /// The I/O lock of this number.
    One(i64),
    All,
}

/// Exchanges the lock that the descriptor has on that part, if nobody is in the way.
fn set(file: &File, kind: Kind, part: Part) -> io::Result<bool> {
    let range = range(kind, part);
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
    let mut range = range(Kind::Write, Part::All);
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and
    // the kernel writes the answer into the struct, which is ours alone.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut range) } {
        0 => Ok(range.l_type != libc::F_UNLCK as libc::c_short),
        _ => Err(io::Error::last_os_error()),
    }
}

fn range(kind: Kind, part: Part) -> libc::flock {
    let kind = match kind {
        Kind::None => libc::F_UNLCK,
        Kind::Read => libc::F_RDLCK,
        Kind::Write => libc::F_WRLCK,
    };
    // A length of 0 reaches as far as files can.
    let (start, len) = match part {
        Part::Use => (0, IO),
        Part::Io => (IO, 0),
        Part::One(number) => (IO + number, 1),
        Part::All => (0, 0),
    };
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
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
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn open(path: &Path) -> File {
        let mut options = File::options();
        options.read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn one_writer_or_many_readers() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || open(named.path());
        let (a, b, c) = (open(), open(), open());
        assert_eq!(take_use(&a, true).unwrap(), Taken::Yes);
        assert_eq!(take_use(&b, true).unwrap(), Taken::No);
        assert_eq!(take_use(&b, false).unwrap(), Taken::No);
        drop(a);
        assert_eq!(take_use(&b, false).unwrap(), Taken::Yes);
        assert_eq!(take_use(&c, false).unwrap(), Taken::Yes);
        assert_eq!(take_use(&open(), true).unwrap(), Taken::No);
        assert!(in_use(&open()).unwrap());
        drop((b, c));
        assert!(!in_use(&open()).unwrap());
    }

    /// A descriptor that outlives its process is here one that is closed late.
    #[test]
    fn who_wants_a_volume_waits_for_what_others_have_in_flight() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let open = || open(named.path());
        let (holder, queues) = (open(), [open(), open()]);
        assert_eq!(take_use(&holder, true).unwrap(), Taken::Yes);
        assert!(mark_io(&holder, &queues).unwrap());
        assert_eq!(take_use(&open(), true).unwrap(), Taken::No);
        // The process ends, with something in flight in its second queue.
        let [first, second] = queues;
        drop((holder, first));
        for exclusive in [true, false] {
            let kind = if exclusive { Kind::Write } else { Kind::Read };
            let next = open();
            assert!(set(&next, kind, Part::Use).unwrap());
            assert!(!set(&next, kind, Part::Io).unwrap());
            assert!(in_use(&open()).unwrap());
        }
        let next = open();
        let ended = Arc::new(AtomicBool::new(false));
        let ends = ended.clone();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            ends.store(true, Ordering::SeqCst);
            drop(second);
        });
        assert_eq!(take_use(&next, true).unwrap(), Taken::Yes);
        assert!(ended.load(Ordering::SeqCst));
        // The next process of one who has kept the use lock.
        let queues = [open(), open()];
        assert!(is_quiet(&next).unwrap() && mark_io(&next, &queues).unwrap());
        // Who moves data is waited for as well, and is one.
        let mover = open();
        assert!(mark_mover(&mover).unwrap());
        assert!(!set(&open(), Kind::Write, Part::One(MOVER)).unwrap());
        let [first, second] = queues;
        drop((first, second));
        assert!(!set(&next, Kind::Write, Part::Io).unwrap());
        drop(mover);
        assert!(is_quiet(&next).unwrap() && mark_io(&next, &[open()]).unwrap());
        late.join().unwrap();
    }

    #[test]
    fn the_use_lock_does_not_disturb_header_locks() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (named.as_file(), named.reopen().unwrap());
        assert_eq!(take_use(a, true).unwrap(), Taken::Yes);
        let held = HeaderLock::take(&b, true).unwrap();
        assert!(held.is_some());
        drop(held);
        assert!(HeaderLock::take(a, true).unwrap().is_some());
    }
}
