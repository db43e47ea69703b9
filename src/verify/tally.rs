//! Looking at units, and counting what was seen.

use std::thread;
use std::time::Duration;

use zeroize::Zeroizing;

use super::error::Error;
use super::repeats::{equal_neighbours, first_block};
use super::shape::{self, Shape};
use super::source::{Buffer, Source};
use crate::crypt::SectorCipher;
use crate::units::{SECTOR_BYTES, Sector};

/// How many units are named at most.
const NAMED: usize = 16;

/// How often an odd unit is read again before it is believed.
const LOOKS: u32 = 8;

/// How many odd units are read again: on a disk that is full of them nobody
/// needs to.
const DOUBTS: u64 = 1000;

/// What units are looked at with.
#[derive(Debug)]
pub struct Look<'a> {
    pub source: &'a Source,
    /// What decrypts them, if that is possible.
    pub cipher: Option<&'a SectorCipher>,
    pub shape: &'a Shape,
    /// The bits from which on a unit has a shape.
    pub needed: f64,
    /// Of how many units one is looked at in decrypted form, too.
    pub every: u64,
    /// Whether somebody may be writing meanwhile.
    pub in_use: bool,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Units that were looked at.
    pub units: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Units of zeroes.
    pub zero: u64,
    /// Those of them that are holes of the file.
    pub holes: u64,
    /// How often each byte is in units that are not of zeroes.
    pub counts: [u64; 256],
    /// Units that have a shape as they are stored.
    pub shaped: u64,
    /// Those of them whose decryption has none: so they are plaintext.
    pub plaintext: u64,
    /// The first of them.
    pub shaped_at: Vec<u64>,
    /// Units that were looked at in decrypted form.
    pub tried: u64,
    /// Those of them that have a shape then: so they are ciphertext.
    pub legible: u64,
    /// Units that are the same when decrypted.
    pub same: u64,
    /// Blocks that are equal to the one before.
    pub neighbours: u64,
    /// Units that were read again because they looked odd while somebody
    /// wrote to them.
    pub torn: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            units: 0,
            bytes: 0,
            zero: 0,
            holes: 0,
            counts: [0; 256],
            shaped: 0,
            plaintext: 0,
            shaped_at: Vec::new(),
            tried: 0,
            legible: 0,
            same: 0,
            neighbours: 0,
            torn: 0,
        }
    }
}

impl Tally {
    /// Units that are not of zeroes.
    pub fn written(&self) -> u64 {
        self.units - self.zero
    }

    /// Adds what another one has seen.
    pub fn add(&mut self, other: &Tally) {
        self.units += other.units;
        self.bytes += other.bytes;
        self.zero += other.zero;
        self.holes += other.holes;
        for (sum, more) in self.counts.iter_mut().zip(&other.counts) {
            *sum += more;
        }
        self.shaped += other.shaped;
        self.plaintext += other.plaintext;
        self.shaped_at.extend(&other.shaped_at);
        self.shaped_at.sort_unstable();
        self.shaped_at.truncate(NAMED);
        self.tried += other.tried;
        self.legible += other.legible;
        self.same += other.same;
        self.neighbours += other.neighbours;
        self.torn += other.torn;
    }

    fn name(&mut self, unit: u64) {
        if self.shaped_at.len() < NAMED {
            self.shaped_at.push(unit);
        }
    }
}

/// What one thread looks with, and what it has seen.
pub struct Looker<'a> {
    look: &'a Look<'a>,
    pub tally: Tally,
    stored: Buffer,
    plain: Zeroizing<Vec<u8>>,
    again: Buffer,
    /// The first blocks of the units that were looked at last.
    pub firsts: Vec<(u64, u128)>,
}

impl<'a> Looker<'a> {
    /// One for pieces of up to `units` units.
    pub fn new(look: &'a Look<'a>, units: u64) -> Self {
        let unit = look.source.unit();
        let length = usize::try_from(units).unwrap_or(usize::MAX) * unit;
        Looker {
            look,
            tally: Tally::default(),
            stored: Buffer::new(length),
            plain: Zeroizing::new(vec![0; length]),
            again: Buffer::new(unit),
            firsts: Vec::new(),
        }
    }

