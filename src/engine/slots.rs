//! The request slots and operations of one queue: all that is in flight, in
//! tables that are made once.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::time::Instant;

use super::fence::Access;
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

impl Work {
    /// What it does to the units of its extents.
    pub fn access(self) -> Access {
        match self {
            Work::Read => Access::Read,
            Work::Write | Work::Zero | Work::Punch | Work::Sync => Access::Write,
        }
    }
}

impl From<Work> for OpKind {
    fn from(work: Work) -> Self {
        match work {
            Work::Read => OpKind::Read,
            Work::Write | Work::Zero => OpKind::Write,
            Work::Punch => OpKind::Punch,
            Work::Sync => OpKind::Sync,
        }
    }
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
    /// What this pass over the extents is about, in bytes of the disk: nothing
    /// but what the one before left out.
    only: Option<Range<u64>>,
    /// What this pass has left out, since it is being moved, with what lies
    /// between; and the number of the view that closed the first of it.
    left_out: Option<(Range<u64>, u64)>,
    /// What has failed of it, and is to be tried again, with what lies between.
    again: Option<Range<u64>>,
    /// Since when it waits because the disk below fails, now and then on its way.
    pub troubled: Option<Instant>,
    /// Since when it waits for that, among the requests that are parked or not.
    pub parked: Option<Moment>,
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
    /// Where in the data of its extent, in bytes. A request with data has one.
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

    /// Where on the disk, in bytes.
    #[inline]
    pub fn start(&self) -> u64 {
        self.sector.0 * SECTOR_BYTES
    }
}

