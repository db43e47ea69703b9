//! Wraps that are in a key store: fetched for opening, and put there and
//! destroyed for whoever moves or makes them. All of it runs past the
//! witnesses, as the uses of keys do.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::future::Future;
use std::time::Instant;

use uuid::Uuid;

use super::group::cache::unrecorded;
use super::witness::{StoreOperation, StoreUse};
use super::{Context, Error, KeySets};
use crate::key_store::{self, Entry, KeyStores, Stored, Version};
use crate::kms::call;
use crate::volume::token::{Token, Wrap};

impl KeySets {
    /// The key stores that wraps of volumes may be in.
    pub fn stores(&self) -> &KeyStores {
        &self.stores
    }

    /// The key store that the wraps of a new volume in `key_set` go to, unless
    /// somebody says otherwise. `None`: its header.
    ///
    /// # Errors
    /// When there is no such key set.
    pub fn store_for(&self, key_set: &str) -> Result<Option<key_store::Name>, Error> {
        Ok(self.get(key_set)?.definition.policy.key_store.clone())
    }

    /// The wraps that `token` has, or that the key store has which it names:
    /// then `context` says of which volume it is.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn wraps<'t>(
        &self,
        context: &Context,
        token: &'t Token,
    ) -> Result<Cow<'t, [Wrap]>, Error> {
        self.wraps_of(context, token).await
    }

    /// The wraps that `token` has, or that the key store has which it names.
    pub(super) async fn wraps_of<'t>(
        &self,
        context: &Context,
        token: &'t Token,
    ) -> Result<Cow<'t, [Wrap]>, Error> {
        let Some(store) = &token.key_store else {
            return Ok(Cow::Borrowed(&token.wraps));
        };
        let volume = context.volume.ok_or(Error::NoVolume)?;
        let stored = self.fetch(context, store, volume).await?;
        Ok(Cow::Owned(stored.entry.wraps))
    }

    /// The entry of a volume that the key store has to have.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn fetch(
        &self,
        context: &Context,
        store: &str,
        volume: Uuid,
    ) -> Result<Stored, key_store::Error> {
        let work = self.stores.get(store, volume);
        self.observed(context, store, volume, StoreOperation::Read, work)
            .await
    }

    /// Puts an entry into the key store, in the place of what is `expected`.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn store(
        &self,
        context: &Context,
        store: &str,
        entry: &Entry,
        expected: Option<&Version>,
    ) -> Result<Version, key_store::Error> {
        let work = self.stores.put(store, entry, expected);
        self.observed(context, store, entry.volume, StoreOperation::Write, work)
            .await
    }

    /// Destroys the entry of a volume in the key store, with all its versions.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn purge(
        &self,
        context: &Context,
        store: &str,
        volume: Uuid,
    ) -> Result<(), key_store::Error> {
        let work = self.stores.purge(store, volume);
        self.observed(context, store, volume, StoreOperation::Purge, work)
            .await
    }

    async fn observed<T>(
        &self,
        context: &Context,
        store: &str,
        volume: Uuid,
        operation: StoreOperation,
        work: impl Future<Output = Result<T, key_store::Error>>,
    ) -> Result<T, key_store::Error> {
        let (kind, _) = self.stores.place(store, volume)?;
        let start = Instant::now();
        let (result, notes) = call::observed(context.correlation, work).await;
        let used = StoreUse {
            context,
            operation,
            volume,
            key_store: store,
            kind,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &notes,
        };
        tracing::debug!(
            key_store = store,
            kind,
            %volume,
            %operation,
            correlation = %context.correlation,
            failed = used.outcome.err().map(tracing::field::display),
            "a key store was used"
        );
        for witness in &self.witnesses {
            witness
                .store_used(&used)
                .map_err(|error| key_store::Error::Store {
                    store: store.into(),
                    kind,
                    source: unrecorded(&error),
                })?;
        }
        result
    }
}
