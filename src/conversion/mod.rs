//! Operations on all data of a volume that nobody uses: begun, gone on with after
//! whatever interrupted them, and ended. `sealblk volume rekey`, `encrypt` and
//! `decrypt` are about this.
//!
//! - [`Sides`]: the keys of an operation, from what the header has.
//! - `begin`: how one begins, in the order that `docs/rekey.md` says.
//! - [`InPlace`]: the data stays where it is (`rekey`).
//! - [`Shifting`]: the data is moved to make room for a header, or over the one
//!   that it had (`shift`).
//!
//! All of it is without a manager: the volume is open and locked here, and all
//! CPUs work on it. This room knows key sets, the format, and both ways to move
//! data; it tells nobody anything and decides nothing.
#![forbid(unsafe_code)]

mod begin;
mod eager;
mod in_place;
mod loops;
mod shifting;
mod sides;

pub use begin::{begin_decrypt, begin_encrypt, begin_rekey, wraps_like};
pub use in_place::{InPlace, Speed, finish};
pub use loops::check_no_loop;
pub use shifting::Shifting;
pub use sides::Sides;

use std::io;

use crate::crypt;
use crate::error::{Explain, Kind};
use crate::{keys, prepare, rekey, shift, volume};

/// Why an operation cannot begin, go on, or end. What the rooms below say is
/// passed on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The key.
    #[error(transparent)]
    Prepare(#[from] prepare::Error),
    /// The key sets.
    #[error(transparent)]
    Keys(#[from] keys::Error),
    /// The cipher.
    #[error(transparent)]
    Crypt(#[from] crypt::Error),
    /// Moving the data in place.
    #[error(transparent)]
    Rekey(#[from] rekey::Error),
    /// Moving the data elsewhere.
    #[error(transparent)]
    Shift(#[from] shift::Error),
    /// It cannot be so.
    #[error("{why}")]
    Refused {
        /// Which kind of error it is.
        kind: Kind,
        /// Why.
        why: String,
        /// The next step.
        next: String,
    },
    /// The operating system does not let us.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn refused(kind: Kind, why: impl Into<String>, next: impl Into<String>) -> Self {
        Error::Refused {
            kind,
            why: why.into(),
            next: next.into(),
        }
    }

    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::System { what, source }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Volume(source) => source.kind(),
            Error::Prepare(source) => source.kind(),
            Error::Keys(source) => source.kind(),
            Error::Crypt(source) => source.kind(),
            Error::Rekey(source) => source.kind(),
            Error::Shift(source) => source.kind(),
            Error::Refused { kind, .. } => *kind,
            Error::System { source, .. } => crate::error::io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Error::Volume(source) => source.help(),
            Error::Prepare(source) => source.help(),
            Error::Keys(source) => source.help(),
            Error::Crypt(source) => source.help(),
            Error::Rekey(source) => source.help(),
            Error::Shift(source) => source.help(),
            Error::Refused { next, .. } => Some(next.clone()),
            Error::System { .. } => Some("check the limits of the process (`ulimit -a`)".into()),
        }
    }
}
