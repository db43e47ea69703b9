//! Why nothing can be recorded, or the record not be read.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Explain, Kind, io_kind};

/// A log that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("audit log {}: {cause}", path.display())]
pub struct Error {
    /// The file, or its directory.
    pub path: PathBuf,
    /// What is wrong.
    pub cause: Cause,
}

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// There is none.
    #[error("it does not exist")]
    Missing,
    /// Its directory is missing, and the one above as well.
    #[error("its directory does not exist")]
    NoDirectory,
    /// The last component of the path is a symbolic link.
    #[error("it is a symbolic link, and links are not followed")]
    Link,
    /// A directory, a device, a socket…
    #[error("it is not a regular file")]
    NotRegular,
    /// Others could read or change it.
    #[error("its mode is {0:04o}: others could read or change it")]
    Mode(u32),
    /// Others could replace it.
    #[error("the mode of its directory is {0:04o}: others could replace it")]
    DirectoryMode(u32),
    /// Neither ours nor root's.
    #[error("its owner is user {owner}, and must be user {us} (who runs this) or root")]
    Owner {
        /// The owner of the file or directory.
        owner: u32,
        /// The effective user of this process.
        us: u32,
    },
    /// It holds something else.
    #[error("it holds something that is not an audit log")]
    Foreign,
    /// Another process had the lock all the time.
    #[error("another process has had it locked for {} seconds", .0.as_secs())]
    Locked(std::time::Duration),
    /// One record would be larger than a line may be.
    #[error("a record has {0} bytes, which is more than a line may have")]
    TooLong(usize),
    /// The operating system refuses or fails.
    #[error("cannot {doing} it: {error}")]
    Io {
        /// `open`, `write`, …
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl Cause {
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Cause {
        move |error| Cause::Io { doing, error }
    }

    pub(super) fn at(self, path: &Path) -> Error {
        Error {
            path: path.to_path_buf(),
            cause: self,
        }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match &self.cause {
            Cause::Missing | Cause::NoDirectory => Kind::NotFound,
            Cause::Link
            | Cause::NotRegular
            | Cause::Mode(_)
            | Cause::DirectoryMode(_)
            | Cause::Owner { .. } => Kind::Permission,
            Cause::Foreign => Kind::Corrupt,
            Cause::Locked(_) => Kind::Busy,
            Cause::TooLong(_) => Kind::Internal,
            Cause::Io { error, .. } => io_kind(error),
        }
    }

    fn help(&self) -> Option<String> {
        let path = self.path.display();
        let directory = self.path.parent().unwrap_or(&self.path).display();
        Some(match &self.cause {
            Cause::Missing => {
                "name the log, or set its path in the [audit] table of the configuration".into()
            }
            Cause::NoDirectory => format!("mkdir -p -m 0700 {directory}"),
            Cause::Link | Cause::NotRegular | Cause::Foreign => {
                "name a file of its own in the [audit] table of the configuration".into()
            }
            Cause::Mode(_) => format!("chmod 0600 {path}, and consider who may have changed it"),
            Cause::DirectoryMode(_) => {
                format!("chmod go-w {directory}, or give the log a directory of its own")
            }
            Cause::Owner { us, .. } => format!("chown {us} {path}, or run sealblk as its owner"),
            Cause::Locked(_) => {
                format!("find the process that hangs (`fuser -v {path}`), and end it")
            }
            Cause::TooLong(_) => "report this as a defect of sealblk".into(),
            Cause::Io { error, .. } => match error.kind() {
                io::ErrorKind::PermissionDenied => "run as the owner of the log or as root".into(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!(
                    "free some space in {directory}: keys are not handed out while their use cannot be recorded"
                ),
                io::ErrorKind::FileTooLarge => "raise the limit on file sizes (`ulimit -f`)".into(),
                _ => format!("check the file system that {path} is on"),
            },
        })
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error.cause {
            Cause::Io { error, .. } => error.kind(),
            Cause::Missing | Cause::NoDirectory => io::ErrorKind::NotFound,
            Cause::Mode(_) | Cause::DirectoryMode(_) | Cause::Owner { .. } => {
                io::ErrorKind::PermissionDenied
            }
            Cause::Locked(_) => io::ErrorKind::ResourceBusy,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