impl Slot {
    fn free() -> Self {
        Slot {
            completion: None,
            work: Work::Sync,
            segments: Vec::with_capacity(MAX_SEGMENTS),
            extents: Extents::default(),
            next: (0, 0),
            only: None,
            left_out: None,
            again: None,
            troubled: None,
            parked: None,
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
        self.only = None;
        self.left_out = None;
        self.again = None;
        self.failed = None;
        self.fall_back = false;
    }

    /// The next piece that has not been started, of at most `most` bytes.
    #[inline]
    pub fn peek(&self, most: u64) -> Option<Piece> {
        let (index, offset) = self.next;
        let extent = self.extents.get(index)?;
        let mut len = extent.bytes - offset;
        if let Some(only) = &self.only {
            len = len.min(only.end - (extent.sector.0 * SECTOR_BYTES + offset));
        }
        Some(Piece {
            sector: Sector(extent.sector.0 + offset / SECTOR_BYTES),
            data_offset: offset,
            len: len.min(most),
            unmap: extent.unmap,
        })
    }

    /// The first `len` bytes of what `peek` gave have been started.
    #[inline]
    pub fn step(&mut self, len: u64) {
        let (index, offset) = self.next;
        self.next = match self.extents.get(index) {
            Some(extent) if offset + len < extent.bytes => (index, offset + len),
            _ => (index + 1, 0),
        };
        if self.only.is_some() {
            self.seek();
        }
    }

    /// The first `len` bytes of what `peek` gave are left for another pass: the
    /// view of this number closes them.
    pub fn leave_out(&mut self, piece: &Piece, len: u64, era: u64) {
        let (start, end) = (piece.start(), piece.start() + len);
        self.left_out = Some(match self.left_out.take() {
            Some((before, first)) => (before.start.min(start)..before.end.max(end), first),
            None => (start..end, era),
        });
        self.step(len);
    }

    /// Begins anew, with what was left out.
    pub fn begin_pass(&mut self) {
        self.only = self.left_out.take().map(|(range, _)| range);
        self.next = (0, 0);
        self.seek();
    }

    /// A piece has failed, and shall be tried again when nothing else of the
    /// request is in flight. Of one without data, that is all of it.
    pub fn note_again(&mut self, piece: &Piece) {
        let (start, end) = (piece.start(), piece.start() + piece.len);
        self.again = Some(match self.again.take() {
            Some(before) => before.start.min(start)..before.end.max(end),
            None => start..end,
        });
    }

    /// Whether something of it is to be tried again.
    #[inline]
    pub fn has_again(&self) -> bool {
        self.again.is_some()
    }

    /// Begins anew, with what has failed.
    pub fn begin_again(&mut self) {
        self.only = self.again.take();
        self.next = (0, 0);
        self.seek();
    }

    /// Whether all that was left out is closed in the view of this number. If
    /// not, the view has changed while the request waited for a buffer, and
    /// perhaps for the last time.
    pub fn waits_in(&self, era: u64) -> bool {
        self.left_out
            .as_ref()
            .is_some_and(|(_, first)| *first == era)
    }

    /// Steps over what this pass is not about.
    fn seek(&mut self) {
        let Some(only) = &self.only else {
            return;
        };
        let (mut index, mut offset) = self.next;
        while let Some(extent) = self.extents.get(index) {
            let start = extent.sector.0 * SECTOR_BYTES;
            offset = offset.max(only.start.saturating_sub(start));
            if offset < extent.bytes && start + offset < only.end {
                break;
            }
            (index, offset) = (index + 1, 0);
        }
        self.next = (index, offset);
    }

    /// Whether this pass over the extents has come to its end.
    #[inline]
    pub fn is_at_end(&self) -> bool {
        self.failed.is_some() || self.next.0 >= self.extents.len()
    }

    /// Whether something was left out that has to be done yet.
    #[inline]
    pub fn has_left_out(&self) -> bool {
        self.left_out.is_some() && self.failed.is_none()
    }

    /// Whether nothing is left to be started.
    #[inline]
    pub fn is_started(&self) -> bool {
        self.is_at_end() && !self.has_left_out()
    }

    /// Bytes of data that the request has moved, once it is complete.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.bytes).sum()
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

impl OpKind {
    /// What it does to units, if anything.
    pub fn access(self) -> Option<Access> {
        match self {
            OpKind::Read => Some(Access::Read),
            OpKind::Write | OpKind::Punch => Some(Access::Write),
            OpKind::Sync => None,
        }
    }
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
    /// How often it was interrupted, and handed over again.
    pub interrupted: u8,
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

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    /// All that are there, in a time that only the room takes.
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.entries.iter().flatten()
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

    /// How many slots hold a request.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
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

    /// What is closed is left for later, and what lies beyond is not.
    #[test]
    fn what_is_left_out_is_done_in_another_pass_and_nothing_else() {
        let mut slot = Slot::free();
        let mut extents = Extents::one(extent(100, 100 * 512));
        for at in [150, 0, 300, 130] {
            extents.push(extent(at, 50 * 512));
        }
        slot.begin(Work::Zero, extents);
        let mut done = Vec::new();
        // What is closed moves up with each pass, as the boundary does.
        for closed in [120..160u64, 140..180, 160..200, 999..999] {
            while let Some(mut piece) = slot.peek(7 * 512) {
                let first = piece.sector.0;
                if closed.contains(&first) {
                    let len = piece.len.min((closed.end - first) * 512);
                    slot.leave_out(&piece, len, closed.start);
                    continue;
                }
                if first < closed.start {
                    piece.len = piece.len.min((closed.start - first) * 512);
                }
                done.extend((0..piece.len / 512).map(|n| first + n));
                slot.step(piece.len);
            }
            assert!(slot.is_at_end());
            match slot.has_left_out() {
                true => assert!(!slot.is_started() && slot.waits_in(closed.start)),
                false => break,
            }
            slot.begin_pass();
        }
        assert!(slot.is_started());
        let mut expected: Vec<u64> = extents
            .iter()
            .flat_map(|it| it.sector.0..it.sector.0 + it.bytes / 512)
            .collect();
        expected.sort_unstable();
        assert_ne!(done.iter().rev().min(), done.first());
        done.sort_unstable();
        assert_eq!(done, expected);
        // A failure ends it, whatever was left out.
        slot.begin(Work::Zero, extents);
        let piece = slot.peek(512).unwrap();
        slot.leave_out(&piece, 512, 1);
        slot.failed = Some(Reject::IoError);
        assert!(slot.is_started());
    }

    /// What failed is done again, with what lies between and nothing else.
    #[test]
    fn what_has_failed_is_done_again_alone() {
        let mut slot = Slot::free();
        let mut extents = Extents::one(extent(100, 100 * 512));
        extents.push(extent(0, 50 * 512));
        slot.begin(Work::Zero, extents);
        while let Some(piece) = slot.peek(10 * 512) {
            if [120, 140, 30].contains(&piece.sector.0) {
                slot.note_again(&piece);
            }
            slot.step(piece.len);
        }
        assert!(slot.is_started() && slot.has_again());
        slot.begin_again();
        assert!(!slot.has_again() && !slot.is_started());
        let mut done = Vec::new();
        while let Some(piece) = slot.peek(7 * 512) {
            done.extend((0..piece.len / 512).map(|n| piece.sector.0 + n));
            slot.step(piece.len);
        }
        assert_eq!(done, (100..150).chain(30..50).collect::<Vec<_>>());
        assert!(slot.is_started());
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
