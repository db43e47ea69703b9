//! Whether there is anything on a device that a new volume would destroy.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::SeekFrom;
use serde::Serialize;

use super::device::{Access, Device};
use super::error::Error;
use super::luks2::HeaderIo as _;
use super::signatures::{At, MD_MAGIC, MD_WHAT, SIGNATURES, Signature, md_at_end};
use crate::units::{Bytes, SECTOR_BYTES};

/// How much of the start of a large block device is searched for data. All
/// header and superblock places of [`SIGNATURES`] are in it.
pub const HEAD: u64 = 32 << 20;
/// How much of the end of a large block device is searched for data.
pub const TAIL: u64 = 4 << 20;

const CHUNK: usize = 1 << 20;

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Occupant {
    /// What it is, with its article.
    pub what: String,
    /// Where, in bytes from the start.
    pub offset: u64,
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {})", self.what, self.offset)
    }
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Searched {
    /// Every byte.
    Everything,
    /// The first 32 MiB and the last 4 MiB of a block device.
    Ends,
}

impl fmt::Display for Searched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Searched::Everything => f.write_str("all of it"),
            Searched::Ends => write!(f, "the first {} and the last {}", Bytes(HEAD), Bytes(TAIL)),
        }
    }
}

/// A file or block device of which nothing is known: it is looked at without
/// a lock, and nothing is written.
#[derive(Debug)]
pub struct Bare(Device);

impl Bare {
    /// Opens it for reading.
    ///
    /// # Errors
    /// When it cannot be opened, or is neither of both.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Device::open(path, Access::ReadOnly).map(Bare)
    }

    /// What it is, if it has a well-known signature.
    ///
    /// # Errors
    /// When reading fails.
    pub fn recognise(&self) -> Result<Option<Occupant>, Error> {
        recognise(&self.0)
    }

    /// The length in bytes.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn length(&self) -> Result<u64, Error> {
        self.0.len()
    }

    /// The open file.
    pub fn file(&self) -> &File {
        self.0.file()
    }

    /// Whether it is a block device.
    pub fn is_block(&self) -> bool {
        self.0.is_block()
    }

    /// Whether somebody has it open just now, as sealblk and QEMU do.
    ///
    /// # Errors
    /// When the file system has no locks.
    pub fn in_use(&self) -> Result<bool, Error> {
        super::lock::in_use(self.0.file()).map_err(|error| self.0.error("ask for locks of", error))
    }
}

/// Looks for a well-known signature.
///
/// # Errors
/// When reading fails.
pub fn recognise(device: &Device) -> Result<Option<Occupant>, Error> {
    let length = device.len()?;
    let md = md_at_end(length).into_iter().flatten();
    let md = md.map(|offset| (MD_WHAT, offset, MD_MAGIC));
    first_of(device, places(SIGNATURES, length).chain(md))
}

/// Looks for the signature of a format that a disk can be inside of: what is
/// stored is then not what a guest would see.
///
/// # Errors
/// When reading fails.
pub fn recognise_container(device: &Device) -> Result<Option<Occupant>, Error> {
    let containers = SIGNATURES.iter().filter(|signature| signature.container);
    first_of(device, places(containers, device.len()?))
}

/// What is to be looked for, and where, on a device of that length.
fn places<'s>(
    signatures: impl IntoIterator<Item = &'s Signature>,
    length: u64,
) -> impl Iterator<Item = (&'static str, u64, &'static [u8])> {
    signatures.into_iter().filter_map(move |signature| {
        let offset = match signature.at {
            At::Start(offset) => Some(offset),
            At::End(before) => length.checked_sub(before),
        };
        offset.map(|offset| (signature.what, offset, signature.bytes))
    })
}

fn first_of(
    device: &Device,
    places: impl Iterator<Item = (&'static str, u64, &'static [u8])>,
) -> Result<Option<Occupant>, Error> {
    for (what, offset, bytes) in places {
        let mut there = vec![0; bytes.len()];
        let count = device.file().read_at(&mut there, offset);
        if count.map_err(|error| device.error("read", error))? == bytes.len() && there == bytes {
            return Ok(Some(Occupant {
                what: what.into(),
                offset,
            }));
        }
    }
    Ok(None)
}

/// Looks for anything at all: a signature, or else any byte that is not
/// zero. Of a regular file everything is searched, skipping its holes; of a
/// large block device both ends.
///
/// # Errors
/// When reading fails.
pub fn search(device: &Device) -> Result<(Option<Occupant>, Searched), Error> {
    let length = device.len()?;
    let (ranges, searched) = match device.is_block() && length > HEAD + TAIL {
        true => (vec![(0, HEAD), (length - TAIL, length)], Searched::Ends),
        false => (vec![(0, length)], Searched::Everything),
    };
    if let Some(found) = recognise(device)? {
        return Ok((Some(found), searched));
    }
    for (from, to) in ranges {
        let found = first_nonzero(device, from, to);
        if let Some(offset) = found.map_err(|error| device.error("read", error))? {
            let what = "data that is not zero".into();
            return Ok((Some(Occupant { what, offset }), searched));
        }
    }
    Ok((None, searched))
}

