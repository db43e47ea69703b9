//! What can be wrong with an operation, its keys, its journal or its disk.

use std::io;

use crate::error::{Explain, Kind, io_kind};

/// Why data cannot be moved, or nobody may say how far it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The keys or sizes are not those of such an operation.
    #[error("an operation on all data cannot be done so: {0}")]
    Unfit(&'static str),
    /// The header area has no room for two records.
    #[error("the journal has {bytes} bytes, and needs {needed} at least")]
    Small {
        /// What there is, in bytes.
        bytes: u64,
        /// What it takes.
        needed: u64,
    },
    /// Neither slot of the journal has a record that the keys prove.
    #[error(
        "neither record of the journal is authentic: the header was edited, its journal is damaged, or it is another header's"
    )]
    Unauthentic,
    /// A record is authentic, and makes no sense here.
    #[error("a record of the journal is authentic, but {0}")]
    Inconsistent(&'static str),
    /// A record is of an earlier state than is known to have been reached.
    #[error(
        "the journal is at record {found}, and had reached record {known}: an older header was put back"
    )]
    Older {
        /// The number of the record found.
        found: u64,
        /// A number that was seen before.
        known: u64,
    },
    /// The old key, which the token has encrypted under the new one, does not open.
    #[error(
        "the previous key in the header does not open: the header was edited, or belongs to another volume"
    )]
    Previous,
    /// No secret memory, or no random bytes.
    #[error("no locked memory or random bytes for the keys of an operation")]
    Memory(#[source] io::Error),
    /// A device failed. What was to be done can be tried again.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The data could not be made durable: nobody knows what is on the device.
    #[error("the data that was written could not be made durable")]
    NotDurable(#[source] io::Error),
    /// A thread that moved a part of a region panicked.
    #[error("a thread that moved data panicked")]
    Panicked,
}

impl Error {
    /// What an I/O error was about.
    pub(super) fn io(what: &'static str) -> impl Fn(io::Error) -> Error {
        move |source| Error::Io { what, source }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Unfit(_) => Kind::Usage,
            Error::Small { .. } => Kind::Unsupported,
            Error::Unauthentic | Error::Inconsistent(_) | Error::Previous => Kind::Corrupt,
            Error::Older { .. } => Kind::Refused,
            Error::Memory(_) => Kind::Permission,
            Error::Io { source, .. } => io_kind(source),
            Error::NotDurable(_) => Kind::Io,
            Error::Panicked => Kind::Internal,
        }
    }

    fn help(&self) -> Option<String> {
        Some(
            match self {
                Error::Unfit(_) => "this is a defect of sealblk: report it",
                Error::Small { .. } => {
                    "make the header area larger: a detached header by lengthening its file, another one by moving the volume to a new one"
                }
                Error::Unauthentic => {
                    "nothing was changed; put back the newest copy of the header area that was made since the operation began, and find out who changed it. Without its journal nobody can tell which part of the data has which key"
                }
                Error::Inconsistent(_) => {
                    "nothing was changed; use the sealblk that wrote it, or a newer one"
                }
                Error::Older { .. } => {
                    "nothing was changed; put back the newest header: with this one, data that was moved since would be taken for data that was not"
                }
                Error::Previous => "put back a backup of the header, and find out who changed it",
                Error::Memory(_) => {
                    "raise the limit of locked memory (LimitMEMLOCK= in the unit, or ulimit -l)"
                }
                Error::Io { .. } => {
                    "look at the disk below; the operation goes on where it was once that works again"
                }
                Error::NotDurable(_) => {
                    "look at the disk below, then detach and attach the disk: what is on it is found out then"
                }
                Error::Panicked => "this is a defect of sealblk: report it",
            }
            .into(),
        )
    }
}
