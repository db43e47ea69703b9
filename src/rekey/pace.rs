//! How fast a mover goes, and how long its regions are.

use std::time::{Duration, Instant};

use super::handle::Pace;

/// So many regions have to be quick before the next one is longer.
const CALM: u32 = 8;
/// A rate is that of about so long.
const WINDOW: Duration = Duration::from_secs(5);

/// The length of regions, between two bounds.
#[derive(Debug)]
pub(super) struct Lengths {
    least: u64,
    most: u64,
    now: u64,
    calm: u32,
}

impl Lengths {
    /// All are multiples of 4096; it starts with `most`.
    pub fn new(least: u64, most: u64) -> Self {
        Lengths {
            least,
            most,
            now: most,
            calm: 0,
        }
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    /// A region was moved, for which a guest has waited that long.
    pub fn learn(&mut self, waited: Duration, target: Option<Duration>) {
        let Some(target) = target else {
            self.now = self.most;
            return;
        };
        if waited > target {
            self.now = ((self.now / 2) & !4095).max(self.least);
            self.calm = 0;
        } else if waited < target / 2 {
            self.calm += 1;
            if self.calm == CALM {
                self.now = ((self.now + (self.now / 4).max(4096)) & !4095).min(self.most);
                self.calm = 0;
            }
        }
    }
}

/// When the next region may be moved, and how fast it went.
#[derive(Debug, Default)]
pub(super) struct Meter {
    due: Option<Instant>,
    since: Option<Instant>,
    bytes: f64,
    seconds: f64,
}

impl Meter {
    /// So much was moved by now. Says the rate, in bytes per second.
    pub fn moved(&mut self, now: Instant, bytes: u64, pace: &Pace) -> u64 {
        if let Some(rate) = pace.bytes_per_second {
            let takes = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
            // What was not used for long is not made up for.
            let start = self.due.map_or(now, |due| due.max(now));
            self.due = start.checked_add(takes);
        } else {
            self.due = None;
        }
        if let Some(since) = self.since {
            let passed = now.saturating_duration_since(since).as_secs_f64();
            let kept = (-passed / WINDOW.as_secs_f64()).exp();
            self.bytes = self.bytes * kept + bytes as f64;
            self.seconds = self.seconds * kept + passed;
        }
        self.since = Some(now);
        if self.seconds > 0.0 {
            (self.bytes / self.seconds) as u64
        } else {
            0
        }
    }

    /// It goes on from now, and not from when it went last.
    pub fn start(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// Until when nothing may be moved, if that is later than `now`.
    pub fn wait(&self, now: Instant, pace: &Pace) -> Option<Instant> {
        let due = self.due.filter(|_| pace.bytes_per_second.is_some())?;
        (due > now).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU64;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn regions_halve_when_guests_wait_and_grow_slowly() {
        let mut lengths = Lengths::new(8192, 1 << 20);
        lengths.learn(9 * MS, Some(5 * MS));
        assert_eq!(lengths.now(), 512 << 10);
        for _ in 0..20 {
            lengths.learn(9 * MS, Some(5 * MS));
        }
        assert_eq!(lengths.now(), 8192);
        // Neither calm nor too long: it stays.
        for _ in 0..100 {
            lengths.learn(4 * MS, Some(5 * MS));
        }
        assert_eq!(lengths.now(), 8192);
        for _ in 0..CALM {
            lengths.learn(MS, Some(5 * MS));
        }
        assert_eq!(lengths.now(), 8192 + 4096);
        for _ in 0..1000 {
            lengths.learn(MS, Some(5 * MS));
        }
        assert_eq!(lengths.now(), 1 << 20);
        lengths.learn(9 * MS, None);
        assert_eq!(lengths.now(), 1 << 20);
    }

    #[test]
    fn no_more_is_moved_than_a_limit_allows() {
        let pace = Pace {
            bytes_per_second: NonZeroU64::new(1 << 20),
            latency: None,
        };
        let mut meter = Meter::default();
        let start = Instant::now();
        meter.start(start);
        assert_eq!(meter.wait(start, &pace), None);
        meter.moved(start, 1 << 19, &pace);
        assert_eq!(meter.wait(start, &pace), Some(start + 500 * MS));
        assert_eq!(meter.wait(start + 500 * MS, &pace), None);
        // An hour of rest is no licence for an hour's worth at once.
        let later = start + Duration::from_secs(3600);
        meter.moved(later, 1 << 20, &pace);
        assert_eq!(meter.wait(later, &pace), Some(later + 1000 * MS));
        assert_eq!(meter.wait(later, &Pace::default()), None);
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut meter = Meter::default();
        let mut now = Instant::now();
        meter.start(now);
        let mut rate = 0;
        for _ in 0..100 {
            now += 100 * MS;
            rate = meter.moved(now, 1000, &Pace::default());
        }
        assert_eq!(rate, 10_000);
        for _ in 0..1000 {
            now += 100 * MS;
            rate = meter.moved(now, 5000, &Pace::default());
        }
        assert!((49_000..=50_000).contains(&rate), "{rate}");
    }
}
