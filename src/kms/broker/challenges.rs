//! The challenges that a broker gave us for calls to come.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::protocol::{CHALLENGE_LIFE, Challenge};
use super::seal::PublicKey;

/// More calls at a time to one broker are not to be expected.
const KEPT_MAX: usize = 64;

/// How much of a challenge's life is left to the way there and to clocks.
const MARGIN: Duration = Duration::from_secs(15);

/// A challenge, and the key of the broker that made it.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) challenge: Challenge,
    pub(super) key: PublicKey,
    /// When it was asked for: it is no older.
    pub(super) since: Instant,
}

/// Those of one broker.
#[derive(Debug, Default)]
pub(super) struct Challenges(Mutex<Vec<Given>>);

impl Challenges {
    fn kept(&self) -> MutexGuard<'_, Vec<Given>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that the broker still takes, as far as can be told. Nobody else
    /// gets it.
    pub(super) fn take(&self) -> Option<Given> {
        let mut kept = self.kept();
        kept.retain(|given| given.since.elapsed() + MARGIN < CHALLENGE_LIFE);
        kept.pop()
    }

    /// Keeps one for later.
    pub(super) fn keep(&self, given: Given) {
        let mut kept = self.kept();
        if kept.len() < KEPT_MAX {
            kept.push(given);
        }
    }

    /// Forgets all: the broker that gave them is not there any more.
    pub(super) fn forget(&self) {
        self.kept().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(number: u8) -> Given {
        Given {
            challenge: Challenge(vec![number]),
            key: PublicKey::new([9; 32]),
            since: Instant::now(),
        }
    }

    #[test]
    fn a_challenge_is_given_once_and_not_when_it_is_old() {
        let challenges = Challenges::default();
        assert!(challenges.take().is_none());
        challenges.keep(given(1));
        let taken = challenges.take().unwrap();
        assert_eq!(taken.challenge, Challenge(vec![1]));
        assert!(challenges.take().is_none());

        let old = Instant::now().checked_sub(CHALLENGE_LIFE - MARGIN).unwrap();
        challenges.keep(Given {
            since: old,
            ..given(2)
        });
        assert!(challenges.take().is_none());
    }

    #[test]
    fn no_more_are_kept_than_can_be_used() {
        let challenges = Challenges::default();
        for _ in 0..2 * KEPT_MAX {
            challenges.keep(given(0));
        }
        assert_eq!(challenges.kept().len(), KEPT_MAX);
        challenges.forget();
        assert!(challenges.take().is_none());
    }
}
