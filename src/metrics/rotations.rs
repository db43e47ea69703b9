//! How volumes follow the keys of their key sets.
#![forbid(unsafe_code)]

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::rotation::News;

/// What is counted of rotations.
#[derive(Debug)]
pub struct Rotations {
    started: Family<OfKeySet, Counter>,
    finished: Family<OfKeySet, Counter>,
    rewraps: Family<Rewrap, Counter>,
    behind: Family<OfKeySet, Gauge>,
    expiring: Family<Expiring, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKeySet {
    key_set: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rewrap {
    key_set: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Expiring {
    key_set: String,
    days: u32,
}

impl Rotations {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let rotations = Rotations {
            started: Family::default(),
            finished: Family::default(),
            rewraps: Family::default(),
            behind: Family::default(),
            expiring: Family::default(),
        };
        registry.register(
            "rotations_started",
            "Times that the volumes of a key set began to follow another version of its key",
            rotations.started.clone(),
        );
        registry.register(
            "rotations_finished",
            "Times that all known volumes of a key set had followed",
            rotations.finished.clone(),
        );
        registry.register(
            "volume_rewraps",
            "Volumes whose wrapped key was exchanged for another wrap of the same key, or not",
            rotations.rewraps.clone(),
        );
        registry.register(
            "key_set_volumes_behind",
            "Known volumes that have yet to follow the key of their key set",
            rotations.behind.clone(),
        );
        registry.register(
            "key_expiry_warnings",
            "Times that the end of a key was warned of, so many days before; 0 days: it has ended",
            rotations.expiring.clone(),
        );
        rotations
    }

    /// Something happened.
    pub fn told(&self, news: &News<'_>) {
        let of = |key_set: &str| OfKeySet {
            key_set: key_set.into(),
        };
        let rewrap = |key_set: &str, outcome| {
            let key_set = key_set.into();
            self.rewraps
                .get_or_create(&Rewrap { key_set, outcome })
                .inc();
        };
        match news {
            News::Started { key_set, .. } => {
                self.started.get_or_create(&of(key_set)).inc();
            }
            News::Rewrapped { key_set, .. } => rewrap(key_set, "ok"),
            News::Failed { key_set, .. } => rewrap(key_set, "failed"),
            News::Behind { key_set, volumes } => {
                let volumes = i64::try_from(*volumes).unwrap_or(i64::MAX);
                self.behind.get_or_create(&of(key_set)).set(volumes);
            }
            News::Finished { key_set, .. } => {
                self.finished.get_or_create(&of(key_set)).inc();
            }
        }
    }

    /// The end of a key was warned of.
    pub fn expiring(&self, key_set: &str, days: u32) {
        let key_set = key_set.into();
        self.expiring
            .get_or_create(&Expiring { key_set, days })
            .inc();
    }

    /// The key set is no more.
    pub fn removed(&self, key_set: &str) {
        let key_set = key_set.into();
        self.behind.remove(&OfKeySet { key_set });
    }
}
