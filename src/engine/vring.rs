//! The device's side of one virtqueue: taking chains, returning them, and
//! telling the driver.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::dirty::{QueueLog, TooShort};
use super::inflight::{Recovered, Tracker};
use super::replay::Replay;
use crate::segment::Segment;
use crate::virtio::{Completion, Limits, Memory, Parsed, Reject, parse};

/// Where the parts of the used ring are (VIRTIO 1.3, 2.7.8), in bytes.
const USED_FLAGS: u64 = 0;
const USED_INDEX: u64 = 2;
const USED_ENTRIES: u64 = 4;
const USED_ENTRY_BYTES: u64 = 8;

/// The driver wants no notifications (without EVENT_IDX).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// A virtqueue that has been set up, with its notification descriptors.
pub struct Vring {
    queue: Queue,
    memory: Arc<Memory>,
    call: Option<File>,
    pub err: Option<File>,
    /// Chains were returned since the driver was last told.
    returned: bool,
    /// The driver broke the rules of the ring: nothing more is taken from it.
    broken: bool,
    /// Where it is written down what is in flight, if the front end keeps that.
    tracker: Option<Tracker>,
    /// What an earlier process has taken and not answered, until all is taken.
    replay: Option<Replay>,
    /// Where it is marked what was written to the guest's memory, while the front
    /// end wants that.
    log: Option<QueueLog>,
}

impl Vring {
    pub fn new(queue: Queue, memory: Arc<Memory>, call: Option<File>, err: Option<File>) -> Self {
        let mut vring = Vring {
            queue,
            memory,
            call: None,
            err,
            returned: false,
            broken: false,
            tracker: None,
            replay: None,
            log: None,
        };
        vring.set_call(call);
        vring
    }

    /// The same ring, whose chains are written down as they come and go. What was
    /// found there of an earlier process is taken first.
    #[must_use]
    pub fn tracked(mut self, found: Recovered) -> Self {
        let Recovered {
            unfinished,
            tracker,
            ..
        } = found;
        self.tracker = Some(tracker);
        if !unfinished.is_empty() {
            match Replay::new(&self.queue, &self.memory, &unfinished) {
                Ok(replay) => self.replay = Some(replay),
                Err(error) => self.break_down(&error),
            }
        }
        self
    }

    /// From now on, what is written to the guest's memory is marked here.
    pub fn set_log(&mut self, log: Option<QueueLog>) {
        self.log = log;
    }

    /// Data was written to a request's segments: so many bytes, from an offset on.
    #[inline]
    pub fn wrote(&mut self, segments: &[Segment], place: (usize, usize)) {
        if let Some(log) = &self.log {
            let logged = log.segments_written(&self.memory, segments, place);
            self.settle_log(logged);
        }
    }

    /// A part of the used ring was written.
    #[inline]
    fn wrote_ring(&mut self, offset: u64, len: u64) {
        if let Some(log) = &self.log {
            let logged = log.ring_written(offset, len);
            self.settle_log(logged);
        }
    }

    /// What could not be logged would be missing on the other host.
    #[cold]
    fn settle_log(&mut self, logged: Result<(), TooShort>) {
        if let Err(error) = logged {
            self.break_down(&error);
        }
    }

    /// Whether what is taken and not answered is written down for the next process.
    pub fn is_tracked(&self) -> bool {
        self.tracker.is_some()
    }

    /// Exchanges the descriptor by which the driver is told. It is told at
    /// once: what was returned while there was none would else be missed.
    pub fn set_call(&mut self, call: Option<File>) {
        self.call = call;
        signal(self.call.as_mut());
    }

    /// The parts, for when the queue is started again.
    pub fn into_parts(self) -> (Queue, Arc<Memory>, Option<File>, Option<File>) {
        (self.queue, self.memory, self.call, self.err)
    }

    /// Takes the next chain, and parses it.
    pub fn pop(&mut self, limits: &Limits, segments: &mut Vec<Segment>) -> Option<Parsed> {
        if self.broken {
            return None;
        }
        if self.replay.is_some()
            && let Some(parsed) = self.pop_again(limits, segments)
        {
            return Some(parsed);
        }
        let memory = &*self.memory;
        let chain = match self.queue.iter(memory) {
            Ok(mut chains) => chains.next()?,
            Err(error) => {
                self.break_down(&error);
                return None;
            }
        };
        if let Some(tracker) = &mut self.tracker {
            tracker.taken(chain.head_index());
        }
        Some(parse(chain, memory, limits, segments))
    }

