//! Memory that files opened with O_DIRECT read into and write from.

use std::hint::black_box;
use std::ops::{Deref, DerefMut};

/// What devices want addresses, offsets and lengths to be multiples of.
pub const ALIGNMENT: usize = 4096;

/// Bytes that start at a multiple of 4096. They are wiped when dropped: a region
/// that is being moved stands there as plaintext for a moment.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// So many zeroes.
    pub fn zeroed(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Buffer {
            bytes,
            start,
            length,
        }
    }

    /// Makes it that long. What is in it then is not defined.
    pub fn set_length(&mut self, length: usize) {
        if length + ALIGNMENT > self.bytes.len() {
            *self = Buffer::zeroed(length);
        }
        self.length = length;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Not byte by byte, as zeroize does it: these are megabytes.
        self.bytes.fill(0);
        black_box(&self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_whatever_its_length_becomes() {
        let mut buffer = Buffer::zeroed(10);
        for length in [0, 1, 512, 5000, 100_000, 4096] {
            buffer.set_length(length);
            assert_eq!(buffer.len(), length);
            assert!(length == 0 || (buffer.as_ptr() as usize).is_multiple_of(ALIGNMENT));
        }
    }
}
