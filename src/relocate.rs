//! Moving the wrapped keys of a volume: from its header to a key store, from
//! there to another, and back.
//!
//! The header says at each instant where the wraps are that count, and whether
//! there may be a copy elsewhere. The order is what makes it safe:
//!
//! 1. the header notes where a copy will be (`copy_in`), durably;
//! 2. the copy is made there, and read back;
//! 3. the header names that place, and notes that there is a copy at the old
//!    one. The header is replaced as a whole, and the wraps that were in it are
//!    overwritten in both of its copies;
//! 4. the old copy is destroyed;
//! 5. the header forgets it.
//!
//! After a crash at any instant the place that the header names is whole, so
//! that the volume opens; and the other one is noted, so that the same command
//! finishes what was begun. Nothing here needs a key service: no key is opened.
//!
//! The volume is open for writing meanwhile, which nobody else has it then.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::error::{Explain, Kind};
use crate::key_store::{self, Entry, HEADER, Name, Stored};
use crate::keys::{Context, KeySets};
use crate::volume::{self, Token, Volume, Wrap};

/// Where the wraps of a volume can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In its header.
    Header,
    /// In the key store of that name.
    Store(String),
}

impl Place {
    /// Where `token` says that they are.
    pub fn of(token: &Token) -> Self {
        match &token.key_store {
            Some(name) => Place::Store(name.clone()),
            None => Place::Header,
        }
    }

    /// As it stands in records: `header`, or the name of the key store.
    pub fn as_str(&self) -> &str {
        match self {
            Place::Header => HEADER,
            Place::Store(name) => name,
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == HEADER {
            return Ok(Place::Header);
        }
        let name: Name = text.parse()?;
        Ok(Place::Store(name.to_string()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("the header of the volume"),
            Place::Store(name) => write!(f, "key store {name:?}"),
        }
    }
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where the wraps were.
    pub from: Place,
    /// Where they are.
    pub to: Place,
    /// How many there are.
    pub wraps: usize,
    /// A key store in which a copy was destroyed that an earlier move had left.
    pub cleared: Option<String>,
}

/// Why the wraps stay where they are, or a copy of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The header cannot be rewritten.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// A key store fails.
    #[error(transparent)]
    Store(#[from] key_store::Error),
    /// There is nothing to move.
    #[error("the volume has no wrapped key any more: it was erased")]
    Erased,
    /// A key store has other wraps of the volume.
    #[error(
        "key store {store:?} has an entry of this volume already (generation {generation}), with other wrapped keys than {here}"
    )]
    Differs {
        /// The key store.
        store: String,
        /// How often its entry was written.
        generation: u64,
        /// Where the wraps are that count.
        here: Place,
    },
    /// The wraps were moved, and the old copy is still there.
    #[error("the wrapped keys are in {to} now, and a copy of them is still in key store {store:?}")]
    LeftBehind {
        /// The key store that has a copy.
        store: String,
        /// Where the wraps are.
        to: Place,
        /// Why it could not be destroyed.
        source: Box<key_store::Error>,
    },
    /// What was read back is not what was written.
    #[error("key store {store:?} does not give back what it was given")]
    NotKept {
        /// The key store.
        store: String,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Volume(source) => source.kind(),
            Error::Store(source) => source.kind(),
            Error::Erased => Kind::Key,
            Error::Differs { .. } => Kind::Refused,
            Error::LeftBehind { source, .. } => source.kind(),
            Error::NotKept { .. } => Kind::Io,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Volume(volume::Error::Busy { .. }) => {
                "the keys of a volume that is served stay where they are: detach it first (`sealblk \
                 detach`), or stop what serves it"
                    .into()
            }
            Error::Volume(source) => return source.help(),
            Error::Store(source) => return source.help(),
            Error::Erased => {
                "if it was not meant to be erased, restore its header from a backup".into()
            }
            Error::Differs { .. } => "if the entry is of no use, as after an older header was \
                 restored, add --force: it is destroyed then"
                .into(),
            Error::LeftBehind { source, .. } => {
                let help = source.help().unwrap_or_default();
                format!("{help}; then repeat the command, which destroys the copy")
            }
            Error::NotKept { .. } => {
                "do not use this store; the wrapped keys are where they were".into()
            }
        })
    }
}

/// Moves the wraps of `volume`, which is open for writing, to `to`, and
/// finishes what an earlier move has left. With `force`, entries of this volume
/// with other wraps, which would be lost, are no hindrance.
///
/// # Errors
/// See [`Error`]. The volume opens as it did before, and repeating the call
/// finishes it.
pub async fn relocate(
    keys: &KeySets,
    context: &Context,
    volume: &mut Volume,
    to: &Place,
    force: bool,
) -> Result<Moved, Error> {
    let mut moving = Moving {
        keys,
        context,
        id: volume.uuid(),
        volume,
        wraps: Vec::new(),
        force,
    };
    moving.volume.check_settled("move the wrapped keys of")?;
    // A name that means nothing here changes nothing.
    if let Place::Store(name) = to {
        keys.stores().place(name, moving.id)?;
    }
    let from = Place::of(moving.token());
    moving.wraps = match &from {
        Place::Header => moving.token().wraps.clone(),
        Place::Store(name) => moving.fetch(name).await?.entry.wraps,
    };
    if moving.wraps.is_empty() {
        return Err(Error::Erased);
    }
    let cleared = match moving.token().copy_in.clone() {
        Some(name) if *to != Place::Store(name.clone()) => {
            moving.clear(&name).await?.then_some(name)
        }
        _ => None,
    };
    if from != *to {
        moving.relocate(&from, to).await?;
    }
    Ok(Moved {
        from,
        to: to.clone(),
        wraps: moving.wraps.len(),
        cleared,
    })
}

