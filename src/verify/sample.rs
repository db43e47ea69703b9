//! Which units are looked at: all, or some that a seed gives, so that anybody
//! can look at the same ones again.
//!
//! Position *i* of a sample of a disk of *u* units: the first eight bytes of
//! SHA-256(seed ‖ *i* as a 64-bit little-endian number), read as a 64-bit
//! little-endian number *r*; the position is ⌊*r* · *u* / 2^64⌋. The first
//! distinct positions are taken, for *i* = 0, 1, …, as many as the sample has.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes at each end of a disk that are looked at with every sample: there is
/// what says how a disk is divided.
pub const ENDS: u64 = 1 << 20;

/// How much of a disk is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every unit.
    Full,
    /// So many units anywhere, and both ends.
    Sample {
        /// How many.
        units: u64,
        /// Which.
        seed: Seed,
    },
}

/// What a sample is drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Seed([u8; 16]);

impl Seed {
    /// One that nobody knew before.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Seed(bytes))
    }

    fn position(&self, index: u64, units: u64) -> u64 {
        let digest = Sha256::new()
            .chain_update(self.0)
            .chain_update(index.to_le_bytes())
            .finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        let product = u128::from(u64::from_le_bytes(first)) * u128::from(units);
        (product >> 64) as u64
    }

    /// `wanted` distinct units of `units`, in their order. All, if there are
    /// no more.
    pub fn positions(&self, wanted: u64, units: u64) -> Vec<u64> {
        if wanted >= units {
            return (0..units).collect();
        }
        let mut found = BTreeSet::new();
        let mut index = 0;
        while (found.len() as u64) < wanted {
            found.insert(self.position(index, units));
            index += 1;
        }
        found.into_iter().collect()
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<Seed> for String {
    fn from(seed: Seed) -> String {
        seed.to_string()
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a seed: 32 hexadecimal digits, as a report has them");
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u128::from_str_radix(text, 16)
            .map(|number| Seed(number.to_be_bytes()))
            .map_err(|_| bad())
    }
}

impl TryFrom<String> for Seed {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Runs of units, in their order: both ends of a disk of `units` units of
/// `unit` bytes.
pub fn ends(units: u64, unit: usize) -> [(u64, u64); 2] {
    let at_each = (ENDS / unit as u64).min(units);
    let second = units.saturating_sub(at_each).max(at_each);
    [(0, at_each), (second, units - second)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_that_the_description_gives() {
        // python3: int.from_bytes(hashlib.sha256(bytes(range(16)) +
        //   i.to_bytes(8, "little")).digest()[:8], "little") * 1000003 >> 64
        let seed: Seed = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
        let found: Vec<u64> = (0..4).map(|i| seed.position(i, 1_000_003)).collect();
        assert_eq!(found, [260011, 654547, 993625, 988075]);
        assert_eq!(seed.to_string(), "000102030405060708090a0b0c0d0e0f");
    }

    #[test]
    fn samples_are_distinct_ordered_and_spread() {
        let seed = Seed::random().unwrap();
        let found = seed.positions(10_000, 1 << 40);
        assert_eq!(found.len(), 10_000);
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(found, seed.positions(10_000, 1 << 40));
        // Each eighth has about as many: this far off comes once in 10^9.
        for eighth in 0..8_u64 {
            let here = found.iter().filter(|unit| **unit >> 37 == eighth).count();
            assert!((1000..1500).contains(&here), "{here}");
        }
        assert_eq!(seed.positions(7, 7), [0, 1, 2, 3, 4, 5, 6]);
        let nearly = seed.positions(99, 100);
        assert_eq!(nearly.len(), 99);
        assert_eq!(seed.positions(5, 0), [0; 0]);
    }

    #[test]
    fn ends_meet_and_do_not_overlap() {
        assert_eq!(ends(1 << 20, 512), [(0, 2048), ((1 << 20) - 2048, 2048)]);
        assert_eq!(ends(3000, 512), [(0, 2048), (2048, 952)]);
        assert_eq!(ends(10, 512), [(0, 10), (10, 0)]);
    }

    #[test]
    fn what_is_no_seed_is_refused() {
        for text in [
            "",
            "00",
            "+00102030405060708090a0b0c0d0e0f",
            "g00102030405060708090a0b0c0d0e0f",
        ] {
            assert!(text.parse::<Seed>().is_err(), "{text}");
        }
    }
}
