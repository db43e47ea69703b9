//! A data file that is read and written once, from one end to the other.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroU64;

use rustix::fs::{Advice, fadvise};

use super::Error;
use crate::rekey::Medium;
use crate::shift::Land;

/// A file whose pages nobody needs again: what is written is on its way to the
/// disk at once, while the next is read and transformed, and not before the next
/// sync; and the page cache of the host is left to others.
#[derive(Debug)]
pub struct Eager(File);

impl Eager {
    /// That file once more.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn of(file: &File) -> Result<Self, Error> {
        let copy = file.try_clone();
        copy.map(Eager).map_err(Error::system("duplicate a file"))
    }

    /// Whether it does so makes no difference to what is there.
    fn give_up(&self, offset: u64, length: u64) {
        let _ = fadvise(&self.0, offset, NonZeroU64::new(length), Advice::DontNeed);
    }
}

impl Medium for Eager {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read(buffer, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write(bytes, offset)?;
        // Pages that are dirty are not given up, but written from now on.
        self.give_up(offset, bytes.len() as u64);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()?;
        self.give_up(0, 0);
        Ok(())
    }

    fn data_from(&self, offset: u64, end: u64) -> io::Result<u64> {
        self.0.data_from(offset, end)
    }
}

impl Land for Eager {
    fn give_back(&self, offset: u64, length: u64) -> bool {
        self.0.give_back(offset, length)
    }
}