fn first_nonzero(device: &Device, from: u64, to: u64) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; CHUNK];
    let mut position = from;
    while position < to {
        let (start, end) = match next_data(device, position)? {
            Some((start, end)) => (start.min(to), end.min(to)),
            None => return Ok(None),
        };
        position = start;
        while position < end {
            let length = CHUNK.min((end - position) as usize);
            let count = device.file().read_at(&mut buffer[..length], position)?;
            if count == 0 {
                return Ok(None);
            }
            if let Some(index) = buffer[..count].iter().position(|&byte| byte != 0) {
                return Ok(Some(position + index as u64));
            }
            position += count as u64;
        }
    }
    Ok(None)
}

/// How many bytes from `from` to `to` are in sectors that have something else
/// than zeroes.
pub fn data_between(device: &Device, from: u64, to: u64) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let (mut position, mut found) = (from, 0);
    while position < to {
        let Some((start, end)) = next_data(device, position)? else {
            break;
        };
        let end = end.min(to);
        position = start;
        while position < end {
            let length = CHUNK.min((end - position) as usize);
            let count = device.file().read_at(&mut buffer[..length], position)?;
            if count == 0 {
                return Ok(found);
            }
            let sectors = buffer[..count].chunks(SECTOR_BYTES as usize);
            let used = sectors.filter(|sector| sector.iter().any(|&byte| byte != 0));
            found += used.map(|sector| sector.len() as u64).sum::<u64>();
            position += count as u64;
        }
    }
    Ok(found)
}

/// The next range that is not a hole, at or after `position`.
fn next_data(device: &Device, position: u64) -> io::Result<Option<(u64, u64)>> {
    next_data_of(device.file(), device.is_block(), position)
}

/// The next range of a file that is not a hole, at or after `position`. A
/// `block` device has none that it would tell.
///
/// # Errors
/// As the system says.
pub fn next_data_of(file: &File, block: bool, position: u64) -> io::Result<Option<(u64, u64)>> {
    let everything = Ok(Some((position, u64::MAX)));
    if block {
        return everything;
    }
    match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Ok(start) => {
            let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
            // A file that somebody truncates meanwhile must not stop progress.
            Ok((end > start).then_some((start, end)))
        }
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => everything,
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    const LENGTH: u64 = 64 << 20;

    fn device(write: &[(u64, &[u8])]) -> Device {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(LENGTH).unwrap();
        for (offset, bytes) in write {
            named.as_file().write_all_at(bytes, *offset).unwrap();
        }
        Device::open(named.path(), Access::ReadOnly).unwrap()
    }

    #[test]
    fn an_empty_file_is_free() {
        let (found, searched) = search(&device(&[])).unwrap();
        assert_eq!((found, searched), (None, Searched::Everything));
    }

    #[test]
    fn allocated_zeroes_are_free() {
        let zeroes = vec![0; 3 << 20];
        assert_eq!(search(&device(&[(5 << 20, &zeroes)])).unwrap().0, None);
    }

    #[test]
    fn every_signature_is_found_where_it_is() {
        for signature in SIGNATURES {
            let offset = match signature.at {
                At::Start(offset) => offset,
                At::End(before) => LENGTH - before,
            };
            let found = recognise(&device(&[(offset, signature.bytes)])).unwrap();
            let found = found.unwrap_or_else(|| panic!("{signature:?} not found"));
            assert_eq!((&*found.what, found.offset), (signature.what, offset));
        }
        for offset in md_at_end(LENGTH).into_iter().flatten() {
            let found = recognise(&device(&[(offset, MD_MAGIC)])).unwrap().unwrap();
            assert_eq!((&*found.what, found.offset), (MD_WHAT, offset));
        }
    }

    #[test]
    fn one_byte_anywhere_is_found() {
        for offset in [0, 1, 4096, (40 << 20) + 7, LENGTH - 1] {
            let found = search(&device(&[(offset, b"x")])).unwrap().0.unwrap();
            assert_eq!(found.offset, offset);
            assert_eq!(found.what, "data that is not zero");
        }
    }

    #[test]
    fn signatures_are_in_what_is_searched_of_a_large_device() {
        for signature in SIGNATURES {
            match signature.at {
                At::Start(offset) => assert!(offset + 64 < HEAD, "{signature:?}"),
                At::End(before) => assert!(before < TAIL, "{signature:?}"),
            }
        }
    }
}
