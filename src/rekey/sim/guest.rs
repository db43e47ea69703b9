//! The guest: what it writes, and what it may therefore find.
//!
//! The register history of a sector has the value that was flushed last, and
//! everything written since: after a power loss it may have any of these, and
//! nothing else. Requests are carried out at once, or wait at the fence.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

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
    stored: Stored,
}

/// How values are stored: in the new state or not, in which sector, which value.
type Stored = Arc<Mutex<HashMap<(bool, usize, Value), Bytes>>>;

impl Guest {
    /// A disk that was in use, all in its old state, and everything durable.
    pub fn new(case: &Case, disk: &mut Disk, random: &mut Random) -> Self {
        let mut guest = Guest {
            history: vec![vec![NEVER]; case.sectors],
            never: vec![[0; SECTOR]; case.sectors],
            waiting: Vec::new(),
            next: NEVER + 1,
            stored: Stored::default(),
        };
        for sector in 0..case.sectors {
            let value = plain_unit(case, disk, sector, &case.transforms.old);
            guest.never[sector] = value;
            if value == [0; SECTOR] {
                guest.history[sector] = vec![ZERO];
            }
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

    pub fn flushed(&mut self) {
        for history in &mut self.history {
            let last = history.len() - 1;
            history.drain(..last);
        }
    }

    /// Whether each sector has what it may have. After a power loss that is
    /// anything of its history; else the last. Says what each has; none if it is
    /// a part of a unit that was torn.
    pub fn judge(
        &self,
        case: &Case,
        disk: &Disk,
        boundary: u64,
        power_lost: bool,
    ) -> Result<Vec<Option<Value>>, String> {
        let mut found = Vec::with_capacity(case.sectors);
        for sector in 0..case.sectors {
            let history = &self.history[sector];
            let from = if power_lost { 0 } else { history.len() - 1 };
            let has = |value: &&Value| self.has(case, disk, boundary, sector, **value);
            if let Some(value) = history[from..].iter().find(has) {
                found.push(Some(*value));
            } else if power_lost
                && self.may_be_torn(case, sector)
                && history.contains(&ZERO)
                && *disk.sector(case.in_file(sector)) == [0; SECTOR]
            {
                // A unit of eight sectors of which some are stored as zeroes: what
                // a power loss makes of a discard or of a first write that was not
                // flushed, with this format, whether anything is being moved or not.
                found.push(None);
            } else {
                let what = self.describe(case, disk, boundary, sector);
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

    /// What waited was never acknowledged, and the guest is gone.
    pub fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    /// A new start after a power loss, with what was found. Units that were
    /// torn get a value again.
    pub fn start_again(
        &mut self,
        case: &Case,
        disk: &mut Disk,
        boundary: u64,
        found: Vec<Option<Value>>,
    ) {
        self.forget_waiting();
        self.history = found.iter().map(|value| Vec::from_iter(*value)).collect();
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
            let zero = values.iter().all(|value| *value == ZERO) && state.params().zero_units;
            for (sector, value) in (first..).zip(values) {
                let bytes = match zero {
                    true => [0; SECTOR],
                    false => self.stored(case, boundary, sector, *value),
                };
                disk.put(case.in_file(sector), &bytes);
                self.history[sector].push(*value);
            }
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
            let last = self.history[sector].last().copied().unwrap_or(ZERO);
            if !self.has(case, disk, gate.boundary, sector, last) {
                let what = self.describe(case, disk, gate.boundary, sector);
                return Err(format!(
                    "sector {sector} reads as {what}, and {last} was written last; {gate:?}"
                ));
            }
        }
        Ok(())
    }

    /// Whether the guest would find that value in a sector.
    fn has(&self, case: &Case, disk: &Disk, boundary: u64, sector: usize, value: Value) -> bool {
        let stored = disk.sector(case.in_file(sector));
        if *stored == [0; SECTOR] && case.state(sector, boundary).params().zero_units {
            let per_unit = case.unit.sectors() as usize;
            let first = sector / per_unit * per_unit;
            let mut unit = first..first + per_unit;
            if unit.all(|sector| *disk.sector(case.in_file(sector)) == [0; SECTOR]) {
                return value == ZERO;
            }
        }
        *stored == self.stored(case, boundary, sector, value)
    }

    /// What is stored in a sector that has that value, if not all of its unit is zeroes.
    fn stored(&self, case: &Case, boundary: u64, sector: usize, value: Value) -> Bytes {
        let new = ((sector * SECTOR) as u64) < boundary;
        let mut memory = self.stored.lock().unwrap();
        *memory.entry((new, sector, value)).or_insert_with(|| {
            let per_unit = case.unit.sectors() as usize;
            let first = sector / per_unit * per_unit;
            // The other sectors of the unit do not matter: XTS knows no neighbours.
            let mut unit = [1; SECTOR].repeat(per_unit);
            let at = (sector - first) * SECTOR;
            unit[at..at + SECTOR].copy_from_slice(&self.content(value, sector));
            let state = case.state(sector, boundary);
            state.encrypt_in_place(Sector(first as u64), &mut unit);
            unit[at..at + SECTOR].try_into().unwrap()
        })
    }

    /// For people: what a sector has.
    fn describe(&self, case: &Case, disk: &Disk, boundary: u64, sector: usize) -> String {
        let other = if ((sector * SECTOR) as u64) < boundary {
            &case.transforms.old
        } else {
            &case.transforms.new
        };
        for (state, what) in [
            (case.state(sector, boundary), ""),
            (other, " in the other state"),
        ] {
            let plain = plain_unit(case, disk, sector, state);
            if let Some(value) = self.value_of(sector, &plain) {
                return format!("value {value}{what}");
            }
        }
        "garbage".into()
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
