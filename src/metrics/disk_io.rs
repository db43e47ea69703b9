//! What the disks do, from the statistics pages of their workers.
//!
//! The numbers come from a process that a guest may have taken over. They are
//! written as they are found; what they cannot do is to break the format.
#![forbid(unsafe_code)]

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::disks::Labels;
use super::encode::About;
use crate::engine::stats::{Direction, HeldBack, Kind, Latency, Operation, Requests, Snapshot};
use crate::engine::throttle::Lane;

/// Latencies up to this bound are in the first bucket: 8 µs. No disk is faster
/// than that, and each bucket costs a line for each disk and operation.
const FIRST_BUCKET_NANOSECONDS: u128 = 1 << 13;

/// Writes the families for these disks.
pub fn encode(encoder: &mut DescriptorEncoder<'_>, disks: &[(Labels, Snapshot)]) -> fmt::Result {
    if disks.is_empty() {
        return Ok(());
    }
    requests(encoder, disks)?;
    cipher(encoder, disks)?;
    device(encoder, disks)?;
    throttled(encoder, disks)?;
    parked(encoder, disks)?;
    let of_disk = |value: fn(&Snapshot) -> u64| {
        disks
            .iter()
            .map(move |(labels, seen)| (labels.as_slice(), value(seen)))
    };
    About(
        "disk_kicks",
        "Times that the guest signalled that there is work.",
        None,
    )
    .counters(encoder, of_disk(|seen| seen.kicks))?;
    About(
        "disk_notifications",
        "Times that the guest was signalled that work is done.",
        None,
    )
    .counters(encoder, of_disk(|seen| seen.notifications))?;
    About(
        "disk_sleeps",
        "Times that a queue thread had nothing to do and slept.",
        None,
    )
    .counters(encoder, of_disk(|seen| seen.sleeps))?;
    About(
        "disk_kernel_entries",
        "Times that a queue thread entered the kernel for operations or to sleep.",
        None,
    )
    .counters(encoder, of_disk(|seen| seen.entries))?;
    let polled = disks
        .iter()
        .map(|(labels, seen)| (labels.as_slice(), seen.polled.as_secs_f64()));
    About(
        "disk_poll",
        "Time in which queue threads looked for work instead of sleeping.",
        Some("seconds"),
    )
    .seconds(encoder, polled)
}

fn requests(encoder: &mut DescriptorEncoder<'_>, disks: &[(Labels, Snapshot)]) -> fmt::Result {
    let of_kind = |value: fn(&Requests) -> u64| {
        disks.iter().flat_map(move |(labels, seen)| {
            Kind::ALL.map(|kind| {
                let labels = (labels.as_slice(), [("operation", kind.as_str())]);
                (labels, value(seen.requests(kind)))
            })
        })
    };
    About(
        "disk_io_requests",
        "Requests of the guest that were answered.",
        None,
    )
    .counters(encoder, of_kind(|kind| kind.requests))?;
    About(
        "disk_io_errors",
        "Requests of the guest that were answered with an error.",
        None,
    )
    .counters(encoder, of_kind(|kind| kind.errors))?;
    About(
        "disk_io",
        "Data of the requests that succeeded.",
        Some("bytes"),
    )
    .counters(encoder, of_kind(|kind| kind.bytes))?;
    let in_flight = disks
        .iter()
        .map(|(labels, seen)| (labels.as_slice(), seen.in_flight as f64));
    About(
        "disk_io_in_flight",
        "Requests of the guest that were taken and not answered yet.",
        None,
    )
    .gauges(encoder, in_flight)?;
    let about = About(
        "disk_io",
        "Time from when a request was taken until it was answered.",
        Some("seconds"),
    );
    about.write(encoder, MetricType::Histogram, |metric| {
        for (labels, seen) in disks {
            for kind in Kind::ALL {
                let latency = &seen.requests(kind).latency;
                let of_interest = !matches!(kind, Kind::GetId | Kind::Invalid);
                if latency.count() == 0 || !of_interest {
                    continue;
                }
                let labels = (labels.as_slice(), [("operation", kind.as_str())]);
                let buckets = buckets(latency);
                let count = buckets.iter().map(|(_, count)| count).sum();
                metric
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(
                        latency.sum.as_secs_f64(),
                        count,
                        &buckets,
                        None,
                    )?;
            }
        }
        Ok(())
    })
}

