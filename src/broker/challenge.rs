//! Challenges: what makes each call one that was never made before.
//!
//! A broker hands out challenges without remembering them: each tells who made
//! it and when, and is authentic by a MAC whose key is in the memory of this
//! process alone. What is remembered are those that were used, for as long as
//! they would be good. So whoever only asks for challenges costs no memory,
//! and no broker takes the challenge of another one, or of a time before it
//! was started.
//!
//! ```text
//!  0  1  version: 1
//!  1 16  the instance of the broker
//! 17  8  when it was made: milliseconds since the start of the instance
//! 25 16  random
//! 41 32  HMAC-SHA-256 of all before
//! ```
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::kms::broker::protocol::CHALLENGE_LIFE;
use crate::secret::Secret;

/// How long a challenge is good.
pub const LIFETIME: Duration = CHALLENGE_LIFE;

/// How many calls of one host are taken in the lifetime of a challenge. A host
/// that boots with a thousand disks has a fraction of it.
pub const CALLS_OF_HOST: usize = 16_384;

const VERSION: u8 = 1;
const INSTANCE: usize = 16;
const TIME: usize = 8;
const RANDOM: usize = 16;
const MAC: usize = 32;
const LENGTH: usize = 1 + INSTANCE + TIME + RANDOM + MAC;

/// Why a challenge is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Of another broker, of this one before it was started again, or made up.
    Foreign,
    /// Too old.
    Expired,
    /// It was used for another call, or for this one.
    Used,
    /// The host makes too many calls.
    TooMany,
}

/// Makes and takes challenges.
pub struct Challenges {
    instance: [u8; INSTANCE],
    key: Secret,
    used: Mutex<Used>,
}

/// Challenges that were used, of this generation and the one before. Each
/// generation is as long as a challenge is good.
#[derive(Debug, Default)]
struct Used {
    current: Generation,
    before: Generation,
    /// When the current one began.
    began: Duration,
}

#[derive(Debug, Default)]
struct Generation {
    challenges: HashSet<[u8; RANDOM]>,
    of_hosts: HashMap<String, usize>,
}

impl Challenges {
    /// Those of an instance that begins now.
    ///
    /// # Errors
    /// When there are no random bytes, or no memory for the key.
    pub fn new() -> io::Result<Self> {
        let mut instance = [0; INSTANCE];
        getrandom::fill(&mut instance).map_err(io::Error::other)?;
        Ok(Challenges {
            instance,
            key: Secret::random(MAC)?,
            used: Mutex::default(),
        })
    }

