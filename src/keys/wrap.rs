//! From the key of a volume to the wraps in its token.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::ask::Use;
use super::group::record::{Record, Records};
use super::group::{self, cache};
use super::{Context, Error, Hierarchy, KeySet, KeySets, Operation};
use crate::kms::call::Notes;
use crate::kms::{self, Class, KeyRef, KeyVersion, Wrapped};
use crate::secret::{Dek, Secret};
use crate::volume::token::{Bound, Group, Wrap};

/// A group key that is ready to be used, and its wrapped form.
#[derive(Clone, Debug)]
pub(super) struct GroupKey {
    pub id: Uuid,
    pub key: Arc<Secret>,
    pub wrapped: Wrapped,
}

impl KeySet {
    /// The same with a version of its key to wrap with.
    pub(super) fn pinned(&self, version: &str) -> Self {
        let key = KeyRef {
            version: Some(version.into()),
            ..self.key.clone()
        };
        KeySet {
            name: self.name.clone(),
            definition: self.definition.clone(),
            provider: self.provider.clone(),
            key,
            previous: None,
            change: tokio::sync::Mutex::default(),
        }
    }

    /// `wrapped` as it stands in a token.
    fn wrap(&self, wrapped: Wrapped, bound: Bound, group: Option<Group>) -> Wrap {
        Wrap {
            key_set: self.name.to_string(),
            provider: self.provider.name().into(),
            key_id: wrapped.key_id,
            key_version: wrapped.version,
            alg: wrapped.alg,
            bound,
            bytes: wrapped.bytes,
            group,
            extra: Default::default(),
        }
    }
}

impl KeySets {
    /// Wraps `dek` with the key of `key_set`, and with that of its break-glass
    /// key set if it has one, bound to `binding` (the bytes of
    /// [`crate::volume::Binding`]). Each wrap has been opened again: what only
    /// it can open is not to be lost to a service that answers with anything.
    ///
    /// # Errors
    /// When there is no such key set, or a provider fails.
    pub async fn wrap(
        &self,
        context: &Context,
        key_set: &str,
        dek: &Dek,
        binding: &[u8],
    ) -> Result<Vec<Wrap>, Error> {
        let set = self.get(key_set)?;
        let dek = dek.as_secret();
        let mut wraps = vec![self.wrap_proven(context, &set, dek, binding).await?];
        if let Some(second) = &set.definition.policy.break_glass {
            let set = self.get(second.as_str())?;
            let context = context.clone().for_break_glass();
            wraps.push(self.wrap_proven(&context, &set, dek, binding).await?);
        }
        Ok(wraps)
    }

    /// Wraps any secret of up to 1024 bytes with the key of `key_set` alone,
    /// bound to `aad`: for those who keep the result themselves. With a
    /// `version` of that key it is wrapped with this one, directly: a group
    /// key has the version that it was wrapped with.
    ///
    /// # Errors
    /// When there is no such key set, or its provider fails.
    pub async fn wrap_secret(
        &self,
        context: &Context,
        key_set: &str,
        version: Option<&str>,
        secret: &Secret,
        aad: &[u8],
    ) -> Result<Wrap, Error> {
        let set = self.get(key_set)?;
        match version {
            None => self.wrap_with(context, &set, secret, aad).await,
            Some(version) => {
                let set = set.pinned(version);
                self.wrap_directly(context, &set, secret, aad).await
            }
        }
    }

    /// The same as [`Self::wrap_with`], and the service has opened what it made.
    /// That of a group key has been opened before this host uses it.
    async fn wrap_proven(
        &self,
        context: &Context,
        set: &KeySet,
        secret: &Secret,
        aad: &[u8],
    ) -> Result<Wrap, Error> {
        if set.definition.policy.hierarchy == Hierarchy::Group {
            return self.wrap_with(context, set, secret, aad).await;
        }
        let wrapped = self
            .provider_wrap(context, set, secret, aad, None)
            .await
            .map_err(|error| set.failed(error))?;
        self.prove(context, set, &wrapped, secret, aad, None)
            .await?;
        Ok(set.wrap(wrapped, Bound::Aad, None))
    }

    async fn wrap_with(
        &self,
        context: &Context,
        set: &KeySet,
        secret: &Secret,
        aad: &[u8],
    ) -> Result<Wrap, Error> {
        match set.definition.policy.hierarchy {
            Hierarchy::Direct => self.wrap_directly(context, set, secret, aad).await,
            Hierarchy::Group => {
                let group = self.current_group(context, set).await?;
                self.seal_under(context, set, &group, secret, aad)
            }
        }
    }

    /// Wraps under a group key.
    pub(super) fn seal_under(
        &self,
        context: &Context,
        set: &KeySet,
        group: &GroupKey,
        secret: &Secret,
        aad: &[u8],
    ) -> Result<Wrap, Error> {
        let bytes = self
            .seal(context, set, group, secret, aad)
            .map_err(|error| set.failed(error))?;
        let mut wrapped = group.wrapped.clone();
        let in_token = Group {
            id: group.id,
            bytes: std::mem::replace(&mut wrapped.bytes, bytes),
            extra: Default::default(),
        };
        Ok(set.wrap(wrapped, Bound::Group, Some(in_token)))
    }

    pub(super) async fn wrap_directly(
        &self,
        context: &Context,
        set: &KeySet,
        secret: &Secret,
        aad: &[u8],
    ) -> Result<Wrap, Error> {
        let wrapped = self
            .provider_wrap(context, set, secret, aad, None)
            .await
            .map_err(|error| set.failed(error))?;
        Ok(set.wrap(wrapped, Bound::Aad, None))
    }

