//! Requests that touch what is being moved: they wait in their slots, and hold
//! neither a buffer nor an operation meanwhile.
//!
//! Only the part of a request that is closed waits. What lies beyond is done at
//! once: a request for a whole disk would else stay behind what is closed until
//! all of the disk has been moved. What was left out is done when the fence has
//! changed, in the order in which the requests came, but for what is closed
//! again by then, or still; so each waits for two regions at most.
#![forbid(unsafe_code)]

use std::io;

use super::fence::{Access, Cut, Failing};
use super::hold::Gate;
use super::queue::QueueThread;
use super::slots::Piece;
use super::throttle::Lane;
use crate::virtio::Reject;

/// What a pass over a request has achieved.
pub(super) enum Pass {
    /// All has been started.
    Whole,
    /// A part waits for the fence to change.
    Parked,
    /// The fence has changed meanwhile: there is another pass to be made at once.
    Again,
}

impl QueueThread {
    /// Looks at the fence, if it has changed or somebody waits for this queue
    /// to be clear of it. This is the one place where the view changes.
    pub(super) fn follow_fence(&mut self) -> io::Result<()> {
        if self.fence.is_settled() {
            return Ok(());
        }
        let in_flight = self.ops.iter().filter_map(|op| {
            let access = op.kind.access()?;
            Some((access, op.piece.start(), op.piece.len))
        });
        if !self.fence.follow(&self.member, in_flight) {
            return Ok(());
        }
        for _ in 0..self.parked.len() {
            let Some(number) = self.parked.pop_front() else {
                return Ok(());
            };
            self.slots.get(number).begin_pass();
            self.go_on(number)?;
        }
        Ok(())
    }

    /// Shortens a piece to what is open and on one side of the boundary. False
    /// when its beginning is closed: it is left out.
    pub(super) fn cut_at_fence(&mut self, number: u16, piece: &mut Piece) -> bool {
        let slot = self.slots.get(number);
        let view = self.fence.view();
        match view.cut(slot.work.access(), piece.start(), piece.len) {
            Cut::Open(len) => {
                piece.len = len;
                true
            }
            Cut::Closed(len) => {
                slot.leave_out(piece, len, view.era());
                false
            }
            // By a view that is late, it is as well to wait for the newest.
            Cut::Failing(_) if !self.fence.is_settled() => {
                slot.leave_out(piece, piece.len, view.era());
                false
            }
            Cut::Failing(failing) => {
                self.is_in_doubt(number, piece, failing);
                false
            }
        }
    }

    /// Nobody knows how a piece is stored: it is as if the disk below had failed it.
    #[cold]
    fn is_in_doubt(&mut self, number: u16, piece: &Piece, failing: Failing) {
        let kind = self.slots.get(number).work.into();
        let waits = match failing {
            Failing::Below(errno) => self.shall_wait(number, kind, piece, errno),
            Failing::ForGood => false,
        };
        let slot = self.slots.get(number);
        match waits {
            true => slot.step(piece.len),
            false => slot.failed = Some(Reject::IoError),
        }
    }

    /// A pass over a request has ended. What now?
    #[inline]
    pub(super) fn end_pass(&mut self, number: u16) -> Pass {
        let slot = self.slots.get(number);
        if slot.has_left_out() {
            let now = self.meter.now();
            slot.parked.get_or_insert(now);
            if !slot.waits_in(self.fence.view().era()) {
                slot.begin_pass();
                return Pass::Again;
            }
            self.parked.push_back(number);
            return Pass::Parked;
        }
        if let Some(since) = slot.parked {
            slot.parked = None;
            let lane = match slot.work.access() {
                Access::Read => Lane::Read,
                Access::Write => Lane::Write,
            };
            let waited = self.meter.parked(lane, since);
            self.fence.waited(waited / 1000);
        }
        Pass::Whole
    }

    /// A request has failed that may be parked: it waits for nothing any more.
    #[inline]
    pub(super) fn unpark(&mut self, number: u16) {
        let slot = self.slots.get(number);
        if slot.parked.is_some() {
            slot.parked = None;
            self.parked.retain(|parked| *parked != number);
        }
    }

    /// What fails, fails at once: also what waits for a region to open.
    pub(super) fn fail_parked(&mut self) -> io::Result<()> {
        if self.disk.hold().gate() != Gate::Failing {
            return Ok(());
        }
        while let Some(number) = self.parked.pop_front() {
            let slot = self.slots.get(number);
            slot.parked = None;
            slot.failed = Some(Reject::IoError);
            if slot.in_flight == 0 {
                self.conclude(number)?;
            }
        }
        Ok(())
    }
}
