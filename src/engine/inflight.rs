//! What is in flight in one virtqueue, written down in memory that outlives the
//! process: whoever serves the queue next finds there which requests were taken
//! from the ring and not answered, and in what order they came.
//!
//! The front end keeps the memory, and gives it to the next process. It is
//! believed nothing: all of it is read once, when a queue starts, and checked;
//! while the queue runs it is only written to.
//!
//! A process may be killed between any two stores. Why the next one is right all
//! the same:
//!
//! ```text
//! taken     1 counter = n       no trace of it: the request is taken from the ring again
//!           2 inflight = 1      from here on it is found here
//! answered  3 next, last_batch_head = head   it is still in flight: done again
//!           4 used ring: entry, index        the guest has the answer, used_idx
//!           5 inflight = 0                   is behind: last_batch_head is not in flight
//!           6 used_idx = index
//! ```
//!
//! Where the ring goes on follows: what was taken is what was used, and what is
//! in flight. A kill leaves what was stored before it and nothing of what comes
//! after, since stores of one thread are seen in their order (each is a release).
//!
//! Source: vhost-user protocol, "Inflight I/O tracking", split virtqueues.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use vm_memory::MmapRegion;

/// The version of the layout.
const VERSION: u16 = 1;

/// Where the parts of the queues begin: on cache lines of their own.
const ALIGNMENT: usize = 64;

/// `QueueRegionSplit`, but for the entries.
#[repr(C)]
struct Header {
    features: AtomicU64,
    /// 0: nothing was written yet.
    version: AtomicU16,
    /// How many entries there are.
    entries: AtomicU16,
    /// The request that was answered last.
    last_batch_head: AtomicU16,
    /// The used index that the entries are right for.
    used_idx: AtomicU16,
}

/// `DescStateSplit`: what is known of the chain that begins at a descriptor.
#[repr(C)]
struct Entry {
    inflight: AtomicU8,
    _padding: [AtomicU8; 5],
    next: AtomicU16,
    counter: AtomicU64,
}

/// Why what is written there cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Made by something newer than this.
    #[error("it has version {version} and features {features:#x}, of which 1 and none are known")]
    Unknown {
        /// Of the layout.
        version: u16,
        /// Of the layout.
        features: u64,
    },
    /// Not for this ring.
    #[error("it has {entries} entries of {expected}, for a ring of {ring}")]
    Size {
        /// What it says of itself.
        entries: u16,
        /// What the front end says.
        expected: u16,
        /// Descriptors of the ring.
        ring: u16,
    },
    /// More was answered than fits the ring.
    #[error("its used index {written} cannot be followed by {used}, where the ring is")]
    Index {
        /// What it says.
        written: u16,
        /// What the ring says.
        used: u16,
    },
    /// A descriptor that is none, or is neither in flight nor not.
    #[error("it says {state} of descriptor {head}")]
    State {
        /// The descriptor.
        head: u16,
        /// What it should not say.
        state: u8,
    },
    /// The list of what was answered last leads out of it.
    #[error("the list of what was answered last leads to descriptor {0}")]
    List(u16),
}

/// Bytes of the part of one queue.
pub const fn stride(entries: u16) -> usize {
    (size_of::<Header>() + entries as usize * size_of::<Entry>()).next_multiple_of(ALIGNMENT)
}

/// The part of one queue, of which nothing was read yet.
pub struct Part {
    /// Keeps what follows mapped.
    _memory: Arc<MmapRegion>,
    header: NonNull<Header>,
    entries: NonNull<Entry>,
    count: u16,
}

// SAFETY: pointers into the mapping that the value keeps, which is bound to no
// thread. All access is by atomic operations.
unsafe impl Send for Part {}

impl Part {
    /// The part that begins at `offset` of the memory and has `count` entries.
    /// Nothing: there is none, or it is not aligned.
    pub fn new(memory: Arc<MmapRegion>, offset: usize, count: u16) -> Option<Self> {
        let end = offset.checked_add(stride(count))?;
        if end > memory.size() {
            return None;
        }
        // SAFETY: within the mapping.
        let start = unsafe { memory.as_ptr().add(offset) };
        if !(start as usize).is_multiple_of(align_of::<Header>()) {
            return None;
        }
        let header = NonNull::new(start.cast::<Header>())?;
        // SAFETY: the entries follow the header, within the mapping as well.
        let entries = unsafe { header.add(1) }.cast::<Entry>();
        Some(Part {
            _memory: memory,
            header,
            entries,
            count,
        })
    }

    fn header(&self) -> &Header {
        // SAFETY: within the mapping and aligned (`new`); all of it is atomic,
        // for which any bytes are good, whoever else writes to them.
        unsafe { self.header.as_ref() }
    }

    #[inline]
    fn entry(&self, head: u16) -> Option<&Entry> {
        if head >= self.count {
            return None;
        }
        // SAFETY: as for the header; there are `count` entries.
        Some(unsafe { self.entries.add(usize::from(head)).as_ref() })
    }

