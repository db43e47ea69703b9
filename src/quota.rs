//! So many at once, and so many per second after that.
//!
//! For what others can bring about as often as they like, and that costs
//! somebody else something: lines of a log, messages of a worker.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// How often something may happen.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    burst: u32,
    interval: Duration,
    /// When all that has happened would have, at one per interval.
    due: Option<Instant>,
}

impl Quota {
    /// `burst` at once, at least one, and then one per `interval`.
    pub const fn new(burst: u32, interval: Duration) -> Self {
        Quota {
            burst,
            interval,
            due: None,
        }
    }

    /// How long it takes until it may happen again; zero when it may now.
    pub fn wait(&self, now: Instant) -> Duration {
        let ahead = self
            .due
            .map_or(Duration::ZERO, |due| due.saturating_duration_since(now));
        ahead.saturating_sub(self.interval * (self.burst.max(1) - 1))
    }

    /// It has happened.
    pub fn note(&mut self, now: Instant) {
        let due = self.due.map_or(now, |due| due.max(now));
        self.due = Some(due + self.interval);
    }

    /// Whether it may happen. Then it counts as having happened.
    pub fn take(&mut self, now: Instant) -> bool {
        let may = self.wait(now).is_zero();
        if may {
            self.note(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    /// Each burst and each gap between two attempts, against a count of what may be.
    #[test]
    fn never_more_than_a_burst_and_one_per_interval() {
        for burst in 1..20u32 {
            for gap in 0..40u32 {
                let start = Instant::now();
                let mut quota = Quota::new(burst, STEP);
                let mut taken = 0;
                for attempt in 0..200u32 {
                    let passed = STEP * gap * attempt / 20;
                    let most = burst + (passed.as_nanos() / STEP.as_nanos()) as u32;
                    taken += u32::from(quota.take(start + passed));
                    assert!(taken <= most, "{burst} {gap} {attempt}");
                    assert!(taken >= (attempt + 1).min(burst), "{burst} {gap} {attempt}");
                }
            }
        }
    }

    #[test]
    fn the_wait_is_as_long_as_it_says() {
        let start = Instant::now();
        let mut quota = Quota::new(3, STEP);
        for _ in 0..3 {
            assert!(quota.take(start));
        }
        assert_eq!(quota.wait(start), STEP);
        assert!(!quota.take(start + STEP - Duration::from_nanos(1)));
        assert!(quota.take(start + STEP));
        // What is not used is not saved up beyond a burst.
        let later = start + STEP * 1000;
        assert_eq!((0..9).filter(|_| quota.take(later)).count(), 3);
    }
}
