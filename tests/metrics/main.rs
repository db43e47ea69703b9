//! The metrics: what is documented is there and moves, what is there is
//! documented, and the alert rules and the dashboard name nothing else. Judged
//! by parsers of the formats that know nothing of sealblk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod documents;
mod judge;
#[path = "../support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
#[path = "../support/mod.rs"]
mod support;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use documents::{Documented, alert_expressions, dashboard_expressions, documented};
use judge::{Families, expose, selectors};
use sealblk::engine::stats::{self, Kind, Reader};
use sealblk::metrics::{CONTENT_TYPE, DISK_STATES, DiskView, Metrics};
use std::os::fd::AsFd;

/// What stays as it is by its nature.
const CONSTANT: [&str; 3] = [
    "process_max_fds",
    "process_start_time_seconds",
    "sealblk_build_info",
];

/// The values of a metric by their labels, as text.
fn values(families: &Families, name: &str) -> BTreeMap<String, f64> {
    let samples = families.get(name).map(|family| &family.samples);
    samples
        .into_iter()
        .flatten()
        .map(|sample| (format!("{} {:?}", sample.name, sample.labels), sample.value))
        .collect()
}

#[test]
fn every_documented_metric_exists_and_moves_and_there_are_no_others() {
    let metrics = Metrics::new();
    let before = expose(&metrics.render());
    let during = work::all(&metrics);
    let after = expose(&metrics.render());
    let documented = documented();

    let names = |families: &Families| families.keys().cloned().collect::<BTreeSet<_>>();
    let known: BTreeSet<String> = documented.keys().cloned().collect();
    assert_eq!(names(&after), known);
    assert!(names(&before).is_subset(&known));
    for (name, Documented { kind, labels }) in &documented {
        let family = &after[name];
        assert_eq!(family.kind, *kind, "{name}");
        assert_eq!(family.labels(), *labels, "{name}");
        if CONSTANT.contains(&name.as_str()) {
            continue;
        }
        // At some time it was something else than before.
        let before = values(&before, name);
        let moved = [&during, &after].into_iter().any(|families| {
            values(families, name)
                .iter()
                .any(|(labels, value)| *value != before.get(labels).copied().unwrap_or(0.0))
        });
        assert!(moved, "{name} did not move");
    }
    assert!(CONTENT_TYPE.starts_with("application/openmetrics-text; version=1.0.0"));
}

#[test]
fn rules_and_dashboard_name_only_what_is_documented() {
    let documented = documented();
    let expressions = [alert_expressions(), dashboard_expressions()];
    assert!(expressions.iter().all(|list| list.len() > 20));
    let mut used = BTreeSet::new();
    for (expression, selectors) in selectors(&expressions.concat()) {
        for selector in selectors {
            // Prometheus' own, for each job that it scrapes.
            if selector.name == "up" {
                continue;
            }
            let (name, bucket) = match selector.name.strip_suffix("_bucket") {
                Some(name) => (name, true),
                None => (selector.name.as_str(), false),
            };
            let Some(metric) = documented.get(name) else {
                panic!("{} is not documented: {expression}", selector.name);
            };
            assert_eq!(metric.kind == "histogram", bucket, "{expression}");
            // Those that Prometheus adds itself.
            let scraped = ["instance", "job"];
            for label in &selector.labels {
                assert!(
                    metric.labels.contains(label) || scraped.contains(&label.as_str()),
                    "{name} has no label {label}: {expression}"
                );
            }
            used.insert(name.to_owned());
        }
    }
    // A dashboard that leaves most of it out would not help.
    let unused: Vec<_> = documented
        .keys()
        .filter(|name| !used.contains(*name))
        .collect();
    assert!(unused.len() < 6, "neither rule nor panel: {unused:?}");
}

#[test]
fn a_disk_s_counters_outlive_its_worker_and_end_with_it() {
    let metrics = Metrics::new();
    let io = |metrics: &Metrics| {
        let seen = expose(&metrics.render());
        values(&seen, "sealblk_disk_io_requests_total")
    };
    let served = support::in_process::Served::new(Default::default(), false);
    metrics.disk_started("vm", served.stats());
    metrics.disk_changed(work::view("vm", "running"));
    served.connect(1).write(0, &[0; 512]);
    let first = io(&metrics);
    assert_eq!(first.values().sum::<f64>(), 1.0);
    // Another thread, as of another worker, in the same memory.
    served.connect(1).write(0, &[0; 512]);
    metrics.disk_changed(DiskView {
        restarts: 1,
        ..work::view("vm", "running")
    });
    let second = io(&metrics);
    assert_eq!(second.values().sum::<f64>(), 2.0);
    assert!(first.keys().eq(second.keys()));
    metrics.disk_gone("vm");
    assert!(io(&metrics).is_empty());
}

#[test]
fn lies_of_a_worker_stay_well_formed() {
    let metrics = Metrics::new();
    let memory = stats::create(4).unwrap();
    metrics.disk_started("vm", Reader::open(memory.as_fd()).unwrap());
    metrics.disk_changed(work::view("vm", "running"));
    let file = std::fs::File::from(memory);
    let len = file.metadata().unwrap().len() as usize;
    for pattern in [[0xff; 8], [0x7f; 8], u64::to_ne_bytes(1 << 63)] {
        let nonsense = pattern.repeat(len / 8);
        std::os::unix::fs::FileExt::write_all_at(&file, &nonsense, 0).unwrap();
        let seen = expose(&metrics.render());
        let requests = values(&seen, "sealblk_disk_io_requests_total");
        assert_eq!(requests.len(), Kind::ALL.len());
        assert!(seen.contains_key("sealblk_disk_io_seconds"));
    }
}

#[test]
fn names_from_elsewhere_cannot_break_the_format() {
    let metrics = Metrics::new();
    let odd = "a\"b\\c\n# EOF\nx{y=\"z\"} 1";
    metrics.disk_changed(work::view(odd, "failed"));
    metrics.api_request("GET", odd, 200, Duration::from_millis(1));
    let seen = expose(&metrics.render());
    let states = &seen["sealblk_disk_state"].samples;
    assert_eq!(states.len(), DISK_STATES.len());
    assert!(states.iter().all(|sample| sample.labels["disk"] == odd));
}
