//! Processes that end before or after any store, and others that go on: every
//! request is answered once, and what is done again is done in its order.

#[path = "exhaustive_tests.rs"]
mod exhaustive;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, MmapRegion};

use super::inflight::{Fault, Part, Recovered, stride};
use super::vring::Vring;
use crate::units::SectorSize;
use crate::virtio::{Completion, Limits, Memory};

thread_local! {
    /// How many more times a process may come past a place where it may end.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What a process that ends leaves behind in its own memory: nothing.
struct Killed;

/// Ends the process, as far as a test goes, if its time has come.
pub fn may_end_here() {
    LEFT.with(|left| match left.get() {
        Some(0) => resume_unwind(Box::new(Killed)),
        Some(more) => left.set(Some(more - 1)),
        None => {}
    });
}

/// Runs a process until it ends by itself (true) or at that place.
fn until_killed(places: Option<u32>, process: impl FnOnce()) -> bool {
    LEFT.set(places);
    let ended = catch_unwind(AssertUnwindSafe(process));
    LEFT.set(None);
    match ended {
        Ok(()) => true,
        Err(why) if why.is::<Killed>() => false,
        Err(why) => resume_unwind(why),
    }
}

const RING: u16 = 8;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const STATUS: u64 = 0x4000;

const LIMITS: Limits = Limits {
    capacity: 8,
    sector_size: SectorSize::B512,
    read_only: false,
    discard: false,
};

/// Numbers that look as if by chance.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1);
        (self.0 >> 33) % end
    }
}

/// The guest, and what the front end keeps for it. Both outlive processes.
struct Guest {
    memory: Arc<Memory>,
    kept: Arc<MmapRegion>,
    free: VecDeque<u16>,
    available: u16,
    /// The used index up to which answers were taken.
    seen: u16,
    /// The request of each head that was sent and not answered.
    sent: BTreeMap<u16, u64>,
    requests: u64,
}

impl Guest {
    /// With a ring that has come so far already.
    fn at(index: u16) -> Guest {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x5000)]).unwrap();
        let guest = Guest {
            memory: Arc::new(memory),
            kept: Arc::new(MmapRegion::new(stride(RING)).unwrap()),
            free: (0..RING).collect(),
            available: index,
            seen: index,
            sent: BTreeMap::new(),
            requests: 0,
        };
        for head in 0..u64::from(RING) {
            // One byte that may be written: a request without a header.
            let at = DESCRIPTORS + 16 * head;
            guest.put64(at, STATUS + head);
            guest.put64(at + 8, 1 | 2 << 32);
        }
        guest.put16(AVAILABLE + 2, index);
        guest.put16(USED + 2, index);
        guest
    }

    fn put16(&self, at: u64, value: u16) {
        let at = GuestAddress(at);
        self.memory
            .store(value.to_le(), at, Ordering::SeqCst)
            .unwrap();
    }

    fn put64(&self, at: u64, value: u64) {
        self.memory
            .write_obj(value.to_le(), GuestAddress(at))
            .unwrap();
    }

    fn get16(&self, at: u64) -> u16 {
        let value: u16 = self
            .memory
            .load(GuestAddress(at), Ordering::SeqCst)
            .unwrap();
        u16::from_le(value)
    }

    fn send(&mut self) -> bool {
        let Some(head) = self.free.pop_front() else {
            return false;
        };
        self.sent.insert(head, self.requests);
        self.requests += 1;
        self.put16(AVAILABLE + 4 + 2 * u64::from(self.available % RING), head);
        self.available = self.available.wrapping_add(1);
        self.put16(AVAILABLE + 2, self.available);
        true
    }

    /// Takes all answers; none may be to what was not sent, or was answered.
    fn take_answers(&mut self) {
        let used = self.get16(USED + 2);
        while self.seen != used {
            let head = self.get16(USED + 4 + 8 * u64::from(self.seen % RING));
            assert!(
                self.sent.remove(&head).is_some(),
                "{head} is answered twice"
            );
            self.free.push_back(head);
            self.seen = self.seen.wrapping_add(1);
        }
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(RING).unwrap();
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        let used = self.get16(USED + 2);
        queue.set_next_used(used);
        // All that a front end knows when a server is gone.
        queue.set_next_avail(used);
        queue
    }

    fn recover(&self) -> Result<Recovered, Fault> {
        let part = Part::new(self.kept.clone(), 0, RING).unwrap();
        part.recover(RING, self.get16(USED + 2))
    }

    /// The ring, as the next process finds it.
    fn vring(&self) -> Vring {
        let (mut queue, found) = (self.queue(), self.recover().unwrap());
        if let Some(next) = found.next_avail {
            queue.set_next_avail(next);
        }
        Vring::new(queue, self.memory.clone(), None, None).tracked(found)
    }

    /// What is not answered is found: what was taken, in its order, and behind
    /// that what was not.
    fn check(&mut self) {
        self.take_answers();
        let found = self.recover().unwrap();
        let mut next = found.next_avail.unwrap_or(self.seen);
        let mut heads = found.unfinished;
        while next != self.available {
            assert!(heads.len() <= usize::from(RING), "from {next} on");
            heads.push(self.get16(AVAILABLE + 4 + 2 * u64::from(next % RING)));
            next = next.wrapping_add(1);
        }
        let number = |head| self.sent.get(head).copied();
        let requests: Vec<Option<u64>> = heads.iter().map(number).collect();
        let mut wanted: Vec<u64> = self.sent.values().copied().collect();
        wanted.sort_unstable();
        let wanted: Vec<Option<u64>> = wanted.into_iter().map(Some).collect();
        assert_eq!(requests, wanted, "{heads:?}");
    }
}

