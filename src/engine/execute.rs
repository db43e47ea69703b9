//! The life of a request, from its parsing to its answer.

use std::io;

use super::hold::Gate;
use super::meter::Meter;
use super::park::Pass;
use super::queue::QueueThread;
use super::slots::{Op, OpKind, Piece, Work};
use super::stats::{Direction, Operation};
use super::throttle::{Cost, Lane};
use super::trouble::AT_ONCE;
use crate::crypt::Transform;
use crate::segment::SegmentCursor;
use crate::store::Block;
use crate::store::arena::{MAX_BLOCK, PAGE};
use crate::units::SECTOR_BYTES;
use crate::virtio::{Extents, Reject, Request};

/// A large piece is halved down to this before it waits for a larger buffer.
const SMALLEST_SPLIT: u64 = 4 * PAGE as u64;

impl QueueThread {
    /// Starts a request that was just parsed into the slot.
    pub(super) fn begin(&mut self, number: u16, request: Request) -> io::Result<()> {
        // Who the disk is takes no key to say.
        if self.disk.hold().gate() == Gate::Failing && !matches!(request, Request::GetId) {
            self.refuse(number);
            return Ok(());
        }
        let slot = self.slots.get(number);
        match request {
            Request::Read(extent) => slot.begin(Work::Read, Extents::one(extent)),
            Request::Write(extent) => slot.begin(Work::Write, Extents::one(extent)),
            Request::WriteZeroes(extents) | Request::Discard(extents) => {
                // What may not be deallocated in one range is written in all.
                let punch = extents.iter().all(|extent| extent.unmap);
                let punch = punch && !self.disk.punch_is_refused();
                slot.begin(if punch { Work::Punch } else { Work::Zero }, extents);
            }
            Request::Flush => {
                slot.begin(Work::Sync, Extents::default());
                if self.disk.limits().read_only {
                    self.answer(number, Ok(0));
                    return Ok(());
                }
            }
            Request::GetId => {
                slot.begin(Work::Sync, Extents::default());
                let mut cursor = SegmentCursor::new(&slot.segments);
                let id = self.disk.serial();
                let len = cursor.remaining().min(id.len());
                // SAFETY: the segments were just found to be mapped, and the
                // memory stays while a request is in flight.
                unsafe { cursor.copy_from(&id[..len]) };
                self.vring.wrote(&self.slots.get(number).segments, (0, len));
                self.answer(number, Ok(len as u32));
                return Ok(());
            }
        }
        match self.is_held_back(number) {
            true => Ok(()),
            false => self.go_on(number),
        }
    }

    /// Whether a request has to wait for the limits of the disk. A flush never
    /// does; space that is given back counts as a request without data.
    fn is_held_back(&mut self, number: u16) -> bool {
        let throttle = self.disk.throttle();
        if !throttle.is_on() && self.gate.is_empty() {
            return false;
        }
        let slot = self.slots.get(number);
        let (lane, moves) = match slot.work {
            Work::Read => (Lane::Read, true),
            Work::Write | Work::Zero => (Lane::Write, true),
            Work::Punch => (Lane::Write, false),
            Work::Sync => return false,
        };
        let bytes = match moves {
            true => slot.extents.iter().map(|extent| extent.bytes).sum(),
            false => 0,
        };
        let now = throttle.now();
        let request = (number, lane, Cost { bytes });
        !self.gate.admit(throttle, request, now)
    }

    /// Starts as much of the request as there is room for. False when
    /// something is left that has to wait.
    pub(super) fn advance(&mut self, number: u16) -> io::Result<bool> {
        if self.slots.get(number).work == Work::Sync {
            return self.start_sync(number);
        }
        loop {
            while !self.slots.get(number).is_at_end() {
                if !self.start_piece(number)? {
                    return Ok(false);
                }
            }
            match self.end_pass(number) {
                Pass::Whole => break,
                Pass::Parked => return Ok(true),
                Pass::Again => {}
            }
        }
        // All of it may have ended before the last piece was started.
        if self.slots.get(number).in_flight == 0 {
            self.conclude(number)?;
        }
        Ok(true)
    }

