//! This process, as Prometheus' own client libraries tell it.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::encode::About;

#[derive(Debug)]
pub struct Process;

/// What the kernel says. What it does not say is not told.
struct Seen {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    start_seconds: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
}

impl Seen {
    fn now() -> Option<Self> {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let page = rustix::param::page_size() as f64;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program, in parentheses, may hold anything. Fields
        // are counted from the one after it, which proc_pid_stat(5) has as 3.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<f64> = fields
            .split_ascii_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Seen {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            resident_bytes: field(24)? * page,
            virtual_bytes: field(23)?,
            start_seconds: boot_seconds()
                .zip(field(22))
                .map(|(boot, start)| boot + start / ticks),
            // Less the one that is open for looking.
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|list| list.count() as f64 - 1.0),
            max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .current
                .map(|limit| limit as f64),
        })
    }
}

/// When the machine was started, in seconds since 1970.
fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(seen) = Seen::now() else {
            return Ok(());
        };
        let encoder = &mut encoder;
        About(
            "process_cpu",
            "CPU time of the manager, in user and in system mode.",
            Some("seconds"),
        )
        .write(encoder, MetricType::Counter, |metric| {
            metric.encode_counter::<NoLabelSet, f64, f64>(&seen.cpu_seconds, None)
        })?;
        let gauges = [
            (
                About(
                    "process_resident_memory",
                    "Memory of the manager that is in RAM.",
                    Some("bytes"),
                ),
                Some(seen.resident_bytes),
            ),
            (
                About(
                    "process_virtual_memory",
                    "Address space of the manager.",
                    Some("bytes"),
                ),
                Some(seen.virtual_bytes),
            ),
            (
                About(
                    "process_start_time",
                    "When the manager was started, in seconds since 1970.",
                    Some("seconds"),
                ),
                seen.start_seconds,
            ),
            (
                About(
                    "process_open_fds",
                    "File descriptors that the manager has open.",
                    None,
                ),
                seen.open_fds,
            ),
            (
                About(
                    "process_max_fds",
                    "File descriptors that the manager may have open.",
                    None,
                ),
                seen.max_fds,
            ),
        ];
        gauges
            .into_iter()
            .try_for_each(|(about, value)| match value {
                Some(value) => about.gauge(encoder, value),
                None => Ok(()),
            })
    }
}
