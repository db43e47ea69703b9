//! Why a rotation does not begin, or go on.
#![forbid(unsafe_code)]

use std::io;

use crate::error::{Explain, Kind, io_kind};
use crate::keys;

/// A rotation that did not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key set, or its service.
    #[error(transparent)]
    Keys(#[from] keys::Error),
    /// The service does not let the version be used.
    #[error("version {version:?} of the key of key set {key_set:?} is disabled")]
    Disabled {
        /// The key set.
        key_set: String,
        /// The version.
        version: String,
    },
    /// The ledger, or the job.
    #[error("cannot use the state of the rotation of key set {key_set:?}")]
    State {
        /// The key set.
        key_set: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn state(key_set: &str) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error::State {
            key_set: key_set.into(),
            source,
        }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Keys(source) => source.kind(),
            Error::Disabled { .. } => Kind::Key,
            Error::State { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                Kind::Corrupt
            }
            Error::State { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Keys(source) => return source.help(),
            Error::Disabled { .. } => {
                "enable it at its service, or make a newer version there".into()
            }
            Error::State { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                "move the damaged file away: volumes do not need it, and it is made anew when they \
                 are attached"
                    .into()
            }
            Error::State { .. } => {
                "run it as the user that owns the state directory (state_dir)".into()
            }
        })
    }
}
