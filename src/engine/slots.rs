//! The request slots and operations of one queue: all that is in flight, in
//! tables that are made once.
#![forbid(unsafe_code)]

use super::meter::{Account, Moment};
use crate::segment::Segment;
use crate::store::Block;
use crate::units::{SECTOR_BYTES, Sector};
use crate::virtio::request::MAX_SEGMENTS;
use crate::virtio::{Completion, Extents, Reject};

/// What has to be done with the extents of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Read them into the segments.
    Read,
    /// Write the segments to them.
    Write,
    /// Write encrypted zeroes to them.
    Zero,
    /// Deallocate them.
    Punch,
    /// Nothing but an fdatasync.
    Sync,
}

/// A request from its parsing to its completion.
#[derive(Debug)]
pub struct Slot {
    /// How to answer. `None` while the slot is free.
    pub completion: Option<Completion>,
    /// What is being done.
    pub work: Work,
    /// The data in guest memory.
    pub segments: Vec<Segment>,
    /// Where on the disk.
    pub extents: Extents,
    /// The extent that the next piece comes from, and the bytes of it that
    /// have been started.
    next: (usize, u64),
    /// Bytes of data that have been started, over all extents.
    started: u64,
    /// Operations that have not ended.
    pub in_flight: u32,
    /// For the statistics, once it is answered.
    pub account: Account,
    /// Why the request fails, once it is known.
    pub failed: Option<Reject>,
    /// The file system cannot deallocate: do it again with zeroes.
    pub fall_back: bool,
}

/// A part of a request that one operation handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where on the disk.
    pub sector: Sector,
    /// Where in the data of the request, in bytes.
    pub data_offset: u64,
    /// How long, in bytes. Never zero.
    pub len: u64,
    /// Whether it may be, or shall be, deallocated.
    pub unmap: bool,
}

impl Piece {
    /// No part of any data: for an operation that has none.
    pub const NONE: Piece = Piece {
        sector: Sector(0),
        data_offset: 0,
        len: 0,
        unmap: false,
    };
}

impl Slot {
    fn free() -> Self {
        Slot {
            completion: None,
            work: Work::Sync,
            segments: Vec::with_capacity(MAX_SEGMENTS),
            extents: Extents::default(),
            next: (0, 0),
            started: 0,
            in_flight: 0,
            account: Account::NONE,
            failed: None,
            fall_back: false,
        }
    }

    /// Begins at the first extent.
    pub fn begin(&mut self, work: Work, extents: Extents) {
        self.work = work;
        self.extents = extents;
        self.next = (0, 0);
        self.started = 0;
        self.failed = None;
        self.fall_back = false;
    }

    /// The next piece that has not been started, of at most `most` bytes.
    pub fn peek(&self, most: u64) -> Option<Piece> {
        let (index, offset) = self.next;
        let extent = self.extents.get(index)?;
        Some(Piece {
            sector: Sector(extent.sector.0 + offset / SECTOR_BYTES),
            data_offset: self.started,
            len: (extent.bytes - offset).min(most),
            unmap: extent.unmap,
        })
    }

    /// The first `len` bytes of what `peek` gave have been started.
    pub fn step(&mut self, len: u64) {
        let (index, offset) = self.next;
        self.started += len;
        self.next = match self.extents.get(index) {
            Some(extent) if offset + len < extent.bytes => (index, offset + len),
            _ => (index + 1, 0),
        };
    }

    /// Whether nothing is left to be started.
    pub fn is_started(&self) -> bool {
        self.failed.is_some() || self.next.0 >= self.extents.len()
    }

    /// Bytes of data that the request has moved, once it is complete.
    pub fn bytes(&self) -> u64 {
        self.started
    }
}

/// What the kernel was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Read into the block.
    Read,
    /// Write from the block.
    Write,
    /// Deallocate.
    Punch,
    /// Make durable.
    Sync,
}

/// An operation that the kernel is working on.
#[derive(Debug)]
pub struct Op {
    /// The request that it belongs to.
    pub slot: u16,
    /// What it does.
    pub kind: OpKind,
    /// The part of the request.
    pub piece: Piece,
    /// The buffer of a read or a write.
    pub block: Option<Block>,
    /// Bytes that are done, after a short read or write.
    pub done: u32,
    /// When it was handed over.
    pub started: Moment,
}

