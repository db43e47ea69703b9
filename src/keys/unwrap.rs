//! From the wraps in a token to the key of its volume.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::ask::Use;
use super::group::{self, cache};
use super::{Attempt, Context, Error, KeySet, KeySets, Operation, Why};
use crate::kms::call::Notes;
use crate::kms::{self, Class, Wrapped};
use crate::secret::{Dek, Secret};
use crate::volume::token::{Bound, Token, Wrap};

/// Which wraps of a volume may be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Those of the volume's own key set. Its service decides: a key that is
    /// revoked there does not open the volume by another one.
    #[default]
    OwnKeySet,
    /// Those of other key sets too, because somebody asked for it.
    BreakGlass,
}

/// The key of a volume, and what opened it.
#[derive(Debug)]
pub struct Opened {
    /// The key.
    pub dek: Dek,
    /// Which of the wraps it was.
    pub wrap: usize,
    /// All wraps of the volume, wherever they are kept.
    pub wraps: Vec<Wrap>,
}

impl KeySets {
    /// Unwraps the data encryption key that is in `token`, or in the key store
    /// that it names: then `context` says of which volume it is. Its wraps are tried
    /// in their order, those of the volume's own key set first; the first one
    /// that opens is taken.
    ///
    /// # Errors
    /// What each wrap failed for, or that there is none; or why the key store
    /// does not give them.
    pub async fn unwrap(
        &self,
        context: &Context,
        token: &Token,
        binding: &[u8],
        access: Access,
    ) -> Result<Opened, Error> {
        let own = |wrap: &Wrap| wrap.key_set == token.key_set;
        let wraps = self.wraps_of(context, token).await?;
        let (mine, others): (Vec<_>, Vec<_>) =
            wraps.iter().enumerate().partition(|(_, wrap)| own(wrap));
        let mut failed = Vec::new();
        for (place, wrap) in mine.into_iter().chain(others) {
            let why = if own(wrap) {
                self.unwrap_one(context, wrap, binding).await
            } else if access == Access::BreakGlass {
                tracing::warn!(
                    key_set = wrap.key_set,
                    own_key_set = token.key_set,
                    volume = context.volume.map(tracing::field::display),
                    "break-glass: trying the key of another key set"
                );
                let context = context.clone().for_break_glass();
                self.unwrap_one(&context, wrap, binding).await
            } else {
                Err(Why::BreakGlass)
            };
            match why {
                Ok(dek) => {
                    return Ok(Opened {
                        dek,
                        wrap: place,
                        wraps: wraps.into_owned(),
                    });
                }
                Err(why) => {
                    let attempt = Attempt {
                        key_set: wrap.key_set.clone(),
                        provider: wrap.provider.clone(),
                        key_id: wrap.key_id.clone(),
                        key_version: wrap.key_version.clone(),
                        why,
                    };
                    tracing::debug!(%attempt, "a wrapped key did not open");
                    failed.push(attempt);
                }
            }
        }
        Err(Error::Unwrap(failed))
    }

    async fn unwrap_one(&self, context: &Context, wrap: &Wrap, binding: &[u8]) -> Result<Dek, Why> {
        let secret = self.unwrap_secret(context, wrap, binding).await?;
        Dek::try_from(secret).map_err(Why::BadDek)
    }

    /// Opens one wrap, whatever is in it, for those who keep it themselves.
    ///
    /// # Errors
    /// When it is of no key set here, or does not open.
    pub async fn unwrap_secret(
        &self,
        context: &Context,
        wrap: &Wrap,
        binding: &[u8],
    ) -> Result<Secret, Why> {
        let set = self
            .find(&wrap.key_set)
            .ok_or_else(|| Why::UnknownKeySet(self.names()))?;
        let mut first = None;
        for opener in set.openers(wrap) {
            match self.unwrap_by(context, opener, wrap, binding).await {
                // It is of the other key, perhaps.
                Err(Why::Kms(error))
                    if matches!(error.class(), Class::BadKey | Class::NotFound) =>
                {
                    first.get_or_insert(Why::Kms(error));
                }
                result => return result,
            }
        }
        Err(first.unwrap_or(Why::OtherProvider(set.provider.name())))
    }

    async fn unwrap_by(
        &self,
        context: &Context,
        set: &KeySet,
        wrap: &Wrap,
        binding: &[u8],
    ) -> Result<Secret, Why> {
        let mut wrapped = Wrapped {
            key_id: wrap.key_id.clone(),
            version: wrap.key_version.clone(),
            alg: wrap.alg.clone(),
            bytes: Vec::new(),
        };
        match (&wrap.bound, &wrap.group) {
            (Bound::Aad, None) => {
                wrapped.bytes.clone_from(&wrap.bytes);
                self.provider_unwrap(context, set, &wrapped, binding, None)
                    .await
                    .map_err(Why::Kms)
            }
            (Bound::Group, Some(group)) => {
                wrapped.bytes.clone_from(&group.bytes);
                self.open(context, set, group.id, &wrapped, &wrap.bytes, binding)
                    .await
                    .map_err(Why::Kms)
            }
            (Bound::Aad, Some(_)) | (Bound::Group, None) => Err(Why::Kms(kms::envelope::damaged(
                "a group key stands beside it where there must be none, or is missing",
            ))),
            (Bound::Other(how), _) => Err(Why::Binding(how.clone())),
        }
    }

    /// Opens what group key `id` has wrapped, of which `wrapped` is the
    /// wrapped form.
    async fn open(
        &self,
        context: &Context,
        set: &KeySet,
        id: Uuid,
        wrapped: &Wrapped,
        bytes: &[u8],
        binding: &[u8],
    ) -> Result<Secret, kms::Error> {
        // Before a service is bothered with it.
        let inside = group::id_of(bytes)?;
        let beside = [("group key", &*id.to_string(), &*inside.to_string())];
        kms::envelope::check_beside(&beside)?;
        let key = self.group_key(context, set, id, wrapped).await?;
        let start = Instant::now();
        let result = group::open(&key, bytes, binding);
        let used = Use {
            operation: Operation::Unwrap,
            key_id: &wrapped.key_id,
            key_version: &wrapped.version,
            group: Some(id),
            service_asked: false,
            took: start.elapsed(),
            outcome: result.as_ref().map(|_| ()),
            notes: &Notes::default(),
        };
        self.witnessed(context, set, used)?;
        result
    }

    /// Group key `id`, from memory or by its service.
    pub(super) async fn group_key(
        &self,
        context: &Context,
        set: &KeySet,
        id: Uuid,
        wrapped: &Wrapped,
    ) -> Result<Arc<Secret>, kms::Error> {
        let place = cache::id(set.name.as_str(), set.provider.name(), wrapped);
        let fetch = async {
            let aad = group::binding(id);
            let key = self
                .provider_unwrap(context, set, wrapped, &aad, Some(id))
                .await?;
            match key.len() == group::KEY_BYTES {
                true => Ok(key),
                false => Err(kms::envelope::damaged(format!(
                    "what was unwrapped has {} bytes, and a group key has {}",
                    key.len(),
                    group::KEY_BYTES
                ))),
            }
        };
        self.group_keys
            .get(place, set.definition.policy.poll, fetch)
            .await
    }
}
