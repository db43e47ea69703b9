//! Where the data is, and what its units go through.

use std::sync::Arc;

use super::{Direction, Error, Facts, Position};
use crate::crypt::Transform;
use crate::units::{SECTOR_BYTES, Sector, SectorSize};

/// Where the data of a volume is, and in which units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    data_offset: u64,
    size: u64,
    unit: SectorSize,
}

impl Geometry {
    /// The data that `facts` are of, in such units.
    ///
    /// # Errors
    /// When it is not whole units, or ends beyond what a file can have.
    pub fn new(facts: &Facts, unit: SectorSize) -> Result<Self, Error> {
        let unit_bytes = unit.bytes() as u64;
        if !facts.size.is_multiple_of(unit_bytes) || !facts.data_offset.is_multiple_of(SECTOR_BYTES)
        {
            return Err(Error::Unfit("its data is not whole units"));
        }
        match facts.data_offset.checked_add(facts.size) {
            Some(end) if i64::try_from(end).is_ok() => Ok(Geometry {
                data_offset: facts.data_offset,
                size: facts.size,
                unit,
            }),
            _ => Err(Error::Unfit("its data is larger than any file")),
        }
    }

    /// How long the disk is, in bytes.
    pub fn size(self) -> u64 {
        self.size
    }

    /// The size of a data unit.
    pub fn unit(self) -> SectorSize {
        self.unit
    }

    /// Where a byte of the disk is in the data file.
    pub fn in_file(self, position: u64) -> u64 {
        self.data_offset + position
    }

    /// What is left to be moved from there.
    pub(super) fn left(self, position: Position) -> u64 {
        match position.direction {
            Direction::Forward => self.size - position.boundary,
            Direction::Back => position.boundary,
        }
    }
}

impl Position {
    /// The first byte of the `length` bytes that are next to the boundary, or
    /// of those behind that many others: `skip`.
    pub(super) fn next(self, skip: u64, length: u64) -> u64 {
        match self.direction {
            Direction::Forward => self.boundary + skip,
            Direction::Back => self.boundary - skip - length,
        }
    }

    /// The boundary on the other side of so many bytes.
    pub(super) fn beyond(self, length: u64) -> Position {
        Position {
            boundary: match self.direction {
                Direction::Forward => self.boundary + length,
                Direction::Back => self.boundary - length,
            },
            ..self
        }
    }
}

/// The two states of the data. Shared by who moves it and who serves it.
#[derive(Clone, Debug)]
pub struct Transforms {
    /// Above the boundary.
    pub old: Arc<Transform>,
    /// Below it.
    pub new: Arc<Transform>,
}

impl Transforms {
    /// What units are in before they are moved, and after.
    pub fn along(&self, direction: Direction) -> (&Transform, &Transform) {
        match direction {
            Direction::Forward => (&self.old, &self.new),
            Direction::Back => (&self.new, &self.old),
        }
    }

    /// Turns whole stored units from that byte of the disk on into what is to be
    /// stored instead. The plaintext stands in the buffer meanwhile.
    ///
    /// # Panics
    /// When it is not whole units, or starts inside one.
    pub fn turn(&self, direction: Direction, position: u64, stored: &mut [u8]) {
        let (from, to) = self.along(direction);
        let first = Sector(position / SECTOR_BYTES);
        from.decrypt_in_place(first, stored);
        to.encrypt_in_place(first, stored);
    }

    /// Whether a unit that is stored as zeroes is zeroes in both states, and
    /// therefore stays as it is.
    pub fn zero_stays(&self) -> bool {
        self.old.params().zero_units && self.new.params().zero_units
    }

    /// Whether nothing that a guest writes, after its unit was moved, can be what
    /// was stored there before: only then may it write before that is recorded.
    /// Plain data it chooses freely; of what a cipher makes it knows nothing, but
    /// for zeroes.
    pub(super) fn distinct(&self, direction: Direction) -> bool {
        let (from, to) = self.along(direction);
        to.cipher().is_some() && (from.params().zero_units || !to.params().zero_units)
    }

    /// Both are of the units that the disk has.
    pub(super) fn check(&self, geometry: Geometry) -> Result<(), Error> {
        let fits = |transform: &Transform| transform.params().sector_size == geometry.unit;
        if fits(&self.old) && fits(&self.new) {
            Ok(())
        } else {
            Err(Error::Unfit(
                "its keys are for other units than its data has",
            ))
        }
    }
}
