//! Memory for requests: a memfd, so that a vhost-user server can map it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::Result;

/// As many buffers of one size as there are requests in flight.
pub struct Buffers {
    file: OwnedFd,
    start: NonNull<u8>,
    size: usize,
    count: usize,
}

// SAFETY: only addresses are handed out; each buffer belongs to one request
// of one queue at a time.
unsafe impl Send for Buffers {}
// SAFETY: as above.
unsafe impl Sync for Buffers {}

impl Buffers {
    /// Filled with bytes that neither compress nor are zero.
    pub fn new(size: usize, count: usize) -> Result<Buffers> {
        let file = memfd_create("load", MemfdFlags::CLOEXEC)?;
        let len = size * count;
        ftruncate(&file, len as u64)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                &file,
                0,
            )
        }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or("mapped at address 0")?;
        let mut random = 0x1234_5678_9abc_def1u64;
        for at in (0..len).step_by(8) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // SAFETY: `at` is within the mapping, a multiple of 8, and nobody
            // else knows of the memory yet.
            unsafe { start.as_ptr().add(at).cast::<u64>().write(random) };
        }
        Ok(Buffers {
            file,
            start,
            size,
            count,
        })
    }

    pub fn pointer(&self, index: usize) -> *mut u8 {
        assert!(index < self.count);
        // SAFETY: within the mapping, by the line above.
        unsafe { self.start.as_ptr().add(index * self.size) }
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub fn len(&self) -> usize {
        self.size * self.count
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`. Requests are over by now: each
        // queue drains before its buffers go.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len()) };
    }
}
