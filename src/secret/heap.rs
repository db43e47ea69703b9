//! A heap that gives no byte back as it was: what is freed is overwritten.
//!
//! Keys of our own are in secret memory ([`super::Secret`]). What libraries make
//! of them is not: the body of an answer in the buffers of TLS and HTTP, a text
//! in JSON, a key schedule in a box. All of that is freed when a connection or a
//! call has ended, and would stay in the memory of the process until something
//! else happens to be put there.
//!
//! It costs a `memset` for what is freed, and a copy where a block grows. The
//! data path neither allocates nor frees (`tests/no_allocation.rs`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;
use std::ptr;

/// The system's allocator, which gets back zeroes alone.
///
/// What libraries in C allocate by themselves does not come through here.
#[derive(Clone, Copy, Debug, Default)]
pub struct WipingHeap;

/// Overwrites memory that is about to be given up.
///
/// # Safety
/// `len` bytes from `start` on are writable and nobody's.
#[inline]
unsafe fn wipe(start: *mut u8, len: usize) {
    // SAFETY: as the caller vouches.
    unsafe { ptr::write_bytes(start, 0, len) };
    // Stores to memory that is freed next are dead to a compiler, unless
    // somebody may have looked at them.
    // SAFETY: there is no instruction in it.
    unsafe { asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags)) };
}

// SAFETY: all memory comes from the system's allocator and goes back to it with
// the layout that it was asked for with; nothing is touched after that.
unsafe impl GlobalAlloc for WipingHeap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller vouches.
        unsafe { System.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is the caller's until it is given back.
        unsafe {
            wipe(block, layout.size());
            System.dealloc(block, layout);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let old = layout.size();
        if size <= old {
            // What is cut off is wiped; what stays may be moved by the system,
            // which for a smaller size it does not do.
            // SAFETY: that part is the caller's, who gives it up.
            unsafe { wipe(block.add(size), old - size) };
            // SAFETY: as the caller vouches.
            return unsafe { System.realloc(block, layout, size) };
        }
        // The system may move a block and free its old place as it is. So it is
        // moved here.
        // SAFETY: the caller vouches that the size fits the alignment.
        let new = unsafe { System.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: two blocks, of which the smaller has so many bytes; the
            // old one is the caller's until it is given back.
            unsafe {
                ptr::copy_nonoverlapping(block, new, old);
                wipe(block, old);
                System.dealloc(block, layout);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the C library leaves as it was, when a block is freed: all but the
    /// first 16 bytes, in which it keeps its lists. Smaller ones it merges.
    const LISTS: usize = 32;

    /// Has a block with a pattern in it treated by `change`, which frees that
    /// place, and looks at what is there then.
    fn left_behind(change: impl FnOnce(*mut u8, Layout)) -> Vec<u8> {
        // Small enough to be kept for the next who asks, in this thread.
        let layout = Layout::from_size_align(512, 16).unwrap();
        // SAFETY: a block of the asked size. That it is looked at when it has
        // been freed is what this is about: it stays mapped, since the C
        // library keeps blocks of that size, and nobody else in this thread
        // has asked for one in between.
        unsafe {
            let block = WipingHeap.alloc(layout);
            ptr::write_bytes(block, 0xa5, layout.size());
            change(block, layout);
            (LISTS..layout.size())
                .map(|at| ptr::read_volatile(std::hint::black_box(block).add(at)))
                .collect()
        }
    }

    #[test]
    fn what_is_freed_is_wiped() {
        // SAFETY: the block is what the layout says.
        let found = left_behind(|block, layout| unsafe { WipingHeap.dealloc(block, layout) });
        assert!(found.iter().all(|byte| *byte == 0), "{found:02x?}");
        // The system's own heap leaves it, or this shows nothing.
        // SAFETY: as above.
        let found = left_behind(|block, layout| unsafe { System.dealloc(block, layout) });
        assert!(found.contains(&0xa5));
    }

    #[test]
    fn what_grows_leaves_nothing_and_keeps_all() {
        let mut grown = (ptr::null_mut(), 0);
        let found = left_behind(|block, layout| {
            // SAFETY: as above.
            grown = (unsafe { WipingHeap.realloc(block, layout, 9000) }, 9000);
        });
        assert!(found.iter().all(|byte| *byte == 0), "{found:02x?}");
        let layout = Layout::from_size_align(grown.1, 16).unwrap();
        // SAFETY: the block has that size, of which the first bytes are written.
        unsafe {
            let kept = std::slice::from_raw_parts(grown.0, 512);
            assert!(kept.iter().all(|byte| *byte == 0xa5));
            let smaller = WipingHeap.realloc(grown.0, layout, 100);
            let kept = std::slice::from_raw_parts(smaller, 100);
            assert!(kept.iter().all(|byte| *byte == 0xa5));
            WipingHeap.dealloc(smaller, Layout::from_size_align(100, 16).unwrap());
        }
    }

    #[test]
    fn what_is_cut_off_is_wiped() {
        let mut kept = ptr::null_mut();
        let found = left_behind(|block, layout| {
            // SAFETY: as above.
            kept = unsafe { WipingHeap.realloc(block, layout, 100) };
            assert_eq!(kept, block, "it is not moved");
        });
        // The C library writes its own words where the rest begins.
        let rest = &found[128 - LISTS..];
        assert!(rest.iter().all(|byte| *byte != 0xa5), "{found:02x?}");
        // SAFETY: the block has that size now.
        unsafe { WipingHeap.dealloc(kept, Layout::from_size_align(100, 16).unwrap()) };
    }
}
