//! What can be wrong with a key file, or with a change to it.

use std::io;
use std::path::{Path, PathBuf};

use super::keyfile::{VERSIONS_MAX, VersionId};
use crate::error::{Explain, Kind, io_kind};
use crate::kms::{self, Class, Denied};

/// A key file that cannot be used, made or changed.
#[derive(Debug, thiserror::Error)]
#[error("platform key file {}: {cause}", path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub cause: Cause,
}

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// There is none.
    #[error("it does not exist")]
    Missing,
    /// The last component of the path is a symbolic link.
    #[error("it is a symbolic link, and links are not followed to keys")]
    Link,
    /// A directory, a device, a socket…
    #[error("it is {0}, not a regular file")]
    NotRegular(&'static str),
    /// Others than the owner have rights, or there are special bits.
    #[error("its mode is {0:04o}, and must be 0600 or 0400: others could use the key")]
    Mode(u32),
    /// Neither ours nor root's.
    #[error("its owner is user {owner}, and must be user {us} (who runs this) or root")]
    Owner {
        /// The owner of the file.
        owner: u32,
        /// The effective user of this process.
        us: u32,
    },
    /// Not as it was written: truncated, edited, or another file.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Written by a later sealblk.
    #[error("it has format version {0}, made by a newer sealblk")]
    Newer(u32),
    /// Creating would overwrite it.
    #[error("it already exists, and is never overwritten")]
    Exists,
    /// The directory that it would be made in is missing.
    #[error("its directory does not exist")]
    NoDirectory,
    /// Somebody else is changing it.
    #[error("another sealblk is changing it now")]
    Busy,
    /// The requested change does not fit what is in it.
    #[error("{0}")]
    Change(Change),
    /// The operating system refuses or fails.
    #[error("cannot {doing} it: {error}")]
    Io {
        /// `read`, `write`, …
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// No locked memory for the keys.
    #[error("no locked memory for the key: {0}")]
    Memory(io::Error),
}

/// Why the versions in a key file cannot be changed as asked.
#[derive(Debug, thiserror::Error)]
pub enum Change {
    /// It has no such version.
    #[error("it has no version {0}")]
    NoSuchVersion(VersionId),
    /// Removing takes two steps.
    #[error("version {0} is still enabled")]
    StillEnabled(VersionId),
    /// What is removed does not come back.
    #[error("version {0} has been removed; its key is gone")]
    Removed(VersionId),
    /// No room for another one.
    #[error("it holds {VERSIONS_MAX} versions, and takes no more")]
    Full,
    /// No locked memory or no random bytes.
    #[error("cannot make a key: {0}")]
    Memory(io::Error),
}

impl Cause {
    pub(super) fn at(self, path: &Path) -> Error {
        Error {
            path: path.to_path_buf(),
            cause: self,
        }
    }

    pub(super) fn io(doing: &'static str, error: impl Into<io::Error>) -> Self {
        Cause::Io {
            doing,
            error: error.into(),
        }
    }
}

impl From<Change> for Cause {
    fn from(change: Change) -> Self {
        Cause::Change(change)
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match &self.cause {
            Cause::Missing | Cause::NoDirectory => Kind::NotFound,
            Cause::Link | Cause::NotRegular(_) | Cause::Mode(_) | Cause::Owner { .. } => {
                Kind::Permission
            }
            Cause::Damaged(_) => Kind::Corrupt,
            Cause::Newer(_) => Kind::Unsupported,
            Cause::Exists => Kind::Refused,
            Cause::Busy => Kind::Busy,
            Cause::Change(Change::NoSuchVersion(_)) => Kind::NotFound,
            Cause::Change(Change::StillEnabled(_) | Change::Full) => Kind::Refused,
            Cause::Change(Change::Removed(_)) => Kind::Key,
            Cause::Io { error, .. } => io_kind(error),
            Cause::Memory(_) | Cause::Change(Change::Memory(_)) => Kind::Io,
        }
    }

    fn help(&self) -> Option<String> {
        let path = self.path.display();
        Some(match &self.cause {
            Cause::Missing => format!(
                "restore {path} from its backup, name another one with --key-file or in the configuration, or, for new volumes only, make one: sealblk key init"
            ),
            Cause::Link => "name the file itself, not a link to it".into(),
            Cause::NotRegular(_) => "name a file that `sealblk key init` made".into(),
            Cause::Mode(_) => format!("chmod 0600 {path}, and consider who may have read it"),
            Cause::Owner { us, .. } => {
                format!("chown {us} {path}, or run sealblk as the file's owner")
            }
            Cause::Damaged(_) => format!("restore {path} from its backup; do not edit it by hand"),
            Cause::Newer(_) => "upgrade sealblk on this host".into(),
            Cause::Exists => {
                "to rotate the key, use `sealblk key add-version`; for a separate key, name another path with --key-file"
                    .into()
            }
            Cause::NoDirectory => match self.path.parent() {
                Some(parent) => format!("mkdir -p {}", parent.display()),
                None => "name a path inside of a directory".into(),
            },
            Cause::Busy => "try again when it has finished".into(),
            Cause::Change(change) => change.help(),
            Cause::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                "run as the file's owner or as root".into()
            }
            Cause::Io { .. } => format!("check the file system that {path} is on"),
            Cause::Memory(_) => memory_help(),
        })
    }
}

impl Change {
    fn help(&self) -> String {
        match self {
            Change::NoSuchVersion(_) => "`sealblk key list` shows the versions".into(),
            Change::StillEnabled(id) => format!(
                "disable it first (`sealblk key disable {id}`), and see that every volume still opens"
            ),
            Change::Removed(_) => {
                "restore the key file from a backup that still has the version".into()
            }
            Change::Full => "make a new key file, and move the volumes to it".into(),
            Change::Memory(_) => memory_help(),
        }
    }
}

fn memory_help() -> String {
    "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)".into()
}

impl From<Error> for kms::Error {
    /// The same in the terms of every provider.
    fn from(error: Error) -> Self {
        let class = match &error.cause {
            Cause::Missing | Cause::NoDirectory | Cause::Change(Change::NoSuchVersion(_)) => {
                Class::NotFound
            }
            Cause::Link | Cause::NotRegular(_) | Cause::Mode(_) | Cause::Owner { .. } => {
                Class::Denied(Denied::Forbidden)
            }
            Cause::Change(Change::Removed(_)) => Class::Denied(Denied::Deleted),
            Cause::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                Class::Denied(Denied::Forbidden)
            }
            Cause::Io { .. } | Cause::Memory(_) | Cause::Busy => Class::Unreachable,
            Cause::Damaged(_)
            | Cause::Newer(_)
            | Cause::Exists
            | Cause::Change(Change::StillEnabled(_) | Change::Full | Change::Memory(_)) => {
                Class::Protocol
            }
        };
        kms::Error::new(class, error.to_string(), error.help().unwrap_or_default())
            .with_kind(error.kind())
    }
}