    fn start_sync(&mut self, number: u16) -> io::Result<bool> {
        if self.disk.sync_has_failed() {
            self.answer(number, Err(Reject::IoError));
            return Ok(true);
        }
        let op = Op {
            slot: number,
            kind: OpKind::Sync,
            piece: Piece::NONE,
            block: None,
            done: 0,
            interrupted: 0,
            started: self.meter.now(),
        };
        let Ok(op) = self.ops.insert(op) else {
            return Ok(false);
        };
        self.slots.get(number).in_flight += 1;
        self.ring.sync(op.into())?;
        Ok(true)
    }

    /// Starts the next piece of a request. False when there is no room.
    fn start_piece(&mut self, number: u16) -> io::Result<bool> {
        if !self.ops.has_room() {
            return Ok(false);
        }
        let slot = self.slots.get(number);
        let work = slot.work;
        let most = match work {
            Work::Punch => u64::MAX,
            _ => MAX_BLOCK as u64,
        };
        let Some(mut piece) = slot.peek(most) else {
            return Ok(true);
        };
        if self.fence.view().is_moving() && !self.cut_at_fence(number, &mut piece) {
            return Ok(true);
        }
        let block = match work {
            Work::Punch => None,
            _ => match self.allocate(&mut piece.len) {
                Ok(Some(block)) => Some(block),
                Ok(None) => return Ok(false),
                Err(error) => {
                    let position = piece.sector.0 * SECTOR_BYTES;
                    self.disk.note_error("taking memory for", position, &error);
                    self.slots.get(number).failed = Some(Reject::IoError);
                    return Ok(true);
                }
            },
        };
        if let Some(block) = &block {
            self.fill_block(number, &piece, block);
        }
        let op = Op {
            slot: number,
            kind: work.into(),
            piece,
            block,
            done: 0,
            interrupted: 0,
            started: self.meter.now(),
        };
        let Ok(op) = self.ops.insert(op) else {
            return Ok(false);
        };
        let slot = self.slots.get(number);
        slot.step(piece.len);
        slot.in_flight += 1;
        self.unsubmitted += piece.len;
        self.submit(op)?;
        Ok(true)
    }

    /// A buffer for the piece, which is shortened where only a smaller one is free.
    fn allocate(&mut self, len: &mut u64) -> io::Result<Option<Block>> {
        loop {
            if let Some(block) = self.ring.allocate(*len as usize)? {
                return Ok(Some(block));
            }
            if *len <= SMALLEST_SPLIT {
                return Ok(None);
            }
            *len = (*len / 2).next_multiple_of(PAGE as u64);
        }
    }

    /// Encrypts what a write sends. A read's block stays as it is.
    fn fill_block(&mut self, number: u16, piece: &Piece, block: &Block) {
        let slot = self.slots.get(number);
        let work = slot.work;
        let transform = self.fence.view().transform(piece.start());
        // SAFETY: the block was just allocated; the kernel does not know it yet.
        let bytes = unsafe { self.ring.arena().bytes(block, piece.len as usize) };
        match work {
            Work::Write => {
                let mut from = SegmentCursor::at(&slot.segments, piece.data_offset as usize);
                transformed(
                    &mut self.meter,
                    transform,
                    Direction::Encrypt,
                    piece,
                    || {
                        // SAFETY: the segments were found to be mapped when the
                        // request was parsed, and the memory stays while it is in
                        // flight. The arena is ours, and never part of guest memory.
                        unsafe { transform.encrypt(piece.sector, &mut from, bytes) }
                    },
                );
            }
            Work::Zero => transformed(
                &mut self.meter,
                transform,
                Direction::Encrypt,
                piece,
                || {
                    transform.encrypt_zeroes(piece.sector, bytes);
                },
            ),
            Work::Read | Work::Punch | Work::Sync => {}
        }
    }

