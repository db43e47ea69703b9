//! The log of a front end in which it is marked what was written to its guest's
//! memory, so that a guest can be moved to another host while it runs.
//!
//! What enters: the log, as the session has mapped it, and what a queue thread has
//! just written. A page is marked *after* it was written: whoever takes a mark away
//! and then copies the page has what was written, or finds the mark again. The mark
//! is set by one atomic instruction that no earlier store passes.
//!
//! A queue thread has its log for itself. It is given another one, or none, between
//! two of its steps, and whoever did that is told when it is so: from then on
//! nothing is written that the new log does not have.
//!
//! Source: vhost-user protocol, "Migration".

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use crate::segment::Segment;
use crate::virtio::Memory;

/// What one bit stands for, whatever pages the guest or the host has.
pub const LOG_PAGE: u64 = 4096;

/// Bytes of guest memory that a byte of the log stands for.
const PER_BYTE: u64 = LOG_PAGE * 8;

/// The log has no bit for what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the front end's log of dirty pages ends below {end:#x}, where the guest's memory goes on")]
pub struct TooShort {
    /// Where what was written ends, in guest physical memory.
    pub end: u64,
}

/// One bit for each page of guest physical memory, from address 0 on.
#[derive(Debug)]
pub struct DirtyLog {
    memory: MmapRegion,
}

impl DirtyLog {
    /// The log that was mapped here.
    pub fn new(memory: MmapRegion) -> Self {
        DirtyLog { memory }
    }

    /// Whether there is a bit for everything below that address.
    pub fn covers(&self, end: u64) -> bool {
        end.div_ceil(PER_BYTE) <= self.memory.size() as u64
    }

