//! What the manager, and a broker, tell a monitoring system, in the OpenMetrics text format.
//!
//! `docs/metrics.md` lists each metric; a test holds that list and this room to
//! each other. What enters: uses of keys (as a [`Witness`]), the state of disks
//! and key sets as the manager learns it, and the statistics pages of the disks
//! ([`stats`]), which are read when somebody asks and at no other time. Nothing
//! here does I/O on disks, asks key services, or decides anything.
//!
//! [`Witness`]: crate::keys::Witness
//! [`stats`]: crate::engine::stats
#![forbid(unsafe_code)]

#[cfg(feature = "broker")]
mod broker;
mod disk_io;
mod disks;
mod encode;
mod key_sets;
mod kms;
mod process;
mod rotations;

#[cfg(feature = "broker")]
pub use broker::{BrokerMetrics, CallEnd};
pub use disks::{DISK_STATES, DiskView, RekeyView, TroubleView};
pub use kms::KmsMetrics;
pub use rotations::Rotations;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::crypt::Engine;
use crate::engine::stats::Reader;
use crate::kms::{Error, KeyVersion};

/// The media type of what [`Metrics::render`] gives. Infos are gauges that are
/// always 1 there, so that readers of the older Prometheus text format, which
/// has no such type, understand all of it as well.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of a manager.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    kms: Arc<KmsMetrics>,
    key_sets: Arc<key_sets::KeySets>,
    disks: Arc<disks::Disks>,
    rotations: Rotations,
    audit_lines: Counter,
    audit_failures: Counter,
    volumes_erased: Family<Erased, Counter>,
    api_requests: Family<Route, Counter>,
    api_seconds: Family<RouteOnly, Histogram, fn() -> Histogram>,
    verifications: Family<Verdict, Counter>,
    upgrades: Family<Upgrade, Counter>,
    upgrade_pauses: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Upgrade {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verdict {
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Erased {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
    engine: &'static str,
}

impl Build {
    fn this() -> Self {
        Build {
            version: env!("CARGO_PKG_VERSION"),
            engine: Engine::best().name(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteOnly {
    route: String,
}

/// Buckets for what takes a network round trip or several: 1 ms to 64 s, the
/// longest that a call to a key service may take by default and then some.
fn call_histogram() -> Histogram {
    Histogram::new((0..17).map(|step| 0.001 * f64::from(1 << step)))
}

fn render(registry: &Registry) -> String {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => text,
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            "# EOF\n".into()
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics of a manager that was just started.
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
        let key_sets = Arc::<key_sets::KeySets>::default();
        ours.register_collector(Box::new(key_sets.clone()));
        let disks = Arc::<disks::Disks>::default();
        ours.register_collector(Box::new(disks.clone()));
        let rotations = Rotations::register(ours);
        let audit_lines = Counter::default();
        ours.register(
            "audit_lines",
            "Lines written to the audit log",
            audit_lines.clone(),
        );
        let audit_failures = Counter::default();
        ours.register(
            "audit_failures",
            "Times that a line could not be written to the audit log",
            audit_failures.clone(),
        );
        let volumes_erased = Family::default();
        ours.register(
            "volumes_erased",
            "Times that the key of a volume was to be destroyed",
            volumes_erased.clone(),
        );
        let upgrades = Family::default();
        ours.register(
            "disk_upgrades",
            "Times that the worker of a disk was to be replaced under its front end",
            upgrades.clone(),
        );
        let upgrade_pauses = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        ours.register_with_unit(
            "disk_upgrade_pause",
            "How long no request was begun while another worker went on",
            Unit::Seconds,
            upgrade_pauses.clone(),
        );
        let api_requests = Family::default();
        ours.register(
            "api_requests",
            "Requests to the API that were answered",
            api_requests.clone(),
        );
        let api_seconds = Family::new_with_constructor(call_histogram as fn() -> Histogram);
        ours.register_with_unit(
            "api_request",
            "Time to answer a request to the API",
            Unit::Seconds,
            api_seconds.clone(),
        );
        let verifications = Family::default();
        ours.register(
            "verifications",
            "Disks that were verified, or should have been",
            verifications.clone(),
        );
        Metrics {
            registry,
            kms,
            key_sets,
            disks,
            rotations,
            audit_lines,
            audit_failures,
            volumes_erased,
            api_requests,
            api_seconds,
            verifications,
            upgrades,
            upgrade_pauses,
        }
    }

    /// Everything, as it is now, in the format of [`CONTENT_TYPE`]. For a
    /// thousand busy disks that is a tenth of a second and 20 MB: call it where
    /// a thread may be kept (`spawn_blocking`).
    pub fn render(&self) -> String {
        render(&self.registry)
    }

    /// Those who take note of how keys are used.
    pub fn kms(&self) -> &Arc<KmsMetrics> {
        &self.kms
    }

    /// How volumes follow their keys.
    pub fn rotations(&self) -> &Rotations {
        &self.rotations
    }

    /// The service of a key set was asked for the state of its key (`key_id`,
    /// as the service has it), and answered so.
    pub fn key_set_checked(
        &self,
        key_set: &str,
        provider: &str,
        key_id: &str,
        answer: Result<&KeyVersion, &Error>,
    ) {
        self.key_sets.checked(key_set, provider, key_id, answer);
    }

    /// The service of a key set denies a key that served disks need, since then;
    /// or none of them.
    pub fn key_set_denied(&self, key_set: &str, since: Option<SystemTime>) {
        self.key_sets.denied(key_set, since);
    }

    /// The key set is no more.
    pub fn key_set_removed(&self, key_set: &str) {
        self.key_sets.removed(key_set);
    }

    /// The state of a disk has changed, or is told for the first time.
    pub fn disk_changed(&self, view: DiskView) {
        self.disks.changed(view);
    }

    /// A worker counts what it does for the disk of this name in memory that
    /// `stats` reads, from now on and until it is told anew. A worker that goes
    /// on in the memory of the one before need not be told.
    pub fn disk_started(&self, disk: &str, stats: Reader) {
        self.disks.started(disk, stats);
    }

    /// The disk was detached: nothing is told of it any more.
    pub fn disk_gone(&self, disk: &str) {
        self.disks.gone(disk);
    }

    /// A line was written to the audit log, or could not be.
    pub fn audit_line(&self, written: bool) {
        match written {
            true => self.audit_lines.inc(),
            false => self.audit_failures.inc(),
        };
    }

    /// The key of a volume was destroyed: all that is known of it (`true`) or
    /// with something left (`false`). `None`: it was to be, and was not.
    pub fn volume_erased(&self, finished: Option<bool>) {
        let outcome = match finished {
            Some(true) => "finished",
            Some(false) => "unfinished",
            None => "failed",
        };
        self.volumes_erased.get_or_create(&Erased { outcome }).inc();
    }

    /// The worker of a disk was replaced, or was to be (`None`): after a pause of so
    /// many microseconds, or by its front end connecting anew.
    pub fn disk_upgraded(&self, pause_us: Option<Option<u64>>) {
        let outcome = match pause_us {
            Some(Some(_)) => "handed-over",
            Some(None) => "reconnected",
            None => "failed",
        };
        self.upgrades.get_or_create(&Upgrade { outcome }).inc();
        if let Some(Some(pause)) = pause_us {
            self.upgrade_pauses.observe(pause as f64 / 1e6);
        }
    }

    /// A disk was verified, and found to be so: `proved`, `disproved` or
    /// `undecided`; or `failed` if nothing was found.
    pub fn verification(&self, verdict: &'static str) {
        let labels = Verdict { verdict };
        self.verifications.get_or_create(&labels).inc();
    }

    /// A request to the API was answered. `route` is the pattern that it
    /// matched, not its path, which may be anything.
    pub fn api_request(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = Route {
            method: method.into(),
            route: route.into(),
            status,
        };
        self.api_requests.get_or_create(&labels).inc();
        let labels = RouteOnly {
            route: route.into(),
        };
        self.api_seconds
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }
}
