//! Reading what is stored, while somebody else may be writing it.
//!
//! Past the page cache where that is possible, so that a large disk does not
//! drive everything else out of it, and so that what was written past it is
//! seen. No lock is taken: units that look odd are read again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::error::Error;
use crate::volume::next_data_of;

/// What `O_DIRECT` wants addresses, places and lengths to be multiples of, at
/// most.
const ALIGNMENT: usize = 4096;

/// The stored bytes of a disk.
#[derive(Debug)]
pub struct Source {
    file: File,
    path: PathBuf,
    block: bool,
    direct: bool,
    start: u64,
    size: u64,
    unit: usize,
}

/// Memory that can be read into, and is wiped when it goes.
pub struct Buffer {
    bytes: Zeroizing<Vec<u8>>,
    start: usize,
}

impl Buffer {
    /// Room for `length` bytes from any place on.
    pub fn new(length: usize) -> Self {
        let bytes = Zeroizing::new(vec![0; length + 3 * ALIGNMENT]);
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Buffer {
            // An offset that cannot be told costs `O_DIRECT`, and nothing else.
            start: if start < ALIGNMENT { start } else { 0 },
            bytes,
        }
    }

    fn aligned(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

impl Source {
    /// The `size` bytes from `start` on of a file that is open for reading, in
    /// units of `unit` bytes. What is left at the end is a unit as well.
    pub fn new(
        file: &File,
        path: PathBuf,
        block: bool,
        (start, size): (u64, u64),
        unit: usize,
    ) -> Result<Self, Error> {
        let anew = |flags| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            OpenOptions::new().read(true).custom_flags(flags).open(path)
        };
        let (file, direct) = match anew(libc::O_DIRECT) {
            Ok(direct) if readable(&direct) => (Ok(direct), true),
            _ => (file.try_clone(), false),
        };
        let file = file.map_err(|source| Error::read(&path, source))?;
        Ok(Source {
            file,
            path,
            block,
            direct,
            start,
            size,
            unit,
        })
    }

    /// How many units there are.
    pub fn units(&self) -> u64 {
        self.size.div_ceil(self.unit as u64)
    }

    /// Bytes of a unit.
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Whether it is on a block device.
    pub fn is_block(&self) -> bool {
        self.block
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes of `count` units from unit `first` on, or up to the end.
    pub fn read<'b>(
        &self,
        first: u64,
        count: u64,
        buffer: &'b mut Buffer,
    ) -> Result<&'b [u8], Error> {
        let from = first * self.unit as u64;
        let to = (first + count)
            .saturating_mul(self.unit as u64)
            .min(self.size);
        let length = (to.saturating_sub(from)) as usize;
        let place = self.start + from;
        // What lies before it in its block is read as well.
        let before = (place % ALIGNMENT as u64) as usize;
        let whole = (before + length).next_multiple_of(ALIGNMENT);
        let room = &mut buffer.aligned()[..whole];
        self.fill(room, place - before as u64, before + length)?;
        Ok(&room[before..before + length])
    }