/// A fixed number of things that are taken and given back by number.
pub struct Table<T> {
    entries: Vec<Option<T>>,
    free: Vec<u16>,
}

impl<T> Table<T> {
    /// Room for `count`.
    pub fn new(count: u16) -> Self {
        Table {
            entries: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Puts one in, and gives its number; gives it back when there is no room.
    pub fn insert(&mut self, entry: T) -> Result<u16, T> {
        match self.free.pop() {
            Some(number) => {
                self.entries[usize::from(number)] = Some(entry);
                Ok(number)
            }
            None => Err(entry),
        }
    }

    /// The one with this number.
    pub fn get(&mut self, number: u16) -> Option<&mut T> {
        self.entries.get_mut(usize::from(number))?.as_mut()
    }

    /// Takes out the one with this number.
    pub fn remove(&mut self, number: u16) -> Option<T> {
        let entry = self.entries.get_mut(usize::from(number))?.take()?;
        self.free.push(number);
        Some(entry)
    }
}

/// The slots of a queue. A slot keeps its segment list when it is free.
pub struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
}

impl Slots {
    /// As many slots as the ring has descriptors.
    pub fn new(count: u16) -> Self {
        Slots {
            slots: (0..count).map(|_| Slot::free()).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// A free slot, which stays free until it is [taken](Slots::take).
    pub fn peek_free(&mut self) -> Option<(u16, &mut Slot)> {
        let number = *self.free.last()?;
        Some((number, &mut self.slots[usize::from(number)]))
    }

    /// Takes the slot that [`Slots::peek_free`] gave.
    pub fn take(&mut self, number: u16, completion: Completion) {
        debug_assert_eq!(self.free.last(), Some(&number));
        self.free.pop();
        self.get(number).completion = Some(completion);
    }

    /// A slot by number.
    pub fn get(&mut self, number: u16) -> &mut Slot {
        &mut self.slots[usize::from(number)]
    }

    /// The numbers of the slots that hold a request.
    pub fn taken(&self) -> Vec<u16> {
        (0..self.slots.len() as u16)
            .filter(|number| self.slots[usize::from(*number)].completion.is_some())
            .collect()
    }

    /// Frees a slot, and gives what is needed to answer the guest.
    pub fn release(&mut self, number: u16) -> Option<Completion> {
        let slot = self.get(number);
        debug_assert_eq!(
            slot.in_flight, 0,
            "a request completes after its operations"
        );
        let completion = slot.completion.take()?;
        self.free.push(number);
        Some(completion)
    }

    /// Whether no request is in a slot.
    pub fn all_free(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::Extent;

    fn extent(sector: u64, bytes: u64) -> Extent {
        Extent {
            sector: Sector(sector),
            bytes,
            unmap: false,
        }
    }

    #[test]
    fn a_request_is_cut_into_pieces_that_cover_it_once() {
        let mut slot = Slot::free();
        slot.begin(Work::Read, Extents::one(extent(100, 10 * 512)));
        let mut covered = Vec::new();
        while let Some(piece) = slot.peek(4 * 512) {
            assert_eq!(piece.data_offset, (piece.sector.0 - 100) * 512);
            covered.extend((0..piece.len / 512).map(|n| piece.sector.0 + n));
            assert!(!slot.is_started());
            slot.step(piece.len);
        }
        assert!(slot.is_started());
        assert_eq!(covered, (100..110).collect::<Vec<_>>());
        assert_eq!(slot.bytes(), 10 * 512);
    }

    #[test]
    fn a_table_gives_each_number_once() {
        let mut table = Table::new(2);
        let (a, b) = (table.insert('a').unwrap(), table.insert('b').unwrap());
        assert_ne!(a, b);
        assert!(!table.has_room());
        assert_eq!(table.insert('c'), Err('c'));
        assert_eq!(table.remove(a), Some('a'));
        assert_eq!(table.remove(a), None);
        assert_eq!(table.get(b), Some(&mut 'b'));
        assert!(table.has_room());
    }
}