    /// Wraps the key of a volume under a group key. The service is not asked.
    fn seal(
        &self,
        context: &Context,
        set: &KeySet,
        group: &GroupKey,
        dek: &Secret,
        binding: &[u8],
    ) -> Result<Vec<u8>, kms::Error> {
        let start = Instant::now();
        let result = group::seal(group.id, &group.key, dek, binding)
            .map_err(|error| kms::envelope::no_memory(&error));
        let used = Use {
            operation: Operation::Wrap,
            key_id: &group.wrapped.key_id,
            key_version: &group.wrapped.version,
            group: Some(group.id),
            service_asked: false,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &Notes::default(),
        };
        self.witnessed(context, set, used)?;
        result
    }

    /// The group key that new volumes of `set` get: the one of the record,
    /// wrapped anew if the key has another version now, or a new one if there
    /// is none that this key of the service has wrapped.
    pub(super) async fn current_group(
        &self,
        context: &Context,
        set: &KeySet,
    ) -> Result<GroupKey, Error> {
        self.group_for(context, set, None).await
    }

    /// The same where the service has said that `version` is the one to wrap
    /// with. Without, it is asked, unless its last answer still holds.
    pub(super) async fn group_for(
        &self,
        context: &Context,
        set: &KeySet,
        version: Option<&KeyVersion>,
    ) -> Result<GroupKey, Error> {
        let Some(records) = &self.records else {
            return Err(Error::NoState(set.name.to_string()));
        };
        // Of several who find the same, one asks the service.
        let _alone = set.change.lock().await;
        let fail = |source| Error::Record {
            path: records.path(&set.name),
            source,
        };
        let found = records.read(&set.name).map_err(fail)?;
        let replaces = found.is_some();
        if let Some(record) = found
            && record.provider == set.provider.name()
            && record.key == set.key.id
        {
            match self.refreshed(context, set, records, record, version).await {
                // The service has this key no more, or it is another service:
                // the volumes that have this group key do not need the record.
                Err(Error::Kms { source, .. })
                    if matches!(source.class(), Class::BadKey | Class::NotFound) =>
                {
                    tracing::warn!(
                        key_set = %set.name,
                        "the stored group key does not open, and new volumes get another: {source}"
                    );
                }
                result => return result,
            }
        }
        let id = Uuid::new_v4();
        let no_memory = |error| set.failed(kms::envelope::no_memory(&error));
        let key = Arc::new(Secret::random(group::KEY_BYTES).map_err(no_memory)?);
        let wrapped = self
            .provider_wrap(context, set, &key, &group::binding(id), Some(id))
            .await
            .map_err(|error| set.failed(error))?;
        // All volumes will need it: it has to open before it is on record.
        let aad = group::binding(id);
        self.prove(context, set, &wrapped, &key, &aad, Some(id))
            .await?;
        let record = Record::new(id, set.provider.name(), set.key.id.clone(), wrapped);
        let stored = records
            .write(&set.name, record.clone(), replaces)
            .map_err(fail)?;
        if stored != record {
            return self.group_of(context, set, &stored).await;
        }
        tracing::info!(key_set = %set.name, group = %id, "made a group key");
        let wrapped = record.wrapped();
        self.keep_group(set, &wrapped, key.clone()).await;
        Ok(GroupKey { id, key, wrapped })
    }

    /// The group key of `record`, in the version that the service wraps with
    /// now: `version`, or as it says.
    async fn refreshed(
        &self,
        context: &Context,
        set: &KeySet,
        records: &Records,
        record: Record,
        version: Option<&KeyVersion>,
    ) -> Result<GroupKey, Error> {
        let fail = |error| set.failed(error);
        let wrapped = record.wrapped();
        let place = cache::id(set.name.as_str(), set.provider.name(), &wrapped);
        let answered = self.group_keys.holds(&place);
        let group = self.group_of(context, set, &record).await?;
        let version = match version {
            Some(version) => version.clone(),
            None if answered => return Ok(group),
            None => {
                let call = set.provider.current_version(&set.key);
                self.checked(context, set, call).await.map_err(fail)?
            }
        };
        if version.id == wrapped.version {
            return Ok(group);
        }
        let aad = group::binding(record.id);
        let again = self
            .provider_wrap(context, set, &group.key, &aad, Some(record.id))
            .await
            .map_err(fail)?;
        // All volumes will need it: it has to open before it is on record.
        self.prove(context, set, &again, &group.key, &aad, Some(record.id))
            .await?;
        tracing::info!(
            key_set = %set.name,
            group = %record.id,
            from = wrapped.version,
            to = again.version,
            "wrapped the group key under another version"
        );
        self.keep_group(set, &again, group.key.clone()).await;
        let key_id = set.key.id.clone();
        let record = Record::new(record.id, set.provider.name(), key_id, again.clone());
        records
            .write(&set.name, record, true)
            .map_err(|source| Error::Record {
                path: records.path(&set.name),
                source,
            })?;
        Ok(GroupKey {
            wrapped: again,
            ..group
        })
    }

    async fn group_of(
        &self,
        context: &Context,
        set: &KeySet,
        record: &Record,
    ) -> Result<GroupKey, Error> {
        let wrapped = record.wrapped();
        let key = self
            .group_key(context, set, record.id, &wrapped)
            .await
            .map_err(|error| set.failed(error))?;
        Ok(GroupKey {
            id: record.id,
            key,
            wrapped,
        })
    }
}
