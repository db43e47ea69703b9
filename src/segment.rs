//! Memory that somebody else may change while we look at it.

use std::ptr::NonNull;

/// A contiguous piece of guest memory.
///
/// The guest may write to it at any time, so it is never turned into a
/// reference: all access goes through raw pointers and volatile-tolerant
/// copies, and what was read is trusted only after it has been copied out.
/// Whoever makes a segment guarantees that the mapping behind it lives until
/// the request that it belongs to has completed.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a segment is an address and a length. What may be done with it is
// argued where it is read or written, on whichever thread that happens.
unsafe impl Send for Segment {}

impl Segment {
    /// A segment of `len` bytes at `start`.
    pub fn new(start: NonNull<u8>, len: usize) -> Self {
        Segment { start, len }
    }

    /// The first byte.
    pub fn as_ptr(self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The length in bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}
