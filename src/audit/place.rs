//! The directory of a log, and the files in it.
//!
//! It is opened once, and everything in it by name from there, so that the
//! path cannot come to mean another directory while the log is written.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::error::Cause;

/// Rotated files have at least so many digits, so that lists show them in order.
const DIGITS: usize = 6;

/// Rights that nobody but the owner may have, and that others may not have.
const REFUSED: u32 = 0o027;

/// Rights to a directory with which others could replace what is in it.
const REFUSED_DIRECTORY: u32 = 0o022;

#[derive(Debug)]
pub(super) struct Place {
    directory: OwnedFd,
    path: PathBuf,
    name: OsString,
}

/// Whether to take what is there as it is, or to see that it is safe to write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
}

impl Place {
    /// The directory that `path` is in. To write, it is made if it alone is
    /// missing, and must be safe.
    pub(super) fn of(path: &Path, purpose: Purpose) -> Result<Self, Cause> {
        let name = path.file_name().ok_or(Cause::NotRegular)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if purpose == Purpose::Write {
            make(parent)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Cause::NoDirectory),
            Err(error) => return Err(Cause::io("open the directory of")(error.into())),
        };
        if purpose == Purpose::Write {
            let stat = rustix::fs::fstat(&directory).map_err(|e| Cause::io("examine")(e.into()))?;
            let mode = stat.st_mode & 0o7777;
            if mode & REFUSED_DIRECTORY != 0 {
                return Err(Cause::DirectoryMode(mode));
            }
            check_owner(stat.st_uid)?;
        }
        Ok(Place {
            directory,
            path: path.into(),
            name: name.into(),
        })
    }

    /// The file that is written, to be appended to, made if it is missing.
    pub(super) fn open_to_append(&self) -> Result<File, Cause> {
        self.open(
            &self.name,
            OFlags::RDWR | OFlags::APPEND | OFlags::CREATE,
            Purpose::Write,
        )
    }

    /// The file that is written, to be read.
    pub(super) fn open_current(&self) -> Result<File, Cause> {
        self.open(&self.name, OFlags::RDONLY, Purpose::Read)
    }

    /// The file beside the log that holds its head.
    pub(super) fn open_head(&self, purpose: Purpose) -> Result<File, Cause> {
        let access = match purpose {
            Purpose::Read => OFlags::RDONLY,
            Purpose::Write => OFlags::RDWR | OFlags::CREATE,
        };
        self.open(&self.beside("head"), access, purpose)
    }

    /// A rotated file, to be read.
    pub(super) fn open_rotated(&self, number: u64) -> Result<File, Cause> {
        self.open(&self.rotated_name(number), OFlags::RDONLY, Purpose::Read)
    }

    fn open(&self, name: &OsStr, access: OFlags, purpose: Purpose) -> Result<File, Cause> {
        // NONBLOCK: opening a FIFO must not wait for its other end.
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mode = Mode::from_raw_mode(0o600);
        let file = match rustix::fs::openat(&self.directory, name, flags, mode) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Err(Cause::Missing),
            Err(Errno::LOOP) => return Err(Cause::Link),
            Err(Errno::NXIO | Errno::ISDIR) => return Err(Cause::NotRegular),
            Err(error) => return Err(Cause::io("open")(error.into())),
        };
        let meta = file.metadata().map_err(Cause::io("examine"))?;
        if !meta.is_file() {
            return Err(Cause::NotRegular);
        }
        if purpose == Purpose::Write {
            check(&meta)?;
        }
        Ok(file)
    }

    /// Whether `file` is still what the log's name means.
    pub(super) fn is_current(&self, file: &File) -> Result<bool, Cause> {
        let meta = file.metadata().map_err(Cause::io("examine"))?;
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok((stat.st_dev, stat.st_ino) == (meta.dev(), meta.ino())),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Cause::io("look for")(error.into())),
        }
    }

    /// The numbers of the rotated files, the oldest first.
    pub(super) fn rotated(&self) -> Result<Vec<u64>, Cause> {
        let fail = |error: Errno| Cause::io("list the rotated files of")(error.into());
        let mut numbers = Vec::new();
        for entry in Dir::read_from(&self.directory).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            numbers.extend(self.number(entry.file_name().to_bytes()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn number(&self, name: &[u8]) -> Option<u64> {
        let digits = name
            .strip_prefix(self.name.as_bytes())?
            .strip_prefix(b".")?;
        let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
        // One way to write each number, so that none comes twice.
        (self.rotated_name(number).as_bytes() == name).then_some(number)
    }

    fn rotated_name(&self, number: u64) -> OsString {
        self.beside(&format!("{number:0DIGITS$}"))
    }

    fn beside(&self, ending: &str) -> OsString {
        let mut name = self.name.clone();
        name.push(".");
        name.push(ending);
        name
    }

    /// The path of the file that is written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a rotated file, for messages.
    pub(super) fn rotated_path(&self, number: u64) -> PathBuf {
        self.path.with_file_name(self.rotated_name(number))
    }

    /// The path of the head file, for messages.
    pub(super) fn head_path(&self) -> PathBuf {
        self.path.with_file_name(self.beside("head"))
    }

    /// Gives the current file the name of a rotated one, durably.
    pub(super) fn rotate(&self) -> Result<(), Cause> {
        let number = self.rotated()?.last().map_or(1, |last| last + 1);
        let to = self.rotated_name(number);
        rustix::fs::renameat(&self.directory, &self.name, &self.directory, &to)
            .map_err(|e| Cause::io("rotate")(e.into()))?;
        self.sync()
    }

    /// Removes a rotated file.
    pub(super) fn remove(&self, number: u64) -> Result<(), Cause> {
        let name = self.rotated_name(number);
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Cause::io("remove rotated files of")(error.into())),
        }
    }

    /// Makes names that were given or removed lasting.
    pub(super) fn sync(&self) -> Result<(), Cause> {
        rustix::fs::fsync(&self.directory)
            .map_err(|e| Cause::io("make lasting the directory of")(e.into()))
    }

    /// Gives `file` the group and rights that its forerunner has, as far as
    /// they are safe: an operator may have let a group read the log.
    pub(super) fn like_rotated(&self, file: &File, number: u64) -> Result<(), Cause> {
        let like = self.open_rotated(number)?;
        let like = like.metadata().map_err(Cause::io("examine"))?;
        if check(&like).is_ok() && std::os::unix::fs::fchown(file, None, Some(like.gid())).is_ok() {
            file.set_permissions(PermissionsExt::from_mode(like.mode() & 0o777))
                .map_err(Cause::io("keep the mode of"))?;
        }
        Ok(())
    }
}

