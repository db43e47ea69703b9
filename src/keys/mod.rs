//! Key sets: the stable names between volumes and keys.
//!
//! A volume names its key set and never a key; the key set names the
//! provider, the key and which version of it to use. So a key is rotated or
//! replaced, and the service changed, without touching what the operator calls
//! things. This room turns data encryption keys into a token's wraps and back,
//! directly or through a group key, fetches wraps that are kept in a key store,
//! and tells its witnesses of each use. It knows nothing of configuration
//! files, headers or disks.
#![forbid(unsafe_code)]

mod ask;
mod definition;
mod error;
mod glass;
mod group;
pub mod ledger;
mod name;
mod probe;
mod rotate;
mod stored;
mod unwrap;
mod witness;
mod wrap;

pub use definition::{Definition, Hierarchy, OnDenied, Policy, Source};
pub use error::{Attempt, Error, Why};
pub use glass::is_recovery;
pub use name::{DEFAULT, Name};
pub use rotate::{Current, Target};
pub use unwrap::{Access, Means, Opened};
pub use witness::{
    Actor, Context, GlassBroken, Host, KeyUse, Operation, StoreOperation, StoreUse, Witness,
};

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use crate::key_store::KeyStores;
use crate::kms::{self, KeyRef, KeyVersion, Provider};
use crate::volume::token::Wrap;
use group::cache::Cache;
use group::record::Records;

/// One key set, ready to be used.
#[derive(Debug)]
struct KeySet {
    name: Name,
    definition: Definition,
    provider: Arc<dyn Provider>,
    key: KeyRef,
    /// What it was before, which opens what was wrapped then.
    previous: Option<Arc<KeySet>>,
    /// Who makes its group key, or has it wrapped anew, has this.
    change: tokio::sync::Mutex<()>,
}

impl KeySet {
    fn new(name: Name, definition: Definition) -> Self {
        let previous = definition.previous.as_deref().map(|previous| {
            let before = Definition {
                policy: definition.policy.clone(),
                ..previous.clone()
            };
            Arc::new(KeySet::new(name.clone(), before))
        });
        KeySet {
            name,
            provider: definition.source.client(),
            key: definition.key(),
            definition,
            previous,
            change: tokio::sync::Mutex::default(),
        }
    }

    /// Who may open `wrap`: the key set as it is, and as it was before. First
    /// the one whose key the wrap names; none if it is of another provider.
    fn openers(&self, wrap: &Wrap) -> Vec<&KeySet> {
        let all = [Some(self), self.previous.as_deref()];
        let same = |set: &&KeySet| set.provider.name() == wrap.provider;
        let mut openers: Vec<&KeySet> = all.into_iter().flatten().filter(same).collect();
        // Two keys of one service: false comes first.
        openers.sort_by_key(|set| set.key.id.as_ref() != Some(&wrap.key_id));
        openers
    }

    /// `source`, with the place where it happened.
    fn failed(&self, source: kms::Error) -> Error {
        Error::Kms {
            key_set: self.name.to_string(),
            provider: self.provider.name(),
            source,
        }
    }
}

/// All key sets that this process knows.
#[derive(Debug, Default)]
pub struct KeySets {
    sets: RwLock<BTreeMap<Name, Arc<KeySet>>>,
    group_keys: Cache,
    records: Option<Records>,
    witnesses: Vec<Arc<dyn Witness>>,
    stores: Arc<KeyStores>,
}

impl KeySets {
    /// Key sets as defined. Nothing is read or connected to yet.
    pub fn new(definitions: impl IntoIterator<Item = (Name, Definition)>) -> Self {
        let key_sets = KeySets::default();
        key_sets.replace(definitions);
        key_sets
    }

    /// Stores the wrapped group keys for new volumes below the directory
    /// `state`. Without one, no volume can be made in a key set with group
    /// keys; all can be opened.
    #[must_use]
    pub fn with_state(mut self, state: &Path) -> Self {
        self.records = Some(Records::below(state));
        self
    }

    /// Tells `witnesses` of each use of a key.
    #[must_use]
    pub fn with_witnesses(mut self, witnesses: Vec<Arc<dyn Witness>>) -> Self {
        self.witnesses = witnesses;
        self
    }

    /// Lets the wraps of volumes be in `stores`, too.
    #[must_use]
    pub fn with_stores(mut self, stores: KeyStores) -> Self {
        self.stores = Arc::new(stores);
        self
    }

    /// Puts other definitions in the place of all. Key sets that stay as they
    /// are keep their sessions; those that change lose the group keys that
    /// are in memory.
    pub fn replace(&self, definitions: impl IntoIterator<Item = (Name, Definition)>) {
        let mut sets = self.sets.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        let new = definitions.into_iter().map(|(name, definition)| {
            let set = match sets.get(&name) {
                Some(set) if set.definition == definition => set.clone(),
                old => {
                    changed |= old.is_some();
                    Arc::new(KeySet::new(name.clone(), definition))
                }
            };
            (name, set)
        });
        let new: BTreeMap<_, _> = new.collect();
        if changed || sets.keys().any(|name| !new.contains_key(name)) {
            self.group_keys.clear();
        }
        *sets = new;
    }