    /// Looks at `count` units from `first` on.
    pub fn look_at(&mut self, first: u64, count: u64) -> Result<(), Error> {
        let Look { source, cipher, .. } = *self.look;
        self.firsts.clear();
        if source.is_hole(first, count)? {
            self.tally.units += count;
            self.tally.zero += count;
            self.tally.holes += count;
            return Ok(());
        }
        let size = source.unit();
        let stored = source.read(first, count, &mut self.stored)?;
        let plain = &mut self.plain[..stored.len()];
        if let Some(cipher) = cipher {
            plain.copy_from_slice(stored);
            cipher.decrypt_in_place(sector_of(first, size), plain);
        }
        let tally = &mut self.tally;
        tally.bytes += stored.len() as u64;
        // The first of a run of units of zeroes.
        let mut zeroes: Option<u64> = None;
        for (index, unit) in stored.chunks(size).enumerate() {
            let number = first + index as u64;
            tally.units += 1;
            if is_zero(unit) {
                tally.zero += 1;
                zeroes = zeroes.or(Some(number));
                continue;
            }
            if let Some(from) = zeroes.take() {
                tally.holes += source.holes(from, number - from)?;
            }
            let counts = shape::count(unit);
            // Nothing can be said of what is left at the end of a file.
            let shaped =
                unit.len() == size && self.look.shape.bits(unit, &counts) >= self.look.needed;
            if shaped {
                let doubted = self.look.in_use && tally.shaped + tally.torn < DOUBTS;
                if doubted && !self.look.stays(number, &mut self.again)? {
                    tally.torn += 1;
                    continue;
                }
            }
            for (sum, count) in tally.counts.iter_mut().zip(&counts) {
                *sum += u64::from(*count);
            }
            if unit.len() < size {
                continue;
            }
            let plain = cipher.map(|_| &plain[index * size..][..size]);
            if shaped {
                tally.shaped += 1;
                tally.name(number);
                let noise = |plain| !self.look.has_shape(plain);
                tally.plaintext += u64::from(plain.is_some_and(noise));
                continue;
            }
            self.firsts.push((number, first_block(unit)));
            tally.neighbours += equal_neighbours(unit) as u64;
            if let Some(plain) = plain {
                tally.same += u64::from(plain == unit);
                if is_chosen(number, self.look.every) {
                    tally.tried += 1;
                    tally.legible += u64::from(self.look.has_shape(plain));
                }
            }
        }
        if let Some(from) = zeroes {
            tally.holes += source.holes(from, first + count - from)?;
        }
        Ok(())
    }
}

impl Look<'_> {
    fn has_shape(&self, unit: &[u8]) -> bool {
        self.shape.bits(unit, &shape::count(unit)) >= self.needed
    }

    /// Whether a unit that has a shape still has it when nobody writes to it
    /// any more.
    fn stays(&self, unit: u64, buffer: &mut Buffer) -> Result<bool, Error> {
        let odd = |now: &[u8]| !is_zero(now) && self.has_shape(now);
        stays_odd(odd, |look| {
            thread::sleep(Duration::from_millis(u64::from(look)));
            let now = self.source.read(unit, 1, buffer)?;
            Ok(Zeroizing::new(now.to_vec()))
        })
    }
}

/// Whether something that is read again and again is odd until it does not
/// change any more: half of what was there and half of what is being written
/// can be odd though both are not.
fn stays_odd(
    odd: impl Fn(&[u8]) -> bool,
    mut read: impl FnMut(u32) -> Result<Zeroizing<Vec<u8>>, Error>,
) -> Result<bool, Error> {
    let mut before = None;
    for look in 1..=LOOKS {
        let now = read(look)?;
        if !odd(&now) {
            return Ok(false);
        }
        if before.as_ref() == Some(&now) {
            return Ok(true);
        }
        before = Some(now);
    }
    // It changes all the time, and is always odd.
    Ok(true)
}

/// Whether a unit is one of those of `every` so many that are chosen. They are
/// spread like dice: what a guest writes may well be regular.
fn is_chosen(unit: u64, every: u64) -> bool {
    // Multiplicative hashing, by 2^64 over the golden ratio.
    let spread = unit.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    spread.is_multiple_of(every)
}

/// Where a unit begins for the guest.
pub fn sector_of(unit: u64, size: usize) -> Sector {
    Sector(unit * (size as u64 / SECTOR_BYTES))
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of these bytes, one after the other, of which only 9 is not
    /// odd; and how many were looked at.
    fn of(bytes: &[u8]) -> (bool, usize) {
        let mut looked_at = 0;
        let stays = stays_odd(
            |now| now != [9],
            |look| {
                looked_at += 1;
                assert_eq!(look as usize, looked_at);
                Ok(Zeroizing::new(vec![bytes[looked_at - 1]]))
            },
        );
        (stays.unwrap(), looked_at)
    }

    #[test]
    fn what_is_being_written_is_not_judged() {
        assert_eq!(of(&[1, 9]), (false, 2));
        assert_eq!(of(&[1, 2, 3, 9]), (false, 4));
        assert_eq!(of(&[1, 1, 9]), (true, 2), "nobody writes there any more");
        assert_eq!(of(&[1, 2, 2]), (true, 3));
        assert_eq!(of(&[1, 2, 1, 2, 1, 2, 1, 2, 9]), (true, 8));
    }

    #[test]
    fn chosen_units_are_of_no_pattern() {
        for step in [1, 2, 8, 16, 64, 1 << 20] {
            let chosen = (0..16_000_u64).filter(|index| is_chosen(index * step, 16));
            let count = chosen.count();
            assert!((800..1200).contains(&count), "{step}: {count}");
        }
        assert!((0..100).all(|unit| is_chosen(unit, 1)));
    }

    #[test]
    fn sums_are_those_of_both_and_the_first_are_named() {
        let mut one = Tally {
            units: 10,
            zero: 4,
            shaped: 20,
            shaped_at: (100..116).collect(),
            ..Tally::default()
        };
        one.counts[7] = 3;
        let mut other = one.clone();
        other.shaped_at = vec![5, 200];
        one.add(&other);
        assert_eq!((one.units, one.written(), one.shaped), (20, 12, 40));
        assert_eq!(one.counts[7], 6);
        assert_eq!(one.shaped_at.len(), NAMED);
        assert_eq!(one.shaped_at[..2], [5, 100]);
    }

    #[test]
    fn zeroes_are_zeroes_to_the_last_byte() {
        for length in [1, 15, 16, 512] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            bytes[length - 1] = 1;
            assert!(!is_zero(&bytes));
        }
    }
}
