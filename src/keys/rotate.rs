//! What the wraps of a key set are to be now, and getting there: a group key
//! that is wrapped under another version, and wraps that follow it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ask::Use;
use super::group::{self, cache};
use super::wrap::GroupKey;
use super::{Context, Error, Hierarchy, KeySet, KeySets, Operation, Why};
use crate::kms::call::Notes;
use crate::kms::{self, KeyVersion, Wrapped};
use crate::secret::Secret;
use crate::volume::token::{Bound, Wrap};

/// Which key of which service wraps, in which version. Not secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// The provider.
    pub provider: String,
    /// The key, in the provider's own notation.
    pub key_id: String,
    /// Its version, in the provider's own notation.
    pub key_version: String,
    /// The group key between it and the volumes, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Uuid>,
}

impl Target {
    /// What made `wrap`.
    pub fn of(wrap: &Wrap) -> Self {
        Target {
            provider: wrap.provider.clone(),
            key_id: wrap.key_id.clone(),
            key_version: wrap.key_version.clone(),
            group: wrap.group.as_ref().map(|group| group.id),
        }
    }

    /// Whether both are the same version of the same key, whatever stands
    /// between it and the volumes.
    pub fn same_version(&self, other: &Target) -> bool {
        (&self.provider, &self.key_id, &self.key_version)
            == (&other.provider, &other.key_id, &other.key_version)
    }
}

/// What a key set wraps with now, ready to be used without asking the service
/// again where there is a group key.
#[derive(Clone, Debug)]
pub struct Current {
    /// The key set.
    pub key_set: String,
    /// Which key.
    pub target: Target,
    group: Option<GroupKey>,
}

impl Current {
    /// Whether `wrap` is of this key set.
    pub fn is_about(&self, wrap: &Wrap) -> bool {
        wrap.key_set == self.key_set
    }

    /// Whether `wrap` is as it would be made now: by the same version of the
    /// same key, directly or through a group key. Another host may have another
    /// group key, which is as good.
    pub fn made(&self, wrap: &Wrap) -> bool {
        self.is_about(wrap)
            && Target::of(wrap).same_version(&self.target)
            && match self.group {
                Some(_) => wrap.bound == Bound::Group,
                None => wrap.bound == Bound::Aad,
            }
    }

    /// The same wrap as `wrap`, if it was made with the same group key: that
    /// is all the same, and only wrapped otherwise.
    pub fn follow(&self, wrap: &Wrap) -> Option<Wrap> {
        let group = self.group.as_ref()?;
        let mut next = wrap.clone();
        let inside = next.group.as_mut().filter(|inside| inside.id == group.id)?;
        if !self.is_about(wrap) || wrap.bound != Bound::Group {
            return None;
        }
        inside.bytes.clone_from(&group.wrapped.bytes);
        next.provider.clone_from(&self.target.provider);
        next.key_id.clone_from(&self.target.key_id);
        next.key_version.clone_from(&self.target.key_version);
        next.alg.clone_from(&group.wrapped.alg);
        Some(next)
    }
}

impl KeySets {
    /// What `key_set` wraps with, now that its service says that this is
    /// `version`. If its group key is wrapped under another one, it is wrapped
    /// anew: by one call, and a second one that proves the result, before it is
    /// put on record.
    ///
    /// # Errors
    /// When there is no such key set, or its provider fails. The record is as
    /// it was then.
    pub async fn renew(
        &self,
        context: &Context,
        key_set: &str,
        version: &KeyVersion,
    ) -> Result<Current, Error> {
        let set = self.get(key_set)?;
        match set.definition.policy.hierarchy {
            Hierarchy::Direct => {
                let probe = self.probe(context, &set).await?;
                Ok(current(&set, &probe, None))
            }
            Hierarchy::Group => {
                let group = self.group_for(context, &set, Some(version)).await?;
                let wrapped = group.wrapped.clone();
                Ok(current(&set, &wrapped, Some(group)))
            }
        }
    }

