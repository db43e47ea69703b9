//! Whether the services let the keys be used that served disks need, and what
//! follows where they do not.
//!
//! What enters: what the volumes of attached disks say about their keys, and
//! what the services answer. The poll asks (`ask`), a judge decides when an
//! answer counts (`judge`), and the verdicts are published here; the task of
//! each disk does what they mean for it. Nothing here touches a worker, and no
//! verdict comes from a service that did not answer.
#![forbid(unsafe_code)]

pub(super) mod ask;
mod judge;
mod suspicion;

pub use judge::{Answer, Cause, Judge, Turn};
pub use suspicion::Suspicions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use uuid::Uuid;

use super::held::KeyFacts;
use super::model::{DenialInfo, Problem};
use crate::keys::OnDenied;
use crate::timestamp::Timestamp;

/// What a disk needs of a service: disks that need the same are denied together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// The key set whose wrap opened the volume.
    pub key_set: String,
    provider: Option<String>,
    key_id: Option<String>,
    key_version: Option<String>,
    /// The volume, where its service decides on each.
    volume: Option<Uuid>,
}

impl Need {
    /// What the disk of this volume needs.
    pub fn of(key: &KeyFacts, volume: Uuid) -> Self {
        if let Some(other) = &key.break_glass {
            // The rest is of the key set that did not open it.
            return Need {
                key_set: other.clone(),
                provider: None,
                key_id: None,
                key_version: None,
                volume: None,
            };
        }
        let each = key.provider.as_deref() == Some(BROKER);
        Need {
            key_set: key.key_set.clone(),
            provider: key.provider.clone(),
            key_id: key.key_id.clone(),
            key_version: key.key_version.clone(),
            volume: each.then_some(volume),
        }
    }

    /// The key and the version, as far as they are known.
    pub fn key(&self) -> (&str, &str) {
        let id = self.key_id.as_deref().unwrap_or_default();
        (id, self.key_version.as_deref().unwrap_or_default())
    }
}

/// The provider that decides on each volume by itself.
const BROKER: &str = "broker";

/// A key that is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The key set.
    pub key_set: String,
    /// Since when.
    pub since: Timestamp,
    /// When the policy of the key set is applied, at the earliest.
    pub acts_at: Timestamp,
    /// Whether it is by now.
    pub in_force: bool,
    /// That policy.
    pub on_denied: OnDenied,
    /// Whether the service has no such key any more, rather than letting nobody
    /// use it.
    pub gone: bool,
    /// When the service last said so.
    pub heard: Instant,
    /// Why.
    pub problem: Problem,
}

impl Denial {
    /// As it is shown.
    pub fn info(&self) -> DenialInfo {
        DenialInfo {
            key_set: self.key_set.clone(),
            since: self.since.to_string(),
            on_denied: self.on_denied.as_str().into(),
            acts_at: self.acts_at.to_string(),
            in_force: self.in_force,
            problem: self.problem.clone(),
        }
    }
}

/// What is known of a need. Of those that are not judged, nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The service gives what is needed.
    Granted,
    /// It does not.
    Denied(Arc<Denial>),
}

/// The verdicts, for those who act on them.
#[derive(Debug, Default)]
pub struct Access(watch::Sender<Arc<BTreeMap<Need, Verdict>>>);

impl Access {
    /// Publishes all verdicts. Whoever watches is told also if they are the
    /// same: their disks may need something else by now.
    pub fn publish(&self, verdicts: BTreeMap<Need, Verdict>) {
        self.0.send_replace(Arc::new(verdicts));
    }

    /// The verdict on a need.
    pub fn verdict(&self, need: &Need) -> Option<Verdict> {
        self.0.borrow().get(need).cloned()
    }

    /// Is told whenever verdicts are published.
    pub fn subscribe(&self) -> watch::Receiver<Arc<BTreeMap<Need, Verdict>>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(key_set: &str, provider: &str, version: &str) -> KeyFacts {
        KeyFacts {
            key_set: key_set.into(),
            provider: Some(provider.into()),
            key_id: Some("disks".into()),
            key_version: Some(version.into()),
            key_sets: vec![key_set.into(), "safe".into()],
            wraps: Vec::new(),
            break_glass: None,
        }
    }

    #[test]
    fn disks_need_the_same_whose_keys_are_wrapped_by_the_same_version() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let need = |key: &KeyFacts, volume| Need::of(key, volume);
        let first = facts("prod", "vault", "1");
        assert_eq!(need(&first, a), need(&first, b));
        assert_ne!(need(&first, a), need(&facts("prod", "vault", "2"), a));
        assert_ne!(need(&first, a), need(&facts("test", "vault", "1"), a));
        // A broker decides on each volume.
        let brokered = facts("prod", "broker", "1");
        assert_ne!(need(&brokered, a), need(&brokered, b));
    }

    /// Who broke the glass does not depend on the key set that was lost.
    #[test]
    fn a_volume_that_was_opened_by_break_glass_needs_that_key_set() {
        let volume = Uuid::from_u128(1);
        let broken = KeyFacts {
            break_glass: Some("safe".into()),
            ..facts("prod", "vault", "1")
        };
        assert_eq!(Need::of(&broken, volume).key_set, "safe");
        let own = facts("prod", "vault", "1");
        assert_eq!(Need::of(&own, volume).key_set, "prod");
        // And so it stays when its wraps are written anew, if it is among them.
        let again = facts("prod", "vault", "2").after(Some(&broken));
        assert_eq!(again.break_glass.as_deref(), Some("safe"));
        let mut without = facts("prod", "vault", "2");
        without.key_sets.pop();
        assert_eq!(without.after(Some(&broken)).break_glass, None);
    }
}