/// A move under way.
struct Moving<'m> {
    keys: &'m KeySets,
    context: &'m Context,
    volume: &'m mut Volume,
    id: Uuid,
    /// The wraps that count.
    wraps: Vec<Wrap>,
    force: bool,
}

impl Moving<'_> {
    fn token(&self) -> &Token {
        self.volume.token()
    }

    async fn fetch(&self, store: &str) -> Result<Stored, Error> {
        Ok(self.keys.fetch(self.context, store, self.id).await?)
    }

    /// Notes in the header where there may be a copy.
    fn note(&mut self, copy_in: Option<String>) -> Result<(), Error> {
        let token = self.token().clone().with_copy_in(copy_in);
        Ok(self.volume.set_token(token)?)
    }

    async fn relocate(&mut self, from: &Place, to: &Place) -> Result<(), Error> {
        let old = match from {
            Place::Header => None,
            Place::Store(name) => Some(name.clone()),
        };
        let token = match to {
            Place::Header => self.token().clone().with_wraps(self.wraps.clone()),
            Place::Store(name) => {
                self.copy_to(name).await?;
                self.token().clone().in_key_store(name)
            }
        };
        // Two names can mean the same place: what is destroyed there is not a copy.
        let old = match (old, to) {
            (Some(old), Place::Store(new)) if self.is_same(&old, new).await? => {
                tracing::warn!(
                    old,
                    new,
                    "both key stores are the same place: nothing is destroyed there"
                );
                None
            }
            (old, _) => old,
        };
        self.volume.set_token(token.with_copy_in(old.clone()))?;
        if let Some(old) = old {
            let purged = self.keys.purge(self.context, &old, self.id).await;
            purged.map_err(|source| Error::LeftBehind {
                store: old,
                to: to.clone(),
                source: Box::new(source),
            })?;
            self.note(None)?;
        }
        Ok(())
    }

    /// Makes a copy in a key store, and reads it back.
    async fn copy_to(&mut self, store: &str) -> Result<(), Error> {
        let there = self.present(store).await?;
        if self.token().copy_in.as_deref() != Some(store) {
            self.note(Some(store.to_owned()))?;
        }
        self.write(store, there).await?;
        let back = self.fetch(store).await?;
        match back.entry.wraps == self.wraps {
            true => Ok(()),
            false => Err(Error::NotKept {
                store: store.into(),
            }),
        }
    }

    /// Writes the wraps to a key store, as what follows the entry that is there.
    async fn write(&self, store: &str, there: Option<Stored>) -> Result<(), Error> {
        let key_set = self.token().key_set.clone();
        let wraps = self.wraps.clone();
        let (entry, expected) = match there {
            Some(Stored { entry, version }) => (entry.next(key_set, wraps), Some(version)),
            None => (Entry::new(self.id, key_set, wraps), None),
        };
        self.keys
            .store(self.context, store, &entry, expected.as_ref())
            .await?;
        Ok(())
    }

    /// The entry that a key store has, if it has one that may be replaced or
    /// destroyed.
    async fn present(&self, store: &str) -> Result<Option<Stored>, Error> {
        let found = match self.keys.stores().look(store, self.id).await {
            // Nothing that anybody could use.
            Err(key_store::Error::Entry { .. } | key_store::Error::OtherVolume { .. })
                if self.force =>
            {
                self.keys.purge(self.context, store, self.id).await?;
                None
            }
            found => found?,
        };
        match found {
            Some(there) if there.entry.wraps != self.wraps && !self.force => Err(Error::Differs {
                store: store.into(),
                generation: there.entry.generation,
                here: Place::of(self.token()),
            }),
            found => Ok(found),
        }
    }

    /// Destroys the copy that an earlier move left in a key store, and says
    /// whether there was one.
    async fn clear(&mut self, store: &str) -> Result<bool, Error> {
        let cleared = match self.present(store).await {
            // What a crash left of it, perhaps.
            Ok(None) => {
                self.keys.purge(self.context, store, self.id).await?;
                false
            }
            Ok(Some(_)) => {
                let same = match Place::of(self.token()) {
                    Place::Store(here) => self.is_same(store, &here).await?,
                    Place::Header => false,
                };
                if !same {
                    self.keys.purge(self.context, store, self.id).await?;
                }
                !same
            }
            // A store that is no more has no copy that anybody could destroy.
            Err(Error::Store(key_store::Error::Unknown { .. })) if self.force => {
                tracing::warn!(
                    store,
                    "this host has no such key store: a copy of the wrapped keys may be there"
                );
                false
            }
            Err(error) => return Err(error),
        };
        self.note(None)?;
        Ok(cleared)
    }

    /// Whether two key stores are the same place under two names: what is
    /// written to `one`, which has the wraps that count, then stands in `other`.
    async fn is_same(&self, other: &str, one: &str) -> Result<bool, Error> {
        let before = self.generation(other).await?;
        let Stored { mut entry, version } = self.fetch(one).await?;
        // As no entry at the other place is, if that is another one.
        entry.generation = before.unwrap_or(0).max(entry.generation).saturating_add(1);
        self.keys
            .store(self.context, one, &entry, Some(&version))
            .await?;
        Ok(self.generation(other).await? == Some(entry.generation))
    }

    /// How often the entry in a key store was written, if there is one.
    async fn generation(&self, store: &str) -> Result<Option<u64>, Error> {
        match self.keys.stores().look(store, self.id).await {
            Ok(found) => Ok(found.map(|found| found.entry.generation)),
            // Whatever that is, it is not what is written here.
            Err(key_store::Error::Entry { .. } | key_store::Error::OtherVolume { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
