//! What a broker tells a monitoring system. `docs/broker.md` lists it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{Build, KmsMetrics, call_histogram, kms, process};
use crate::kms::Class;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    host: String,
    key_set: String,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationOnly {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// How a call ended, of a host that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// As asked.
    Ok,
    /// Denied by the policy.
    Policy,
    /// It failed, here or at the service.
    Failed(Class),
}

/// All metrics of a broker.
#[derive(Debug)]
pub struct BrokerMetrics {
    registry: Registry,
    kms: Arc<KmsMetrics>,
    audit_lines: Counter,
    audit_failures: Counter,
    calls: Family<Call, Counter>,
    call_seconds: Family<OperationOnly, Histogram, fn() -> Histogram>,
    calls_in_flight: Gauge,
    refused: Family<Reason, Counter>,
    handshakes_failed: Family<Reason, Counter>,
    connections: Gauge,
    connections_closed: Family<Reason, Counter>,
    policy_hosts: Gauge,
    policy_rules: Gauge,
    policy_ok: Gauge,
    certificate_expiry: Gauge,
}

impl Default for BrokerMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl BrokerMetrics {
    /// Metrics of a broker that was just started.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        let ours = registry.sub_registry_with_prefix("sealblk");
        let build = Family::<Build, Gauge>::default();
        build.get_or_create(&Build::this()).set(1);
        ours.register(
            "build_info",
            "The program, and its best cipher engine here",
            build,
        );
        let kms = KmsMetrics::register(ours);
        let audit_lines = Counter::default();
        let audit_failures = Counter::default();
        ours.register(
            "audit_lines",
            "Lines written to the audit log",
            audit_lines.clone(),
        );
        ours.register(
            "audit_failures",
            "Times that a line could not be written to the audit log",
            audit_failures.clone(),
        );
        let ours = ours.sub_registry_with_prefix("broker");
        let histogram = call_histogram as fn() -> Histogram;
        let metrics = BrokerMetrics {
            kms,
            audit_lines,
            audit_failures,
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(histogram),
            calls_in_flight: Gauge::default(),
            refused: Family::default(),
            handshakes_failed: Family::default(),
            connections: Gauge::default(),
            connections_closed: Family::default(),
            policy_hosts: Gauge::default(),
            policy_rules: Gauge::default(),
            policy_ok: Gauge::default(),
            certificate_expiry: Gauge::default(),
            registry: Registry::default(),
        };
        ours.register(
            "calls",
            "Calls of hosts that were answered",
            metrics.calls.clone(),
        );
        ours.register_with_unit(
            "call",
            "Time to answer a call of a host",
            Unit::Seconds,
            metrics.call_seconds.clone(),
        );
        ours.register(
            "calls_in_flight",
            "Calls of hosts that are being worked on",
            metrics.calls_in_flight.clone(),
        );
        ours.register(
            "refused",
            "Requests that were refused before they were looked into",
            metrics.refused.clone(),
        );
        ours.register(
            "handshakes_failed",
            "Connections that did not come to show an acceptable certificate",
            metrics.handshakes_failed.clone(),
        );
        ours.register(
            "connections",
            "Connections of hosts that are open",
            metrics.connections.clone(),
        );
        ours.register(
            "connections_closed",
            "Connections that were closed because there were too many",
            metrics.connections_closed.clone(),
        );
        ours.register(
            "policy_hosts",
            "Hosts of the policy that holds",
            metrics.policy_hosts.clone(),
        );
        ours.register(
            "policy_rules",
            "Rules of the policy that holds",
            metrics.policy_rules.clone(),
        );
        ours.register(
            "policy_ok",
            "Whether the file of the policy is the policy that holds",
            metrics.policy_ok.clone(),
        );
        ours.register_with_unit(
            "certificate_expiry",
            "When the certificate of the broker ends, in seconds since 1970",
            Unit::Seconds,
            metrics.certificate_expiry.clone(),
        );
        BrokerMetrics {
            registry,
            ..metrics
        }
    }

    /// Everything, as it is now.
    pub fn render(&self) -> String {
        super::render(&self.registry)
    }

    /// Those who take note of how keys are used.
    pub fn kms(&self) -> &Arc<KmsMetrics> {
        &self.kms
    }

    /// A line was written to the audit log, or could not be.
    pub fn audit_line(&self, written: bool) {
        match written {
            true => self.audit_lines.inc(),
            false => self.audit_failures.inc(),
        };
    }

    /// A call of `host` was answered. `key_set` is one that there is, or empty.
    pub fn call(
        &self,
        host: &str,
        key_set: &str,
        operation: &'static str,
        end: CallEnd,
        took: Duration,
    ) {
        let call = Call {
            host: host.into(),
            key_set: key_set.into(),
            operation,
            outcome: match end {
                CallEnd::Ok => kms::outcome(None),
                CallEnd::Policy => "denied_policy",
                CallEnd::Failed(class) => kms::outcome(Some(class)),
            },
        };
        self.calls.get_or_create(&call).inc();
        self.call_seconds
            .get_or_create(&OperationOnly { operation })
            .observe(took.as_secs_f64());
    }

    /// So many more calls are being worked on.
    pub fn calls_in_flight(&self, more: i64) {
        self.calls_in_flight.inc_by(more);
    }

    /// A request was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// A connection showed no acceptable certificate.
    pub fn handshake_failed(&self, reason: &'static str) {
        let reason = Reason { reason };
        self.handshakes_failed.get_or_create(&reason).inc();
    }

    /// A connection was closed because there were too many of its kind.
    pub fn connection_closed(&self, reason: &'static str) {
        let reason = Reason { reason };
        self.connections_closed.get_or_create(&reason).inc();
    }

    /// So many more connections are open.
    pub fn connections(&self, more: i64) {
        self.connections.inc_by(more);
    }

    /// A policy with so many hosts and rules holds, and is what its file says.
    pub fn policy(&self, hosts: usize, rules: usize) {
        self.policy_hosts
            .set(i64::try_from(hosts).unwrap_or(i64::MAX));
        self.policy_rules
            .set(i64::try_from(rules).unwrap_or(i64::MAX));
        self.policy_ok.set(1);
    }

    /// The file of the policy is wrong.
    pub fn policy_refused(&self) {
        self.policy_ok.set(0);
    }

    /// When the broker's certificate ends.
    pub fn certificate_ends(&self, seconds: u64) {
        self.certificate_expiry
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}