    /// A new one. `now` is the time since the start.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn issue(&self, now: Duration) -> io::Result<Vec<u8>> {
        let mut random = [0; RANDOM];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let mut challenge = Vec::with_capacity(LENGTH);
        challenge.push(VERSION);
        challenge.extend_from_slice(&self.instance);
        challenge.extend_from_slice(&millis(now).to_be_bytes());
        challenge.extend_from_slice(&random);
        let mac = self.mac(&challenge)?.finalize().into_bytes();
        challenge.extend_from_slice(&mac);
        Ok(challenge)
    }

    /// Takes a challenge that `host` has used for a call, once.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn accept(&self, challenge: &[u8], host: &str, now: Duration) -> Result<(), Rejected> {
        let (issued, random) = self.read(challenge).ok_or(Rejected::Foreign)?;
        let age = now.checked_sub(issued).ok_or(Rejected::Foreign)?;
        if age >= LIFETIME {
            return Err(Rejected::Expired);
        }
        self.used().take(random, host, now)
    }

    /// When an authentic challenge of this instance was made, and what tells
    /// it from all others.
    fn read(&self, challenge: &[u8]) -> Option<(Duration, [u8; RANDOM])> {
        if challenge.len() != LENGTH {
            return None;
        }
        let (body, mac) = challenge.split_at(LENGTH - MAC);
        self.mac(body).ok()?.verify_slice(mac).ok()?;
        let (&version, rest) = body.split_first()?;
        let (instance, rest) = rest.split_first_chunk::<INSTANCE>()?;
        let (time, rest) = rest.split_first_chunk::<TIME>()?;
        let random = rest.try_into().ok()?;
        (version == VERSION && *instance == self.instance)
            .then(|| (Duration::from_millis(u64::from_be_bytes(*time)), random))
    }

    fn mac(&self, body: &[u8]) -> io::Result<Hmac<Sha256>> {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.key);
        Ok(mac.map_err(io::Error::other)?.chain_update(body))
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    fn take(&mut self, random: [u8; RANDOM], host: &str, now: Duration) -> Result<(), Rejected> {
        // Whatever was used in a generation can be forgotten when the next one
        // has ended.
        let passed = now.saturating_sub(self.began);
        if passed >= LIFETIME {
            let ended = std::mem::take(&mut self.current);
            self.before = match passed < 2 * LIFETIME {
                true => ended,
                false => Generation::default(),
            };
            self.began = now;
        }
        if self.current.challenges.contains(&random) || self.before.challenges.contains(&random) {
            return Err(Rejected::Used);
        }
        let count = self.current.of_hosts.entry(host.to_owned()).or_default();
        if *count >= CALLS_OF_HOST {
            return Err(Rejected::TooMany);
        }
        *count += 1;
        self.current.challenges.insert(random);
        Ok(())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Challenges")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_challenge_is_good_once_and_for_its_time() {
        let ours = Challenges::new().unwrap();
        let challenge = ours.issue(at(100)).unwrap();
        assert_eq!(ours.accept(&challenge, "a", at(159)), Ok(()));
        for now in [at(159), at(100), at(159)] {
            let again = ours.accept(&challenge, "b", now);
            assert_eq!(again, Err(Rejected::Used), "{now:?}");
        }
        let old = ours.issue(at(100)).unwrap();
        assert_eq!(ours.accept(&old, "a", at(160)), Err(Rejected::Expired));
        let early = ours.issue(at(200)).unwrap();
        assert_eq!(ours.accept(&early, "a", at(199)), Err(Rejected::Foreign));
    }

    #[test]
    fn none_is_taken_twice_at_any_time_before_it_expires() {
        for start in (0..=130).step_by(10) {
            let ours = Challenges::new().unwrap();
            let challenge = ours.issue(at(start)).unwrap();
            for first in start..start + 60 {
                let used = ours.accept(&challenge, "a", at(first));
                let expected = match first == start {
                    true => Ok(()),
                    false => Err(Rejected::Used),
                };
                assert_eq!(used, expected, "made at {start}, used again at {first}");
                // Something else makes the generations go on.
                let other = ours.issue(at(first)).unwrap();
                assert_eq!(ours.accept(&other, "b", at(first)), Ok(()));
            }
        }
    }

    #[test]
    fn no_other_instance_takes_it_and_no_bit_can_change() {
        let (ours, theirs) = (Challenges::new().unwrap(), Challenges::new().unwrap());
        let challenge = ours.issue(at(1)).unwrap();
        assert_eq!(challenge.len(), LENGTH);
        assert_eq!(
            theirs.accept(&challenge, "a", at(1)),
            Err(Rejected::Foreign)
        );
        for bit in 0..challenge.len() * 8 {
            let mut changed = challenge.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(ours.accept(&changed, "a", at(1)), Err(Rejected::Foreign));
        }
        for length in 0..challenge.len() {
            let cut = ours.accept(&challenge[..length], "a", at(1));
            assert_eq!(cut, Err(Rejected::Foreign));
        }
        assert_eq!(ours.accept(&challenge, "a", at(1)), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_one_host_keeps_no_other_out() {
        let ours = Challenges::new().unwrap();
        // Handing them out costs nothing.
        for _ in 0..10_000 {
            ours.issue(at(0)).unwrap();
        }
        assert_eq!(ours.used().current.challenges.len(), 0);
        let use_one = |host, now| ours.accept(&ours.issue(now).unwrap(), host, now);
        for _ in 0..CALLS_OF_HOST {
            assert_eq!(use_one("greedy", at(1)), Ok(()));
        }
        assert_eq!(use_one("greedy", at(1)), Err(Rejected::TooMany));
        assert_eq!(use_one("modest", at(1)), Ok(()));
        assert_eq!(ours.used().current.challenges.len(), CALLS_OF_HOST + 1);
        // Another minute, and another one.
        assert_eq!(use_one("greedy", at(61)), Ok(()));
        assert_eq!(ours.used().before.challenges.len(), CALLS_OF_HOST + 1);
        assert_eq!(use_one("greedy", at(121)), Ok(()));
        let used = ours.used();
        assert_eq!(
            used.before.challenges.len() + used.current.challenges.len(),
            2
        );
    }
}
