//! What a request costs beside the cipher and the kernel: taking its chain out
//! of the ring and parsing it, answering it, its slot, its buffer, and writing
//! all that down in the statistics.
//!
//! `cargo bench --bench request_path` prints the time for one request; with
//! `-- count CHAIN TIMES` it runs the whole way of that request so often and
//! prints nothing, for `scripts/bench-ab` to count its instructions; with
//! `-- count CHAIN TIMES tracked` it is also written down as in flight. The
//! chains are those of a Linux guest: a header, segments of 4096 bytes, and a
//! status byte, either in the ring itself or in an indirect table.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use sealblk::engine::inflight::{Part, Tracker, stride};
use sealblk::engine::stats::{Direction, Operation, Stats};
use sealblk::engine::{Account, Meter, Slots, Work};
use sealblk::segment::Segment;
use sealblk::store::Arena;
use sealblk::store::arena::MAX_BLOCK;
use sealblk::units::SectorSize;
use sealblk::virtio::request::MAX_SEGMENTS;
use sealblk::virtio::{Extents, Limits, Memory, Parsed, Reject, Request, parse};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, MmapRegion};

const RING: u64 = 0x1000;
const RING_SIZE: u16 = 256;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const HEADER: u64 = 0x5000;
const DATA: u64 = 0x1_0000;
const PAGE: u64 = 4096;

const LIMITS: Limits = Limits {
    capacity: 1 << 21,
    sector_size: SectorSize::B512,
    read_only: false,
    discard: false,
};

/// A ring in which one and the same request is available again and again.
struct Guest {
    memory: Memory,
    queue: Queue,
    available: u16,
    tracker: Option<Tracker>,
}

impl Guest {
    /// A guest that reads so many pages at once.
    fn new(pages: u64, indirect: bool) -> Self {
        let region = (GuestAddress(0), (DATA + 64 * PAGE) as usize);
        let memory = Memory::from_ranges(&[region]).unwrap();
        let table = if indirect { TABLE } else { RING };
        let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let descriptor = |at: u64, address: u64, len: u64, flags: u16, next: u64| {
            put(at, &address.to_le_bytes());
            put(at + 8, &(len as u32).to_le_bytes());
            put(at + 12, &flags.to_le_bytes());
            put(at + 14, &(next as u16).to_le_bytes());
        };
        // NEXT is 1, WRITE is 2, INDIRECT is 4. Request type 0 reads.
        descriptor(table, HEADER, 16, 1, 1);
        for page in 0..pages {
            let at = table + 16 * (1 + page);
            descriptor(at, DATA + page * PAGE, PAGE, 3, 2 + page);
        }
        descriptor(table + 16 * (1 + pages), HEADER + 64, 1, 2, 0);
        if indirect {
            descriptor(RING, TABLE, 16 * (2 + pages), 4, 0);
        }
        let mut queue = Queue::new(RING_SIZE).unwrap();
        queue.set_desc_table_address(Some(RING as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        Guest {
            memory,
            queue,
            available: 0,
            tracker: None,
        }
    }

    /// The same, with memory in which it is written down what is in flight.
    fn tracked(mut self) -> Self {
        let memory = MmapRegion::new(stride(RING_SIZE)).unwrap();
        let part = Part::new(Arc::new(memory), 0, RING_SIZE).unwrap();
        let found = part.recover(RING_SIZE, 0).unwrap();
        self.tracker = Some(found.tracker);
        self
    }

    /// The next request, as a queue thread takes it.
    fn take(&mut self, segments: &mut Vec<Segment>) -> Parsed {
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(AVAILABLE + 2);
        self.memory.write_obj(self.available, index).unwrap();
        let chain = self.queue.iter(&self.memory).unwrap().next().unwrap();
        if let Some(tracker) = &mut self.tracker {
            tracker.taken(chain.head_index());
        }
        parse(chain, &self.memory, &LIMITS, segments)
    }

    fn answer(&mut self, parsed: &Parsed, outcome: Result<u32, Reject>) {
        let completion = parsed.completion;
        // SAFETY: the memory is still mapped.
        let len = unsafe { completion.write(outcome) };
        let head = completion.head;
        if let Some(tracker) = &mut self.tracker {
            tracker.answering(head);
        }
        self.queue.add_used(&self.memory, head, len).unwrap();
        if let Some(tracker) = &mut self.tracker {
            tracker.answered(head, self.queue.next_used());
        }
    }
}

const CHAINS: [(&str, u64, bool); 4] = [
    ("4k-direct", 1, false),
    ("4k-indirect", 1, true),
    ("128k-direct", 32, false),
    ("128k-indirect", 32, true),
];

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    for (name, pages, indirect) in CHAINS {
        let mut segments = Vec::with_capacity(MAX_SEGMENTS);
        let mut guest = Guest::new(pages, indirect);
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| {
                let parsed = guest.take(&mut segments);
                assert!(matches!(parsed.request, Ok(Request::Read(_))));
                black_box(segments.len())
            });
        });
        let guests = [
            ("parse-and-answer", Guest::new(pages, indirect)),
            (
                "parse-and-answer-tracked",
                Guest::new(pages, indirect).tracked(),
            ),
        ];
        for (what, mut guest) in guests {
            group.bench_function(BenchmarkId::new(what, name), |bencher| {
                bencher.iter(|| {
                    let parsed = guest.take(&mut segments);
                    guest.answer(&parsed, Ok((pages * PAGE) as u32));
                });
            });
        }
    }
    group.finish();
}