/// A process that serves: takes and answers, out of their order, so many times.
fn serve(guest: &mut Guest, dice: &mut Dice, steps: u32) {
    let mut vring = guest.vring();
    let mut taken: Vec<Completion> = Vec::new();
    let mut segments = Vec::new();
    for _ in 0..steps {
        match dice.below(3) {
            0 => _ = guest.send(),
            1 => {
                let parsed = vring.pop(&LIMITS, &mut segments);
                taken.extend(parsed.map(|parsed| parsed.completion));
            }
            _ if !taken.is_empty() => {
                let which = dice.below(taken.len() as u64) as usize;
                vring.push(&taken.remove(which), Ok(0));
                guest.take_answers();
            }
            _ => {}
        }
    }
}

#[test]
fn wherever_a_process_ends_the_next_one_finds_what_is_in_flight() {
    // From where indices wrap, too.
    for (seed, index) in [(1, 0), (2, 65533), (3, 40000), (4, 7)] {
        for place in 0.. {
            let (mut guest, mut dice) = (Guest::at(index), Dice(seed));
            let ended = until_killed(Some(place), || serve(&mut guest, &mut dice, 150));
            guest.check();
            if ended {
                assert!(place > 400, "only {place} places to end at");
                break;
            }
        }
    }
}

#[test]
fn processes_that_end_one_after_the_other_lose_nothing() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let mut guest = Guest::at(dice.below(65536) as u16);
        for _ in 0..60 {
            // Often while it is only finding out what there is to do.
            let places = match dice.below(3) {
                0 => dice.below(12),
                _ => dice.below(150),
            };
            until_killed(Some(places as u32), || serve(&mut guest, &mut dice, 60));
            guest.check();
        }
        // One that lives answers all of it.
        let mut vring = guest.vring();
        let mut segments = Vec::new();
        while let Some(parsed) = vring.pop(&LIMITS, &mut segments) {
            vring.push(&parsed.completion, Ok(0));
        }
        guest.take_answers();
        assert!(guest.sent.is_empty(), "{:?}", guest.sent);
        assert!(!vring.has_work());
    }
}

#[test]
fn what_an_earlier_process_took_is_work_to_be_done() {
    let mut guest = Guest::at(0);
    let mut segments = Vec::new();
    for _ in 0..3 {
        guest.send();
    }
    let mut first = guest.vring();
    while first.pop(&LIMITS, &mut segments).is_some() {}
    drop(first);
    let mut next = guest.vring();
    assert!(next.has_work(), "nothing is new in the ring");
    assert!(next.enable_kicks(), "nobody will kick for them");
    let heads: Vec<_> = std::iter::from_fn(|| next.pop(&LIMITS, &mut segments))
        .map(|parsed| parsed.completion.head)
        .collect();
    assert_eq!(heads, [0, 1, 2]);
    assert!(!next.has_work() && !next.enable_kicks());
}

