//! From a descriptor chain to a checked request.
//!
//! The chain is read once, front to back. Afterwards the request's direction,
//! extents and memory are settled, and the guest changing its descriptors
//! changes nothing any more. Any layout of the parts over descriptors is
//! accepted, as VIRTIO 1.3 (2.7.4.3) demands: the first 16 readable bytes are
//! the header, the last writable byte is the status.

use std::ptr::NonNull;

use virtio_bindings::virtio_blk as blk;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory, Permissions};

use super::Memory;
use super::config::MAX_RANGES;
use super::payload;
use crate::segment::Segment;
use crate::units::{SECTOR_BYTES, Sector, SectorSize};

/// The most segments of data that one request may have in our address space.
/// Twice what is announced: a descriptor may span two memory regions.
pub const MAX_SEGMENTS: usize = 256;

/// Bytes of the request header: type, reserved, sector.
const HEADER_BYTES: usize = 16;

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of the disk in 512-byte sectors.
    pub capacity: u64,
    /// Requests must be whole data units.
    pub sector_size: SectorSize,
    /// Whether what writes is refused.
    pub read_only: bool,
    /// Whether DISCARD is offered, and the unmap flag means something.
    pub discard: bool,
}

/// A piece of the disk, within its capacity and made of whole data units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub sector: Sector,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether its space may be given back (WRITE_ZEROES), or shall be (DISCARD).
    pub unmap: bool,
}

/// At most [`MAX_RANGES`] extents, in place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extents {
    list: [Extent; MAX_RANGES],
    count: usize,
}

impl Extents {
    /// One extent alone.
    pub fn one(extent: Extent) -> Self {
        let mut extents = Extents::default();
        extents.push(extent);
        extents
    }

    /// Adds one. The caller has checked that there is room.
    pub(crate) fn push(&mut self, extent: Extent) {
        self.list[self.count] = extent;
        self.count += 1;
    }
}

impl std::ops::Deref for Extents {
    type Target = [Extent];

    fn deref(&self) -> &[Extent] {
        &self.list[..self.count]
    }
}

/// What the guest wants.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// Read the extent into the segments.
    Read(Extent),
    /// Write the segments to the extent.
    Write(Extent),
    /// Make every completed write durable.
    Flush,
    /// The serial number, into the segments.
    GetId,
    /// Give back the space of the extents; they read as zeroes afterwards.
    Discard(Extents),
    /// Make the extents read as zeroes.
    WriteZeroes(Extents),
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Malformed, out of bounds, or not permitted: `VIRTIO_BLK_S_IOERR`.
    IoError,
    /// Not a request of this device: `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

/// How the guest learns the outcome.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The head of the chain, to be returned in the used ring.
    pub head: u16,
    /// The last writable byte. `None` when the chain has none that is mapped.
    status: Option<NonNull<u8>>,
}

// SAFETY: an address in guest memory; `write` argues its use.
unsafe impl Send for Completion {}

impl Completion {
    /// Where the status byte is.
    pub fn status(&self) -> Option<NonNull<u8>> {
        self.status
    }

    /// Writes the status byte, and returns the length for the used ring: the
    /// bytes of data and the status byte; the status byte alone on failure.
    ///
    /// # Safety
    /// The memory that the chain was parsed with is still mapped.
    pub unsafe fn write(&self, outcome: Result<u32, Reject>) -> u32 {
        let (status, data) = match outcome {
            Ok(data) => (blk::VIRTIO_BLK_S_OK, data),
            Err(Reject::IoError) => (blk::VIRTIO_BLK_S_IOERR, 0),
            Err(Reject::Unsupported) => (blk::VIRTIO_BLK_S_UNSUPP, 0),
        };
        let Some(byte) = self.status else { return 0 };
        // SAFETY: the byte lies in guest memory, which the caller keeps mapped.
        // The guest may look at or change it at any time, hence volatile.
        unsafe { byte.as_ptr().write_volatile(status as u8) };
        data + 1
    }
}

/// A chain that was read: what it asks for, and how to answer.
#[derive(Debug)]
pub struct Parsed {
    /// How to answer.
    pub completion: Completion,
    /// The request, or why there is none.
    pub request: Result<Request, Reject>,
}

