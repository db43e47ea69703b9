//! The guest: what it writes, and what it may therefore find.
//!
//! The register history of a sector has the value that was flushed last, and
//! everything written since: after a power loss it may have any of these, and
//! nothing else. Requests are carried out at once, or wait at the fence.

use super::case::Case;
use super::disk::{Bytes, Disk, SECTOR};
use super::random::Random;
use crate::crypt::Transform;
use crate::rekey::Direction;
use crate::units::Sector;

/// A value that a sector has had: 0 is zeroes, 1 what was never written.
type Value = u32;
const ZERO: Value = 0;
const NEVER: Value = 1;

/// What is kept from requests.
#[derive(Clone, Debug)]
pub struct Gate {
    pub direction: Direction,
    pub boundary: u64,
    /// So many bytes next to the boundary wait for writing.
    pub writing: u64,
    /// The same for reading.
    pub reading: u64,
}

impl Gate {
    /// Whether `bytes` next to the boundary have that sector among them.
    pub fn covers(&self, bytes: u64, sector: usize) -> bool {
        let at = (sector * SECTOR) as u64;
        match self.direction {
            Direction::Forward => at >= self.boundary && at < self.boundary + bytes,
            Direction::Back => at < self.boundary && at + bytes >= self.boundary,
        }
    }
}

/// A write: for each sector from the first on, its value.
#[derive(Clone, Debug)]
struct Write {
    first: usize,
    values: Vec<Value>,
}

#[derive(Clone)]
pub struct Guest {
    /// What each sector may have after a power loss; the last is what it has.
    history: Vec<Vec<Value>>,
    /// What sectors have that nobody wrote to yet.
    never: Vec<Bytes>,
    waiting: Vec<Write>,
    next: Value,
}

impl Guest {
    /// A disk that was in use, all in its old state, and everything durable.
    pub fn new(case: &Case, disk: &mut Disk, random: &mut Random) -> Self {
        let mut guest = Guest {
            history: vec![vec![NEVER]; case.sectors],
            never: vec![[0; SECTOR]; case.sectors],
            waiting: Vec::new(),
            next: NEVER + 1,
        };
        for sector in 0..case.sectors {
            let value = plain_unit(case, disk, sector, &case.transforms.old);
            guest.never[sector] = value;
        }
        let per_unit = case.unit.sectors() as usize;
        for first in (0..case.sectors).step_by(per_unit) {
            if !random.once_in(4) {
                let write = guest.invent(first, per_unit, random);
                let boundary = 0;
                guest.carry_out(case, disk, boundary, &write);
            }
        }
        disk.sync();
        guest.flushed();
        guest
    }

    /// Does one thing or another, mostly where data is being moved.
    pub fn act(
        &mut self,
        case: &Case,
        disk: &mut Disk,
        gate: &Gate,
        random: &mut Random,
    ) -> Result<(), String> {
        let per_unit = case.unit.sectors() as usize;
        let units = case.sectors / per_unit;
        let mut unit = random.below(units as u64) as usize;
        if !random.once_in(4) {
            // Within three blocks or so of the boundary.
            let near = 28 / per_unit + 1;
            let centre = gate.boundary as usize / SECTOR / per_unit;
            unit = (centre + random.below(2 * near as u64) as usize)
                .saturating_sub(near)
                .min(units - 1);
        }
        let count = 1 + random.below(3) as usize;
        let count = count.min(units - unit) * per_unit;
        let first = unit * per_unit;
        match random.below(8) {
            0 => {
                disk.sync();
                self.flushed();
            }
            1 | 2 => {
                let zeroes = Write {
                    first,
                    values: vec![ZERO; count],
                };
                self.submit(case, disk, gate, zeroes);
            }
            3 => self.read(case, disk, gate, first, count)?,
            _ => {
                let write = self.invent(first, count, random);
                self.submit(case, disk, gate, write);
            }
        }
        Ok(())
    }

    /// Carries out what waited, as far as it may now.
    pub fn go_on(&mut self, case: &Case, disk: &mut Disk, gate: &Gate) {
        for write in std::mem::take(&mut self.waiting) {
            self.submit(case, disk, gate, write);
        }
    }

    /// What waits was never acknowledged, and the guest is gone.
    pub fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    pub fn flushed(&mut self) {
        for history in &mut self.history {
            let last = history.len() - 1;
            history.drain(..last);
        }
    }

    /// Whether each sector has what it may have. After a power loss that is
    /// anything of its history; else the last. What it has is its history then.
    pub fn judge(
        &self,
        case: &Case,
        disk: &Disk,
        boundary: u64,
        power_lost: bool,
    ) -> Result<Guest, String> {
        let mut found = self.clone();
        for sector in 0..case.sectors {
            let plain = plain_unit(case, disk, sector, case.state(sector, boundary));
            let history = &self.history[sector];
            let value = self.value_of(sector, &plain);
            let allowed = match value {
                None => false,
                Some(value) if power_lost => history.contains(&value),
                Some(value) => history.last() == Some(&value),
            };
            if let (true, Some(value)) = (allowed, value) {
                found.history[sector] = vec![value];
            } else if power_lost
                && self.may_be_torn(case, sector)
                && history.contains(&ZERO)
                && *disk.sector(case.in_file(sector)) == [0; SECTOR]
            {
                // A unit of eight sectors of which some are stored as zeroes: what
                // a power loss makes of a discard or of a first write that was not
                // flushed, with this format, whether anything is being moved or not.
                found.history[sector] = vec![];
            } else {
                let what = value.map_or("garbage".into(), |value| format!("value {value}"));
                return Err(format!(
                    "sector {sector} has {what}, and may have {history:?} ({}; boundary at sector {})",
                    if power_lost { "any" } else { "the last" },
                    boundary as usize / SECTOR,
                ));
            }
        }
        Ok(found)
    }

