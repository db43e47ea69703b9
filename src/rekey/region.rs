//! One region: read and tagged, then turned and written in place.

use super::buffer::{ALIGNMENT, Buffer};
use super::keys::{Keys, SectorTag};
use super::rules::{Rule, Rules};
use super::{Direction, Error, Geometry, Medium, SECTOR, Transforms, parts};
use crate::units::{SECTOR_BYTES, Sector};

/// How much a thread does at a time, in bytes: what its cache holds, and a
/// device does not mind.
pub(super) const PART: usize = 512 << 10;

/// The data of a volume, as it is moved.
#[derive(Debug)]
pub(super) struct Data<D> {
    pub medium: D,
    pub geometry: Geometry,
    pub transforms: Transforms,
    pub threads: usize,
    pub rules: Rules,
}

/// A part of the disk, as it is stored before it is moved.
pub(super) struct Region {
    /// Its first byte on the disk.
    pub start: u64,
    pub stored: Buffer,
    /// One for each sector.
    pub tags: Vec<SectorTag>,
}

impl Region {
    pub fn length(&self) -> u64 {
        self.stored.len() as u64
    }
}

impl<D: Medium> Data<D> {
    /// Reads and tags a region, into the memory of one that is not needed any more.
    pub fn load(
        &self,
        keys: &Keys,
        start: u64,
        length: u64,
        used: Option<Region>,
    ) -> Result<Region, Error> {
        let mut region = used.unwrap_or_else(|| Region {
            start,
            stored: Buffer::zeroed(0),
            tags: Vec::new(),
        });
        region.start = start;
        region.stored.set_length(length as usize);
        region
            .tags
            .resize(length as usize / SECTOR, SectorTag::default());
        let tags = region.tags.chunks_mut(PART / SECTOR);
        let pieces = (start..)
            .step_by(PART)
            .zip(region.stored.chunks_mut(PART).zip(tags));
        parts::over(self.threads, pieces, |(at, (stored, tags))| {
            self.read(stored, at)?;
            keys.tag(at, stored, tags);
            Ok(())
        })?;
        Ok(region)
    }

    /// Moves a region that was loaded, in place. Units that stay zeroes are not
    /// written, so that holes stay holes.
    pub fn store(&self, region: &mut Region, direction: Direction) -> Result<(), Error> {
        let pieces = (region.start..)
            .step_by(PART)
            .zip(region.stored.chunks_mut(PART));
        parts::over(self.threads, pieces, |(at, stored)| {
            let changed = self.turn(at, stored, direction);
            self.write_blocks(at, stored, &changed)
        })
    }

    /// Moves a region that may have been moved in part, or altogether: of `stored`,
    /// which was read from there, what still has its tag.
    pub fn mend(
        &self,
        keys: &Keys,
        start: u64,
        expected: &[SectorTag],
        direction: Direction,
    ) -> Result<(), Error> {
        let pieces = (start..).step_by(PART).zip(expected.chunks(PART / SECTOR));
        parts::over(self.threads, pieces, |(at, expected)| {
            self.mend_part(keys, at, expected, direction)
        })
    }

    fn mend_part(
        &self,
        keys: &Keys,
        at: u64,
        expected: &[SectorTag],
        direction: Direction,
    ) -> Result<(), Error> {
        let mut stored = Buffer::zeroed(expected.len() * SECTOR);
        self.read(&mut stored, at)?;
        let mut tags = vec![SectorTag::default(); expected.len()];
        keys.tag(at, &stored, &mut tags);
        let unit = self.geometry.unit().bytes();
        let per_unit = unit / SECTOR;
        // Units of zeroes that are zeroes in both states stay so, whatever their
        // tags say: of a plain unit that was not all zeroes, and has been
        // discarded since, some sectors are as they were.
        let stay = self.transforms.zero_stays() && self.rules.keep(Rule::ZeroesStay);
        let same = tags
            .iter()
            .zip(expected)
            .map(|(tag, expected)| tag == expected);
        let same: Vec<bool> = same.collect();
        let old: Vec<bool> = same
            .chunks(per_unit)
            .zip(stored.chunks(unit))
            .map(|(same, stored)| same.contains(&true) && !(stay && is_zero(stored)))
            .collect();
        if !old.contains(&true) {
            return Ok(());
        }
        let mut turned = Buffer::zeroed(stored.len());
        turned.copy_from_slice(&stored);
        self.turn_runs(at, &mut turned, direction, &old);
        if stay && per_unit > 1 {
            self.complete_zeroes(keys, at, expected, direction, (&old, &mut turned));
        }
        // A unit of which a part was moved opens with neither key as a whole;
        // each sector of it does, since XTS knows no neighbours.
        let sectors = stored.chunks_mut(SECTOR).zip(turned.chunks(SECTOR));
        for ((stored, turned), same) in sectors.zip(same) {
            if same {
                stored.copy_from_slice(turned);
            }
        }
        self.write_blocks(at, &stored, &old)
    }

