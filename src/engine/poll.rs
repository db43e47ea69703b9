//! How long to look for work before sleeping.
//!
//! To sleep and be woken costs a switch of contexts and, where a CPU has halted,
//! its waking: some microseconds to some tens of them. Looking for at most that
//! long (`--poll-us`) costs at most twice what the better choice would have.
//! Sleeps of a kind have their own window each: a guest that answers at once is
//! looked for though its disk below is slow, and the other way round.
#![forbid(unsafe_code)]

use std::time::Duration;

/// The first step up from no polling at all.
const FIRST: Duration = Duration::from_micros(4);

/// A window that grows while polling would have caught the next event, and
/// shrinks while it would not: a disk that is idle does not poll, and one
/// that is busy does not pay for being woken up.
#[derive(Debug)]
pub struct Poll {
    window: Duration,
    most: Duration,
}

impl Poll {
    /// Polls for at most `most`; zero is never.
    pub fn new(most: Duration) -> Self {
        Poll {
            window: Duration::ZERO,
            most,
        }
    }

    /// Looks until `found` is true or the window is over, by the time that has
    /// `elapsed` meanwhile. True when found.
    pub fn look(
        &self,
        mut elapsed: impl FnMut() -> Duration,
        mut found: impl FnMut() -> bool,
    ) -> bool {
        if !self.is_open() {
            return false;
        }
        loop {
            // Looking costs less than asking for the time.
            for _ in 0..16 {
                if found() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if elapsed() >= self.window {
                return false;
            }
        }
    }

    /// Whether it has paid lately to look before sleeping.
    pub fn is_open(&self) -> bool {
        !self.window.is_zero()
    }

    /// Whether anything is to be learned from how long a sleep lasts.
    pub fn is_on(&self) -> bool {
        !self.most.is_zero()
    }

    /// A sleep lasted this long: would polling have paid?
    pub fn slept(&mut self, time: Duration) {
        self.window = match time <= self.most {
            true => (self.window * 2).max(FIRST).min(self.most),
            // Halving ends in zero, below the first step.
            false if self.window <= FIRST => Duration::ZERO,
            false => self.window / 2,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sleeps_widen_the_window_and_long_ones_close_it() {
        let most = Duration::from_micros(32);
        let mut poll = Poll::new(most);
        let soon = || Duration::ZERO;
        assert!(!poll.look(soon, || true), "no polling before it has paid");
        for _ in 0..10 {
            poll.slept(Duration::from_micros(20));
        }
        assert_eq!(poll.window, most);
        assert!(poll.look(soon, || true));
        assert!(!poll.look(|| most, || false));
        for _ in 0..10 {
            poll.slept(Duration::from_millis(5));
        }
        assert_eq!(poll.window, Duration::ZERO);
    }
}
