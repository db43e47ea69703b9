//! A regular file or block device, opened safely and locked.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::lock;
use crate::paths;

/// What a volume is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is ever written, not even a repair. Others may read as well.
    ReadOnly,
    /// Nobody else may have it open.
    ReadWrite,
}

/// An open file or block device.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
    block: bool,
}

impl Device {
    /// Opens an existing file or device, without a lock. A block device that
    /// is opened for writing is claimed: the kernel then lets nobody mount it,
    /// and refuses if it is in use already.
    pub fn open(path: &Path, access: Access) -> Result<Self, Error> {
        let fail = |error| Error::opening("open", path, error);
        let write = access == Access::ReadWrite;
        // What is looked at is what is opened: nothing is exchanged in between.
        let found = paths::find(path).map_err(fail)?;
        let block = is_block(path, &found.metadata().map_err(fail)?)?;
        if write && !block {
            found.not_planted().map_err(fail)?;
        }
        let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        if block && write {
            flags |= libc::O_EXCL;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(write).custom_flags(flags);
        let file = found
            .open(&options)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EBUSY) if block => Error::InUse { path: path.into() },
                _ => fail(error),
            })?;
        Ok(Device {
            file,
            path: path.to_owned(),
            block,
        })
    }

    /// Creates a file that must not exist yet, for its owner only.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = paths::create_new(path, 0o600)
            .map_err(|error| Error::opening("create", path, error))?;
        Ok(Device {
            file,
            path: path.to_owned(),
            block: false,
        })
    }

    /// A file that was opened with [`Device::open`], perhaps by another process.
    pub fn of(file: File, path: &Path) -> Result<Self, Error> {
        let meta = file.metadata();
        let meta = meta.map_err(|error| Error::opening("open", path, error))?;
        Ok(Device {
            block: is_block(path, &meta)?,
            file,
            path: path.to_owned(),
        })
    }

    /// Takes the use lock.
    pub fn lock(&self, access: Access) -> Result<(), Error> {
        match lock::take_use(&self.file, access == Access::ReadWrite) {
            Ok(lock::Taken::Yes) => Ok(()),
            Ok(lock::Taken::No) => Err(Error::Busy {
                path: self.path.clone(),
                by: lock::holder(&self.file),
            }),
            Ok(lock::Taken::Dying) => Err(Error::Dying(self.path.clone())),
            Err(error) => Err(self.error("lock", error)),
        }
    }

    /// Waits for the header lock.
    pub fn lock_header(&self, access: Access) -> Result<lock::HeaderLock<'_>, Error> {
        lock::HeaderLock::take(&self.file, access == Access::ReadWrite)
            .map_err(|error| self.error("lock the header of", error))?
            .ok_or_else(|| Error::Busy {
                path: self.path.clone(),
                by: None,
            })
    }

    /// The length in bytes.
    pub fn len(&self) -> Result<u64, Error> {
        let length = match self.block {
            // The metadata of a block device says 0.
            true => (&self.file).seek(SeekFrom::End(0)),
            false => self.file.metadata().map(|meta| meta.len()),
        };
        length.map_err(|error| self.error("find the length of", error))
    }

    /// Whether it is a block device.
    pub fn is_block(&self) -> bool {
        self.block
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are the same file or device, whatever their paths.
    pub fn is_same(&self, other: &Device) -> Result<bool, Error> {
        let identity = |device: &Device| {
            let meta = device.file.metadata();
            meta.map_err(|error| device.error("look at", error))
                .map(|meta| match device.block {
                    true => (meta.rdev(), 0),
                    false => (meta.dev(), meta.ino()),
                })
        };
        Ok(self.block == other.block && identity(self)? == identity(other)?)
    }

    /// An error of a system call on this device.
    pub fn error(&self, what: &'static str, source: impl Into<io::Error>) -> Error {
        Error::io(what, &self.path, source)
    }
}

fn is_block(path: &Path, meta: &std::fs::Metadata) -> Result<bool, Error> {
    let kind = meta.file_type();
    let what = if kind.is_file() {
        return Ok(false);
    } else if kind.is_block_device() {
        return Ok(true);
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a FIFO"
    };
    Err(Error::WrongFileType {
        path: path.to_owned(),
        what,
    })
}

/// The directory that a path is in.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the directory entry of a file that was just created survive a crash.
pub fn sync_directory_of(path: &Path) -> Result<(), Error> {
    let directory = directory_of(path);
    paths::open_directory(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| Error::io("synchronise the directory", directory, error))
}