/// Reads a chain. The data of the request (what a write sends, where a read
/// goes) is left in `segments`, which is emptied first and never grows beyond
/// [`MAX_SEGMENTS`].
pub fn parse(
    chain: DescriptorChain<&Memory>,
    memory: &Memory,
    limits: &Limits,
    segments: &mut Vec<Segment>,
) -> Parsed {
    segments.clear();
    let head = chain.head_index();
    let mut walk = Walk::new(memory, segments);
    for descriptor in chain {
        walk.take(&descriptor);
    }
    let completion = Completion {
        head,
        status: walk.status(),
    };
    let request = walk.finish().and_then(|header| {
        if completion.status.is_none() {
            return Err(Reject::IoError);
        }
        header.check(limits, segments)
    });
    Parsed {
        completion,
        request,
    }
}

/// The header of a request, and how much data came with it.
struct Header {
    kind: u32,
    sector: Sector,
    /// Bytes of data that the guest gives.
    readable: u32,
    /// Bytes of data that the guest takes, the status byte not counted.
    writable: u32,
}

/// The state while descriptors are taken one by one.
struct Walk<'a> {
    memory: &'a Memory,
    segments: &'a mut Vec<Segment>,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    /// Data bytes in readable descriptors, the header not counted.
    readable: u32,
    /// Bytes in writable descriptors, the status byte counted.
    writable: u32,
    last_writable: Option<Descriptor>,
    /// The chain went on after the last descriptor that was seen.
    open_end: bool,
    fault: bool,
}

impl<'a> Walk<'a> {
    fn new(memory: &'a Memory, segments: &'a mut Vec<Segment>) -> Self {
        Walk {
            memory,
            segments,
            header: [0; HEADER_BYTES],
            header_filled: 0,
            readable: 0,
            writable: 0,
            last_writable: None,
            open_end: true,
            fault: false,
        }
    }

    fn take(&mut self, descriptor: &Descriptor) {
        // The iterator ends silently at a loop, at a bad index and at memory
        // that is not there: then the last one it gave still has a successor.
        self.open_end = descriptor.has_next();
        if descriptor.len() == 0 {
            return;
        }
        // Sums of lengths fit: the iterator ends a chain of more than 4 GiB.
        if descriptor.is_write_only() {
            self.writable += descriptor.len();
            if self.readable == 0 {
                self.push(descriptor, 0);
            }
            self.last_writable = Some(*descriptor);
        } else if self.writable > 0 {
            // Readable ones come first (VIRTIO 1.3, 2.7.4.2).
            self.fault = true;
        } else {
            let skip = self.take_header(descriptor);
            if (skip as u32) < descriptor.len() {
                self.readable += descriptor.len() - skip as u32;
                self.push(descriptor, skip);
            }
        }
    }

    /// Moves bytes of the descriptor into the header while it is not full;
    /// returns how many.
    fn take_header(&mut self, descriptor: &Descriptor) -> usize {
        let wanted = HEADER_BYTES - self.header_filled;
        let count = wanted.min(descriptor.len() as usize);
        if count > 0 {
            let part = &mut self.header[self.header_filled..self.header_filled + count];
            if payload::read(self.memory, descriptor.addr(), part).is_err() {
                self.fault = true;
            }
            self.header_filled += count;
        }
        count
    }

    /// Adds the descriptor's memory, from `skip` bytes on, to the segments.
    fn push(&mut self, descriptor: &Descriptor, skip: usize) {
        let count = descriptor.len() as usize - skip;
        let access = match descriptor.is_write_only() {
            true => Permissions::Write,
            false => Permissions::Read,
        };
        let Some(start) = descriptor.addr().0.checked_add(skip as u64) else {
            self.fault = true;
            return;
        };
        let slices = self
            .memory
            .get_slices(vm_memory::GuestAddress(start), count, access);
        let Ok(slices) = slices else {
            self.fault = true;
            return;
        };
        for slice in slices {
            let start = slice
                .as_ref()
                .ok()
                .and_then(|slice| NonNull::new(slice.ptr_guard_mut().as_ptr()));
            match (slice, start) {
                (Ok(slice), Some(start)) if self.segments.len() < MAX_SEGMENTS => {
                    self.segments.push(Segment::new(start, slice.len()));
                }
                _ => {
                    self.fault = true;
                    return;
                }
            }
        }
    }

