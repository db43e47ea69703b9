//! From the wraps in a token to the key of its volume.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::ask::Use;
use super::glass::{attempt, is_recovery};
use super::group::{self, cache};
use super::{Attempt, Context, Error, KeySet, KeySets, Operation, Why};
use crate::kms::call::Notes;
use crate::kms::recovery::RecoveryKey;
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
    /// Those of other key sets too, because somebody asked for it; but not if
    /// the volume's own service works and denies its key.
    BreakGlass,
    /// The same, and also if the key is denied, because somebody asked for that.
    DespiteDenial,
}

/// What a volume may be opened with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Means<'m> {
    /// Which of its wraps.
    pub access: Access,
    /// A recovery key that somebody has out of the safe.
    pub recovery: Option<&'m RecoveryKey>,
}

impl From<Access> for Means<'_> {
    fn from(access: Access) -> Self {
        Means {
            access,
            recovery: None,
        }
    }
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
        self.unwrap_with(context, token, binding, access.into())
            .await
    }

    /// The same with all that `means` has: other key sets and a recovery key
    /// come after the volume's own key set, and their use is told to the
    /// witnesses as what it is.
    ///
    /// # Errors
    /// As [`KeySets::unwrap`].
    pub async fn unwrap_with(
        &self,
        context: &Context,
        token: &Token,
        binding: &[u8],
        means: Means<'_>,
    ) -> Result<Opened, Error> {
        let own = |wrap: &Wrap| wrap.key_set == token.key_set && !is_recovery(wrap);
        let wraps = self.wraps_of(context, token).await?;
        let (mine, others): (Vec<_>, Vec<_>) =
            wraps.iter().enumerate().partition(|(_, wrap)| own(wrap));
        let mut failed: Vec<Attempt> = Vec::new();
        for (place, wrap) in mine.into_iter().chain(others) {
            let opened = match own(wrap) {
                true => self.unwrap_one(context, wrap, binding).await,
                false => {
                    let denied = failed.iter().any(|it| it.is_denied_by(&token.key_set));
                    self.break_glass(context, token, wrap, binding, means, denied)
                        .await
                }
            };
            match opened {
                Ok(dek) if own(wrap) => {
                    return Ok(Opened {
                        dek,
                        wrap: place,
                        wraps: wraps.into_owned(),
                    });
                }
                Ok(dek) => {
                    self.glass_broken(context, token, wrap, &failed)
                        .map_err(|source| Error::Unwrap(vec![attempt(wrap, Why::Kms(source))]))?;
                    return Ok(Opened {
                        dek,
                        wrap: place,
                        wraps: wraps.into_owned(),
                    });
                }
                Err(why) => {
                    let attempt = attempt(wrap, why);
                    tracing::debug!(%attempt, "a wrapped key did not open");
                    failed.push(attempt);
                }
            }
        }
        Err(Error::Unwrap(failed))
    }

    pub(super) async fn unwrap_one(
        &self,
        context: &Context,
        wrap: &Wrap,
        binding: &[u8],
    ) -> Result<Dek, Why> {
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
