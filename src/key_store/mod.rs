//! Key stores: where the wrapped keys of volumes are kept apart from them, so
//! that a stolen disk carries not even a wrapped key.
//!
//! A store keeps one entry for each volume, found by the volume's UUID and by
//! nothing else that a header says. It keeps bytes that open nothing without a
//! key service, and it is not trusted with more: each wrap is bound to its
//! volume, so that what is put in the place of an entry opens nothing.
//!
//! - `entry`: what is kept, as `docs/format.md` specifies it,
//! - `directory`: files on storage that hosts share,
//! - `vault_kv`: a KV engine of Vault or OpenBao,
//! - `stores`: all stores of a host, by name; what they hold is checked there.
//!
//! This room knows nothing of headers, key sets or configuration files.
#![forbid(unsafe_code)]

pub mod directory;
mod entry;
mod error;
mod name;
mod stores;
mod vault_kv;

pub use entry::{ENTRY_MAX, Entry, EntryError};
pub use error::Error;
pub use name::{HEADER, Name};
pub use stores::KeyStores;
pub use vault_kv::VaultKv;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use crate::kms;
use crate::kms::vault::{self, MountPath};

/// What a store calls one state of an entry. Another state has another version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(pub(crate) String);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An entry, and the version of it that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// What is there.
    pub entry: Entry,
    /// Which state of it that is.
    pub version: Version,
}

/// Why a store did not do it.
#[derive(Debug)]
pub enum Failed {
    /// The store failed, in the terms of key services.
    Store(kms::Error),
    /// What is there is no entry.
    Entry(EntryError),
    /// The entry is not in the state that was expected, and stays as it is.
    Conflict,
}

impl From<kms::Error> for Failed {
    fn from(error: kms::Error) -> Self {
        Failed::Store(error)
    }
}

/// A store of entries. Futures end within the store's own deadline.
#[async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// What kind it is, as the configuration names it.
    fn kind(&self) -> &'static str;

    /// Where the entry of a volume is or would be, for people.
    fn place(&self, volume: Uuid) -> String;

    /// The entry of a volume, if there is one.
    ///
    /// # Errors
    /// When the store fails, or has something else there.
    async fn get(&self, volume: Uuid) -> Result<Option<Stored>, Failed>;

    /// Puts `entry` in the place of what is `expected` to be there; `None` if
    /// there must be nothing. What was there is destroyed as far as the store
    /// can.
    ///
    /// # Errors
    /// [`Failed::Conflict`], or when the store fails. What was there is then
    /// still there, unless the answer was lost.
    async fn put(&self, entry: &Entry, expected: Option<&Version>) -> Result<Version, Failed>;

    /// Destroys the entry of a volume with all its versions, whatever is there.
    /// None is no error.
    ///
    /// # Errors
    /// When the store fails.
    async fn purge(&self, volume: Uuid) -> Result<(), Failed>;

    /// The volumes that have an entry, in no order.
    ///
    /// # Errors
    /// When the store fails.
    async fn list(&self) -> Result<Vec<Uuid>, Failed>;
}

/// A key store, as it was configured and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Definition {
    /// Files in a directory.
    Directory(directory::Settings),
    /// A KV engine of HashiCorp Vault or OpenBao.
    VaultKv {
        /// The folder in the engine.
        folder: MountPath,
        /// The service, the engine, and who we are there.
        settings: Box<vault::Settings>,
    },
}

impl Definition {
    /// What kind it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Definition::Directory(_) => directory::Directory::KIND,
            Definition::VaultKv { .. } => VaultKv::KIND,
        }
    }

    /// A client of the store. Nothing is read or connected to yet.
    pub fn client(&self) -> Arc<dyn KeyStore> {
        match self {
            Definition::Directory(settings) => {
                Arc::new(directory::Directory::new(settings.clone()))
            }
            Definition::VaultKv { folder, settings } => {
                Arc::new(VaultKv::new((**settings).clone(), folder.clone()))
            }
        }
    }

    /// The directory on this host, if it is one.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Definition::Directory(settings) => Some(&settings.path),
            Definition::VaultKv { .. } => None,
        }
    }
}