    /// Reads until `needed` bytes are there; there may be more.
    fn fill(&self, room: &mut [u8], place: u64, needed: usize) -> Result<(), Error> {
        let mut done = 0;
        while done < needed {
            let read = match self.file.read_at(&mut room[done..], place + done as u64) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|source| Error::read(&self.path, source))?,
            };
            let reached = done + read;
            // Where to go on from must be aligned again.
            let next = match self.direct && reached < needed {
                true => reached - reached % ALIGNMENT,
                false => reached,
            };
            if next == done {
                let source = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(Error::read(&self.path, source));
            }
            done = next;
        }
        Ok(())
    }

    /// How many of `count` units from `first` on lie wholly in holes.
    pub fn holes(&self, first: u64, count: u64) -> Result<u64, Error> {
        let unit = self.unit as u64;
        let end = self.start + ((first + count) * unit).min(self.size);
        let mut place = self.start + first * unit;
        let mut found = 0;
        while place < end {
            let data = self.data_from(place)?;
            let (from, to) = data.map_or((end, end), |(from, to)| (from.min(end), to.min(end)));
            found += match from >= end {
                true => (end - place).div_ceil(unit),
                false => (from - place) / unit,
            };
            // The next unit that no data touches.
            place = self.start + (to - self.start).next_multiple_of(unit);
        }
        Ok(found)
    }

    /// Whether there is nothing but holes in these units.
    pub fn is_hole(&self, first: u64, count: u64) -> Result<bool, Error> {
        let unit = self.unit as u64;
        let end = self.start + ((first + count) * unit).min(self.size);
        let data = self.data_from(self.start + first * unit)?;
        Ok(data.is_none_or(|(from, _)| from >= end))
    }

    fn data_from(&self, place: u64) -> Result<Option<(u64, u64)>, Error> {
        next_data_of(&self.file, self.block, place).map_err(|error| Error::read(&self.path, error))
    }
}

/// Whether reading past the page cache really works there: some file systems
/// open such files and refuse to read.
fn readable(file: &File) -> bool {
    let mut buffer = Buffer::new(ALIGNMENT);
    file.read_at(&mut buffer.aligned()[..ALIGNMENT], 0).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 8192;

    fn source(size: u64, unit: usize, write: &[(u64, u64)]) -> (tempfile::NamedTempFile, Source) {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(START + size).unwrap();
        for &(from, length) in write {
            let bytes: Vec<u8> = (from..from + length).map(|i| (i / 512 + 1) as u8).collect();
            named.as_file().write_all_at(&bytes, START + from).unwrap();
        }
        let path = named.path().to_owned();
        let source = Source::new(named.as_file(), path, false, (START, size), unit).unwrap();
        (named, source)
    }

    #[test]
    fn units_are_read_where_they_are() {
        // Neither the places nor the end are aligned.
        let size = 100 * 512 + 300;
        let (_named, source) = source(size, 512, &[(0, size)]);
        assert_eq!(source.units(), 101);
        let mut buffer = Buffer::new(20 * 512);
        for first in 0..101 {
            let bytes = source.read(first, 20, &mut buffer).unwrap();
            let length = (20 * 512).min(size - first * 512);
            assert_eq!(bytes.len() as u64, length);
            for (index, byte) in bytes.iter().enumerate() {
                assert_eq!(u64::from(*byte), first + index as u64 / 512 + 1);
            }
        }
        let mut buffer = Buffer::new(512);
        assert_eq!(source.read(50, 1, &mut buffer).unwrap(), [51; 512]);
    }

    #[test]
    fn a_file_that_is_shorter_by_now_is_an_error() {
        let (named, source) = source(1 << 20, 512, &[(0, 1 << 20)]);
        named.as_file().set_len(START + (1 << 19)).unwrap();
        let mut buffer = Buffer::new(1 << 20);
        source.read(0, 1024, &mut buffer).unwrap();
        source.read(1, 1024, &mut buffer).unwrap_err();
    }

    #[test]
    fn holes_are_told_from_data() {
        let block = 1 << 16;
        let (named, source) = source(10 * block, 4096, &[(2 * block, block), (9 * block, block)]);
        let mapped = next_data_of(named.as_file(), false, 0).unwrap();
        if mapped == Some((0, START + 10 * block)) {
            // This file system keeps no holes.
            return;
        }
        let units = block / 4096;
        assert!(source.is_hole(0, 2 * units).unwrap());
        assert!(!source.is_hole(0, 2 * units + 1).unwrap());
        assert!(source.is_hole(3 * units, 6 * units).unwrap());
        assert_eq!(source.holes(0, 10 * units).unwrap(), 8 * units);
        assert_eq!(source.holes(2 * units, units).unwrap(), 0);
        assert_eq!(source.holes(units, 3 * units).unwrap(), 2 * units);
    }
}
