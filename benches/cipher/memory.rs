//! Memory that stands for a guest's, or for our buffers.

use std::ptr::NonNull;
use std::slice;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use sealblk::segment::Segment;

/// A mapping of its own that stays for the whole run, and was written to.
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

const HUGE: usize = 2 << 20;

impl Memory {
    /// With huge pages the kernel is asked for them, and else asked for none.
    pub fn new(len: usize, huge: bool) -> Self {
        let read_write = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice, of
        // which `len` bytes follow the next multiple of the huge page's size.
        let start = unsafe {
            let start = mmap_anonymous(
                std::ptr::null_mut(),
                len + HUGE,
                read_write,
                MapFlags::PRIVATE,
            )
            .unwrap();
            start.byte_add(start.align_offset(HUGE))
        };
        let advice = match huge {
            true => Advice::LinuxHugepage,
            false => Advice::LinuxNoHugepage,
        };
        // SAFETY: the range is in that mapping. A kernel without huge pages
        // refuses, and then there are none.
        let _ = unsafe { madvise(start, len, advice) };
        let start = NonNull::new(start.cast()).unwrap();
        let mut memory = Memory { start, len };
        memory.bytes().fill(1);
        memory
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes are mapped for the rest of the run.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// All of it in stretches of `len` bytes, in segments of `piece` bytes.
    pub fn requests(&self, len: usize, piece: usize) -> Vec<Vec<Segment>> {
        (0..self.len / len)
            .map(|index| {
                (index * len..(index + 1) * len)
                    .step_by(piece)
                    // SAFETY: the stretch is inside the memory.
                    .map(|at| Segment::new(unsafe { self.start.add(at) }, piece))
                    .collect()
            })
            .collect()
    }
}