    /// Takes the next chain of those that an earlier process did not answer. It
    /// is written down as in flight already, at its place in the order.
    #[cold]
    fn pop_again(&mut self, limits: &Limits, segments: &mut Vec<Segment>) -> Option<Parsed> {
        match self.replay.as_mut()?.next() {
            Ok(Some(chain)) => return Some(parse(chain, &self.memory, limits, segments)),
            Ok(None) => {}
            Err(error) => self.break_down(&error),
        }
        self.replay = None;
        None
    }

    /// Answers a request: status byte and used ring.
    pub fn push(&mut self, completion: &Completion, outcome: Result<u32, Reject>) {
        // SAFETY: the chain was parsed with `self.memory`, which is replaced
        // only while the queue is stopped, with no request in flight.
        let len = unsafe { completion.write(outcome) };
        let head = completion.head;
        if let Some(log) = &self.log
            && let Some(status) = completion.status()
        {
            let logged = log.written(&self.memory, status.as_ptr(), 1);
            self.settle_log(logged);
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.answering(head);
        }
        match self.queue.add_used(&*self.memory, head, len) {
            Ok(()) => self.returned = true,
            Err(error) => return self.break_down(&error),
        }
        if self.log.is_some() {
            let before = self.queue.next_used().wrapping_sub(1);
            let entry = u64::from(before % self.queue.size()) * USED_ENTRY_BYTES;
            self.wrote_ring(USED_ENTRIES + entry, USED_ENTRY_BYTES);
            self.wrote_ring(USED_INDEX, 2);
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.answered(head, self.queue.next_used());
        }
    }

    /// Tells the driver, if it wants to know, what has been returned. True when
    /// it was told.
    pub fn notify(&mut self) -> bool {
        if !self.returned {
            return false;
        }
        self.returned = false;
        let wanted = match self.queue.event_idx_enabled() {
            true => self.queue.needs_notification(&*self.memory),
            false => {
                // The used index is written before the flag is read.
                std::sync::atomic::fence(Ordering::SeqCst);
                self.memory
                    .load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
                    .map(|flags| u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
                    .map_err(QueueError::GuestMemory)
            }
        };
        match wanted {
            Ok(true) => signal(self.call.as_mut()),
            Ok(false) => return false,
            Err(error) => {
                self.break_down(&error);
                return false;
            }
        }
        true
    }

    /// Whether chains are waiting. Only a look, for busy polling.
    pub fn has_work(&self) -> bool {
        if self.broken {
            return false;
        }
        let index = self.queue.avail_idx(&*self.memory, Ordering::Relaxed);
        self.replay.is_some() || index.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Asks the driver for kicks. True when chains came in the meantime, so
    /// that none may come for them.
    pub fn enable_kicks(&mut self) -> bool {
        if self.broken {
            return false;
        }
        let enabled = self.queue.enable_notification(&*self.memory);
        self.wrote_notification();
        match enabled {
            Ok(work) => work || self.replay.is_some(),
            Err(error) => {
                self.break_down(&error);
                false
            }
        }
    }

    /// Tells the driver that we are looking anyway.
    pub fn disable_kicks(&mut self) {
        if self.broken {
            return;
        }
        if let Err(error) = self.queue.disable_notification(&*self.memory) {
            self.break_down(&error);
        }
        self.wrote_notification();
    }

    /// The driver was told whether to kick: in the flags, or behind the entries.
    #[inline]
    fn wrote_notification(&mut self) {
        if self.log.is_some() {
            let entries = u64::from(self.queue.size()) * USED_ENTRY_BYTES;
            match self.queue.event_idx_enabled() {
                true => self.wrote_ring(USED_ENTRIES + entries, 2),
                false => self.wrote_ring(USED_FLAGS, 2),
            }
        }
    }

    /// Stops taking chains, and tells the front end (`VHOST_USER_SET_VRING_ERR`).
    pub fn break_down(&mut self, error: &dyn std::error::Error) {
        if !self.broken {
            self.broken = true;
            tracing::error!(
                error = %error,
                "the guest's driver broke the rules of its ring: the queue stops until it is reset"
            );
            signal(self.err.as_mut());
        }
    }
}

/// Adds one to an eventfd. Its counter being full is as good; that nobody
/// listens any more, the session finds out.
fn signal(fd: Option<&mut File>) {
    if let Some(file) = fd {
        let _ = file.write(&1u64.to_ne_bytes());
    }
}
