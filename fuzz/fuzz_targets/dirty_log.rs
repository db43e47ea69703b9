//! The log in which a front end has it marked what was written to its guest's
//! memory: logs of every size, too short ones, and others in their place. (That a
//! session maps them, and real requests mark there, is target `session`'s.)
//!
//! Whatever is written, and wherever: each of its pages is marked in the log that is
//! in place, no other page is, in no log; what has no bit is told; and outside of
//! a log not a byte of its file has changed.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use sealblk::engine::dirty::{DirtyLog, LOG_PAGE, QueueLog};
use sealblk::segment::Segment;
use sealblk::virtio::Memory;
use sealblk_fuzz::source::Source;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend};

/// Regions of guest memory: far apart, next to each other, and the last below the end
/// of what the logs here can have.
const REGIONS: [(u64, usize); 4] = [
    (0x1000, 0x5000),
    (0x6000, 0x3000),
    (0x4_0000, 0x8000),
    (0xf_e000, 0x2000),
];

/// What is around a log in its file.
const MARGIN: usize = 4096;
const CANARY: u8 = 0xc5;

/// One log in a file of its own, and what has to be marked there.
struct Log {
    file: File,
    bytes: usize,
    log: Arc<DirtyLog>,
    expected: Vec<bool>,
}

impl Log {
    fn new(bytes: usize) -> Self {
        let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).expect("a memfd"));
        let margin = vec![CANARY; MARGIN];
        file.write_all_at(&margin, 0).expect("memory");
        let rounded = bytes.next_multiple_of(4096);
        file.write_all_at(&vec![0; bytes], MARGIN as u64)
            .expect("memory");
        let rest = vec![CANARY; rounded - bytes + MARGIN];
        file.write_all_at(&rest, (MARGIN + bytes) as u64)
            .expect("memory");
        let offset = FileOffset::new(file.try_clone().expect("a descriptor"), MARGIN as u64);
        let memory = MmapRegionBuilder::new(bytes)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .with_file_offset(offset)
            .build()
            .expect("room");
        Log {
            file,
            bytes,
            log: Arc::new(DirtyLog::new(memory)),
            expected: vec![false; bytes * 8],
        }
    }

    /// What has to be marked, if there are bits for all of it.
    fn expect(&mut self, address: u64, len: u64, marked: bool) {
        if len == 0 {
            assert!(marked);
            return;
        }
        let end = address.checked_add(len);
        let pages = address / LOG_PAGE..end.unwrap_or(u64::MAX).div_ceil(LOG_PAGE);
        let fits = end.is_some() && pages.end <= self.expected.len() as u64;
        assert_eq!(
            marked, fits,
            "{len} bytes at {address:#x} of {} bytes",
            self.bytes
        );
        if fits {
            pages.for_each(|page| self.expected[page as usize] = true);
        }
    }

    fn check(&self) {
        let mut all = vec![0; self.bytes.next_multiple_of(4096) + 2 * MARGIN];
        self.file.read_exact_at(&mut all, 0).expect("memory");
        let (log, around) = (MARGIN..MARGIN + self.bytes, &all);
        for (page, expected) in self.expected.iter().enumerate() {
            let is = around[log.start + page / 8] & (1 << (page % 8)) != 0;
            assert_eq!(
                is, *expected,
                "page {page} of a log of {} bytes",
                self.bytes
            );
        }
        let outside = around[..log.start].iter().chain(&around[log.end..]);
        assert!(
            outside.copied().all(|byte| byte == CANARY),
            "written outside"
        );
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    let ranges = REGIONS.map(|(start, len)| (GuestAddress(start), len));
    let memory = Memory::from_ranges(&ranges).expect("they do not overlap");
    let mut logs = vec![Log::new(size(&mut source))];
    let mut queue = queue(&logs[0], &mut source);
    let mut at = 0;
    for _ in 0..32 {
        if source.is_empty() {
            break;
        }
        match source.below(8) {
            0..=2 => write(&memory, &queue, &mut logs[at], &mut source),
            3 => scatter(&memory, &queue, &mut logs[at], &mut source),
            4 | 5 => used(&queue, &mut logs[at], &mut source),
            6 => {
                // Another log takes its place; the old one keeps what it has.
                logs.push(Log::new(size(&mut source)));
                at = logs.len() - 1;
                queue = self::queue(&logs[at], &mut source);
            }
            _ => {
                // One that was in place before, once more.
                at = source.below(logs.len());
                queue = self::queue(&logs[at], &mut source);
            }
        }
    }
    logs.iter().for_each(Log::check);
});

