//! Writing a key file so that it is there as a whole or not at all.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::error::Cause;

/// The directory of a key file, locked against everybody else who changes
/// key files in it. The lock ends with the process.
pub(super) struct Directory {
    fd: OwnedFd,
    name: OsString,
    temporary: OsString,
}

impl Directory {
    pub(super) fn lock(path: &Path) -> Result<Self, Cause> {
        let Some(name) = path.file_name() else {
            return Err(Cause::NotRegular("a directory"));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Cause::NoDirectory),
            Err(error) => return Err(Cause::io("open the directory of", error)),
        };
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Cause::Busy),
            Err(error) => return Err(Cause::io("lock", error)),
        }
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(".new");
        Ok(Directory {
            fd,
            name: name.to_os_string(),
            temporary,
        })
    }

    /// Writes `text` under the temporary name, durably, with the owner and
    /// mode of the file that it will replace.
    pub(super) fn write_new(&self, text: &[u8], like: Option<&Metadata>) -> Result<(), Cause> {
        // What a crashed process left; we hold the lock, so it is nobody's.
        self.remove_temporary()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = rustix::fs::openat(&self.fd, &self.temporary, flags, mode)
            .map_err(|e| Cause::io("create", e))?;
        let written = self.fill(File::from(fd), text, like);
        if written.is_err() {
            // The first error is the one to tell.
            let _ = self.remove_temporary();
        }
        written
    }

    fn fill(&self, mut file: File, text: &[u8], like: Option<&Metadata>) -> Result<(), Cause> {
        let fail = |e: io::Error| Cause::io("write", e);
        if let Some(like) = like {
            let ours = file.metadata().map_err(fail)?;
            if (ours.uid(), ours.gid()) != (like.uid(), like.gid()) {
                std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))
                    .map_err(|e| Cause::io("keep the owner of", e))?;
            }
        }
        // The umask may have taken bits away.
        let mode = like.map_or(0o600, |like| like.mode() & 0o7777);
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(|e| fail(e.into()))?;
        file.write_all(text).map_err(fail)?;
        file.sync_all().map_err(fail)
    }

    fn remove_temporary(&self) -> Result<(), Cause> {
        match rustix::fs::unlinkat(&self.fd, &self.temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Cause::io("clear the way for", error)),
        }
    }

    /// The file that [`Directory::publish`] will replace, to be overwritten.
    pub(super) fn open_old(&self) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, &self.name, flags, Mode::empty())?;
        Ok(File::from(fd))
    }

    /// Gives the new file its name, durably.
    pub(super) fn publish(&self, flags: RenameFlags) -> Result<(), Cause> {
        let renamed =
            match rustix::fs::renameat_with(&self.fd, &self.temporary, &self.fd, &self.name, flags)
            {
                // A file system without RENAME_NOREPLACE: a hard link does the
                // same, and leaves the temporary name to be removed.
                Err(Errno::INVAL | Errno::NOSYS) if flags.contains(RenameFlags::NOREPLACE) => {
                    self.link_new()
                }
                other => other,
            };
        if let Err(error) = renamed {
            let _ = self.remove_temporary();
            return Err(match error {
                Errno::EXIST => Cause::Exists,
                error => Cause::io("name", error),
            });
        }
        rustix::fs::fsync(&self.fd).map_err(|e| Cause::io("make lasting", e))
    }

    /// What renaming without replacing does, in two steps.
    fn link_new(&self) -> rustix::io::Result<()> {
        let (from, to) = (&self.temporary, &self.name);
        rustix::fs::linkat(&self.fd, from, &self.fd, to, AtFlags::empty())?;
        rustix::fs::unlinkat(&self.fd, from, AtFlags::empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_a_new_file_replaces_nothing() {
        let place = tempfile::TempDir::new().unwrap();
        let path = place.path().join("key");
        let directory = Directory::lock(&path).unwrap();
        directory.write_new(b"ours", None).unwrap();
        // Somebody who takes no lock was faster.
        std::fs::write(&path, "theirs").unwrap();
        let late = directory.publish(RenameFlags::NOREPLACE);
        assert!(matches!(late, Err(Cause::Exists)));
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_fallback_for_plain_file_systems_does_the_same() {
        let place = tempfile::TempDir::new().unwrap();
        let path = place.path().join("key");
        let directory = Directory::lock(&path).unwrap();
        directory.write_new(b"ours", None).unwrap();
        directory.link_new().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ours");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
        directory.write_new(b"again", None).unwrap();
        assert_eq!(directory.link_new(), Err(Errno::EXIST));
        assert_eq!(std::fs::read(&path).unwrap(), b"ours");
    }
}