    /// Where the status byte is: the last byte of the last writable descriptor.
    fn status(&self) -> Option<NonNull<u8>> {
        let last = self.last_writable?;
        let address = last.addr().0.checked_add(u64::from(last.len()) - 1)?;
        let byte = payload::slice(self.memory, vm_memory::GuestAddress(address), 1)?;
        NonNull::new(byte.ptr_guard_mut().as_ptr())
    }

    /// The header, if the chain was well-formed. The status byte is taken off
    /// the segments where they are the writable ones.
    fn finish(self) -> Result<Header, Reject> {
        if self.fault || self.open_end || self.header_filled < HEADER_BYTES || self.writable == 0 {
            return Err(Reject::IoError);
        }
        if self.readable == 0 {
            drop_last_byte(self.segments);
        }
        let [kind, _reserved, low, high] = split_words(&self.header);
        Ok(Header {
            kind,
            sector: Sector(u64::from(high) << 32 | u64::from(low)),
            readable: self.readable,
            writable: self.writable - 1,
        })
    }
}

fn split_words(header: &[u8; HEADER_BYTES]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(header.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

fn drop_last_byte(segments: &mut Vec<Segment>) {
    if let Some(last) = segments.pop()
        && let Some(start) = NonNull::new(last.as_ptr())
        && last.len() > 1
    {
        segments.push(Segment::new(start, last.len() - 1));
    }
}

impl Header {
    /// Checks everything that does not depend on the chain's form.
    fn check(&self, limits: &Limits, segments: &[Segment]) -> Result<Request, Reject> {
        let only_gives = || match self.writable {
            0 => Ok(()),
            _ => Err(Reject::IoError),
        };
        let only_takes = || match self.readable {
            0 => Ok(()),
            _ => Err(Reject::IoError),
        };
        let may_write = || match limits.read_only {
            false => Ok(()),
            true => Err(Reject::IoError),
        };
        match self.kind {
            blk::VIRTIO_BLK_T_IN => {
                only_takes()?;
                limits
                    .extent(self.sector, self.writable.into())
                    .map(Request::Read)
            }
            blk::VIRTIO_BLK_T_OUT => {
                may_write()?;
                only_gives()?;
                limits
                    .extent(self.sector, self.readable.into())
                    .map(Request::Write)
            }
            blk::VIRTIO_BLK_T_FLUSH => {
                // The data and the sector of a flush mean nothing (5.2.6).
                Ok(Request::Flush)
            }
            blk::VIRTIO_BLK_T_GET_ID => {
                only_takes()?;
                match self.writable {
                    0 => Err(Reject::IoError),
                    _ => Ok(Request::GetId),
                }
            }
            blk::VIRTIO_BLK_T_DISCARD if limits.discard => {
                may_write()?;
                only_gives()?;
                payload::ranges(segments, limits, payload::Purpose::Discard).map(Request::Discard)
            }
            blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                may_write()?;
                only_gives()?;
                payload::ranges(segments, limits, payload::Purpose::WriteZeroes)
                    .map(Request::WriteZeroes)
            }
            _ => Err(Reject::Unsupported),
        }
    }
}

impl Limits {
    /// The extent, if it is not empty, on the disk, and whole data units.
    pub(super) fn extent(&self, sector: Sector, bytes: u64) -> Result<Extent, Reject> {
        let unit = self.sector_size.bytes() as u64;
        let end = sector
            .0
            .checked_add(bytes / SECTOR_BYTES)
            .ok_or(Reject::IoError)?;
        if bytes == 0
            || !bytes.is_multiple_of(unit)
            || !sector.0.is_multiple_of(self.sector_size.sectors())
            || end > self.capacity
        {
            return Err(Reject::IoError);
        }
        Ok(Extent {
            sector,
            bytes,
            unmap: false,
        })
    }
}

#[cfg(test)]
mod model_tests;