    /// Marks the pages of `len` bytes at a guest physical address.
    ///
    /// # Errors
    /// When there are no bits for them. Nothing is marked then.
    pub fn mark(&self, address: u64, len: u64) -> Result<(), TooShort> {
        if len == 0 {
            return Ok(());
        }
        let end = address.saturating_add(len);
        if !self.covers(end) {
            return Err(TooShort { end });
        }
        for page in address / LOG_PAGE..=(end - 1) / LOG_PAGE {
            if let Some(byte) = self.byte(page / 8) {
                byte.fetch_or(1 << (page % 8), Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn byte(&self, at: u64) -> Option<&AtomicU8> {
        let at = usize::try_from(at)
            .ok()
            .filter(|at| *at < self.memory.size())?;
        let byte: NonNull<AtomicU8> = NonNull::new(self.memory.as_ptr().wrapping_add(at))?.cast();
        // SAFETY: within the mapping, which lives as long as `self`. The front end
        // changes it at the same time, by atomic operations as well.
        Some(unsafe { byte.as_ref() })
    }
}

/// What is logged of one queue.
#[derive(Clone, Debug)]
pub struct QueueLog {
    /// Where.
    pub log: Arc<DirtyLog>,
    /// Whether what its requests write is (`VHOST_F_LOG_ALL`).
    pub data: bool,
    /// The address under which its used ring is (`VHOST_VRING_F_LOG`).
    pub ring: Option<u64>,
}

impl QueueLog {
    /// A part of the used ring was written.
    ///
    /// # Errors
    /// As [`DirtyLog::mark`].
    #[cold]
    pub fn ring_written(&self, offset: u64, len: u64) -> Result<(), TooShort> {
        match self.ring {
            Some(ring) => self.log.mark(ring.saturating_add(offset), len),
            None => Ok(()),
        }
    }

    /// `len` bytes of our mapping of `memory` were written.
    ///
    /// # Errors
    /// As [`DirtyLog::mark`].
    #[cold]
    pub fn written(&self, memory: &Memory, at: *const u8, len: usize) -> Result<(), TooShort> {
        if !self.data || len == 0 {
            return Ok(());
        }
        // What was parsed lies within one region, and a region in one mapping.
        let found = memory.iter().find_map(|region| {
            let offset = (at as usize).checked_sub(region.as_ptr() as usize)?;
            let offset = u64::try_from(offset).ok()?;
            (offset < region.len()).then(|| region.start_addr().raw_value() + offset)
        });
        match found {
            Some(address) => self.log.mark(address, len as u64),
            // It was written somewhere, and nobody knows where.
            None => Err(TooShort { end: u64::MAX }),
        }
    }

    /// `len` bytes of a scatter list were written, from `offset` on.
    ///
    /// # Errors
    /// As [`DirtyLog::mark`].
    #[cold]
    pub fn segments_written(
        &self,
        memory: &Memory,
        segments: &[Segment],
        (mut offset, mut len): (usize, usize),
    ) -> Result<(), TooShort> {
        for segment in segments {
            if offset >= segment.len() {
                offset -= segment.len();
                continue;
            }
            let here = len.min(segment.len() - offset);
            let at = segment.as_ptr().wrapping_add(offset);
            self.written(memory, at, here)?;
            len -= here;
            offset = 0;
            if len == 0 {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    fn log(bytes: usize) -> Arc<DirtyLog> {
        Arc::new(DirtyLog::new(MmapRegion::new(bytes).unwrap()))
    }

    fn marked(log: &DirtyLog) -> Vec<u64> {
        let pages = 0..log.memory.size() as u64 * 8;
        let is = |page: &u64| {
            let byte = log.byte(page / 8).unwrap().load(Ordering::SeqCst);
            byte & (1 << (page % 8)) != 0
        };
        pages.filter(is).collect()
    }

    #[test]
    fn all_pages_that_are_touched_are_marked_and_no_others() {
        for (address, len, pages) in [
            (0, 1, vec![0]),
            (4095, 1, vec![0]),
            (4095, 2, vec![0, 1]),
            (4096, 4096, vec![1]),
            (9 * 4096, 0, vec![]),
            (7 * 4096 + 1, 2 * 4096, vec![7, 8, 9]),
            (31 * 4096, 4096, vec![31]),
        ] {
            let log = log(4);
            log.mark(address, len).unwrap();
            assert_eq!(marked(&log), pages, "{len} bytes at {address}");
        }
    }

    #[test]
    fn what_has_no_bit_is_told_and_marks_nothing() {
        let log = log(4);
        let end = 32 * 4096;
        assert!(log.covers(end) && !log.covers(end + 1));
        for (address, len) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (0, u64::MAX)] {
            assert!(log.mark(address, len).is_err(), "{len} bytes at {address}");
        }
        assert!(marked(&log).is_empty());
    }

    /// Two regions that lie one way for the guest, and another way for us.
    #[test]
    fn what_lies_in_our_mapping_is_found_where_the_guest_has_it() {
        let at = [
            (GuestAddress(0x1000), 0x2000),
            (GuestAddress(0x8000), 0x4000),
        ];
        let memory: Memory = GuestMemoryMmap::from_ranges(&at).unwrap();
        let queue = QueueLog {
            log: log(4),
            data: true,
            ring: Some(0x10_000),
        };
        memory.write_obj(1u8, GuestAddress(0x8000)).unwrap();
        let pointer = |address| memory.get_host_address(GuestAddress(address)).unwrap();
        let segment = |address, len| Segment::new(NonNull::new(pointer(address)).unwrap(), len);
        let list = [
            segment(0x1ff0, 0x10),
            segment(0x8ffc, 8),
            segment(0xb000, 5),
        ];
        queue.segments_written(&memory, &list, (0, 0x10)).unwrap();
        assert_eq!(marked(&queue.log), [1]);
        queue.segments_written(&memory, &list, (0x12, 2)).unwrap();
        assert_eq!(marked(&queue.log), [1, 8]);
        queue.segments_written(&memory, &list, (0x13, 6)).unwrap();
        assert_eq!(marked(&queue.log), [1, 8, 9, 11]);
        queue.ring_written(0xfff, 2).unwrap();
        assert_eq!(marked(&queue.log), [1, 8, 9, 11, 16, 17]);
        let mut elsewhere = 0u8;
        assert!(queue.written(&memory, &raw mut elsewhere, 1).is_err());
        let silent = QueueLog {
            data: false,
            ring: None,
            ..queue.clone()
        };
        silent.written(&memory, pointer(0x2000), 1).unwrap();
        silent.ring_written(0x5000, 1).unwrap();
        assert_eq!(marked(&queue.log), [1, 8, 9, 11, 16, 17]);
    }
}