fn make(directory: &Path) -> Result<(), Cause> {
    let fail = |error: io::Error| Cause::io("make the directory of")(error);
    match rustix::fs::mkdirat(CWD, directory, Mode::from_raw_mode(0o700)) {
        Ok(()) => {
            let above = directory.parent().filter(|p| !p.as_os_str().is_empty());
            let above = File::open(above.unwrap_or(Path::new("."))).map_err(fail)?;
            above.sync_all().map_err(fail)
        }
        Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(Cause::NoDirectory),
        Err(error) => Err(fail(error.into())),
    }
}

/// Whether a file like this is one that only its owner can change.
fn check(meta: &Metadata) -> Result<(), Cause> {
    let mode = meta.mode() & 0o7777;
    if mode & REFUSED != 0 {
        return Err(Cause::Mode(mode));
    }
    check_owner(meta.uid())
}

fn check_owner(owner: u32) -> Result<(), Cause> {
    let us = rustix::process::geteuid().as_raw();
    if owner == us || owner == 0 {
        return Ok(());
    }
    Err(Cause::Owner { owner, us })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_rotation_made_is_a_rotated_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in [
            "log.000010",
            "log.000009",
            "log.1000000",
            "log.9",
            "log.0000011",
            "log.+00012",
            "log.head",
            "log.000013.gz",
            "other.000001",
            "log",
        ] {
            std::fs::write(at(name), "").unwrap();
        }
        let place = Place::of(&at("log"), Purpose::Read).unwrap();
        assert_eq!(place.rotated().unwrap(), [9, 10, 1_000_000]);
        assert_eq!(place.rotated_path(9), at("log.000009"));
        place.rotate().unwrap();
        assert_eq!(place.rotated().unwrap(), [9, 10, 1_000_000, 1_000_001]);
        assert!(matches!(place.open_current(), Err(Cause::Missing)));
    }
}
