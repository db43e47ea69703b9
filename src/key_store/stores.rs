//! The key stores of a host, by their names.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use uuid::Uuid;

use super::{Definition, Entry, Error, Failed, KeyStore, Name, Stored, Version};

/// All key stores that this process knows.
#[derive(Debug, Default)]
pub struct KeyStores {
    stores: RwLock<BTreeMap<Name, Store>>,
}

#[derive(Clone, Debug)]
struct Store {
    definition: Definition,
    client: Arc<dyn KeyStore>,
}

/// A store that was found by its name.
#[derive(Clone, Debug)]
struct Named {
    name: String,
    client: Arc<dyn KeyStore>,
}

impl KeyStores {
    /// Key stores as defined. Nothing is read or connected to yet.
    pub fn new(definitions: impl IntoIterator<Item = (Name, Definition)>) -> Self {
        let stores = KeyStores::default();
        stores.replace(definitions);
        stores
    }

    /// Puts other definitions in the place of all. Those that stay as they
    /// are keep their sessions.
    pub fn replace(&self, definitions: impl IntoIterator<Item = (Name, Definition)>) {
        let mut stores = self.stores.write().unwrap_or_else(PoisonError::into_inner);
        let new = definitions.into_iter().map(|(name, definition)| {
            let store = match stores.get(&name) {
                Some(store) if store.definition == definition => store.clone(),
                _ => Store {
                    client: definition.client(),
                    definition,
                },
            };
            (name, store)
        });
        let new: BTreeMap<_, _> = new.collect();
        *stores = new;
    }

    fn find(&self, name: &str) -> Result<Named, Error> {
        let stores = self.stores.read().unwrap_or_else(PoisonError::into_inner);
        match stores.get(name) {
            Some(store) => Ok(Named {
                name: name.into(),
                client: store.client.clone(),
            }),
            None => Err(Error::Unknown {
                name: name.into(),
                known: stores.keys().map(Name::to_string).collect(),
            }),
        }
    }

    /// The names of all.
    pub fn names(&self) -> Vec<String> {
        let stores = self.stores.read().unwrap_or_else(PoisonError::into_inner);
        stores.keys().map(Name::to_string).collect()
    }

    /// What kind the key store `name` is, and where in it the entry of a
    /// volume is or would be.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn place(&self, name: &str, volume: Uuid) -> Result<(&'static str, String), Error> {
        let store = self.find(name)?;
        Ok((store.client.kind(), store.client.place(volume)))
    }

    /// The entry of a volume in the key store `name`, if it has one.
    ///
    /// # Errors
    /// When there is no such key store, it fails, or what is there is not the
    /// entry of this volume.
    pub async fn look(&self, name: &str, volume: Uuid) -> Result<Option<Stored>, Error> {
        let store = self.find(name)?;
        let found = store.client.get(volume).await;
        let found = found.map_err(|failed| store.failed(volume, failed))?;
        match found {
            Some(stored) if stored.entry.volume != volume => Err(Error::OtherVolume {
                store: name.into(),
                place: store.client.place(volume),
                volume,
                found: stored.entry.volume,
            }),
            found => Ok(found),
        }
    }

    /// The entry of a volume that the key store `name` has to have.
    ///
    /// # Errors
    /// As [`KeyStores::look`], and [`Error::Missing`].
    pub async fn get(&self, name: &str, volume: Uuid) -> Result<Stored, Error> {
        match self.look(name, volume).await? {
            Some(stored) => Ok(stored),
            None => Err(Error::Missing {
                store: name.into(),
                place: self.find(name)?.client.place(volume),
                volume,
            }),
        }
    }

    /// Puts `entry` into the key store `name`, in the place of what is
    /// `expected` to be there.
    ///
    /// # Errors
    /// When there is no such key store, it fails, or something else is there.
    pub async fn put(
        &self,
        name: &str,
        entry: &Entry,
        expected: Option<&Version>,
    ) -> Result<Version, Error> {
        let store = self.find(name)?;
        match store.client.put(entry, expected).await {
            // Its answer may have been lost, and this be the second attempt.
            Err(Failed::Conflict) => match self.look(name, entry.volume).await? {
                Some(there) if there.entry == *entry => Ok(there.version),
                _ => Err(store.failed(entry.volume, Failed::Conflict)),
            },
            result => result.map_err(|failed| store.failed(entry.volume, failed)),
        }
    }

    /// Destroys the entry of a volume in the key store `name`, with all its
    /// versions. None is no error.
    ///
    /// # Errors
    /// When there is no such key store, or it fails.
    pub async fn purge(&self, name: &str, volume: Uuid) -> Result<(), Error> {
        let store = self.find(name)?;
        let purged = store.client.purge(volume).await;
        purged.map_err(|failed| store.failed(volume, failed))
    }
}

impl Named {
    fn failed(&self, volume: Uuid, failed: Failed) -> Error {
        let (store, place) = (self.name.clone(), self.client.place(volume));
        match failed {
            Failed::Store(source) => Error::Store {
                store,
                kind: self.client.kind(),
                source,
            },
            Failed::Entry(source) => Error::Entry {
                store,
                place,
                source,
            },
            Failed::Conflict => Error::Conflict { store, place },
        }
    }
}
