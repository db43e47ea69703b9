//! Where the records are, and the beginning of the disk.
//!
//! | at | what |
//! |---|---|
//! | 0 | the records with even numbers |
//! | 4096 | those with odd ones |
//! | 8192 | the first bytes of the disk, encrypted |
#![forbid(unsafe_code)]

use std::ops::Range;

use super::record::{Key, RECORD_BYTES, Record, boundary_in, looks_like_one};
use super::{Error, Land};

const SLOT: u64 = 4096;

/// How much of the beginning of the disk is kept there at most.
pub const HEAD_BYTES: usize = 4096;

/// How long the area of the journal has to be.
pub const AREA_BYTES: u64 = 2 * SLOT + HEAD_BYTES as u64;

/// Whether the area of a journal is one of this kind, authentic or not.
///
/// # Errors
/// When it cannot be read.
pub fn is_journal(medium: &dyn Land, area: &Range<u64>) -> Result<bool, Error> {
    for slot in 0..2 {
        let mut bytes = [0; RECORD_BYTES];
        let read = medium.read(&mut bytes, area.start + slot * SLOT);
        read.map_err(Error::io("read the file beside"))?;
        if looks_like_one(&bytes) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether records say, authentic or not, that something was moved by an operation
/// that began at `start`.
///
/// # Errors
/// When they cannot be read.
pub fn has_moved(medium: &dyn Land, area: &Range<u64>, start: u64) -> Result<bool, Error> {
    for slot in 0..2 {
        let mut bytes = [0; RECORD_BYTES];
        let read = medium.read(&mut bytes, area.start + slot * SLOT);
        read.map_err(Error::io("read the file beside"))?;
        if boundary_in(&bytes).is_some_and(|boundary| boundary != start) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The journal of one operation.
pub struct Journal<'j> {
    medium: &'j dyn Land,
    start: u64,
    key: &'j Key,
    /// That of the last record.
    sequence: u64,
}

impl<'j> Journal<'j> {
    /// Writes the journal of an operation that is to begin, durably. Nothing was
    /// moved yet.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(
        medium: &'j dyn Land,
        area: &Range<u64>,
        key: &'j Key,
        boundary: u64,
    ) -> Result<Self, Error> {
        let mut journal = Journal {
            medium,
            start: area.start,
            key,
            sequence: 0,
        };
        journal.write(boundary)?;
        journal.write(boundary)?;
        Ok(journal)
    }

    /// Opens a journal, and says how far it is.
    ///
    /// # Errors
    /// [`Error::NoRecord`], [`Error::Io`].
    pub fn open(
        medium: &'j dyn Land,
        area: &Range<u64>,
        key: &'j Key,
    ) -> Result<(Self, u64), Error> {
        let mut last: Option<Record> = None;
        for slot in 0..2 {
            let mut bytes = [0; RECORD_BYTES];
            let read = medium.read(&mut bytes, area.start + slot * SLOT);
            read.map_err(Error::io("read the file beside"))?;
            // A record belongs to its slot, and to no other.
            let found = key.open(&bytes).filter(|found| found.sequence % 2 == slot);
            if found.is_some_and(|found| last.is_none_or(|last| found.sequence > last.sequence)) {
                last = found;
            }
        }
        let last = last.ok_or(Error::NoRecord)?;
        let journal = Journal {
            medium,
            start: area.start,
            key,
            sequence: last.sequence,
        };
        Ok((journal, last.boundary))
    }

    /// Writes down how far it is, durably.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, boundary: u64) -> Result<(), Error> {
        let sequence = self.sequence + 1;
        let bytes = self.key.seal(Record { sequence, boundary });
        let at = self.start + sequence % 2 * SLOT;
        self.medium
            .write(&bytes, at)
            .and_then(|()| self.medium.sync())
            .map_err(Error::io("write to the file beside"))?;
        self.sequence = sequence;
        Ok(())
    }

    /// The beginning of the disk, as it was kept.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn head(&self, length: usize) -> Result<Vec<u8>, Error> {
        let mut head = vec![0; length];
        let read = self.medium.read(&mut head, self.start + 2 * SLOT);
        read.map_err(Error::io("read the file beside"))?;
        Ok(head)
    }

    /// Keeps the beginning of the disk, encrypted, durably.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep_head(&self, head: &[u8]) -> Result<(), Error> {
        self.medium
            .write(head, self.start + 2 * SLOT)
            .and_then(|()| self.medium.sync())
            .map_err(Error::io("write to the file beside"))
    }
}
