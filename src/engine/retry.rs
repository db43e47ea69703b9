//! Requests that the disk below has failed, and that are tried again: what a
//! queue does with them. See [`trouble`](super::trouble).
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::hold::Gate;
use super::queue::QueueThread;
use super::slots::{OpKind, Piece};
use super::trouble::{FIRST_PAUSE, Failure, LONGEST_PAUSE, Verdict, Work};
use crate::virtio::Reject;

/// The requests of a queue that wait because the disk below fails.
pub(super) struct Retries {
    /// Those of which nothing is in flight, oldest first.
    aside: VecDeque<u16>,
    /// When they are tried next.
    due: Option<Instant>,
    /// The pause before the next time.
    pause: Duration,
    /// How many there are, with those that are being tried.
    count: usize,
    /// The orders that were followed.
    orders: (u64, u64),
}

impl Retries {
    /// None, for a queue of so many slots.
    pub fn new(slots: u16, orders: (u64, u64)) -> Self {
        Retries {
            aside: VecDeque::with_capacity(slots.into()),
            due: None,
            pause: FIRST_PAUSE,
            count: 0,
            orders,
        }
    }

    /// Whether none is to be tried.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.aside.is_empty()
    }

    /// How many wait to be tried.
    pub fn waiting(&self) -> usize {
        self.aside.len()
    }

    /// How many there are, with those that are being tried.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl QueueThread {
    /// Whether nothing is to be begun, since the disk below fails. A queue that
    /// is to stop begins what it has all the same: it may succeed, and else it
    /// fails.
    #[inline]
    pub(super) fn is_stopped(&self) -> bool {
        !self.stopping && self.disk.hold().gate() == Gate::Stopped
    }

    /// A piece of a request has failed, with an errno that is 0 where the file or
    /// device ends. True when the request waits for that to end.
    #[cold]
    pub(super) fn shall_wait(
        &mut self,
        number: u16,
        kind: OpKind,
        piece: &Piece,
        errno: i32,
    ) -> bool {
        let ends = self.stopping && !self.leaves_behind();
        if ends || self.disk.hold().gate() == Gate::Failing {
            return false;
        }
        let slot = self.slots.get(number);
        let waited = slot
            .troubled
            .map_or(Duration::ZERO, |since| since.elapsed());
        let verdict = self.disk.trouble().verdict(kind, errno, waited);
        if verdict == Verdict::Report {
            return false;
        }
        let new = slot.troubled.is_none();
        slot.troubled.get_or_insert_with(Instant::now);
        slot.note_again(piece);
        self.retries.count += usize::from(new);
        self.disk.count_error();
        let failure = Failure {
            operation: Work::from(kind),
            position: piece.start(),
            bytes: piece.len,
            errno,
        };
        let stops = verdict == Verdict::Stop;
        self.disk.trouble().begin(failure, new, stops);
        true
    }

    /// Nothing of a request is in flight any more, and something of it is to be
    /// tried again.
    #[cold]
    pub(super) fn set_aside(&mut self, number: u16) {
        self.retries.aside.push_back(number);
        let pause = self.retries.pause;
        self.retries
            .due
            .get_or_insert_with(|| Instant::now() + pause);
    }

    /// A request that waited is answered.
    #[cold]
    pub(super) fn trouble_is_over(&mut self) {
        self.retries.count = self.retries.count.saturating_sub(1);
        if self.retries.count == 0 {
            self.retries.pause = FIRST_PAUSE;
            self.retries.due = None;
        }
        self.disk.trouble().end();
    }

    /// Tries what waits, if it is time or somebody wants it; or fails it.
    #[cold]
    pub(super) fn look_after_retries(&mut self) -> io::Result<()> {
        let gate = self.disk.hold().gate();
        if gate == Gate::Failing {
            return self.fail_retries();
        }
        if self.stopping {
            return match self.leaves_behind() {
                true => Ok(()),
                false => self.fail_retries(),
            };
        }
        let orders = self.disk.trouble().orders();
        let before = std::mem::replace(&mut self.retries.orders, orders);
        if orders.1 != before.1 {
            return self.fail_retries();
        }
        // Nothing is touched while the key is denied, or a snapshot is taken.
        if gate == Gate::Shut {
            self.retries.orders.0 = before.0;
            return Ok(());
        }
        let is_due = self.retries.due.is_some_and(|due| due <= Instant::now());
        if !is_due && orders.0 == before.0 {
            return Ok(());
        }
        self.retries.due = None;
        self.retries.pause = match orders.0 == before.0 {
            true => LONGEST_PAUSE.min(self.retries.pause * 2),
            // Whoever says so has done something about it.
            false => FIRST_PAUSE,
        };
        for _ in 0..self.retries.aside.len() {
            let Some(number) = self.retries.aside.pop_front() else {
                break;
            };
            self.slots.get(number).begin_again();
            self.try_again(number)?;
        }
        Ok(())
    }

    /// Goes on with a request that waited: before those that have not failed yet.
    pub(super) fn try_again(&mut self, number: u16) -> io::Result<()> {
        if !self.advance(number)? {
            self.waiting.push_front(number);
        }
        Ok(())
    }

    /// Answers what waits.
    fn fail_retries(&mut self) -> io::Result<()> {
        while let Some(number) = self.retries.aside.pop_front() {
            self.answer(number, Err(Reject::IoError));
        }
        Ok(())
    }

    /// When there is something to be tried.
    pub(super) fn retry_due(&self) -> Option<Duration> {
        let waits = self.retries.is_empty() || self.disk.hold().gate() == Gate::Shut;
        let due = self.retries.due.filter(|_| !waits)?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// The next request that waits for room and may go on: on a disk that is
    /// stopped, only what may set it going.
    pub(super) fn next_waiting(&mut self) -> Option<usize> {
        if !self.is_stopped() {
            return (!self.waiting.is_empty()).then_some(0);
        }
        let slots = &mut self.slots;
        let mut waiting = self.waiting.iter();
        waiting.position(|number| slots.get(*number).troubled.is_some())
    }

    /// Whether nothing is at the kernel, and nothing will be before somebody says so:
    /// all that was taken is answered, or waits for the disk below.
    pub(super) fn is_quiet(&self) -> bool {
        self.slots.all_free()
            || (self.ops.is_empty() && self.slots.count() == self.retries.waiting())
    }

    /// Whether what waits is left to whoever starts the ring next: it is written
    /// down as in flight.
    pub(super) fn leaves_behind(&self) -> bool {
        self.leaving && self.vring.is_tracked()
    }

    /// Nobody here waits for the disk below any more.
    pub(super) fn leave_retries(&mut self) {
        for _ in 0..self.retries.count() {
            self.disk.trouble().end();
        }
        self.retries.count = 0;
    }
}