    /// Hands an operation, or what a short one left, to the ring.
    fn submit(&mut self, number: u16) -> io::Result<()> {
        let Some(op) = self.ops.get(number) else {
            return Ok(());
        };
        let offset = op.piece.start();
        let rest = op.piece.len as u32 - op.done.min(op.piece.len as u32);
        match (op.kind, &op.block) {
            (OpKind::Read, Some(block)) => {
                let position = self.disk.store().position(offset) + u64::from(op.done);
                self.ring
                    .read(number.into(), block, op.done, rest, position)
            }
            (OpKind::Write, Some(block)) => {
                let position = self.disk.store().position(offset) + u64::from(op.done);
                self.ring
                    .write(number.into(), block, op.done, rest, position)
            }
            (OpKind::Punch, _) => {
                let position = self.disk.store().position(offset);
                self.ring.punch(number.into(), position, op.piece.len)
            }
            (OpKind::Sync, _) | (_, None) => self.ring.sync(number.into()),
        }
    }

    /// The kernel has ended an operation.
    pub(super) fn operation_done(&mut self, number: u16, result: i32) -> io::Result<()> {
        let unit = self.disk.limits().sector_size.bytes() as u32;
        let Some(op) = self.ops.get(number) else {
            return Ok(());
        };
        if matches!(-result, libc::EAGAIN | libc::EINTR) && op.interrupted < AT_ONCE {
            op.interrupted += 1;
            return self.submit(number);
        }
        let outcome = match op.kind {
            _ if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            OpKind::Read | OpKind::Write => match op.count(result as u32, unit) {
                Count::Whole => Ok(()),
                Count::Short => return self.submit(number),
                Count::None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
            OpKind::Punch | OpKind::Sync => Ok(()),
        };
        let Some(op) = self.ops.remove(number) else {
            return Ok(());
        };
        let refused = |error| op.kind == OpKind::Punch && cannot_punch(error);
        let failed = outcome.as_ref().is_err_and(|error| !refused(error));
        self.meter.operated(op.kind.into(), op.started, failed);
        match outcome {
            Ok(()) => self.operation_succeeded(&op),
            Err(error) => self.operation_failed(&op, &error),
        }
        if let Some(block) = op.block {
            self.ring.arena().release(block);
        }
        let slot = self.slots.get(op.slot);
        slot.in_flight -= 1;
        match slot.in_flight == 0 && slot.is_started() && !self.waiting.contains(&op.slot) {
            true => {
                self.unpark(op.slot);
                self.conclude(op.slot)
            }
            false => Ok(()),
        }
    }

    fn operation_succeeded(&mut self, op: &Op) {
        let (OpKind::Read, Some(block)) = (op.kind, &op.block) else {
            return;
        };
        let slot = self.slots.get(op.slot);
        // SAFETY: the kernel has reported the end of its read into the block.
        let bytes = unsafe { self.ring.arena().bytes(block, op.piece.len as usize) };
        let mut to = SegmentCursor::at(&slot.segments, op.piece.data_offset as usize);
        // The same as when it began: no boundary moves over what is in flight.
        let transform = self.fence.view().transform(op.piece.start());
        transformed(
            &mut self.meter,
            transform,
            Direction::Decrypt,
            &op.piece,
            || {
                // SAFETY: as for encryption in `fill_block`.
                unsafe { transform.decrypt(op.piece.sector, bytes, &mut to) }
            },
        );
        let place = (op.piece.data_offset as usize, op.piece.len as usize);
        self.vring.wrote(&slot.segments, place);
        self.unannounced += op.piece.len;
    }

    fn operation_failed(&mut self, op: &Op, error: &io::Error) {
        if op.kind == OpKind::Punch && cannot_punch(error) {
            self.disk.note_punch_refused();
            self.slots.get(op.slot).fall_back = true;
            return;
        }
        let errno = error.raw_os_error().unwrap_or(0);
        if self.shall_wait(op.slot, op.kind, &op.piece, errno) {
            return;
        }
        let position = op.piece.sector.0 * SECTOR_BYTES;
        let what = match op.kind {
            OpKind::Sync => {
                self.disk.note_sync_failure(error);
                self.slots.get(op.slot).failed = Some(Reject::IoError);
                return;
            }
            OpKind::Punch => "deallocating",
            OpKind::Read => "reading",
            OpKind::Write => "writing",
        };
        self.disk.note_error(what, position, error);
        self.slots.get(op.slot).failed = Some(Reject::IoError);
    }

    /// All operations of the request have ended: what now?
    pub(super) fn conclude(&mut self, number: u16) -> io::Result<()> {
        let durable = !self.disk.write_cache();
        let slot = self.slots.get(number);
        let (work, failed) = (slot.work, slot.failed);
        if let Some(reject) = failed {
            self.answer(number, Err(reject));
            return Ok(());
        }
        if slot.has_again() {
            self.set_aside(number);
            return Ok(());
        }
        if slot.fall_back {
            let extents = slot.extents;
            slot.begin(Work::Zero, extents);
            return self.go_on(number);
        }
        match work {
            Work::Write | Work::Zero | Work::Punch if durable => {
                slot.begin(Work::Sync, Extents::default());
                return self.go_on(number);
            }
            Work::Write | Work::Zero | Work::Punch => self.answer(number, Ok(0)),
            Work::Read => {
                let bytes = slot.bytes() as u32;
                self.answer(number, Ok(bytes));
            }
            // Another queue may have learned meanwhile that data is lost.
            Work::Sync if self.disk.sync_has_failed() => {
                self.answer(number, Err(Reject::IoError));
            }
            Work::Sync => self.answer(number, Ok(0)),
        }
        Ok(())
    }

    /// The first step of a request, or the next one: at once, or behind those
    /// that wait for room already. Nothing is begun on a disk that is stopped, but
    /// what may set it going.
    pub(super) fn go_on(&mut self, number: u16) -> io::Result<()> {
        if self.slots.get(number).troubled.is_some() {
            return self.try_again(number);
        }
        if !self.waiting.is_empty() || self.is_stopped() || !self.advance(number)? {
            self.waiting.push_back(number);
        }
        Ok(())
    }

    /// Fails a request that was not begun.
    pub(super) fn refuse(&mut self, number: u16) {
        self.answer(number, Err(Reject::IoError));
    }

    /// The ring has failed: what is in flight may or may not have reached the
    /// disk, and nobody will learn it any more.
    pub(super) fn fail_all(&mut self) {
        for number in self.slots.taken() {
            self.slots.get(number).in_flight = 0;
            self.answer(number, Err(Reject::IoError));
        }
        self.notify();
    }

    /// Completes a request, successfully with so many bytes of data for the guest.
    pub(super) fn answer(&mut self, number: u16, outcome: Result<u32, Reject>) {
        let slot = self.slots.get(number);
        let account = slot.account;
        if slot.troubled.take().is_some() {
            self.trouble_is_over();
        }
        if let Some(completion) = self.slots.release(number) {
            // First, so that whoever has the answer finds it counted.
            self.meter.answered(&account, outcome.is_ok());
            self.vring.push(&completion, outcome);
        }
    }
}

/// Does the work of a cipher on a piece, and writes down what it cost. To copy
/// plain data is no such work.
#[inline]
fn transformed(
    meter: &mut Meter,
    transform: &Transform,
    direction: Direction,
    piece: &Piece,
    work: impl FnOnce(),
) {
    match transform {
        Transform::Cipher(_) => meter.cipher(direction, piece.len, work),
        Transform::Plain(_) => work(),
    }
}

impl From<OpKind> for Operation {
    fn from(kind: OpKind) -> Self {
        match kind {
            OpKind::Read => Operation::Read,
            OpKind::Write => Operation::Write,
            OpKind::Punch => Operation::Punch,
            OpKind::Sync => Operation::Sync,
        }
    }
}

/// What a read or write has achieved.
enum Count {
    Whole,
    Short,
    None,
}

impl Op {
    /// Adds what the kernel reports to what is done. What is left of a short
    /// operation starts at a whole data unit, as O_DIRECT wants it.
    fn count(&mut self, bytes: u32, unit: u32) -> Count {
        let len = self.piece.len as u32;
        let before = self.done;
        self.done = len.min(before + bytes);
        if self.done == len {
            return Count::Whole;
        }
        self.done -= self.done % unit;
        match self.done > before {
            true => Count::Short,
            false => Count::None,
        }
    }
}

/// Whether deallocating is refused as such, rather than failed.
fn cannot_punch(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        // EINVAL: the device deallocates in larger pieces than this disk has.
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL)
    )
}
