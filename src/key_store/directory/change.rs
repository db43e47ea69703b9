//! Changing entries: under a lock, and so that a crash leaves the old or the
//! new one.
//!
//! The new entry is written under another name, made durable, and then takes
//! its name: with `RENAME_NOREPLACE` or a hard link where there must be none,
//! which excludes others even where locks do not work, and else by a rename.
//! Then the directory is made durable, and what was replaced is overwritten.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::super::{Entry, Failed, Version};
use super::file_name;
use super::folder::{Folder, failed, version};
use crate::error::Kind;
use crate::kms::{Class, Error};

/// The file that is locked by whoever changes something. It stays.
const LOCK: &str = ".lock";

/// How long to wait for whoever changes something: that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Puts `entry` in the place of what is expected there.
pub(super) fn put(
    folder: &Folder,
    entry: &Entry,
    expected: Option<&Version>,
) -> Result<Version, Failed> {
    let json = entry.to_json().map_err(Failed::Entry)?;
    let mut text = format!("{json:#}").into_bytes();
    text.push(b'\n');
    let volume = entry.volume;
    let _lock = lock(folder)?;
    remove_leftovers(folder, volume)?;
    let there = folder.contents(volume)?.map(|contents| contents.version);
    if there.as_ref() != expected {
        return Err(Failed::Conflict);
    }
    let new = New::write(folder, volume, &text)?;
    // Opened while it still has its name.
    let old = expected.and_then(|_| open_to_wipe(folder, &file_name(volume)).ok());
    new.publish(expected.is_some())?;
    folder.sync()?;
    if let Some(old) = old {
        wipe(&old, &file_name(volume));
    }
    Ok(version(&text))
}

/// Destroys the entry of a volume, and what crashes left of it.
pub(super) fn purge(folder: &Folder, volume: Uuid) -> Result<(), Failed> {
    let _lock = lock(folder)?;
    remove_leftovers(folder, volume)?;
    let name = file_name(volume);
    // It loses its name first: half of an entry must not be found under it.
    let aside = name_in_the_making(folder, volume)?;
    match rustix::fs::renameat(&folder.fd, &name, &folder.fd, &aside) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(folder.sync()?),
        Err(error) => {
            let path = folder.path.join(&name);
            return Err(Failed::Store(failed("remove", &path, error)));
        }
    }
    folder.sync()?;
    // Something else than a file is removed, and not followed.
    if let Ok(file) = open_to_wipe(folder, &aside) {
        wipe(&file, &name);
    }
    folder.remove(&aside)?;
    Ok(folder.sync()?)
}

/// The lock of the store, held until it is dropped or the process ends.
///
/// `flock`, which Linux turns into a lock of the server on NFS and CephFS, so
/// that it holds between hosts.
fn lock(folder: &Folder) -> Result<File, Failed> {
    let path = folder.path.join(LOCK);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let file = rustix::fs::openat(&folder.fd, LOCK, flags, mode)
        .map_err(|error| failed("open", &path, error))?;
    let start = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file.into()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS) => {
                return Err(Failed::Store(Error::new(
                    Class::Protocol,
                    format!("the file system of {} has no locks", folder.path.display()),
                    "have its lock service started (NFS: version 4, or lockd), or use another file system",
                )));
            }
            Err(error) => return Err(Failed::Store(failed("lock", &path, error))),
        }
        if start.elapsed() > PATIENCE {
            return Err(Failed::Store(
                Error::new(
                    Class::Unreachable,
                    format!("somebody has had {} locked all the time", path.display()),
                    "find out which host changes something there and does not end",
                )
                .with_kind(Kind::Busy),
            ));
        }
        // flock has no time-out of its own.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The beginning and the end of the names of entries of a volume in the making,
/// or being destroyed.
fn in_the_making(volume: Uuid) -> (String, &'static str) {
    (format!(".{volume}."), ".new")
}

