//! Copying the data of a volume to a new one, which has a key of its own.
//!
//! Two volumes with one key would tell where they are alike, and revoking the
//! one would be revoking the other. So every unit is decrypted with the old key
//! and encrypted with the new one, on all CPUs, in large pieces.
//!
//! The order is what makes it safe, and [`Plan::write_filled`] keeps it: the key
//! is wrapped; the data is written; all of it is on stable storage (`fsync`); only
//! then the header is written, its magic last. What a crash leaves before that
//! has no header and no copy of the key: it opens nowhere, and is overwritten
//! with `--force` or removed. The source is open for reading alone, with a lock
//! that others who read share: nobody writes to it meanwhile.
//!
//! What takes no space takes none in the copy: holes of the file, and with zero
//! units all units that are stored as zeroes. (Holes of a volume without zero
//! units read as noise, in the source and in the copy, and not as the same.)
//!
//! [`Plan::write_filled`]: crate::volume::Plan::write_filled
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use zeroize::Zeroize as _;

use crate::crypt::SectorCipher;
use crate::units::{SECTOR_BYTES, Sector};
use crate::volume::{Error, Layout};

/// What is read, decrypted, encrypted and written at once.
const PIECE: u64 = 1 << 20;

/// More threads than that make no disk faster.
const MOST_THREADS: usize = 16;

/// One side of a copy.
pub struct Side<'s> {
    /// The data file.
    pub file: &'s File,
    /// Where the data starts in it.
    pub offset: u64,
    /// Its path, for messages.
    pub path: &'s Path,
    /// With its key.
    pub cipher: &'s SectorCipher,
}

/// How far a copy is. May be looked at from other threads.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the source that are dealt with, holes included.
    pub passed: AtomicU64,
    /// Bytes that were written.
    pub written: AtomicU64,
}

/// Hands out the pieces of the source that are not holes.
struct Pieces<'p> {
    file: &'p File,
    offset: u64,
    size: u64,
    /// Where the next piece may begin.
    position: u64,
    /// Where the data that was found last ends.
    data_end: u64,
}

impl Pieces<'_> {
    /// The next piece: where it begins, how long it is, and how much before it
    /// was skipped.
    fn next(&mut self) -> io::Result<Option<(u64, u64)>> {
        if self.position >= self.size {
            return Ok(None);
        }
        if self.position >= self.data_end {
            let (start, end) = self.data_from(self.position)?;
            // Whole pieces, so that no unit is cut.
            self.position = start / PIECE * PIECE;
            self.data_end = end;
            if self.position >= self.size {
                return Ok(None);
            }
        }
        let piece = (self.position, PIECE.min(self.size - self.position));
        self.position += piece.1;
        Ok(Some(piece))
    }

    fn data_from(&self, position: u64) -> io::Result<(u64, u64)> {
        let everything = Ok((position, self.size));
        let start = match seek(self.file, SeekFrom::Data(self.offset + position)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok((self.size, self.size)),
            // Block devices, and file systems that know no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return everything,
            Err(error) => return Err(error.into()),
        };
        let end = seek(self.file, SeekFrom::Hole(start))?;
        let within = |at: u64| at.saturating_sub(self.offset).max(position);
        Ok((within(start), within(end).max(within(start) + 1)))
    }
}

/// Copies all data of a volume that is laid out as `layout`.
///
/// # Errors
/// [`Error::Io`], of the side that failed.
pub fn copy(
    layout: &Layout,
    from: &Side<'_>,
    to: &Side<'_>,
    progress: &Progress,
) -> Result<(), Error> {
    let pieces = Mutex::new(Pieces {
        file: from.file,
        offset: from.offset,
        size: layout.size,
        position: 0,
        data_end: 0,
    });
    let failed = AtomicBool::new(false);
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS));
    let work = || -> Result<(), Error> {
        let mut piece = Piece::new(layout);
        while !failed.load(Ordering::Relaxed) {
            let next = {
                let mut pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
                let next = pieces.next();
                progress
                    .passed
                    .store(pieces.position.min(layout.size), Ordering::Relaxed);
                next
            };
            let next = next.map_err(|error| Error::io("read", from.path, error))?;
            let Some((position, length)) = next else {
                return Ok(());
            };
            let written = piece.copy((position, length as usize), from, to)?;
            progress.written.fetch_add(written, Ordering::Relaxed);
        }
        Ok(())
    };
    let result = thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work().inspect_err(|_| failed.store(true, Ordering::Relaxed))))
            .collect();
        let ended = started.into_iter().map(|thread| {
            let panicked = || {
                Err(Error::io(
                    "copy",
                    from.path,
                    io::Error::other("a thread panicked"),
                ))
            };
            thread.join().unwrap_or_else(|_| panicked())
        });
        // All of them, and the first failure.
        ended.fold(Ok(()), Result::and)
    });
    if result.is_ok() {
        progress.passed.store(layout.size, Ordering::Relaxed);
    }
    result
}

/// The buffer of one thread, which has plaintext in it.
struct Piece {
    bytes: Vec<u8>,
    unit: usize,
    zero_units: bool,
    /// Which units are stored as zeroes.
    zero: Vec<bool>,
}