/// Upper bounds in seconds, and how many lie below it and above the one before.
/// They add up to a number that fits, also where somebody lies.
fn buckets(latency: &Latency) -> Vec<(f64, u64)> {
    let mut below = 0;
    let mut part = |until: u64| {
        let count = until.saturating_sub(below);
        below = below.max(until);
        count
    };
    let mut buckets: Vec<_> = latency
        .octaves()
        .filter(|(bound, _)| bound.as_nanos() >= FIRST_BUCKET_NANOSECONDS)
        .map(|(bound, until)| (bound.as_secs_f64(), part(until)))
        .collect();
    buckets.push((f64::INFINITY, part(latency.count())));
    buckets
}

fn cipher(encoder: &mut DescriptorEncoder<'_>, disks: &[(Labels, Snapshot)]) -> fmt::Result {
    let of_direction = disks.iter().flat_map(|(labels, seen)| {
        Direction::ALL.map(|direction| {
            let labels = (labels.as_slice(), [("direction", direction.as_str())]);
            (labels, seen.cipher(direction))
        })
    });
    let bytes = of_direction
        .clone()
        .map(|(labels, work)| (labels, work.bytes));
    About(
        "disk_crypto",
        "Data that was encrypted or decrypted.",
        Some("bytes"),
    )
    .counters(encoder, bytes)?;
    let seconds = of_direction.map(|(labels, work)| (labels, work.time.as_secs_f64()));
    About(
        "disk_crypto",
        "CPU time that the cipher took.",
        Some("seconds"),
    )
    .seconds(encoder, seconds)
}

fn held_back(
    encoder: &mut DescriptorEncoder<'_>,
    disks: &[(Labels, Snapshot)],
    of: fn(&Snapshot, Lane) -> &HeldBack,
    requests: About,
    time: About,
) -> fmt::Result {
    let of_lane = disks.iter().flat_map(|(labels, seen)| {
        Lane::ALL.map(|lane| {
            let name = match lane {
                Lane::Read => "read",
                Lane::Write => "write",
            };
            let labels = (labels.as_slice(), [("direction", name)]);
            (labels, of(seen, lane))
        })
    });
    let counts = of_lane
        .clone()
        .map(|(labels, held)| (labels, held.requests));
    requests.counters(encoder, counts)?;
    let seconds = of_lane.map(|(labels, held)| (labels, held.time.as_secs_f64()));
    time.seconds(encoder, seconds)
}

fn throttled(encoder: &mut DescriptorEncoder<'_>, disks: &[(Labels, Snapshot)]) -> fmt::Result {
    held_back(
        encoder,
        disks,
        Snapshot::throttled,
        About(
            "disk_throttled_requests",
            "Requests that the limits of the disk held back, and that have gone on.",
            None,
        ),
        About(
            "disk_throttled",
            "Time that the limits of the disk held requests back, added up.",
            Some("seconds"),
        ),
    )
}

fn parked(encoder: &mut DescriptorEncoder<'_>, disks: &[(Labels, Snapshot)]) -> fmt::Result {
    held_back(
        encoder,
        disks,
        Snapshot::parked,
        About(
            "disk_parked_requests",
            "Requests that waited while what they touch was moved to another key, and that have gone on.",
            None,
        ),
        About(
            "disk_parked",
            "Time that requests waited while what they touch was moved to another key, added up.",
            Some("seconds"),
        ),
    )
}

fn device(encoder: &mut DescriptorEncoder<'_>, disks: &[(Labels, Snapshot)]) -> fmt::Result {
    let of_operation = disks.iter().flat_map(|(labels, seen)| {
        Operation::ALL.map(|operation| {
            let labels = (labels.as_slice(), [("operation", operation.as_str())]);
            (labels, seen.operations(operation))
        })
    });
    let ended = of_operation
        .clone()
        .map(|(labels, work)| (labels, work.operations));
    About(
        "disk_device_operations",
        "Operations on the data file or device that ended.",
        None,
    )
    .counters(encoder, ended)?;
    let failed = of_operation
        .clone()
        .map(|(labels, work)| (labels, work.errors));
    About(
        "disk_device_errors",
        "Operations on the data file or device that failed.",
        None,
    )
    .counters(encoder, failed)?;
    let seconds = of_operation.map(|(labels, work)| (labels, work.time.as_secs_f64()));
    About(
        "disk_device",
        "Time that operations on the data file or device took, added up.",
        Some("seconds"),
    )
    .seconds(encoder, seconds)
}