/// Such a name that nobody has.
fn name_in_the_making(folder: &Folder, volume: Uuid) -> Result<String, Error> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|error| failed("name a file in", &folder.path, io::Error::other(error)))?;
    let (begin, end) = in_the_making(volume);
    let random = u64::from_ne_bytes(random);
    Ok(format!("{begin}{random:016x}{end}"))
}

/// Removes what crashed processes left of the entries of a volume. The lock is
/// ours, so that nobody is writing them.
fn remove_leftovers(folder: &Folder, volume: Uuid) -> Result<(), Error> {
    let (begin, end) = in_the_making(volume);
    for name in folder.names()? {
        if name.starts_with(&begin) && name.ends_with(end) {
            if let Ok(file) = open_to_wipe(folder, &name) {
                wipe(&file, &name);
            }
            folder.remove(&name)?;
        }
    }
    Ok(())
}

fn open_to_wipe(folder: &Folder, name: &str) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(&folder.fd, name, flags, Mode::empty()).map(File::from)
}

/// Overwrites a file with zeroes, so that wraps do not stay in free blocks.
/// That is all that can be done from here, and not always enough: copy-on-write
/// file systems, flash, snapshots and backups keep older copies.
fn wipe(mut file: &File, name: &str) {
    let mut overwrite = || {
        let meta = file.metadata()?;
        if !meta.is_file() || meta.nlink() > 1 {
            return Err(io::Error::other("it has another name, or is no file"));
        }
        io::copy(&mut io::Read::take(io::repeat(0), meta.len()), &mut file)?;
        file.sync_all()
    };
    if let Err(error) = overwrite() {
        tracing::warn!(%error, name, "a removed entry of a key store could not be overwritten");
    }
}

/// An entry in the making. It is removed again, unless it is published.
struct New<'f> {
    folder: &'f Folder,
    volume: Uuid,
    name: String,
}

impl<'f> New<'f> {
    /// Writes it durably, under a name of its own.
    fn write(folder: &'f Folder, volume: Uuid, text: &[u8]) -> Result<Self, Error> {
        let new = New {
            folder,
            volume,
            name: name_in_the_making(folder, volume)?,
        };
        let path = folder.path.join(file_name(volume));
        let fail = |error: io::Error| failed("write", &path, error);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = rustix::fs::openat(&folder.fd, &new.name, flags, mode)
            .map_err(|error| failed("create", &path, error))?;
        let mut file = File::from(fd);
        // A default ACL of the directory may have allowed others more.
        rustix::fs::fchmod(&file, mode).map_err(|error| fail(error.into()))?;
        file.write_all(text).map_err(fail)?;
        file.sync_all().map_err(fail)?;
        Ok(new)
    }

    /// Gives it the name of the entry.
    fn publish(self, replace: bool) -> Result<(), Failed> {
        let (fd, to) = (&self.folder.fd, file_name(self.volume));
        let path = self.folder.path.join(&to);
        let flags = match replace {
            true => RenameFlags::empty(),
            false => RenameFlags::NOREPLACE,
        };
        let renamed = match rustix::fs::renameat_with(fd, &self.name, fd, &to, flags) {
            // Some network file systems know no flags. A link does the same,
            // and leaves the other name to be removed.
            Err(Errno::INVAL | Errno::NOSYS) if !replace => {
                rustix::fs::linkat(fd, &self.name, fd, &to, AtFlags::empty())
            }
            other => other,
        };
        match renamed {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(Failed::Conflict),
            Err(error) => Err(Failed::Store(failed("name", &path, error))),
        }
    }
}

impl Drop for New<'_> {
    /// Nothing is there after a rename, and another name of the same file
    /// after a link.
    fn drop(&mut self) {
        if let Ok(file) = open_to_wipe(self.folder, &self.name)
            && file.metadata().is_ok_and(|meta| meta.nlink() == 1)
        {
            wipe(&file, &self.name);
        }
        let _ = self.folder.remove(&self.name);
    }
}
