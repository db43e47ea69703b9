//! The list of ranges that DISCARD and WRITE_ZEROES carry (VIRTIO 1.3, 5.2.6).

use virtio_bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileSlice};

use super::Memory;
use super::config::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};
use super::request::{Extents, Limits, Reject};
use crate::segment::{Segment, SegmentCursor};
use crate::units::{SECTOR_BYTES, Sector};

/// Bytes of one range: sector (64 bits), number of sectors (32), flags (32).
const RANGE_BYTES: usize = 16;

/// What the ranges are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Discard,
    WriteZeroes,
}

/// Copies `into.len()` bytes out of guest memory.
pub(super) fn read(
    memory: &Memory,
    at: GuestAddress,
    into: &mut [u8],
) -> Result<(), GuestMemoryError> {
    memory.read_slice(into, at)
}

/// A contiguous piece of guest memory, if it is mapped.
pub(super) fn slice(memory: &Memory, at: GuestAddress, len: usize) -> Option<VolatileSlice<'_>> {
    let mut slices = memory.get_slices(at, len, Permissions::Write).ok()?;
    slices.next()?.ok()
}

/// Reads and checks the ranges. They are copied out of the guest's memory
/// once, before any of them is looked at.
pub(super) fn ranges(
    segments: &[Segment],
    limits: &Limits,
    purpose: Purpose,
) -> Result<Extents, Reject> {
    let mut raw = [0; RANGE_BYTES * MAX_RANGES];
    let len: usize = segments.iter().map(|segment| segment.len()).sum();
    if len == 0 || len > raw.len() || !len.is_multiple_of(RANGE_BYTES) {
        return Err(Reject::IoError);
    }
    // SAFETY: the parser has just found the segments to be mapped. The guest
    // may change the bytes meanwhile; any value is checked below.
    unsafe { SegmentCursor::new(segments).copy_to(&mut raw[..len]) };
    let mut extents = Extents::default();
    for range in raw[..len].chunks_exact(RANGE_BYTES) {
        let word = |at: usize| {
            u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]])
        };
        let sector = Sector(u64::from(word(4)) << 32 | u64::from(word(0)));
        let (sectors, flags) = (word(8), word(12));
        let (known_flags, most) = match purpose {
            Purpose::Discard => (0, MAX_DISCARD_SECTORS),
            Purpose::WriteZeroes => (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, MAX_WRITE_ZEROES_SECTORS),
        };
        if flags & !known_flags != 0 {
            return Err(Reject::Unsupported);
        }
        if sectors > most {
            return Err(Reject::IoError);
        }
        let mut extent = limits.extent(sector, u64::from(sectors) * SECTOR_BYTES)?;
        extent.unmap = purpose == Purpose::Discard || (flags != 0 && limits.discard);
        extents.push(extent);
    }
    Ok(extents)
}
