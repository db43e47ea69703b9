//! Encrypting a disk while it is moved up, to make room for a header before it,
//! and decrypting one while it is moved down, over the header that it had.
//!
//! Nobody uses the disk meanwhile. The header is in a file beside until the end,
//! with a journal of its own, which is simpler than that of `rekey`: what is
//! moved goes to where nothing is that is still needed, so that a step which was
//! cut off is just done again (`docs/rekey.md`, "With an inline header").
//!
//! - `record`: how far it is, authenticated under a key derived from the DEK.
//! - `journal`: two records, and the beginning of the disk, which `mark`
//!   hides as long as the disk is in pieces.
//! - `mover`: the steps.
//!
//! What enters: opened files behind [`Land`], the facts of the operation, the
//! DEK and a cipher with it. Nothing here knows headers, key services or paths.
#![forbid(unsafe_code)]

mod journal;
mod land;
mod mark;
mod mover;
mod record;
#[cfg(test)]
mod simulation;

pub use journal::{AREA_BYTES, HEAD_BYTES, Journal, has_moved, is_journal};
pub use land::Land;
pub use mark::BEGINNING;
pub use mover::{Ended, Pace, Progress, Shift};
pub use record::{Key, RECORD_BYTES};

use std::io;

use crate::error::{Explain, Kind, io_kind};
use crate::rekey;

/// Which way a disk is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Encrypted, and away from the start of the file.
    Up,
    /// Decrypted, and to the start of the file.
    Down,
}

impl Way {
    /// That of an operation. None for a rekey, which moves nothing.
    pub fn of(kind: rekey::Kind) -> Option<Self> {
        match kind {
            rekey::Kind::Encrypt => Some(Way::Up),
            rekey::Kind::Decrypt => Some(Way::Down),
            rekey::Kind::Rekey => None,
        }
    }
}

/// Why a disk cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal has no record that was made with this key.
    #[error("the file beside has no record of how far it is that belongs to it")]
    NoRecord,
    /// The records say what cannot be.
    #[error("the file beside says what cannot be: {0}")]
    Impossible(&'static str),
    /// The disk, or the file beside, cannot be read or written.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { what, source }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::NoRecord | Error::Impossible(_) => Kind::Corrupt,
            Error::Io { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::NoRecord | Error::Impossible(_) => {
                "it was damaged or edited: find a good copy of it; only it tells which part of \
                 the disk has been moved"
                    .into()
            }
            Error::Io { .. } => {
                "nothing is lost: mend what the disk lies on (`dmesg` may say more), and repeat \
                 the command"
                    .into()
            }
        })
    }
}