/// One of its 64 bits a field, as the specification has them.
const VERSION: usize = 8;
const ENTRIES: usize = 10;
const LAST: usize = 12;
const USED_IDX: usize = 14;

fn set16(guest: &Guest, at: usize, value: u16) {
    assert!(at + 2 <= guest.kept.size());
    // SAFETY: within the mapping, and aligned.
    unsafe {
        guest
            .kept
            .as_ptr()
            .add(at)
            .cast::<u16>()
            .write_volatile(value)
    };
}

/// Where the state of that descriptor is.
fn state(head: usize) -> usize {
    16 + 16 * head
}

#[test]
fn what_cannot_be_right_is_refused() {
    type Change = fn(&Guest);
    let cases: [(Change, Fault); 8] = [
        (
            |guest| set16(guest, VERSION, 2),
            Fault::Unknown {
                version: 2,
                features: 0,
            },
        ),
        (
            |guest| set16(guest, 2, 1),
            Fault::Unknown {
                version: 1,
                features: 1 << 16,
            },
        ),
        (
            |guest| set16(guest, ENTRIES, 7),
            Fault::Size {
                entries: 7,
                expected: RING,
                ring: RING,
            },
        ),
        (
            |guest| set16(guest, state(3), 2),
            Fault::State { head: 3, state: 2 },
        ),
        (
            |guest| set16(guest, USED_IDX, 20),
            Fault::Index {
                written: 20,
                used: 10,
            },
        ),
        (
            |guest| {
                set16(guest, USED_IDX, 9);
                set16(guest, LAST, RING);
            },
            Fault::List(RING),
        ),
        (
            |guest| {
                set16(guest, USED_IDX, 8);
                set16(guest, state(1) + 6, 999);
            },
            Fault::List(999),
        ),
        (
            |guest| {
                set16(guest, USED_IDX, 9);
                set16(guest, LAST, u16::MAX);
            },
            Fault::List(u16::MAX),
        ),
    ];
    for (change, fault) in cases {
        let mut guest = Guest::at(8);
        let mut segments = Vec::new();
        for _ in 0..4 {
            guest.send();
        }
        let mut vring = guest.vring();
        for answered in [true, true, false] {
            let parsed = vring.pop(&LIMITS, &mut segments).unwrap();
            if answered {
                vring.push(&parsed.completion, Ok(0));
            }
        }
        drop(vring);
        guest.check();
        change(&guest);
        assert_eq!(guest.recover().err(), Some(fault));
    }
}

#[test]
fn a_ring_of_another_size_is_told_from_one_that_fits() {
    let guest = Guest::at(0);
    let part = || Part::new(guest.kept.clone(), 0, RING).unwrap();
    assert!(
        part().recover(RING * 2, 0).is_err(),
        "before it is written to"
    );
    assert!(part().recover(RING / 2, 0).is_ok());
    assert!(part().recover(RING * 2, 0).is_err());
    set16(&guest, state(5), 1);
    let fault = part().recover(RING / 2, 0).err();
    assert_eq!(fault, Some(Fault::State { head: 5, state: 1 }));
    let found = part().recover(RING, 0).unwrap();
    assert_eq!((found.unfinished, found.next_avail), (vec![5], Some(1)));
    assert!(Part::new(guest.kept.clone(), 0, RING * 64).is_none());
    assert!(Part::new(guest.kept.clone(), 1, 0).is_none());
    assert!(Part::new(guest.kept.clone(), usize::MAX - 7, RING).is_none());
}

/// The front end may keep the memory when its guest makes the ring anew.
#[test]
fn a_ring_that_was_made_anew_goes_on_from_its_own_index() {
    let mut guest = Guest::at(500);
    let mut dice = Dice(7);
    serve(&mut guest, &mut dice, 100);
    let mut vring = guest.vring();
    let mut segments = Vec::new();
    while let Some(parsed) = vring.pop(&LIMITS, &mut segments) {
        vring.push(&parsed.completion, Ok(0));
    }
    let kept = guest.kept;
    guest = Guest::at(0);
    guest.kept = kept;
    guest.send();
    guest.check();
}