    /// Whether a guest wrote to the unit of that sector since it last flushed.
    fn may_be_torn(&self, case: &Case, sector: usize) -> bool {
        let per_unit = case.unit.sectors() as usize;
        let first = sector / per_unit * per_unit;
        let unit = &self.history[first..first + per_unit];
        per_unit > 1 && unit.iter().any(|history| history.len() > 1)
    }

    /// After a power loss: gives every unit that was torn a value again.
    pub fn repair(&mut self, case: &Case, disk: &mut Disk, boundary: u64) {
        let per_unit = case.unit.sectors() as usize;
        for first in (0..case.sectors).step_by(per_unit) {
            if (first..first + per_unit).any(|sector| self.history[sector].is_empty()) {
                let values = vec![self.next; per_unit];
                self.next += 1;
                self.carry_out(case, disk, boundary, &Write { first, values });
            }
        }
        disk.sync();
        self.flushed();
    }

    /// How many sectors are zeroes.
    pub fn zeroes(&self) -> usize {
        let is_zero = |history: &&Vec<Value>| history.last() == Some(&ZERO);
        self.history.iter().filter(is_zero).count()
    }

    /// New values; some sectors are zeroes in between.
    fn invent(&mut self, first: usize, count: usize, random: &mut Random) -> Write {
        let value = self.next;
        self.next += 1;
        let holes = random.once_in(2);
        let values = (0..count).map(|_| match holes && random.once_in(2) {
            true => ZERO,
            false => value,
        });
        Write {
            first,
            values: values.collect(),
        }
    }

    fn submit(&mut self, case: &Case, disk: &mut Disk, gate: &Gate, write: Write) {
        let sectors = write.first..write.first + write.values.len();
        let closed = sectors
            .clone()
            .any(|sector| gate.covers(gate.writing, sector));
        let behind = self.waiting.iter().any(|other| {
            other.first < sectors.end && sectors.start < other.first + other.values.len()
        });
        if closed || behind {
            self.waiting.push(write);
        } else {
            self.carry_out(case, disk, gate.boundary, &write);
        }
    }

    /// As the data path does: each unit with the key of its side.
    fn carry_out(&mut self, case: &Case, disk: &mut Disk, boundary: u64, write: &Write) {
        let per_unit = case.unit.sectors() as usize;
        for (index, values) in write.values.chunks(per_unit).enumerate() {
            let first = write.first + index * per_unit;
            let state = case.state(first, boundary);
            let mut bytes: Vec<u8> = Vec::new();
            for (at, value) in values.iter().enumerate() {
                bytes.extend_from_slice(&self.content(*value, first + at));
                self.history[first + at].push(*value);
            }
            let zero = values.iter().all(|value| *value == ZERO);
            if !(zero && state.params().zero_units) {
                state.encrypt_in_place(Sector(first as u64), &mut bytes);
            }
            disk.write(&bytes, (case.in_file(first) * SECTOR) as u64);
        }
    }

    fn read(
        &self,
        case: &Case,
        disk: &Disk,
        gate: &Gate,
        first: usize,
        count: usize,
    ) -> Result<(), String> {
        if (first..first + count).any(|sector| gate.covers(gate.reading, sector)) {
            return Ok(());
        }
        for sector in first..first + count {
            let plain = plain_unit(case, disk, sector, case.state(sector, gate.boundary));
            let value = self.value_of(sector, &plain);
            let last = self.history[sector].last();
            if value.as_ref() != last {
                return Err(format!(
                    "sector {sector} reads as value {value:?}, and {last:?} was written last; {gate:?}"
                ));
            }
        }
        Ok(())
    }

    fn content(&self, value: Value, sector: usize) -> Bytes {
        match value {
            ZERO => [0; SECTOR],
            NEVER => self.never[sector],
            _ => {
                let mut bytes = [value as u8 | 1; SECTOR];
                bytes[..4].copy_from_slice(&value.to_le_bytes());
                bytes[4..12].copy_from_slice(&(sector as u64).to_le_bytes());
                bytes
            }
        }
    }

    fn value_of(&self, sector: usize, plain: &Bytes) -> Option<Value> {
        let [a, b, c, d, ..] = *plain;
        let written = u32::from_le_bytes([a, b, c, d]);
        [ZERO, NEVER, written]
            .into_iter()
            .find(|value| self.content(*value, sector) == *plain)
    }
}

/// What the guest finds in a sector: the unit that it is in is decrypted.
fn plain_unit(case: &Case, disk: &Disk, sector: usize, state: &Transform) -> Bytes {
    let per_unit = case.unit.sectors() as usize;
    let first = sector / per_unit * per_unit;
    let mut unit = vec![0; case.unit.bytes()];
    disk.read(&mut unit, (case.in_file(first) * SECTOR) as u64);
    state.decrypt_in_place(Sector(first as u64), &mut unit);
    let (sectors, _) = unit.as_chunks::<SECTOR>();
    sectors[sector - first]
}
