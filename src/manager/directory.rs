//! Directories that one manager at a time has.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::state::{Error, failed};
use crate::durable;
use crate::paths::{self, Loose};

/// How long a manager that was killed may take to be gone.
const ENDING: Duration = Duration::from_secs(1);

/// After which half of a file is one that nobody writes any more.
const HALF_DONE: Duration = Duration::from_secs(60);

/// A directory that one manager at a time has, for as long as this lives.
#[derive(Debug)]
pub struct OwnDirectory {
    path: PathBuf,
    _lock: File,
}

impl OwnDirectory {
    /// Takes the directory, which is made with `mode` if need be.
    ///
    /// # Errors
    /// [`Error::Taken`], [`Error::Unsafe`], and what the operating system refuses.
    pub fn take(path: &Path, mode: u32) -> Result<Self, Error> {
        make_directory(path, mode)?;
        let lock_path = path.join("manager.lock");
        // No link that somebody left there when the directory was not ours yet.
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        if !lock_in_time(&lock).map_err(failed("lock", &lock_path))? {
            let mut by = String::new();
            let _ = (&lock).take(16).read_to_string(&mut by);
            return Err(Error::Taken {
                path: path.to_owned(),
                by: by.trim().parse().ok(),
            });
        }
        // For the message above, and nothing else.
        let _ = lock
            .set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        // A command may be writing there, too, but not for so long.
        durable::sweep(path, HALF_DONE);
        Ok(OwnDirectory {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// A directory within it, for its owner alone.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn within(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        make_directory(&path, 0o700)?;
        Ok(path)
    }
}

/// Takes the lock, unless another manager has it and is not just ending.
fn lock_in_time(file: &File) -> io::Result<bool> {
    let deadline = Instant::now() + ENDING;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {}
            Err(Errno::AGAIN) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
        // flock has no time-out of its own.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes a directory unless there is one, in which nobody else can put things.
fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = || failed("make the directory", path);
    durable::directory_of_mode(path, mode).map_err(failed())?;
    let meta = path.metadata().map_err(failed())?;
    let others = meta.mode() & 0o022 & !mode;
    let owner = rustix::process::geteuid().as_raw();
    if meta.uid() != owner || others != 0 {
        return Err(Error::Unsafe {
            path: path.to_owned(),
            owner: meta.uid(),
            mode: meta.mode() & 0o7777,
        });
    }
    // Whoever can exchange a directory above it can exchange all that is in it.
    match paths::firm(path) {
        Ok(_) => Ok(()),
        Err(Loose::Io { source, .. }) => Err(failed()(source)),
        Err(Loose::Writable { path: above, .. }) => Err(Error::Beneath {
            path: path.to_owned(),
            above,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Explain, Kind};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_manager_has_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/and/deep");
        let first = OwnDirectory::take(&path, 0o755).unwrap();
        let error = OwnDirectory::take(&path, 0o755).unwrap_err();
        let by = format!("process {}", std::process::id());
        assert!(error.to_string().contains(&by), "{error}");
        assert_eq!(error.kind(), Kind::Busy);
        let within = first.within("disks").unwrap();
        let mode = within.metadata().unwrap().permissions();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
            0o700
        );
        drop(first);
        drop(OwnDirectory::take(&path, 0o755).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o775)).unwrap();
        let error = OwnDirectory::take(&path, 0o755).unwrap_err();
        assert_eq!(error.kind(), Kind::Permission);
        assert!(error.to_string().contains("0775"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        OwnDirectory::take(&path, 0o755).unwrap();
    }
}
