//! What a queue thread writes down of its work, and its clock.
//!
//! Asking for the time costs as much as everything else in here for a request,
//! so one answer serves for many: it is asked for when a batch of completions
//! or of requests begins, after a sleep or a busy poll (which must know it
//! anyway), and around every [`TIMED_EVERY`] bytes of cipher work. A time that
//! is used is therefore older than it could be by at most the cipher's work on
//! so many bytes (some microseconds) and the handling of one batch: latencies
//! are right to within that. What the guest sees also has the way of its
//! signal to us, and of ours to it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::stats::{Direction, Kind, Operation, QueueStats, Stats};
use super::throttle::Lane;
use crate::virtio::Request;

/// After so many bytes the cipher is timed again. What it did between is taken
/// to have cost as much per byte.
const TIMED_EVERY: u64 = 32 << 10;

/// A moment, in nanoseconds since the meter was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// How long it is until a later one.
    pub fn until(self, later: Moment) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

/// What is remembered of a request until it is answered.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    kind: Kind,
    /// Bytes that it is about.
    bytes: u64,
    arrived: Moment,
}

impl Account {
    /// Of no request.
    pub const NONE: Account = Account {
        kind: Kind::Invalid,
        bytes: 0,
        arrived: Moment(0),
    };

    /// Of a request that was taken at that time.
    pub fn new(request: &Request, arrived: Moment) -> Self {
        let (kind, bytes) = match request {
            Request::Read(extent) => (Kind::Read, extent.bytes),
            Request::Write(extent) => (Kind::Write, extent.bytes),
            Request::Flush => (Kind::Flush, 0),
            Request::GetId => (Kind::GetId, super::SERIAL_BYTES as u64),
            Request::Discard(extents) => (Kind::Discard, extents.iter().map(|e| e.bytes).sum()),
            Request::WriteZeroes(extents) => {
                (Kind::WriteZeroes, extents.iter().map(|e| e.bytes).sum())
            }
        };
        Account {
            kind,
            bytes,
            arrived,
        }
    }
}

/// Cipher work in one direction that was not timed.
#[derive(Clone, Copy, Debug, Default)]
struct Untimed {
    /// Bytes since the last time.
    bytes: u64,
    /// Bytes until the next time. Zero at first, so that the first is timed.
    left: u64,
}

/// The meter of one queue thread.
pub struct Meter {
    stats: Arc<Stats>,
    queue: usize,
    epoch: Instant,
    /// The time, if it was asked for lately.
    now: Option<Moment>,
    untimed: [Untimed; 2],
    /// Times that the kernel was entered, as was told last.
    entries: u64,
}

impl Meter {
    /// A meter for the thread of this queue, which has nothing in flight.
    pub fn new(stats: Arc<Stats>, queue: usize) -> Self {
        stats.queue(queue).begin();
        Meter {
            stats,
            queue,
            epoch: Instant::now(),
            now: None,
            untimed: Default::default(),
            entries: 0,
        }
    }

    #[inline]
    fn counters(&self) -> &QueueStats {
        self.stats.queue(self.queue)
    }

    /// Asks for the time.
    pub fn read(&mut self) -> Moment {
        let now = Moment(self.epoch.elapsed().as_nanos() as u64);
        self.now = Some(now);
        now
    }

    /// The time of this batch.
    #[inline]
    pub fn now(&mut self) -> Moment {
        match self.now {
            Some(now) => now,
            None => self.read(),
        }
    }

    /// A batch has ended, or the thread has slept.
    #[inline]
    pub fn expire(&mut self) {
        self.now = None;
    }

    /// Time since then, as of now.
    pub fn since(&mut self, then: Moment) -> Duration {
        Duration::from_nanos(self.read().0.saturating_sub(then.0))
    }

    /// A chain was taken from the ring. When?
    #[inline]
    pub fn taken(&mut self) -> Moment {
        self.counters().taken();
        self.now()
    }