    /// Other key sets with the same state directory and witnesses: to try out
    /// what is not yet to be used.
    #[must_use]
    pub fn beside(&self, definitions: impl IntoIterator<Item = (Name, Definition)>) -> Self {
        let other = KeySets {
            records: self.records.clone(),
            witnesses: self.witnesses.clone(),
            stores: self.stores.clone(),
            ..KeySets::default()
        };
        other.replace(definitions);
        other
    }

    /// The names and definitions.
    pub fn definitions(&self) -> Vec<(Name, Definition)> {
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        let pairs = sets.iter();
        pairs
            .map(|(name, set)| (name.clone(), set.definition.clone()))
            .collect()
    }

    /// The definition of one of them.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn definition(&self, key_set: &str) -> Result<Definition, Error> {
        Ok(self.get(key_set)?.definition.clone())
    }

    /// What the stored group key of a key set is wrapped with, if it has one
    /// that its key of now has wrapped. Nobody is asked.
    ///
    /// # Errors
    /// When there is no such key set, or the record cannot be read.
    pub fn recorded(&self, name: &Name) -> Result<Option<Target>, Error> {
        let set = self.get(name.as_str())?;
        let Some(records) = &self.records else {
            return Ok(None);
        };
        let read = records.read(name).map_err(|source| Error::Record {
            path: records.path(name),
            source,
        })?;
        let ours = read.filter(|record| {
            set.definition.policy.hierarchy == Hierarchy::Group
                && record.provider == set.provider.name()
                && record.key == set.key.id
        });
        Ok(ours.map(|record| {
            let wrapped = record.wrapped();
            Target {
                provider: record.provider,
                key_id: wrapped.key_id,
                key_version: wrapped.version,
                group: Some(record.id),
            }
        }))
    }

    /// Wipes the group keys whose time is over.
    pub fn forget_old_keys(&self) {
        self.group_keys.forget_old();
    }

    /// Forgets the stored group key of a key set that is no more.
    ///
    /// # Errors
    /// When the record cannot be removed.
    pub fn forget_group(&self, name: &Name) -> Result<(), Error> {
        let Some(records) = &self.records else {
            return Ok(());
        };
        records.remove(name).map_err(|source| Error::Record {
            path: records.path(name),
            source,
        })
    }

    /// The version of its key that `key_set` would wrap with now.
    ///
    /// # Errors
    /// When there is no such key set, or its provider fails.
    pub async fn current_version(
        &self,
        context: &Context,
        key_set: &str,
    ) -> Result<KeyVersion, Error> {
        self.version(context, key_set, None).await
    }

    /// The same for a `version` to stay with, if there is one.
    ///
    /// # Errors
    /// As [`KeySets::current_version`], and when there is no such version.
    pub async fn version(
        &self,
        context: &Context,
        key_set: &str,
        version: Option<&str>,
    ) -> Result<KeyVersion, Error> {
        let set = self.get(key_set)?;
        let set = match version {
            Some(version) => Arc::new(set.pinned(version)),
            None => set,
        };
        let call = set.provider.current_version(&set.key);
        self.checked(context, &set, call)
            .await
            .map_err(|error| set.failed(error))
    }

    /// Has the service of `key_set` really wrap and unwrap something, and
    /// makes the group key if there is none. The version that it wraps with.
    ///
    /// # Errors
    /// When there is no such key set, or its provider fails.
    pub async fn check(&self, context: &Context, key_set: &str) -> Result<KeyVersion, Error> {
        let set = self.get(key_set)?;
        let version = self.try_key(context, key_set).await?;
        if set.definition.policy.hierarchy == Hierarchy::Group {
            self.current_group(context, &set).await?;
        }
        Ok(version)
    }

    /// The same, without a group key.
    ///
    /// # Errors
    /// As [`KeySets::check`].
    pub async fn try_key(&self, context: &Context, key_set: &str) -> Result<KeyVersion, Error> {
        let set = self.get(key_set)?;
        let version = self.current_version(context, key_set).await?;
        self.try_wrapping(context, &set).await?;
        Ok(version)
    }

    fn find(&self, name: &str) -> Option<Arc<KeySet>> {
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        sets.get(name).cloned()
    }

    fn get(&self, name: &str) -> Result<Arc<KeySet>, Error> {
        self.find(name).ok_or_else(|| Error::UnknownKeySet {
            name: name.into(),
            known: self.names(),
        })
    }

    fn names(&self) -> Vec<String> {
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        sets.keys().map(Name::to_string).collect()
    }
}

#[cfg(test)]
mod tests;
