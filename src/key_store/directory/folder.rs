//! The directory: opened once, checked, and read. All names are looked up in
//! the one directory that was opened, wherever its path leads meanwhile.
#![forbid(unsafe_code)]

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::super::{ENTRY_MAX, Entry, EntryError, Failed, Stored, Version};
use super::file_name;
use crate::error::{Kind, io_kind};
use crate::kms::{Class, Denied, Error};

/// How often a file is read again that was replaced meanwhile.
const TRIES: u32 = 5;

/// The directory of a store.
pub(super) struct Folder {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

/// What is in a file, whatever that is.
pub(super) struct Contents {
    pub(super) bytes: Vec<u8>,
    pub(super) version: Version,
}

impl Folder {
    /// Opens the directory, if nobody but its owner can change what is in it.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                return Err(Error::new(
                    Class::Unreachable,
                    format!("there is no directory {}", path.display()),
                    "mount the file system that it is on; a new store is a directory that you make, of mode 0700 and for the user that runs sealblk",
                ));
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(unsafe_place(
                    format!(
                        "{} is not a directory, or a symbolic link to one",
                        path.display()
                    ),
                    "name the directory itself",
                ));
            }
            Err(error) => return Err(failed("open", path, error)),
        };
        let file = File::from(fd);
        let meta = file
            .metadata()
            .map_err(|error| failed("examine", path, error))?;
        check(path, &meta, 0o022)?;
        Ok(Folder {
            fd: file.into(),
            path: path.to_owned(),
        })
    }

    /// The entry of a volume, if there is one.
    pub(super) fn read(&self, volume: Uuid) -> Result<Option<Stored>, Failed> {
        let mut tries = 0;
        loop {
            tries += 1;
            let Some(contents) = self.contents(volume)? else {
                return Ok(None);
            };
            match Entry::parse(&contents.bytes) {
                Ok(entry) => {
                    return Ok(Some(Stored {
                        entry,
                        version: contents.version,
                    }));
                }
                // It may have been replaced and overwritten while it was read,
                // by another host: what there is now is another file.
                Err(EntryError::Malformed(_)) if tries < TRIES => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(Failed::Entry(error)),
            }
        }
    }

    /// What the file of a volume holds, if there is one.
    pub(super) fn contents(&self, volume: Uuid) -> Result<Option<Contents>, Failed> {
        let name = file_name(volume);
        let path = self.path.join(&name);
        let fail = |what, error: io::Error| Failed::Store(failed(what, &path, error));
        // NONBLOCK: opening a FIFO must not wait for its other end.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut tries = 0;
        let file = loop {
            tries += 1;
            match rustix::fs::openat(&self.fd, &name, flags, Mode::empty()) {
                Ok(fd) => break File::from(fd),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP) => {
                    let what = format!("{} is a symbolic link", path.display());
                    let next = "put the file itself there";
                    return Err(Failed::Store(unsafe_place(what, next)));
                }
                // Replaced on the server since the name was looked up.
                Err(Errno::STALE) if tries < TRIES => {}
                Err(error) => return Err(fail("open", error.into())),
            }
        };
        let meta = file.metadata().map_err(|error| fail("examine", error))?;
        if !meta.is_file() {
            let what = format!("{} is {}, and not a file", path.display(), kind_of(&meta));
            let next = "move it away, and restore the entry from a backup of the store";
            return Err(Failed::Store(unsafe_place(what, next)));
        }
        check(&path, &meta, 0o027).map_err(Failed::Store)?;
        let mut bytes = Vec::new();
        file.take(ENTRY_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| fail("read", error))?;
        if bytes.len() > ENTRY_MAX {
            return Err(Failed::Entry(EntryError::TooLong));
        }
        Ok(Some(Contents {
            version: version(&bytes),
            bytes,
        }))
    }

    /// The volumes that have an entry.
    pub(super) fn list(&self) -> Result<Vec<Uuid>, Error> {
        let names = self.names()?;
        let volumes = names.iter().filter_map(|name| {
            let stem = name.strip_suffix(".json")?;
            let volume = Uuid::try_parse(stem).ok()?;
            // In the one form in which they are written.
            (file_name(volume) == *name).then_some(volume)
        });
        Ok(volumes.collect())
    }

    /// All names that are text.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let fail = |error: Errno| failed("read", &self.path, error);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Makes what was renamed, created or removed here survive a crash.
    pub(super) fn sync(&self) -> Result<(), Error> {
        rustix::fs::fsync(&self.fd).map_err(|error| failed("synchronise", &self.path, error))
    }

    /// Removes a name, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("remove", &self.path.join(name), error)),
        }
    }
}

/// The version of a file with these bytes.
pub(super) fn version(bytes: &[u8]) -> Version {
    let hash = Sha256::digest(bytes);
    Version(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn kind_of(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Fails unless what is at `path` belongs to us or to root, and gives nobody
/// else the rights in `forbidden`.
fn check(path: &Path, meta: &Metadata, forbidden: u32) -> Result<(), Error> {
    let us = rustix::process::geteuid().as_raw();
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    if owner != us && owner != 0 {
        return Err(unsafe_place(
            format!(
                "{} belongs to user {owner}, and sealblk runs as user {us}",
                path.display()
            ),
            "give it to that user or to root; on NFS, see that the server does not map root to another user",
        ));
    }
    if mode & forbidden != 0 {
        let right = match mode & forbidden & 0o022 {
            0 => "read",
            _ => "changed",
        };
        return Err(unsafe_place(
            format!(
                "{} has mode {mode:04o}, so that it can be {right} by others",
                path.display()
            ),
            match meta.is_dir() {
                true => "take that right away: chmod 0700",
                false => "find out what others did to it, then take that right away: chmod 0600",
            },
        ));
    }
    Ok(())
}

fn unsafe_place(what: String, next: &str) -> Error {
    Error::new(Class::Denied(Denied::Forbidden), what, next).with_kind(Kind::Permission)
}

/// A system call that failed, in the terms of key services.
pub(super) fn failed(what: &str, path: &Path, error: impl Into<io::Error>) -> Error {
    use io::ErrorKind as E;
    let error = error.into();
    let cause = format!("cannot {what} {}: {error}", path.display());
    match error.kind() {
        E::PermissionDenied | E::ReadOnlyFilesystem => Error::new(
            Class::Denied(Denied::Forbidden),
            cause,
            "give the user that runs sealblk access to it; whoever moves or makes keys has to be able to write there",
        )
        .with_kind(io_kind(&error)),
        E::StorageFull | E::QuotaExceeded => Error::new(
            Class::Unreachable,
            cause,
            "free some space on that file system; what was there is still there",
        )
        .with_kind(Kind::Io),
        // Of a server that is away, or storage that fails: it may come back.
        _ => Error::new(
            Class::Unreachable,
            cause,
            "check the file system that it is on, and its server; the kernel log (`dmesg`) may say more",
        )
        .with_kind(match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(
                Errno::STALE | Errno::TIMEDOUT | Errno::NOTCONN | Errno::HOSTDOWN
                | Errno::HOSTUNREACH,
            ) => Kind::Unreachable,
            _ => Kind::Io,
        }),
    }
}
