//! Ciphertext that comes twice: what encryption without a tweak for each place
//! leaves, and a good one never.
//!
//! A block of AES has 16 bytes. Under XTS the same one comes twice with a
//! probability of 2^-128 for each pair, whatever the guest writes. Two ways of
//! going wrong are looked for:
//!
//! - within a unit: equal neighbours, as ECB leaves of zeroes or patterns;
//! - between units: the same first block, as one tweak for all units leaves of
//!   equal beginnings. A table of bounded size remembers first blocks: nearly
//!   all of a sample, of a full scan about the last million units, which is near
//!   enough for what disks have many of, such as zeroes.
#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

/// The bytes of a block.
pub const BLOCK: usize = 16;

/// How many first blocks are remembered at most: in 24 MiB.
const PLACES: usize = 1 << 20;

/// First blocks of units, with the units that had them.
#[derive(Debug)]
pub struct Repeats {
    places: Vec<(u128, u64)>,
    hash: RandomState,
    /// How many units began as an earlier one did.
    pub found: u64,
    /// The first such pair of units.
    pub first: Option<(u64, u64)>,
}

impl Repeats {
    /// A table for `units` units.
    pub fn new(units: u64) -> Self {
        let wanted = usize::try_from(units.saturating_mul(4)).unwrap_or(PLACES);
        let places = wanted.clamp(16, PLACES).next_power_of_two();
        debug_assert!(places.is_power_of_two(), "for the mask");
        Repeats {
            places: vec![(0, u64::MAX); places],
            hash: RandomState::new(),
            found: 0,
            first: None,
        }
    }

    /// Takes note that `unit` begins with `block`.
    pub fn note(&mut self, unit: u64, block: u128) {
        let hash = self.hash.hash_one(block);
        let mask = self.places.len() - 1;
        let place = &mut self.places[hash as usize & mask];
        if place.0 == block && place.1 != u64::MAX && place.1 != unit {
            self.found += 1;
            self.first = self.first.or(Some((place.1, unit)));
        }
        *place = (block, unit);
    }
}

/// The first block of a unit.
pub fn first_block(unit: &[u8]) -> u128 {
    unit.first_chunk()
        .map_or(0, |block: &[u8; BLOCK]| u128::from_ne_bytes(*block))
}

/// How many blocks of a unit are equal to the one before.
pub fn equal_neighbours(unit: &[u8]) -> usize {
    let (blocks, _) = unit.as_chunks::<BLOCK>();
    blocks.windows(2).filter(|pair| pair[0] == pair[1]).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_comes_again_is_found() {
        let mut repeats = Repeats::new(1000);
        (0..1000).for_each(|unit| repeats.note(unit, u128::from(unit) << 64 | 7));
        assert_eq!((repeats.found, repeats.first), (0, None));
        // The same unit read again is none.
        repeats.note(999, 999 << 64 | 7);
        assert_eq!(repeats.found, 0);
        repeats.note(1000, 999 << 64 | 7);
        assert_eq!((repeats.found, repeats.first), (1, Some((999, 1000))));
    }

    #[test]
    fn what_comes_often_is_found_in_more_units_than_are_remembered() {
        let mut repeats = Repeats::new(u64::MAX);
        for unit in 0..1_500_000_u64 {
            let block = match unit % 1000 {
                0 => 42,
                _ => u128::from(unit) << 32,
            };
            repeats.note(unit, block);
        }
        // Some are overwritten by others before they come again.
        assert!(repeats.found > 1400, "{}", repeats.found);
    }

    #[test]
    fn equal_neighbours_are_counted() {
        let mut unit: Vec<u8> = (0..512_u32).map(|i| (i * 7 / 3) as u8).collect();
        assert_eq!(equal_neighbours(&unit), 0);
        unit.copy_within(16..32, 32);
        assert_eq!(equal_neighbours(&unit), 1);
        assert_eq!(equal_neighbours(&[9; 512]), 31);
    }
}
