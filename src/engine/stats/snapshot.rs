//! What was counted, as numbers that stand still.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::histogram::{self, BUCKETS};
use super::layout::{Direction, Kind, Operation, QueueStats};
use crate::engine::throttle::Lane;

/// All counters of a disk, added up over its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    kinds: [Requests; Kind::ALL.len()],
    operations: [DeviceWork; Operation::ALL.len()],
    cipher: [CipherWork; Direction::ALL.len()],
    /// Requests that were taken and not answered yet.
    pub in_flight: u64,
    /// Times that the guest signalled.
    pub kicks: u64,
    /// Times that the guest was signalled.
    pub notifications: u64,
    /// Times that a queue's thread slept.
    pub sleeps: u64,
    /// Time in which a thread looked for work instead.
    pub polled: Duration,
    /// Times that the kernel was entered for the disk's operations, and to sleep.
    pub entries: u64,
    throttled: [HeldBack; Lane::ALL.len()],
    parked: [HeldBack; Lane::ALL.len()],
}

/// What was held back, by the limits of a disk or while its data was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldBack {
    /// How many requests that have gone on.
    pub requests: u64,
    /// For how long, added up.
    pub time: Duration,
}

/// The requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// How many were answered.
    pub requests: u64,
    /// How many of them with an error.
    pub errors: u64,
    /// Bytes of data of those that succeeded.
    pub bytes: u64,
    /// How long they took.
    pub latency: Latency,
}

/// The operations of the kernel of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceWork {
    /// How many ended.
    pub operations: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Time from handing them over to seeing them ended, added up.
    pub time: Duration,
}

/// What the cipher did in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CipherWork {
    /// Bytes of data.
    pub bytes: u64,
    /// Time on a CPU.
    pub time: Duration,
}

/// How long requests took, from when they were taken to when they were answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    /// All of them together.
    pub sum: Duration,
    buckets: [u64; BUCKETS],
}

impl Default for Latency {
    fn default() -> Self {
        Latency {
            sum: Duration::ZERO,
            buckets: [0; BUCKETS],
        }
    }
}

impl Latency {
    /// How many were measured.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }

    /// For each power of two of nanoseconds from about a microsecond to 17
    /// seconds: that bound, and how many took no longer.
    pub fn octaves(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut sum = 0u64;
        histogram::bounds()
            .zip(self.buckets)
            .enumerate()
            .filter_map(move |(place, (bound, count))| {
                sum = sum.wrapping_add(count);
                histogram::ends_octave(place).then(|| (Duration::from_nanos(bound), sum))
            })
    }

    /// The time that a share of them, from 0 to 1, did not exceed. It is the
    /// bound of a bucket, at most a quarter too long. `None` without any, and
    /// when it was longer than all bounds.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        let wanted = (count as f64 * share).ceil().max(1.0) as u64;
        let mut sum = 0u64;
        histogram::bounds()
            .zip(self.buckets)
            .find(|(_, count)| {
                sum = sum.saturating_add(*count);
                sum >= wanted
            })
            .map(|(bound, _)| Duration::from_nanos(bound))
    }
}

impl Requests {
    fn add(&mut self, more: &Requests) {
        count(&mut self.requests, more.requests);
        count(&mut self.errors, more.errors);
        count(&mut self.bytes, more.bytes);
        let (to, from) = (&mut self.latency, &more.latency);
        to.sum = to.sum.saturating_add(from.sum);
        for (to, from) in to.buckets.iter_mut().zip(from.buckets) {
            count(to, from);
        }
    }
}

impl Snapshot {
    /// Adds up the blocks of all queues.
    pub(super) fn of_queues(queues: &[QueueStats]) -> Self {
        let mut sum = Snapshot::default();
        queues.iter().for_each(|queue| sum.add(queue));
        sum
    }

    /// The requests of a kind.
    pub fn requests(&self, kind: Kind) -> &Requests {
        &self.kinds[kind as usize]
    }

    /// The requests of all kinds.
    pub fn total(&self) -> Requests {
        let mut total = Requests::default();
        self.kinds.iter().for_each(|kind| total.add(kind));
        total
    }

    /// The kernel's operations of a kind.
    pub fn operations(&self, operation: Operation) -> &DeviceWork {
        &self.operations[operation as usize]
    }

    /// What the cipher did.
    pub fn cipher(&self, direction: Direction) -> &CipherWork {
        &self.cipher[direction as usize]
    }

    /// What the limits held back.
    pub fn throttled(&self, lane: Lane) -> &HeldBack {
        &self.throttled[lane as usize]
    }

    /// The requests of this kind that waited while what they touch was moved
    /// from one key to another.
    pub fn parked(&self, lane: Lane) -> &HeldBack {
        &self.parked[lane as usize]
    }

    /// Additions wrap around: a hostile writer may have stored any number.
    fn add(&mut self, queue: &QueueStats) {
        let mut answered = 0u64;
        for (to, from) in self.kinds.iter_mut().zip(&queue.kinds) {
            let requests = from.requests.get();
            answered = answered.wrapping_add(requests);
            count(&mut to.requests, requests);
            count(&mut to.errors, from.errors.get());
            count(&mut to.bytes, from.bytes.get());
            time(&mut to.latency.sum, from.nanoseconds.get());
            for (to, from) in to.latency.buckets.iter_mut().zip(&from.buckets) {
                count(to, from.get());
            }
        }
        for (to, from) in self.operations.iter_mut().zip(&queue.operations) {
            count(&mut to.operations, from.operations.get());
            count(&mut to.errors, from.errors.get());
            time(&mut to.time, from.nanoseconds.get());
        }
        for (to, from) in self.cipher.iter_mut().zip(&queue.cipher) {
            count(&mut to.bytes, from.bytes.get());
            time(&mut to.time, from.nanoseconds.get());
        }
        // Read after what was answered, so that it is hardly ever less.
        let in_flight = queue.taken.get().saturating_sub(answered);
        count(&mut self.in_flight, in_flight);
        count(&mut self.kicks, queue.kicks.get());
        count(&mut self.notifications, queue.notifications.get());
        count(&mut self.sleeps, queue.sleeps.get());
        time(&mut self.polled, queue.poll_nanoseconds.get());
        count(&mut self.entries, queue.entries.get());
        for (to, from) in self.throttled.iter_mut().zip(&queue.throttled) {
            count(&mut to.requests, from.requests.get());
            time(&mut to.time, from.nanoseconds.get());
        }
        for (to, from) in self.parked.iter_mut().zip(&queue.parked) {
            count(&mut to.requests, from.requests.get());
            time(&mut to.time, from.nanoseconds.get());
        }
    }
}

fn count(to: &mut u64, more: u64) {
    *to = to.wrapping_add(more);
}

fn time(to: &mut Duration, nanoseconds: u64) {
    *to = to.saturating_add(Duration::from_nanos(nanoseconds));
}