    /// Looks for what an earlier process has left of a ring with `ring`
    /// descriptors, whose used index is `used`.
    ///
    /// # Errors
    /// When it cannot have been written for this ring. Nobody knows what is in
    /// flight then.
    pub fn recover(self, ring: u16, used: u16) -> Result<Recovered, Fault> {
        let header = self.header();
        let version = header.version.load(Ordering::Acquire);
        if version == 0 && ring <= self.count {
            return Ok(self.begin(used));
        }
        let features = header.features.load(Ordering::Relaxed);
        if version != VERSION || features != 0 {
            return Err(Fault::Unknown { version, features });
        }
        let entries = header.entries.load(Ordering::Relaxed);
        if entries != self.count || ring > self.count {
            return Err(Fault::Size {
                entries,
                expected: self.count,
                ring,
            });
        }
        self.settle(ring, used)?;
        let (mut found, mut counter) = (Vec::new(), 0u64);
        for head in 0..self.count {
            let Some(entry) = self.entry(head) else { break };
            match entry.inflight.load(Ordering::Relaxed) {
                0 => {}
                1 if head < ring => {
                    let at = entry.counter.load(Ordering::Relaxed);
                    counter = counter.max(at.wrapping_add(1));
                    found.push((at, head));
                }
                state => return Err(Fault::State { head, state }),
            }
        }
        found.sort_unstable();
        let unfinished: Vec<u16> = found.into_iter().map(|(_, head)| head).collect();
        let last = header.last_batch_head.load(Ordering::Relaxed);
        Ok(Recovered {
            // No more than there are descriptors in the ring.
            next_avail: Some(used.wrapping_add(unfinished.len() as u16)),
            unfinished,
            tracker: Tracker {
                last,
                counter,
                part: self,
            },
        })
    }

    /// What was answered just before the end is not in flight any more, even if
    /// the end came before that was written.
    fn settle(&self, ring: u16, used: u16) -> Result<(), Fault> {
        let header = self.header();
        let written = header.used_idx.load(Ordering::Relaxed);
        let answered = used.wrapping_sub(written);
        if answered > ring {
            let mut heads = (0..self.count).filter_map(|head| self.entry(head));
            // A ring that was made anew, with nothing left of the old one.
            if heads.any(|entry| entry.inflight.load(Ordering::Relaxed) != 0) {
                return Err(Fault::Index { written, used });
            }
        } else {
            let mut head = header.last_batch_head.load(Ordering::Relaxed);
            for _ in 0..answered {
                let entry = self.entry(head).ok_or(Fault::List(head))?;
                head = entry.next.load(Ordering::Relaxed);
                entry.inflight.put(0);
            }
        }
        header.used_idx.put(used);
        Ok(())
    }

    /// Nothing was written yet.
    fn begin(self, used: u16) -> Recovered {
        for head in 0..self.count {
            if let Some(entry) = self.entry(head) {
                entry.inflight.put(0);
            }
        }
        let header = self.header();
        header.features.put(0);
        header.entries.put(self.count);
        header.last_batch_head.put(0);
        header.used_idx.put(used);
        // Last: until here, it is as if nothing had been written.
        header.version.put(VERSION);
        Recovered {
            unfinished: Vec::new(),
            next_avail: None,
            tracker: Tracker {
                last: 0,
                counter: 0,
                part: self,
            },
        }
    }
}

/// What was found of a queue.
pub struct Recovered {
    /// Heads of the chains that were taken and not answered, oldest first.
    pub unfinished: Vec<u16>,
    /// Which available entry is the next to be taken. Nothing: the front end
    /// alone knows, since the memory is new.
    pub next_avail: Option<u16>,
    /// What writes down what follows.
    pub tracker: Tracker,
}

/// Writes down what is in flight.
pub struct Tracker {
    part: Part,
    /// The request that was answered last.
    last: u16,
    /// The place in the order of the next request.
    counter: u64,
}

impl Tracker {
    /// A chain was taken from the ring. Nothing has come of it yet.
    #[inline]
    pub fn taken(&mut self, head: u16) {
        // A chain that begins outside of the ring cannot be answered, either.
        let Some(entry) = self.part.entry(head) else {
            return;
        };
        entry.counter.put(self.counter);
        entry.inflight.put(1);
        self.counter = self.counter.wrapping_add(1);
    }

    /// A chain is about to be put into the used ring.
    #[inline]
    pub fn answering(&mut self, head: u16) {
        let Some(entry) = self.part.entry(head) else {
            return;
        };
        entry.next.put(self.last);
        self.part.header().last_batch_head.put(head);
        self.last = head;
    }

    /// The chain is in the used ring, whose index is `used` now.
    #[inline]
    pub fn answered(&mut self, head: u16, used: u16) {
        let Some(entry) = self.part.entry(head) else {
            return;
        };
        entry.inflight.put(0);
        self.part.header().used_idx.put(used);
    }
}

/// A store that no earlier one of the same thread comes after, and at both sides
/// of which the tests may end the process.
trait Put<T> {
    fn put(&self, value: T);
}

macro_rules! put {
    ($($atomic:ty: $value:ty),*) => {$(
        impl Put<$value> for $atomic {
            #[inline]
            fn put(&self, value: $value) {
                #[cfg(test)]
                super::inflight_tests::may_end_here();
                self.store(value, Ordering::Release);
                #[cfg(test)]
                super::inflight_tests::may_end_here();
            }
        }
    )*};
}

put!(AtomicU8: u8, AtomicU16: u16, AtomicU64: u64);
