//! The two slots in which it is recorded how far an operation is.

use std::ops::Range;
use std::sync::Arc;

use super::buffer::{ALIGNMENT, Buffer};
use super::keys::SectorTag;
use super::record::{self, Record, State};
use super::{Direction, Error, Geometry, Keys, Medium, Position};

/// The journal of an operation: all of `area` of a file, in two slots, of which a
/// record with number n has slot n mod 2.
pub struct Journal<M> {
    medium: M,
    start: u64,
    slot: u64,
    unit: u64,
    keys: Arc<Keys>,
    /// The newest record that is durable; 0 before anything is known.
    durable: u64,
    /// The newest number that may be in some record, durable or not.
    used: u64,
    buffer: Buffer,
}

impl<M: Medium> Journal<M> {
    /// The journal in those bytes of a file. Nothing is read or written yet.
    ///
    /// # Errors
    /// When there is no room for it, or keys and geometry are of different disks.
    pub fn new(
        medium: M,
        area: Range<u64>,
        keys: impl Into<Arc<Keys>>,
        geometry: Geometry,
    ) -> Result<Self, Error> {
        let keys: Arc<Keys> = keys.into();
        let block = ALIGNMENT as u64;
        let bytes = area.end.saturating_sub(area.start);
        let slot = (bytes / 2) & !(block - 1);
        if slot == 0 {
            let needed = 2 * block;
            return Err(Error::Small { bytes, needed });
        }
        if !area.start.is_multiple_of(block) {
            return Err(Error::Unfit("its journal does not start at a block"));
        }
        if keys.size() != geometry.size() {
            return Err(Error::Unfit("its keys are of a disk of another size"));
        }
        Ok(Journal {
            medium,
            start: area.start,
            // What a record's length field can say.
            slot: slot.min(1 << 31),
            unit: geometry.unit().bytes() as u64,
            keys,
            durable: 0,
            used: 0,
            buffer: Buffer::zeroed(0),
        })
    }

    /// The most that one record can cover, in bytes.
    pub fn capacity(&self) -> u64 {
        record::most_covered(self.slot)
    }

    /// The keys of the operation.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The number of the newest durable record.
    pub fn sequence(&self) -> u64 {
        self.durable
    }

    /// Begins the journal of a new operation: two records at rest, at the start
    /// of the disk, durable. Does not look at what is there.
    ///
    /// # Errors
    /// When the device fails.
    pub fn create(&mut self) -> Result<State, Error> {
        (self.durable, self.used) = (0, 0);
        self.rest(Position {
            direction: Direction::Forward,
            boundary: 0,
        })
    }

    /// What the newest authentic record says. Nothing is written.
    ///
    /// # Errors
    /// When none is authentic, or says what cannot be; or the device fails.
    pub fn read(&mut self) -> Result<State, Error> {
        self.newest().map(|found| found.record.state)
    }

    /// Two records at rest, one after the other in both slots, each durable.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn rest(&mut self, position: Position) -> Result<State, Error> {
        self.write(position, 0, &[])?;
        self.write(position, 0, &[])
    }

    /// Writes one record into the slot that does not have the newest one, and
    /// makes it durable. `tags` are of what is covered, by their position.
    ///
    /// # Errors
    /// When the device fails. The record before is still there then.
    pub(super) fn write(
        &mut self,
        position: Position,
        covered: u64,
        tags: &[&[SectorTag]],
    ) -> Result<State, Error> {
        // Always into the slot that the newest durable record is not in, and with
        // no number that an attempt which failed may have left somewhere.
        let sequence = if self.used > self.durable {
            self.used + 2
        } else {
            self.durable + 1
        };
        let state = State {
            position,
            covered,
            sequence,
        };
        record::encode(&self.keys, &state, tags, &mut self.buffer);
        self.used = sequence;
        self.store(sequence)?;
        self.durable = sequence;
        Ok(state)
    }

    /// Reads both slots.
    pub(super) fn newest(&mut self) -> Result<Found, Error> {
        let (even, odd) = (self.slot(0)?, self.slot(1)?);
        let (newer, older) = match (even, odd) {
            (Some(even), Some(odd)) if even.state.sequence > odd.state.sequence => {
                (even, Some(odd))
            }
            (even, Some(odd)) => (odd, even),
            (Some(even), None) => (even, None),
            (None, None) => return Err(Error::Unauthentic),
        };
        self.durable = newer.state.sequence;
        // The record after it may have been written, and torn.
        self.used = self.durable + 1;
        Ok(Found {
            older: older.map(|older| older.state),
            record: newer,
        })
    }

    /// Makes sure that both slots durably say what `found` says. What was read
    /// may have been in a cache alone, and the other slot may cover less.
    pub(super) fn secure(&mut self, found: &Found) -> Result<(), Error> {
        let (state, tags) = (found.record.state, &[&found.record.tags[..]]);
        record::encode(&self.keys, &state, tags, &mut self.buffer);
        self.store(state.sequence)?;
        self.write(state.position, state.covered, tags)?;
        Ok(())
    }

    /// Overwrites the journal with zeroes, once the header does not refer to it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wipe(&mut self) -> Result<(), Error> {
        const PIECE: u64 = 1 << 20;
        let length = PIECE.min(self.slot);
        self.buffer.set_length(length as usize);
        self.buffer.fill(0);
        let mut at = 0;
        while at < 2 * self.slot {
            let length = length.min(2 * self.slot - at);
            self.medium
                .write(&self.buffer[..length as usize], self.start + at)
                .map_err(Error::io("overwrite the journal"))?;
            at += length;
        }
        (self.durable, self.used) = (0, 0);
        self.medium
            .sync()
            .map_err(Error::io("make the journal durable"))
    }

    /// Writes the buffer into the slot of that number.
    fn store(&mut self, sequence: u64) -> Result<(), Error> {
        let at = self.start + sequence % 2 * self.slot;
        self.medium
            .write(&self.buffer, at)
            .map_err(Error::io("write the journal"))?;
        self.medium
            .sync()
            .map_err(Error::io("make the journal durable"))
    }

    /// The record in a slot, if it is authentic.
    fn slot(&mut self, number: u64) -> Result<Option<Record>, Error> {
        let at = self.start + number * self.slot;
        let read = Error::io("read the journal");
        self.buffer.set_length(ALIGNMENT);
        self.medium.read(&mut self.buffer, at).map_err(&read)?;
        let Some(length) = record::length_in(&self.buffer, self.slot) else {
            return Ok(None);
        };
        self.buffer.set_length(length.next_multiple_of(ALIGNMENT));
        self.medium.read(&mut self.buffer, at).map_err(&read)?;
        record::decode(&self.keys, self.unit, number, &self.buffer[..length])
    }
}

/// What is in a journal.
#[derive(Debug)]
pub(super) struct Found {
    /// The newest authentic record.
    pub record: Record,
    /// What the other slot has, if that is authentic as well.
    pub older: Option<State>,
}

impl Found {
    /// Whether both slots say the same, and that nothing is under way.
    pub(super) fn is_at_rest(&self) -> bool {
        let state = self.record.state;
        state.covered == 0
            && self
                .older
                .is_some_and(|older| older.covered == 0 && older.position == state.position)
    }
}
