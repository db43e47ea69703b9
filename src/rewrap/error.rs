//! Why a volume keeps the wraps that it has.
#![forbid(unsafe_code)]

use crate::error::{Explain, Failure, Kind};
use crate::key_store;
use crate::keys::{self, Why};
use crate::kms::Class;
use crate::relocate;
use crate::volume::{self, Wrap};

/// A change that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The header cannot be read or rewritten, or the key is not its own.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The key store fails.
    #[error(transparent)]
    Store(#[from] key_store::Error),
    /// No key, or it cannot be wrapped.
    #[error(transparent)]
    Keys(#[from] keys::Error),
    /// What an interrupted move left cannot be cleared away.
    #[error("the move of the wrapped keys that was interrupted cannot be finished")]
    Relocate(#[from] relocate::Error),
    /// A new wrap does not open.
    #[error("what key set {key_set:?} has just wrapped (version {key_version:?}) does not open")]
    Unproven {
        /// The key set.
        key_set: String,
        /// The version that wrapped it.
        key_version: String,
        /// Why not.
        source: Why,
    },
    /// There is no key to be wrapped.
    #[error("the volume has no wrapped key any more: it was erased")]
    Erased,
    /// The change would leave none.
    #[error("this would leave the volume without any wrapped key")]
    NoneLeft,
    /// What was read back is not what was written.
    #[error("key store {store:?} does not give back what it was given")]
    NotKept {
        /// The key store.
        store: String,
    },
    /// The change itself has a reason.
    #[error("{0}")]
    Refused(Failure),
}

impl Error {
    /// `wrap`, which was just made, does not open.
    pub fn unproven(wrap: &Wrap, why: Why) -> Self {
        Error::Unproven {
            key_set: wrap.key_set.clone(),
            key_version: wrap.key_version.clone(),
            source: why,
        }
    }

    /// What policy acts on, if a service was asked.
    pub fn class(&self) -> Option<Class> {
        match self {
            Error::Keys(source) => source.class(),
            Error::Store(source) => source.class(),
            Error::Unproven {
                source: Why::Kms(source),
                ..
            } => Some(source.class()),
            _ => None,
        }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Volume(source) => source.kind(),
            Error::Store(source) => source.kind(),
            Error::Keys(source) => source.kind(),
            Error::Relocate(source) => source.kind(),
            Error::Unproven { source, .. } => source.kind(),
            Error::Erased => Kind::Key,
            Error::NoneLeft => Kind::Refused,
            Error::NotKept { .. } => Kind::Io,
            Error::Refused(failure) => failure.kind(),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Volume(source) => return source.help(),
            Error::Store(source) => return source.help(),
            Error::Keys(source) => return source.help(),
            Error::Relocate(source) => return source.help(),
            Error::Unproven { source, .. } => format!(
                "the volume has the wraps that it had; {}",
                source.help().unwrap_or_default()
            ),
            Error::Erased => {
                "if it was not meant to be erased, restore its header from a backup".into()
            }
            Error::NoneLeft => "to destroy all of them, erase the volume".into(),
            Error::NotKept { .. } => "do not use this store; look at its entry of the volume, \
                 which may have the old or the new wrapped keys"
                .into(),
            Error::Refused(failure) => return failure.help().map(str::to_owned),
        })
    }
}
