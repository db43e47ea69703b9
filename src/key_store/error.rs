//! Why a key store gives no wrapped keys, or takes none.
#![forbid(unsafe_code)]

use uuid::Uuid;

use super::entry::EntryError;
use crate::error::{Explain, Kind};
use crate::kms::{self, Class};

/// Something that could not be had from a key store, or not be changed there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody defined a key store of that name.
    #[error(
        "there is no key store {name:?} on this host; there is {}",
        list(known)
    )]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// It has no entry of the volume.
    #[error("key store {store:?} has no entry of volume {volume}: there is no {place}")]
    Missing {
        /// The key store.
        store: String,
        /// Where the entry would be.
        place: String,
        /// The volume.
        volume: Uuid,
    },
    /// The entry is that of another volume.
    #[error("{place} of key store {store:?} is the entry of volume {found}, and not of {volume}")]
    OtherVolume {
        /// The key store.
        store: String,
        /// Where the entry is.
        place: String,
        /// The volume that was asked for.
        volume: Uuid,
        /// The one that the entry is of.
        found: Uuid,
    },
    /// What is there is no entry.
    #[error("{place} of key store {store:?} cannot be used")]
    Entry {
        /// The key store.
        store: String,
        /// Where it is.
        place: String,
        /// What is wrong with it.
        source: EntryError,
    },
    /// Somebody else changed the entry meanwhile.
    #[error("somebody else changed {place} of key store {store:?} meanwhile")]
    Conflict {
        /// The key store.
        store: String,
        /// Where the entry is.
        place: String,
    },
    /// The store failed.
    #[error("key store {store:?} ({kind})")]
    Store {
        /// The key store.
        store: String,
        /// What kind it is.
        kind: &'static str,
        /// What it said.
        source: kms::Error,
    },
}

impl Error {
    /// What policy acts on, where a store was asked.
    pub fn class(&self) -> Option<Class> {
        match self {
            Error::Unknown { .. } | Error::Conflict { .. } => None,
            Error::Missing { .. } => Some(Class::NotFound),
            Error::OtherVolume { .. } => Some(Class::BadKey),
            Error::Entry { source, .. } => Some(match source {
                EntryError::Newer(_) => Class::Protocol,
                EntryError::Malformed(_) | EntryError::TooLong => Class::BadKey,
            }),
            Error::Store { source, .. } => Some(source.class()),
        }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Unknown { .. } | Error::Missing { .. } => Kind::NotFound,
            Error::OtherVolume { .. } => Kind::Corrupt,
            Error::Entry { source, .. } => source.kind(),
            Error::Conflict { .. } => Kind::Busy,
            Error::Store { source, .. } => source.kind(),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Unknown { .. } => {
                "define it as [key_stores.NAME] in the configuration of this host".into()
            }
            Error::Missing { .. } => "check that it is the right store and, if it is a directory, \
                 that its file system is mounted; else restore the entry from a backup of the \
                 store, or a header that has the wrapped keys in itself with `sealblk volume \
                 restore-header`"
                .into(),
            Error::OtherVolume { .. } => {
                "put the right entry back from a backup of the store, and find out who moved it"
                    .into()
            }
            Error::Entry { source, .. } => return source.help(),
            Error::Conflict { .. } => "look at what is there now, and repeat the command".into(),
            Error::Store { source, .. } => return source.help(),
        })
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        names => names.join(", "),
    }
}