/// Bytes of a log: enough for the memory, or rarely too few, or more.
fn size(source: &mut Source<'_>) -> usize {
    source.mostly(32, |source| match source.below(4) {
        0 => 1 + source.below(40),
        1 => 31,
        2 => 4096 + source.below(200),
        _ => 33,
    })
}

fn queue(log: &Log, source: &mut Source<'_>) -> QueueLog {
    let ring = source.mostly(0x4_1000, Source::odd_number);
    QueueLog {
        log: log.log.clone(),
        data: !source.rarely(),
        ring: (!source.rarely()).then_some(ring),
    }
}

/// Somewhere in guest memory.
fn place(source: &mut Source<'_>) -> (u64, usize) {
    let (start, len) = source.pick(&REGIONS);
    let offset = match source.below(4) {
        0 => u64::from(source.u16()) % len as u64,
        1 => len as u64 - 1 - u64::from(source.byte()),
        2 => u64::from(source.byte()),
        _ => u64::from(source.byte() & 7) * LOG_PAGE % len as u64,
    };
    let room = len - offset as usize;
    let len = match source.below(3) {
        0 => usize::from(source.byte()),
        1 => usize::from(source.u16()),
        _ => room,
    };
    (start + offset, len.min(room))
}

/// The device writes `len` bytes, and says so.
fn write(memory: &Memory, queue: &QueueLog, log: &mut Log, source: &mut Source<'_>) {
    let (address, len) = place(source);
    let at = memory
        .get_host_address(GuestAddress(address))
        .expect("it is within a region");
    memory
        .write_slice(&vec![source.byte(); len], GuestAddress(address))
        .expect("there is memory");
    let told = queue.written(memory, at, len).is_ok();
    match queue.data {
        true => log.expect(address, len as u64, told),
        false => assert!(told),
    }
}

/// The same for a scatter list, of which a part was written.
fn scatter(memory: &Memory, queue: &QueueLog, log: &mut Log, source: &mut Source<'_>) {
    let places: Vec<_> = (0..1 + source.below(6)).map(|_| place(source)).collect();
    let list: Vec<Segment> = places
        .iter()
        .map(|(address, len)| {
            let at = memory
                .get_host_address(GuestAddress(*address))
                .expect("as above");
            Segment::new(NonNull::new(at).expect("memory"), *len)
        })
        .collect();
    let total: usize = places.iter().map(|(_, len)| len).sum();
    let offset = usize::from(source.u16()) % (total + 1);
    let len = (total - offset).min(source.mostly(total, |source| source.u16().into()));
    let told = queue.segments_written(memory, &list, (offset, len)).is_ok();
    // The same byte by byte.
    let (mut skip, mut left) = (offset, len);
    for (address, len) in places {
        let here = len.saturating_sub(skip).min(left);
        let start = address + skip.min(len) as u64;
        skip = skip.saturating_sub(len);
        left -= here;
        if here == 0 || !queue.data {
            continue;
        }
        let fits = (start + here as u64).div_ceil(LOG_PAGE) <= log.expected.len() as u64;
        log.expect(start, here as u64, fits);
        if !fits {
            // It ends there, and the whole of it has failed.
            assert!(!told);
            return;
        }
    }
    assert!(told);
}

/// A part of the used ring was written.
fn used(queue: &QueueLog, log: &mut Log, source: &mut Source<'_>) {
    let offset = u64::from(source.u16() & 0x0fff);
    let len = source.pick(&[8, 2, 4, 0]);
    let told = queue.ring_written(offset, len).is_ok();
    match queue.ring {
        // An address that does not exist has no bit.
        Some(ring) if ring.checked_add(offset).is_none() => assert!(!told || len == 0),
        Some(ring) => log.expect(ring + offset, len, told),
        None => assert!(told),
    }
}