    /// Wraps `secret` as `current` says, bound to `aad`.
    ///
    /// # Errors
    /// When the key set is no more, its provider fails, or it wraps with
    /// another version by now.
    pub async fn wrap_as(
        &self,
        context: &Context,
        current: &Current,
        secret: &Secret,
        aad: &[u8],
    ) -> Result<Wrap, Error> {
        let set = self.get(&current.key_set)?;
        let wrap = match &current.group {
            Some(group) => self.seal_under(context, &set, group, secret, aad)?,
            None => self.wrap_directly(context, &set, secret, aad).await?,
        };
        match current.made(&wrap) {
            true => Ok(wrap),
            false => Err(set.failed(kms::Error::new(
                kms::Class::Throttled { retry_after: None },
                format!(
                    "the service wraps with version {:?} and not {:?}: its replicas differ, or it \
                     was rotated again",
                    wrap.key_version, current.target.key_version
                ),
                "this is tried again by itself",
            ))),
        }
    }

    /// Opens a wrap of the key set of `current`: by the group key that is at
    /// hand, or else by its service.
    ///
    /// # Errors
    /// When it does not open.
    pub async fn open_as(
        &self,
        context: &Context,
        current: &Current,
        wrap: &Wrap,
        binding: &[u8],
    ) -> Result<Secret, Why> {
        let group = match &current.group {
            Some(group) if current.made(wrap) => group,
            _ => return self.unwrap_secret(context, wrap, binding).await,
        };
        let in_token = wrap.group.as_ref().map(|group| &group.bytes);
        if in_token != Some(&group.wrapped.bytes) {
            return self.unwrap_secret(context, wrap, binding).await;
        }
        let set = self.get(&current.key_set);
        let set = set.map_err(|_| Why::UnknownKeySet(self.names()))?;
        let start = Instant::now();
        let result = group::open(&group.key, &wrap.bytes, binding);
        let used = Use {
            operation: Operation::Unwrap,
            key_id: &wrap.key_id,
            key_version: &wrap.key_version,
            group: Some(group.id),
            service_asked: false,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &Notes::default(),
        };
        self.witnessed(context, &set, used).map_err(Why::Kms)?;
        result.map_err(Why::Kms)
    }

    /// What `key_set` would wrap with now, as it stands in the wraps: its service
    /// really wraps and unwraps something. Directly, without a group key.
    ///
    /// # Errors
    /// When there is no such key set, or its provider fails.
    pub async fn identify(
        &self,
        context: &Context,
        key_set: &str,
    ) -> Result<(KeyVersion, Target), Error> {
        let set = self.get(key_set)?;
        let version = self.current_version(context, key_set).await?;
        let wrapped = self.probe(context, &set).await?;
        Ok((version, current(&set, &wrapped, None).target))
    }

    /// Has the service wrap and unwrap something.
    pub(super) async fn probe(&self, context: &Context, set: &KeySet) -> Result<Wrapped, Error> {
        let fail = |error| set.failed(error);
        let probe = Secret::random(group::KEY_BYTES)
            .map_err(|error| fail(kms::envelope::no_memory(&error)))?;
        let aad = b"sealblk key set check v1";
        let wrapped = self
            .provider_wrap(context, set, &probe, aad, None)
            .await
            .map_err(fail)?;
        self.prove(context, set, &wrapped, &probe, aad, None)
            .await?;
        Ok(wrapped)
    }

    /// Has the service unwrap what it has just wrapped.
    pub(super) async fn prove(
        &self,
        context: &Context,
        set: &KeySet,
        wrapped: &Wrapped,
        plaintext: &Secret,
        aad: &[u8],
        group: Option<Uuid>,
    ) -> Result<(), Error> {
        let back = self
            .provider_unwrap(context, set, wrapped, aad, group)
            .await
            .map_err(|error| set.failed(error))?;
        match back == *plaintext {
            true => Ok(()),
            false => Err(set.failed(kms::Error::new(
                kms::Class::Protocol,
                "the service unwrapped something else than it had wrapped",
                "do not use this service: what it wraps may be lost",
            ))),
        }
    }

    /// Keeps a group key that was just made or opened, for as long as an
    /// answer of its service holds.
    pub(super) async fn keep_group(&self, set: &KeySet, wrapped: &Wrapped, key: Arc<Secret>) {
        let place = cache::id(set.name.as_str(), set.provider.name(), wrapped);
        let fresh = set.definition.policy.poll;
        self.group_keys.put(place, fresh, key).await;
    }
}

fn current(set: &KeySet, wrapped: &Wrapped, group: Option<GroupKey>) -> Current {
    Current {
        key_set: set.name.to_string(),
        target: Target {
            provider: set.provider.name().into(),
            key_id: wrapped.key_id.clone(),
            key_version: wrapped.version.clone(),
            group: group.as_ref().map(|group| group.id),
        },
        group,
    }
}
