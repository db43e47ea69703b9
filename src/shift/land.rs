//! What is moved within.
#![forbid(unsafe_code)]

use std::fs::File;

use rustix::fs::{FallocateFlags, fallocate};

use crate::rekey::Medium;

/// A medium of which parts may be given back.
pub trait Land: Medium {
    /// Makes so many bytes read as zeroes without taking space, if that can be.
    fn give_back(&self, _offset: u64, _length: u64) -> bool {
        false
    }
}

impl Land for File {
    fn give_back(&self, offset: u64, length: u64) -> bool {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(self, punch, offset, length).is_ok()
    }
}
