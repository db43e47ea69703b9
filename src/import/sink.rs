//! Where an image goes: the data of a new volume, encrypted on its way.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, fallocate};
use zeroize::Zeroizing;

use super::Error;
use crate::clone::Progress;
use crate::crypt::SectorCipher;
use crate::units::{SECTOR_BYTES, Sector};

/// What is encrypted and written at once where zeroes are.
const PIECE: u64 = 1 << 20;

/// The data of a volume that is being made. Several threads may write to it,
/// each where no other one does.
pub struct Sink<'s> {
    /// The data file.
    pub file: &'s File,
    /// Where the data starts in it.
    pub offset: u64,
    /// How long it is: a number of units.
    pub size: u64,
    /// The path of the data file, for messages.
    pub path: &'s Path,
    /// With the key of the volume.
    pub cipher: &'s SectorCipher,
    /// Whether there are zeroes wherever nothing was written.
    pub is_empty: bool,
    /// How far it is.
    pub progress: &'s Progress,
}

impl Sink<'_> {
    /// The size of a unit: what is written is a number of them.
    pub fn unit(&self) -> u64 {
        self.cipher.params().sector_size.bytes() as u64
    }

    /// Encrypts `bytes` where they are, and writes them.
    ///
    /// # Errors
    /// When they are not a number of units within the volume, or cannot be written.
    pub fn write(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.check(at, bytes.len() as u64)?;
        let unit = self.unit() as usize;
        let zeroes_stay = self.cipher.params().zero_units;
        let is_zero = |unit: &[u8]| zeroes_stay && unit.iter().all(|&byte| byte == 0);
        let mut start = 0;
        while start < bytes.len() {
            let here = is_zero(&bytes[start..start + unit]);
            let run = bytes[start..].chunks(unit);
            let run = run.take_while(|unit| is_zero(unit) == here).count() * unit;
            let (run, first) = (&mut bytes[start..start + run], at + start as u64);
            start += run.len();
            if here {
                self.zeroes(first, run.len() as u64)?;
                continue;
            }
            self.cipher
                .encrypt_in_place(Sector(first / SECTOR_BYTES), run);
            self.file.write_all_at(run, self.offset + first)?;
            self.passed(run.len(), run.len());
        }
        Ok(())
    }

    /// Makes so many bytes read as zeroes.
    ///
    /// # Errors
    /// As [`Sink::write`].
    pub fn zeroes(&self, at: u64, length: u64) -> io::Result<()> {
        self.check(at, length)?;
        if self.cipher.params().zero_units {
            return self.zero_units(at, length);
        }
        let mut buffer = vec![0; PIECE.min(length) as usize];
        let mut done = 0;
        while done < length {
            let bytes = &mut buffer[..PIECE.min(length - done) as usize];
            bytes.fill(0);
            self.write(at + done, bytes)?;
            done += bytes.len() as u64;
        }
        Ok(())
    }

    /// Stored zeroes are zeroes.
    fn zero_units(&self, at: u64, length: u64) -> io::Result<()> {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let is_hole =
            self.is_empty || fallocate(self.file, punch, self.offset + at, length).is_ok();
        let mut done = 0;
        let zeroes = vec![0; if is_hole { 0 } else { PIECE as usize }];
        while done < length {
            let count = PIECE.min(length - done);
            if !is_hole {
                self.file
                    .write_all_at(&zeroes[..count as usize], self.offset + at + done)?;
            }
            self.passed(count as usize, if is_hole { 0 } else { count as usize });
            done += count;
        }
        Ok(())
    }

    /// What was written there, decrypted.
    ///
    /// # Errors
    /// As [`Sink::write`].
    pub fn read(&self, at: u64, length: u64) -> io::Result<Zeroizing<Vec<u8>>> {
        self.check(at, length)?;
        let mut bytes = Zeroizing::new(vec![0; length as usize]);
        self.file.read_exact_at(&mut bytes, self.offset + at)?;
        self.cipher
            .decrypt_in_place(Sector(at / SECTOR_BYTES), &mut bytes);
        Ok(bytes)
    }

    fn check(&self, at: u64, length: u64) -> io::Result<()> {
        let unit = self.unit();
        let within = at.checked_add(length).is_some_and(|end| end <= self.size);
        match within && at.is_multiple_of(unit) && length.is_multiple_of(unit) {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn passed(&self, passed: usize, written: usize) {
        let (passed, written) = (passed as u64, written as u64);
        self.progress.passed.fetch_add(passed, Ordering::Relaxed);
        self.progress.written.fetch_add(written, Ordering::Relaxed);
    }

    /// It cannot be written.
    pub fn failed(&self, source: io::Error) -> Error {
        Error::Write {
            path: self.path.to_owned(),
            source,
        }
    }
}