/// A request's way through the tables of its queue, cut into pieces as it is
/// given to the kernel.
fn slots(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("slot");
    for (name, pages, indirect) in CHAINS {
        if indirect {
            continue;
        }
        let mut table = Slots::new(RING_SIZE);
        let parsed = Guest::new(pages, indirect).take(&mut Vec::with_capacity(MAX_SEGMENTS));
        let Ok(Request::Read(extent)) = parsed.request else {
            unreachable!("the guest reads");
        };
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                let (number, slot) = table.peek_free().unwrap();
                slot.begin(Work::Read, Extents::one(extent));
                table.take(number, parsed.completion);
                let slot = table.get(number);
                while let Some(piece) = slot.peek(MAX_BLOCK as u64) {
                    slot.step(black_box(piece).len);
                }
                table.release(number)
            });
        });
    }
    group.finish();
}

/// A buffer, in an arena of which every second page is in use.
fn buffers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("buffer");
    for (name, bytes) in [("4k", 4 << 10), ("128k", 128 << 10)] {
        let mut arena = Arena::new(2 << 20).unwrap();
        let half: Vec<_> = (0..256).map(|_| arena.allocate(4 << 10).unwrap()).collect();
        for (index, block) in half.into_iter().enumerate() {
            if index % 2 == 0 {
                arena.release(block);
            } else {
                // In use for as long as the benchmark runs.
                let _ = block;
            }
        }
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let block = arena.allocate(bytes).unwrap();
                arena.release(black_box(block));
            });
        });
    }
    group.finish();
}

/// What is counted of a read that one operation serves, in batches of so many.
fn statistics(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("statistics");
    let memory = sealblk::engine::stats::create(1).unwrap();
    let mut segments = Vec::with_capacity(MAX_SEGMENTS);
    let parsed = Guest::new(1, false).take(&mut segments);
    let request = parsed.request.expect("the guest reads");
    for batch in [1, 8, 32] {
        let stats = Stats::attach(memory.as_fd(), 1).unwrap();
        let mut meter = Meter::new(Arc::new(stats), 0);
        let mut accounts = Vec::with_capacity(batch);
        let name = BenchmarkId::new("4k-read-in-batches", batch);
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for _ in 0..batch {
                    let arrived = meter.taken();
                    let started = meter.now();
                    accounts.push((Account::new(black_box(&request), arrived), started));
                }
                meter.expire();
                for (account, started) in accounts.drain(..) {
                    meter.operated(Operation::Read, started, false);
                    meter.cipher(Direction::Decrypt, PAGE, || {
                        black_box(());
                    });
                    meter.answered(&account, true);
                }
                meter.expire();
            });
        });
    }
    group.finish();
}

/// The way of a read through ring, tables and buffers, so many times. Without
/// statistics: their clock is the kernel's, which callgrind does not map.
fn count(chain: &str, times: u64, tracked: bool) {
    let (_, pages, indirect) = *CHAINS.iter().find(|(name, ..)| *name == chain).unwrap();
    let mut guest = Guest::new(pages, indirect);
    if tracked {
        guest = guest.tracked();
    }
    let mut arena = Arena::new(2 << 20).unwrap();
    let mut table = Slots::new(RING_SIZE);
    for _ in 0..times {
        let (number, slot) = table.peek_free().unwrap();
        let parsed = guest.take(&mut slot.segments);
        let Ok(Request::Read(extent)) = parsed.request else {
            unreachable!("the guest reads");
        };
        slot.begin(Work::Read, Extents::one(extent));
        table.take(number, parsed.completion);
        let slot = table.get(number);
        while let Some(piece) = slot.peek(MAX_BLOCK as u64) {
            let block = arena.allocate(piece.len as usize).unwrap();
            slot.step(piece.len);
            arena.release(black_box(block));
        }
        table.release(number);
        guest.answer(&parsed, Ok((pages * PAGE) as u32));
    }
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, mode, chain, times, rest @ ..] = &words[..]
        && mode == "count"
    {
        let tracked = rest.iter().any(|word| word == "tracked");
        return count(chain, times.parse().unwrap(), tracked);
    }
    let mut criterion = Criterion::default().configure_from_args();
    requests(&mut criterion);
    slots(&mut criterion);
    buffers(&mut criterion);
    statistics(&mut criterion);
    criterion.final_summary();
}
