//! The disks: their states, and where their statistics are.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use uuid::Uuid;

use super::disk_io;
use super::encode::About;
use crate::engine::stats::Reader;

/// The states of a disk, as the API names them.
pub const DISK_STATES: [&str; 14] = [
    "waiting",
    "attaching",
    "running",
    "restarting",
    "stopping",
    "failed",
    "paused",
    "failing",
    "frozen",
    "denied",
    "migrating",
    "moved",
    "incoming",
    "stopped",
];

/// What is told of a disk, beside its statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskView {
    /// Its name.
    pub disk: String,
    /// The UUID of its volume, as soon as it is known.
    pub volume: Option<Uuid>,
    /// One of [`DISK_STATES`].
    pub state: &'static str,
    /// Whether a front end is connected.
    pub front_end: bool,
    /// Times that its worker was started again.
    pub restarts: u32,
    /// All its data is moved to another key, or is to be.
    pub rekey: Option<RekeyView>,
    /// What the disk below does wrong.
    pub trouble: TroubleView,
}

/// What the disk below a disk does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TroubleView {
    /// Requests that wait since they have failed.
    pub waiting: u64,
    /// Operations that are in flight for too long.
    pub stuck: u64,
    /// Times that the disk was stopped, since its worker was started.
    pub stops: u64,
    /// Requests that were to wait, since then.
    pub waited: u64,
    /// Times that operations were in flight for too long, since then.
    pub stalls: u64,
}

/// How far all data of a disk was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RekeyView {
    /// `rekey`, `encrypt` or `decrypt`.
    pub kind: &'static str,
    /// What the API says of it: `queued`, `moving`, `paused`, …
    pub state: &'static str,
    /// Bytes that are as they are to be.
    pub done: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes per second, of late.
    pub rate: u64,
}

#[derive(Debug, Default)]
pub struct Disks(Mutex<BTreeMap<String, Known>>);

#[derive(Clone, Debug, Default)]
struct Known {
    view: Option<DiskView>,
    stats: Option<Arc<Reader>>,
}

/// The labels of everything that is told of one disk.
pub type Labels = [(&'static str, String); 2];

impl Disks {
    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn changed(&self, view: DiskView) {
        let disk = view.disk.clone();
        self.table().entry(disk).or_default().view = Some(view);
    }

    pub fn started(&self, disk: &str, stats: Reader) {
        self.table().entry(disk.into()).or_default().stats = Some(Arc::new(stats));
    }

    pub fn gone(&self, disk: &str) {
        self.table().remove(disk);
    }
}

impl Collector for Disks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        // What follows takes a while for a thousand disks.
        let table = self.table().clone();
        let views: Vec<(Labels, &DiskView)> = table
            .iter()
            .filter_map(|(name, known)| {
                let view = known.view.as_ref()?;
                Some((labels(name, view.volume), view))
            })
            .collect();
        let counts = DISK_STATES.map(|state| {
            let count = views.iter().filter(|(_, view)| view.state == state).count();
            ([("state", state)], count as f64)
        });
        About("disks", "Disks in each state.", None).gauges(encoder, counts)?;
        if views.is_empty() {
            return Ok(());
        }
        let states = views.iter().flat_map(|(labels, view)| {
            DISK_STATES.map(|state| {
                let labels = (labels.as_slice(), [("state", state)]);
                (labels, f64::from(u8::from(state == view.state)))
            })
        });
        About(
            "disk_state",
            "Whether the disk is in this state (1) or not (0).",
            None,
        )
        .gauges(encoder, states)?;
        let connected = views
            .iter()
            .map(|(labels, view)| (labels.as_slice(), f64::from(u8::from(view.front_end))));
        About(
            "disk_front_end_connected",
            "Whether a front end (QEMU) is connected to the disk (1) or not (0).",
            None,
        )
        .gauges(encoder, connected)?;
        let restarts = views
            .iter()
            .map(|(labels, view)| (labels.as_slice(), u64::from(view.restarts)));
        About(
            "disk_worker_restarts",
            "Times that the worker of the disk was started again after it had ended.",
            None,
        )
        .counters(encoder, restarts)?;
        encode_rekeys(encoder, &views)?;
        encode_troubles(encoder, &views)?;
        let counted = table.iter().filter_map(|(name, known)| {
            let volume = known.view.as_ref().and_then(|view| view.volume);
            let snapshot = known.stats.as_ref()?.snapshot();
            Some((labels(name, volume), snapshot))
        });
        disk_io::encode(encoder, &counted.collect::<Vec<_>>())
    }
}

fn encode_troubles(
    encoder: &mut DescriptorEncoder<'_>,
    views: &[(Labels, &DiskView)],
) -> fmt::Result {
    for (name, help, value) in [
        (
            "disk_waiting_requests",
            "Requests that wait because the file or device below the disk has failed them.",
            (|trouble| trouble.waiting) as fn(&TroubleView) -> u64,
        ),
        (
            "disk_stuck_operations",
            "Operations of the file or device below the disk that are in flight for longer than \
             stuck_after.",
            |trouble| trouble.stuck,
        ),
    ] {
        let values = views
            .iter()
            .map(|(labels, view)| (labels.as_slice(), value(&view.trouble) as f64));
        About(name, help, None).gauges(encoder, values)?;
    }
    for (name, help, value) in [
        (
            "disk_stops",
            "Times that the disk was stopped because the file or device below it has failed.",
            (|trouble| trouble.stops) as fn(&TroubleView) -> u64,
        ),
        (
            "disk_waited_requests",
            "Requests that were to wait because the file or device below the disk has failed them.",
            |trouble| trouble.waited,
        ),
        (
            "disk_stalls",
            "Times that operations of the file or device below the disk were in flight for longer \
             than stuck_after.",
            |trouble| trouble.stalls,
        ),
    ] {
        let values = views
            .iter()
            .map(|(labels, view)| (labels.as_slice(), value(&view.trouble)));
        About(name, help, None).counters(encoder, values)?;
    }
    Ok(())
}

fn encode_rekeys(
    encoder: &mut DescriptorEncoder<'_>,
    views: &[(Labels, &DiskView)],
) -> fmt::Result {
    let moved: Vec<(&Labels, &RekeyView)> = views
        .iter()
        .filter_map(|(labels, view)| Some((labels, view.rekey.as_ref()?)))
        .collect();
    if moved.is_empty() {
        return Ok(());
    }
    let states = moved.iter().map(|(labels, rekey)| {
        let more = [("kind", rekey.kind), ("state", rekey.state)];
        ((labels.as_slice(), more), 1.0)
    });
    About(
        "disk_rekey_state",
        "All data of the disk is moved to another key, or out of plain or into it, or is to be: \
         1, with what is done and what that is doing.",
        None,
    )
    .gauges(encoder, states)?;
    for (name, help, value) in [
        (
            "disk_rekey_done",
            "How much of the disk is as it is to be.",
            (|rekey| rekey.done) as fn(&RekeyView) -> u64,
        ),
        ("disk_rekey_size", "How much there is.", |rekey| rekey.size),
        (
            "disk_rekey_rate",
            "How much was moved per second, of late.",
            |rekey| rekey.rate,
        ),
    ] {
        let values = moved
            .iter()
            .map(|(labels, rekey)| (labels.as_slice(), value(rekey) as f64));
        About(name, help, Some("bytes")).gauges(encoder, values)?;
    }
    Ok(())
}

fn labels(disk: &str, volume: Option<Uuid>) -> Labels {
    let volume = volume.map(|uuid| uuid.to_string()).unwrap_or_default();
    [("disk", disk.to_owned()), ("volume", volume)]
}
