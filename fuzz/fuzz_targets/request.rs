//! Descriptor chains of a guest, out of guest memory into `virtio::parse`.
//!
//! Whatever the guest writes: the parser ends, and what it accepts lies within
//! the disk, is made of whole units, may be done on this disk, and has its
//! data inside the guest's memory, each byte of it once.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sealblk::segment::Segment;
use sealblk::units::SectorSize;
use sealblk::virtio::request::MAX_SEGMENTS;
use sealblk::virtio::{Extent, Limits, Memory, Parsed, Reject, Request, parse};
use sealblk_fuzz::driver::{Driver, Places, put};
use sealblk_fuzz::source::Source;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Where the ring is, and two regions of data that touch each other.
const RING: u64 = 0x1000;
const RING_BYTES: u64 = 0x8000;
const DATA: u64 = 0x10_0000;
const DATA_BYTES: u64 = 0x8000;

static MEMORY: LazyLock<Memory> = LazyLock::new(|| {
    Memory::from_ranges(&[
        (GuestAddress(RING), RING_BYTES as usize),
        (GuestAddress(DATA), DATA_BYTES as usize),
        (GuestAddress(DATA + DATA_BYTES), DATA_BYTES as usize),
    ])
    .expect("three regions that do not overlap")
});

fuzz_target!(|bytes: &[u8]| {
    let memory = &*MEMORY;
    for (start, len) in [(RING, RING_BYTES), (DATA, 2 * DATA_BYTES)] {
        put(memory, start, &vec![0; len as usize]);
    }
    let mut source = Source::new(bytes);
    let flags = source.byte();
    let limits = Limits {
        capacity: source.pick(&[1024, 8, 0, 7, 1 << 40, u64::MAX >> 9, u64::MAX]),
        sector_size: match flags & 1 {
            0 => SectorSize::B512,
            _ => SectorSize::B4096,
        },
        read_only: flags & 6 == 6,
        discard: flags & 8 == 0,
    };
    let size = source.pick(&[16, 256, 4, 1]);
    let data = (DATA, DATA + 2 * DATA_BYTES);
    let places = Places::new(RING, size, data, limits.capacity);
    let mut driver = Driver::new(places);
    if flags & 0xf0 == 0xf0 {
        // No structure at all: the guest's memory is the input.
        let available = source.u16();
        put(memory, RING, source.rest());
        driver.set_available(memory, available);
    } else {
        for _ in 0..8 {
            driver.submit(memory, &mut source);
            if source.is_empty() {
                break;
            }
        }
    }
    take_all(memory, &places, &limits);
});

/// Takes every chain that is available, as a queue thread does.
fn take_all(memory: &Memory, places: &Places, limits: &Limits) {
    let mut queue = Queue::new(places.size).expect("a power of two");
    let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
    let (low, high) = halves(places.descriptors);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(places.available);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(places.used);
    queue.set_used_ring_address(low, high);
    queue.set_ready(true);

    let mut segments = Vec::with_capacity(MAX_SEGMENTS);
    for _ in 0..2 * places.size {
        let Ok(mut chains) = queue.iter(memory) else {
            return;
        };
        let Some(chain) = chains.next() else { return };
        let again = chain.clone();
        let parsed = parse(chain, memory, limits, &mut segments);
        check(&parsed, memory, limits, &segments);
        let first = meaning(&parsed, &segments);
        let parsed = parse(again, memory, limits, &mut segments);
        assert_eq!(first, meaning(&parsed, &segments));
        let len = match parsed.request {
            Ok(_) => 0,
            Err(reject) => {
                // SAFETY: the memory stays mapped.
                unsafe { parsed.completion.write(Err(reject)) }
            }
        };
        assert!(len <= 1);
        if queue.add_used(memory, parsed.completion.head, len).is_err() {
            return;
        }
    }
}

/// Outcome, extents, and addresses of the data, for comparison.
type Meaning = (Result<Vec<Extent>, Reject>, Vec<(usize, usize)>);

fn meaning(parsed: &Parsed, segments: &[Segment]) -> Meaning {
    let extents = parsed.request.map(|request| match request {
        Request::Read(extent) | Request::Write(extent) => vec![extent],
        Request::Discard(extents) | Request::WriteZeroes(extents) => extents.to_vec(),
        Request::Flush | Request::GetId => vec![],
    });
    let segments = segments
        .iter()
        .map(|segment| (segment.as_ptr() as usize, segment.len()));
    (extents, segments.collect())
}

fn check(parsed: &Parsed, memory: &Memory, limits: &Limits, segments: &Vec<Segment>) {
    assert!(segments.len() <= MAX_SEGMENTS);
    assert_eq!(segments.capacity(), MAX_SEGMENTS, "nothing is allocated");
    for segment in segments {
        assert!(!segment.is_empty());
        assert!(is_mapped(memory, segment), "{segment:?} is outside");
    }
    let data: u64 = segments.iter().map(|segment| segment.len() as u64).sum();
    match &parsed.request {
        Ok(Request::Read(extent)) => {
            check_extent(extent, limits);
            assert_eq!(data, extent.bytes);
        }
        Ok(Request::Write(extent)) => {
            assert!(!limits.read_only);
            check_extent(extent, limits);
            assert_eq!(data, extent.bytes);
        }
        Ok(Request::Discard(extents)) => {
            assert!(!limits.read_only && limits.discard);
            assert!(!extents.is_empty());
            extents
                .iter()
                .for_each(|extent| check_extent(extent, limits));
            assert!(extents.iter().all(|extent| extent.unmap));
        }
        Ok(Request::WriteZeroes(extents)) => {
            assert!(!limits.read_only && !extents.is_empty());
            extents
                .iter()
                .for_each(|extent| check_extent(extent, limits));
            assert!(limits.discard || extents.iter().all(|extent| !extent.unmap));
        }
        Ok(Request::GetId) => assert!(data > 0),
        Ok(Request::Flush) | Err(Reject::IoError | Reject::Unsupported) => {}
    }
}

fn check_extent(extent: &Extent, limits: &Limits) {
    let unit = limits.sector_size.bytes() as u64;
    assert!(extent.bytes > 0 && extent.bytes % unit == 0, "{extent:?}");
    assert_eq!(
        extent.sector.0 % limits.sector_size.sectors(),
        0,
        "{extent:?}"
    );
    let end = extent.sector.0.checked_add(extent.bytes / 512);
    assert!(end.is_some_and(|end| end <= limits.capacity), "{extent:?}");
}

/// Whether a segment lies in one region.
fn is_mapped(memory: &Memory, segment: &Segment) -> bool {
    let start = segment.as_ptr() as usize;
    memory.iter().any(|region| {
        let host = memory
            .get_host_address(region.start_addr())
            .expect("a region has its first byte") as usize;
        let end = host + region.len() as usize;
        assert!(region.last_addr().checked_add(1).is_some());
        host <= start && start + segment.len() <= end
    })
}
