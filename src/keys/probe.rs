//! Whether the service still lets a key be used that a volume needs: by having
//! it really unwrap what the volume has, whatever is in memory.
//!
//! That a key is there and enabled says less: the right to use it may be gone
//! while the right to see it stays, and the version that a volume was wrapped
//! with may be disabled while the latest one is not.
#![forbid(unsafe_code)]

use std::time::Instant;

use uuid::Uuid;

use super::ask::Use;
use super::group::{self, cache};
use super::{Context, KeySet, KeySets, Operation, Why};
use crate::kms::call;
use crate::kms::{self, Class, Wrapped};
use crate::volume::token::{Bound, Wrap};

impl KeySets {
    /// Has the service open `wrap`, of a volume with this `binding`, or the
    /// group key that it needs. What comes of it is wiped at once. A group key
    /// that is in memory does not answer, and is wiped as well if its service
    /// lets nobody use it any more.
    ///
    /// It is a [`Operation::Check`] to the witnesses.
    ///
    /// # Errors
    /// Why it did not open.
    pub async fn probe(&self, context: &Context, wrap: &Wrap, binding: &[u8]) -> Result<(), Why> {
        let set = self
            .find(&wrap.key_set)
            .ok_or_else(|| Why::UnknownKeySet(self.names()))?;
        if wrap.provider != set.provider.name() {
            return Err(Why::OtherProvider(set.provider.name()));
        }
        let mut wrapped = Wrapped {
            key_id: wrap.key_id.clone(),
            version: wrap.key_version.clone(),
            alg: wrap.alg.clone(),
            bytes: Vec::new(),
        };
        let (aad, group) = match (&wrap.bound, &wrap.group) {
            (Bound::Aad, None) => {
                wrapped.bytes.clone_from(&wrap.bytes);
                (binding.to_owned(), None)
            }
            (Bound::Group, Some(group)) => {
                wrapped.bytes.clone_from(&group.bytes);
                (group::binding(group.id), Some(group.id))
            }
            (Bound::Aad, Some(_)) | (Bound::Group, None) => {
                return Err(Why::Kms(kms::envelope::damaged(
                    "a group key stands beside it where there must be none, or is missing",
                )));
            }
            (Bound::Other(how), _) => return Err(Why::Binding(how.clone())),
        };
        let result = self
            .provider_probe(context, &set, &wrapped, &aad, group)
            .await;
        if group.is_some()
            && let Err(error) = &result
            && matches!(error.class(), Class::Denied(_) | Class::NotFound)
        {
            let place = cache::id(set.name.as_str(), set.provider.name(), &wrapped);
            self.group_keys.forget(&place);
        }
        result.map_err(Why::Kms)
    }

    async fn provider_probe(
        &self,
        context: &Context,
        set: &KeySet,
        wrapped: &Wrapped,
        aad: &[u8],
        group: Option<Uuid>,
    ) -> Result<(), kms::Error> {
        let start = Instant::now();
        let work = set.provider.unwrap(wrapped, aad);
        let (result, notes) = call::observed(context.correlation, work).await;
        let result = result.map(drop);
        let used = Use {
            operation: Operation::Check,
            key_id: &wrapped.key_id,
            key_version: &wrapped.version,
            group,
            service_asked: true,
            took: start.elapsed(),
            outcome: result.as_ref().copied(),
            notes: &notes,
        };
        self.witnessed(context, set, used)?;
        result
    }

    /// Wipes the group keys that are in memory: they are asked for again.
    pub fn forget_group_keys(&self) {
        self.group_keys.clear();
    }
}
