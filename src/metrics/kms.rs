//! How keys are used, and what the services answer.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::call_histogram;
use crate::keys::{KeyUse, Operation, StoreUse, Witness};
use crate::kms::{Class, Denied};

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    provider: String,
    key_set: String,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    provider: String,
    key_set: String,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Endpoint {
    key_set: String,
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    key_set: String,
    endpoint: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lookup {
    key_set: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BreakGlass {
    key_set: String,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreCall {
    key_store: String,
    operation: &'static str,
    outcome: &'static str,
}

/// Counts each use of a key and of a key store that it witnesses.
#[derive(Debug)]
pub struct KmsMetrics {
    calls: Family<Ended, Counter>,
    call_seconds: Histograms<Call>,
    attempts: Family<Asked, Counter>,
    attempt_seconds: Histograms<Endpoint>,
    endpoint_up: Family<Endpoint, Gauge>,
    group_key_lookups: Family<Lookup, Counter>,
    break_glass_uses: Family<BreakGlass, Counter>,
    store_calls: Family<StoreCall, Counter>,
}

/// `ok`, or why not: the values of the label `outcome`.
pub(super) fn outcome(failed: Option<Class>) -> &'static str {
    match failed {
        None => "ok",
        Some(Class::Denied(Denied::Disabled)) => "denied_disabled",
        Some(Class::Denied(Denied::Expired)) => "denied_expired",
        Some(Class::Denied(Denied::Deleted)) => "denied_deleted",
        Some(Class::Denied(Denied::Forbidden)) => "denied_forbidden",
        Some(Class::NotFound) => "not_found",
        Some(Class::Throttled { .. }) => "throttled",
        Some(Class::Unreachable) => "unreachable",
        Some(Class::Sealed) => "sealed",
        Some(Class::BadKey) => "bad_key",
        Some(Class::Protocol) => "protocol",
    }
}

/// Whether an endpoint that answers so works. A denial is the work of one that does.
fn is_up(failed: Option<Class>) -> bool {
    !matches!(
        failed,
        Some(Class::Unreachable | Class::Sealed | Class::Protocol)
    )
}

impl KmsMetrics {
    pub(super) fn register(registry: &mut Registry) -> Arc<Self> {
        let histogram = call_histogram as fn() -> Histogram;
        let metrics = KmsMetrics {
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(histogram),
            attempts: Family::default(),
            attempt_seconds: Family::new_with_constructor(histogram),
            endpoint_up: Family::default(),
            group_key_lookups: Family::default(),
            break_glass_uses: Family::default(),
            store_calls: Family::default(),
        };
        registry.register(
            "kms_calls",
            "Calls to the service of a key set, all endpoints and repetitions together",
            metrics.calls.clone(),
        );
        registry.register_with_unit(
            "kms_call",
            "Time that such a call took",
            Unit::Seconds,
            metrics.call_seconds.clone(),
        );
        registry.register(
            "kms_attempts",
            "Times that one endpoint of a service was asked",
            metrics.attempts.clone(),
        );
        registry.register_with_unit(
            "kms_attempt",
            "Time that one endpoint took to answer, or to be given up",
            Unit::Seconds,
            metrics.attempt_seconds.clone(),
        );
        registry.register(
            "kms_endpoint_up",
            "Whether the endpoint worked when it was last asked",
            metrics.endpoint_up.clone(),
        );
        registry.register(
            "group_key_lookups",
            "Uses of a group key: a hit found it in memory, a miss asked the service",
            metrics.group_key_lookups.clone(),
        );
        registry.register(
            "break_glass_uses",
            "Uses of a key set for break-glass access",
            metrics.break_glass_uses.clone(),
        );
        registry.register(
            "key_store_calls",
            "Reads, writes and purges of entries in a key store",
            metrics.store_calls.clone(),
        );
        Arc::new(metrics)
    }

    fn call(&self, used: &KeyUse<'_>, outcome: &'static str) {
        let operation = used.operation.as_str();
        let call = Call {
            provider: used.provider.into(),
            key_set: used.key_set.into(),
            operation,
        };
        self.call_seconds
            .get_or_create(&call)
            .observe(used.took.as_secs_f64());
        let ended = Ended {
            provider: used.provider.into(),
            key_set: used.key_set.into(),
            operation,
            outcome,
        };
        self.calls.get_or_create(&ended).inc();
    }

    fn attempts(&self, used: &KeyUse<'_>) {
        for attempt in &used.notes.attempts {
            let endpoint = Endpoint {
                key_set: used.key_set.into(),
                endpoint: attempt.endpoint.clone(),
            };
            self.attempt_seconds
                .get_or_create(&endpoint)
                .observe(attempt.took.as_secs_f64());
            self.endpoint_up
                .get_or_create(&endpoint)
                .set(is_up(attempt.failed).into());
            let asked = Asked {
                key_set: endpoint.key_set,
                endpoint: endpoint.endpoint,
                outcome: outcome(attempt.failed),
            };
            self.attempts.get_or_create(&asked).inc();
        }
    }
}

impl Witness for KmsMetrics {
    fn key_used(&self, used: &KeyUse<'_>) -> io::Result<()> {
        let outcome = outcome(used.outcome.err().map(|error| error.class()));
        if used.service_asked {
            self.call(used, outcome);
            self.attempts(used);
        }
        if used.group.is_some() && used.operation != Operation::Check {
            let lookup = Lookup {
                key_set: used.key_set.into(),
                result: match used.service_asked {
                    true => "miss",
                    false => "hit",
                },
            };
            self.group_key_lookups.get_or_create(&lookup).inc();
        }
        if used.break_glass {
            let uses = BreakGlass {
                key_set: used.key_set.into(),
                operation: used.operation.as_str(),
                outcome,
            };
            self.break_glass_uses.get_or_create(&uses).inc();
        }
        Ok(())
    }

    fn store_used(&self, used: &StoreUse<'_>) -> io::Result<()> {
        let call = StoreCall {
            key_store: used.key_store.into(),
            operation: used.operation.as_str(),
            outcome: match used.outcome {
                Ok(()) => outcome(None),
                Err(error) => error
                    .class()
                    .map_or("conflict", |class| outcome(Some(class))),
            },
        };
        self.store_calls.get_or_create(&call).inc();
        Ok(())
    }
}