    /// What was taken is no request, and was answered.
    pub fn rejected(&mut self, arrived: Moment) {
        let took = self.now().0.saturating_sub(arrived.0);
        self.counters().failed(Kind::Invalid, took);
    }

    /// A request was answered.
    #[inline]
    pub fn answered(&mut self, account: &Account, success: bool) {
        let took = self.now().0.saturating_sub(account.arrived.0);
        match success {
            true => self.counters().succeeded(account.kind, account.bytes, took),
            false => self.counters().failed(account.kind, took),
        }
    }

    /// An operation that was started then has ended.
    #[inline]
    pub fn operated(&mut self, operation: Operation, started: Moment, failed: bool) {
        let took = self.now().0.saturating_sub(started.0);
        self.counters().operated(operation, failed, took);
    }

    /// Does the cipher's work on so many bytes (at least one), and times it now
    /// and then.
    #[inline]
    pub fn cipher(&mut self, direction: Direction, bytes: u64, work: impl FnOnce()) {
        self.counters().ciphered(direction, bytes);
        let untimed = &mut self.untimed[direction as usize];
        if bytes < untimed.left {
            untimed.left -= bytes;
            untimed.bytes += bytes;
            return work();
        }
        let behind = untimed.bytes + bytes;
        *untimed = Untimed {
            bytes: 0,
            left: TIMED_EVERY,
        };
        let start = self.read();
        work();
        let took = self.since(start).as_nanos() as u64;
        let took = took.saturating_mul(behind) / bytes.max(1);
        self.counters().cipher_took(direction, took);
    }

    /// The guest has signalled.
    pub fn kicked(&mut self) {
        self.counters().kicks.add(1);
    }

    /// The guest was signalled.
    pub fn notified(&mut self) {
        self.counters().notifications.add(1);
    }

    /// A request was held back for so long by the limits of the disk.
    pub fn throttled(&mut self, lane: Lane, nanoseconds: u64) {
        self.counters().throttled(lane, nanoseconds);
    }

    /// A request went on that had waited since then for a region to be moved.
    /// For how long, in nanoseconds.
    pub fn parked(&mut self, lane: Lane, since: Moment) -> u64 {
        let waited = self.read().0.saturating_sub(since.0);
        self.counters().parked(lane, waited);
        waited
    }

    /// The thread has entered the kernel so many times in all.
    #[inline]
    pub fn entered(&mut self, times: u64) {
        self.counters().entries.add(times - self.entries);
        self.entries = times;
    }

    /// The thread goes to sleep.
    pub fn sleeps(&mut self) {
        self.counters().sleeps.add(1);
    }

    /// The thread has looked for work since then, until now.
    pub fn polled(&mut self, since: Moment) {
        let took = self.since(since).as_nanos() as u64;
        self.counters().poll_nanoseconds.add(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter() -> Meter {
        Meter::new(Arc::new(Stats::private(1).unwrap()), 0)
    }

    #[test]
    fn one_time_serves_until_the_batch_ends() {
        let mut meter = meter();
        let first = meter.now();
        assert_eq!(meter.now(), first);
        meter.expire();
        assert!(meter.now() > first);
    }

    #[test]
    fn small_cipher_work_is_timed_now_and_then_and_counted_always() {
        let mut meter = meter();
        let mut timed = 0;
        for _ in 0..64 {
            let before = meter.now;
            meter.cipher(Direction::Encrypt, 4096, || {
                std::hint::black_box(vec![0u8; 4096]);
            });
            timed += usize::from(meter.now != before);
        }
        // The first, and after every 32 KiB the one that comes next.
        assert_eq!(timed, 1 + 63 / 8);
        meter.cipher(Direction::Encrypt, TIMED_EVERY, || {
            std::thread::sleep(Duration::from_millis(2));
        });
        let work = *meter.stats.snapshot().cipher(Direction::Encrypt);
        assert_eq!(work.bytes, 64 * 4096 + TIMED_EVERY);
        // What was not timed before is taken to have been as slow.
        assert!(work.time >= Duration::from_millis(2), "{work:?}");
    }
}