impl Piece {
    fn new(layout: &Layout) -> Self {
        Piece {
            bytes: vec![0; PIECE as usize],
            unit: layout.sector_size.bytes(),
            zero_units: layout.zero_units,
            zero: Vec::new(),
        }
    }

    /// Copies so many bytes from that position on; returns how many were written.
    fn copy(
        &mut self,
        (position, length): (u64, usize),
        from: &Side<'_>,
        to: &Side<'_>,
    ) -> Result<u64, Error> {
        let bytes = &mut self.bytes[..length];
        let read = from.file.read_exact_at(bytes, from.offset + position);
        read.map_err(|error| Error::io("read", from.path, error))?;
        let zero_units = self.zero_units;
        let is_zero = |unit: &[u8]| zero_units && unit.iter().all(|&byte| byte == 0);
        self.zero.clear();
        self.zero.extend(bytes.chunks(self.unit).map(is_zero));
        if self.zero.iter().all(|zero| *zero) {
            return Ok(0);
        }
        let first = Sector(position / SECTOR_BYTES);
        from.cipher.decrypt_in_place(first, bytes);
        to.cipher.encrypt_in_place(first, bytes);
        // Runs of units that have something, between those that have not.
        let (mut unit, mut written) = (0, 0);
        while unit < self.zero.len() {
            let run = self.zero[unit..].iter().take_while(|zero| !**zero).count();
            if run > 0 {
                let (start, end) = (unit * self.unit, (unit + run) * self.unit);
                let at = to.offset + position + start as u64;
                let write = to.file.write_all_at(&bytes[start..end], at);
                write.map_err(|error| Error::io("write", to.path, error))?;
                written += (end - start) as u64;
            }
            unit += run.max(1);
        }
        Ok(written)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::{Engine, Params};
    use crate::secret::Dek;
    use crate::units::SectorSize;
    use std::os::unix::fs::MetadataExt as _;

    const SIZE: u64 = 9 << 20;
    const OFFSET: u64 = 4096;

    #[test]
    fn every_unit_is_encrypted_anew_and_what_is_empty_stays_so() {
        for (sector_size, zero_units) in [
            (SectorSize::B512, true),
            (SectorSize::B4096, true),
            (SectorSize::B512, false),
        ] {
            let params = Params {
                sector_size,
                iv_tweak: 0,
                zero_units,
            };
            let cipher = || {
                let dek = Dek::generate().unwrap();
                SectorCipher::new(Engine::Portable, &dek, params).unwrap()
            };
            let (old, new) = (cipher(), cipher());
            let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            source.set_len(OFFSET + SIZE).unwrap();
            target.set_len(SIZE).unwrap();
            let unit = sector_size.bytes();
            // Pieces with data here and there, at both ends, and a hole between.
            let written = [
                (0, 3 * unit),
                (2 << 20, 1 << 20),
                (SIZE as usize - unit, unit),
            ];
            let mut plain = vec![0; SIZE as usize];
            for (at, length) in written {
                plain[at..at + length].fill(at as u8 | 1);
                let mut stored = plain[at..at + length].to_vec();
                old.encrypt_in_place(Sector(at as u64 / 512), &mut stored);
                source.write_all_at(&stored, OFFSET + at as u64).unwrap();
            }
            let layout = Layout {
                data_offset: OFFSET,
                size: SIZE,
                sector_size,
                iv_tweak: 0,
                zero_units,
            };
            let side = |file, offset, cipher| Side {
                file,
                offset,
                path: Path::new("a side"),
                cipher,
            };
            let progress = Progress::default();
            let (from, to) = (side(&source, OFFSET, &old), side(&target, 0, &new));
            copy(&layout, &from, &to, &progress).unwrap();
            assert_eq!(progress.passed.load(Ordering::Relaxed), SIZE);
            for (at, length) in written {
                let mut stored = vec![0; length];
                target.read_exact_at(&mut stored, at as u64).unwrap();
                let mut before = vec![0; length];
                source
                    .read_exact_at(&mut before, OFFSET + at as u64)
                    .unwrap();
                assert!(stored != before, "the same bytes under another key");
                new.decrypt_in_place(Sector(at as u64 / 512), &mut stored);
                assert!(stored == plain[at..at + length], "{sector_size} at {at}");
            }
            let total: usize = written.iter().map(|(_, length)| length).sum();
            if zero_units {
                assert_eq!(progress.written.load(Ordering::Relaxed), total as u64);
            }
            // The hole of several pieces is one.
            assert!(target.metadata().unwrap().blocks() * 512 < SIZE / 2);
        }
    }

    #[test]
    fn a_source_that_ends_early_is_an_error() {
        let cipher = {
            let dek = Dek::generate().unwrap();
            SectorCipher::new(Engine::Portable, &dek, Params::default()).unwrap()
        };
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.write_all_at(&[1; 512], 0).unwrap();
        let layout = Layout {
            data_offset: 0,
            size: SIZE,
            sector_size: SectorSize::B512,
            iv_tweak: 0,
            zero_units: false,
        };
        let side = |file| Side {
            file,
            offset: 0,
            path: Path::new("a side"),
            cipher: &cipher,
        };
        let progress = Progress::default();
        let error = copy(&layout, &side(&source), &side(&target), &progress).unwrap_err();
        assert!(matches!(error, Error::Io { what: "read", .. }), "{error}");
    }
}