    /// Units that were zeroes, and of which a part was written since: what is left
    /// of the zeroes becomes encrypted zeroes, as the other sectors make it be
    /// decrypted from now on.
    fn complete_zeroes(
        &self,
        keys: &Keys,
        at: u64,
        expected: &[SectorTag],
        direction: Direction,
        (old, turned): (&[bool], &mut [u8]),
    ) {
        let unit = self.geometry.unit().bytes();
        let (_, to) = self.transforms.along(direction);
        let mut tags = vec![SectorTag::default(); unit / SECTOR];
        for (index, turned) in turned.chunks_mut(unit).enumerate() {
            if !old[index] {
                continue;
            }
            let start = at + (index * unit) as u64;
            keys.tag(start, &ZEROES[..unit], &mut tags);
            if expected[index * tags.len()..].starts_with(&tags) {
                to.encrypt_zeroes(Sector(start / SECTOR_BYTES), turned);
            }
        }
    }

    /// Makes everything durable that was written to the data.
    pub fn sync(&self) -> Result<(), Error> {
        self.medium.sync().map_err(Error::NotDurable)
    }

    fn read(&self, stored: &mut [u8], at: u64) -> Result<(), Error> {
        self.medium
            .read(stored, self.geometry.in_file(at))
            .map_err(Error::io("read the data"))
    }

    /// Turns what is stored into what is to be stored, but for units of zeroes
    /// that stay so. Says for each unit whether it has changed.
    fn turn(&self, at: u64, stored: &mut [u8], direction: Direction) -> Vec<bool> {
        let unit = self.geometry.unit().bytes();
        let stay = self.transforms.zero_stays();
        let changed: Vec<bool> = stored
            .chunks(unit)
            .map(|unit| !(stay && is_zero(unit)))
            .collect();
        self.turn_runs(at, stored, direction, &changed);
        changed
    }

    /// Turns the units that have `true`.
    fn turn_runs(&self, at: u64, stored: &mut [u8], direction: Direction, units: &[bool]) {
        let unit = self.geometry.unit().bytes();
        for (start, end) in runs(units) {
            let (start, end) = (start * unit, end * unit);
            self.transforms
                .turn(direction, at + start as u64, &mut stored[start..end]);
        }
    }

    /// Writes the blocks of which a unit has changed.
    fn write_blocks(&self, at: u64, bytes: &[u8], changed: &[bool]) -> Result<(), Error> {
        let blocks: Vec<bool> = changed
            .chunks(ALIGNMENT / self.geometry.unit().bytes())
            .map(|units| units.contains(&true))
            .collect();
        for (start, end) in runs(&blocks) {
            let (start, end) = (start * ALIGNMENT, (end * ALIGNMENT).min(bytes.len()));
            self.medium
                .write(&bytes[start..end], self.geometry.in_file(at + start as u64))
                .map_err(Error::io("write the data"))?;
        }
        Ok(())
    }
}

static ZEROES: [u8; 4096] = [0; 4096];

/// Where runs of `true` start and end.
fn runs(flags: &[bool]) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + flags[at..].iter().position(|flag| *flag)?;
        let length = flags[start..].iter().take_while(|flag| **flag).count();
        at = start + length;
        Some((start, at))
    })
}

fn is_zero(unit: &[u8]) -> bool {
    unit == &ZEROES[..unit.len()]
}
