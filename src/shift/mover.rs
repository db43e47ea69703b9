//! The steps by which a disk is moved.
//!
//! Up: the boundary goes down from the end of the disk. What is below it is where
//! it was, what is from it on is at its new place, so that between both lie as
//! many free bytes as it is moved by. A step moves at most that many from below
//! the boundary to there; syncs; and then writes the new boundary down. Down is
//! the mirror image. A crash in a step leaves all that it reads as it was, and
//! the next one does it again.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;
use zeroize::Zeroizing;

use super::journal::HEAD_BYTES;
use super::{Error, Journal, Land, Way, mark};
use crate::crypt::SectorCipher;
use crate::units::{SECTOR_BYTES, Sector};

/// What is read, transformed and written at once by a thread.
const PIECE: u64 = 1 << 20;
/// What is moved in a step at most: each ends with two syncs.
const STEP: u64 = 64 << 20;
/// More threads than that make no disk faster.
const MOST_THREADS: usize = 16;
/// How long nobody looks whether it is to stop.
const TICK: Duration = Duration::from_millis(50);

/// How far it is. May be looked at from other threads.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the disk that are at their new place.
    pub moved: AtomicU64,
    /// Those that were when it went on.
    pub before: AtomicU64,
}

/// How fast it may go, and whether it is to stop.
#[derive(Clone, Copy, Debug)]
pub struct Pace<'p> {
    /// Bytes per second.
    pub limit: Option<u64>,
    /// Whether to stop after the step that is being done.
    pub stop: &'p AtomicBool,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All of it is at its new place.
    Done,
    /// It was told to stop, and goes on from there at any time.
    Stopped,
}

/// A disk that is moved.
pub struct Shift<'s> {
    /// The file or device: the disk, and the room before it.
    pub disk: &'s dyn Land,
    /// The operation.
    pub id: Uuid,
    /// Which way.
    pub way: Way,
    /// How far it is moved, in bytes: as long as the room is.
    pub by: u64,
    /// How long the disk is, in bytes.
    pub size: u64,
    /// Encrypts or decrypts it.
    pub cipher: &'s SectorCipher,
    /// So many threads do it; 0 are as many as there are CPUs.
    pub threads: usize,
    /// Tells how far it is.
    pub progress: &'s Progress,
}

impl Shift<'_> {
    /// Where the boundary is before anything was moved.
    pub fn start(&self) -> u64 {
        match self.way {
            Way::Up => self.size,
            Way::Down => 0,
        }
    }

    /// Where it is when everything was moved.
    fn end(&self) -> u64 {
        self.size - self.start()
    }

    /// Moves what is left, from `boundary` on, which `journal` has said.
    ///
    /// # Errors
    /// [`Error::Io`]: it goes on from there when it is called again.
    /// [`Error::Impossible`] if the disk is another one.
    pub fn run(
        &self,
        journal: &mut Journal<'_>,
        boundary: u64,
        pace: Pace<'_>,
    ) -> Result<Ended, Error> {
        let unit = self.cipher.params().sector_size.bytes() as u64;
        if boundary > self.size || !boundary.is_multiple_of(unit) {
            return Err(Error::Impossible("its boundary is not on the disk"));
        }
        if !self.mark(journal, boundary)? {
            return Ok(Ended::Done);
        }
        let (begun, mut boundary, mut passed) = (Instant::now(), boundary, 0);
        let before = self.moved(boundary);
        self.progress.before.store(before, Ordering::Relaxed);
        while boundary != self.end() {
            self.told(boundary);
            if pace.stop.load(Ordering::Relaxed) {
                return Ok(Ended::Stopped);
            }
            let (from, to) = self.step(boundary);
            self.move_all(from, to)?;
            if self.way == Way::Up && from == 0 {
                let head = journal.head(self.head_bytes())?;
                let written = self.disk.write(&head, self.by);
                written.map_err(Error::io("write to the disk"))?;
            }
            self.disk
                .sync()
                .map_err(Error::io("write to the disk durably"))?;
            boundary = match self.way {
                Way::Up => from,
                Way::Down => to,
            };
            journal.write(boundary)?;
            passed += to - from;
            wait(begun, passed, pace);
        }
        self.told(boundary);
        if self.way == Way::Up {
            self.wipe_room()?;
        } else {
            let mut head = Zeroizing::new(journal.head(self.head_bytes())?);
            self.cipher.decrypt_in_place(Sector(0), &mut head);
            mark::replace(self.disk, &head)?;
        }
        Ok(Ended::Done)
    }

    /// Hides the beginning of the disk, which is kept before. False: everything
    /// was moved, and the mark has been replaced already.
    fn mark(&self, journal: &Journal<'_>, boundary: u64) -> Result<bool, Error> {
        let length = self.head_bytes();
        if !mark::is_there(self.disk, self.id, self.way)? {
            if boundary == self.end() {
                self.told(boundary);
                return Ok(false);
            }
            if boundary != self.start() {
                return Err(Error::Impossible("the disk is not the one that was moved"));
            }
            let mut head = Zeroizing::new(vec![0; length]);
            let at = match self.way {
                Way::Up => 0,
                Way::Down => self.by,
            };
            let read = self.disk.read(&mut head, at);
            read.map_err(Error::io("read the disk"))?;
            if self.way == Way::Up {
                self.encrypt(0, &mut head);
            }
            journal.keep_head(&head)?;
        }
        if boundary == self.start() {
            mark::put(self.disk, self.id, self.way, length)?;
        }
        Ok(true)
    }

    /// Overwrites what is before the disk: it was there in plain. The mark stays
    /// until there is a header.
    fn wipe_room(&self) -> Result<(), Error> {
        let zeroes = vec![0; PIECE.min(self.by) as usize];
        let mut at = self.head_bytes() as u64;
        while at < self.by {
            let length = PIECE.min(self.by - at);
            let written = self.disk.write(&zeroes[..length as usize], at);
            written.map_err(Error::io("write to the disk"))?;
            at += length;
        }
        self.disk
            .sync()
            .map_err(Error::io("write to the disk durably"))
    }

    /// How much of the beginning is kept elsewhere.
    fn head_bytes(&self) -> usize {
        usize::try_from(self.size).map_or(HEAD_BYTES, |size| size.min(HEAD_BYTES))
    }

    /// What is moved next.
    fn step(&self, boundary: u64) -> (u64, u64) {
        let most = STEP.min(self.by);
        // Whole pieces, where there is room for one.
        let most = match most {
            0..PIECE => most,
            _ => most / PIECE * PIECE,
        };
        match self.way {
            Way::Up => (boundary.saturating_sub(1) / most * most, boundary),
            Way::Down => (boundary, (boundary + most).min(self.size)),
        }
    }

    /// Moves a part of the disk, on all CPUs.
    fn move_all(&self, from: u64, to: u64) -> Result<(), Error> {
        let next = AtomicU64::new(from);
        let failed = AtomicBool::new(false);
        let work = || -> Result<(), Error> {
            let mut buffer = Zeroizing::new(vec![0; PIECE.min(to - from) as usize]);
            while !failed.load(Ordering::Relaxed) {
                let at = next.fetch_add(PIECE, Ordering::Relaxed);
                if at >= to {
                    break;
                }
                let length = PIECE.min(to - at) as usize;
                self.move_piece(at, &mut buffer[..length])?;
            }
            Ok(())
        };
        let work = || work().inspect_err(|_| failed.store(true, Ordering::Relaxed));
        let threads = match self.threads {
            0 => thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS)),
            threads => threads,
        };
        let pieces = (to - from).div_ceil(PIECE);
        let threads = threads.min(usize::try_from(pieces).unwrap_or(threads));
        if threads <= 1 {
            return work();
        }
        thread::scope(|scope| {
            let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let ended = started.into_iter().map(|thread| {
                let panicked = |_| Err(Error::Impossible("a thread panicked"));
                thread.join().unwrap_or_else(panicked)
            });
            ended.fold(Ok(()), Result::and)
        })
    }

    fn move_piece(&self, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let (old, new) = match self.way {
            Way::Up => (at, at + self.by),
            Way::Down => (at + self.by, at),
        };
        let read = self.disk.read(bytes, old);
        read.map_err(Error::io("read the disk"))?;
        match self.way {
            Way::Up => self.encrypt(at, bytes),
            Way::Down => {
                self.cipher
                    .decrypt_in_place(Sector(at / SECTOR_BYTES), bytes);
            }
        }
        // The mark is there, as long as the disk is in pieces.
        let skip = match self.way {
            Way::Down if at == 0 => self.head_bytes(),
            _ => 0,
        };
        let (bytes, new) = (&bytes[skip..], new + skip as u64);
        if bytes.is_empty() || self.gives_back(bytes, new) {
            return Ok(());
        }
        let written = self.disk.write(bytes, new);
        written.map_err(Error::io("write to the disk"))
    }

    /// Zeroes need no space.
    fn gives_back(&self, bytes: &[u8], at: u64) -> bool {
        bytes.iter().all(|&byte| byte == 0) && self.disk.give_back(at, bytes.len() as u64)
    }

    /// With zero units, zeroes are stored as such.
    fn encrypt(&self, at: u64, bytes: &mut [u8]) {
        let params = self.cipher.params();
        let unit = params.sector_size.bytes();
        let is_zero = |unit: &[u8]| params.zero_units && unit.iter().all(|&byte| byte == 0);
        let mut start = 0;
        while start < bytes.len() {
            let units = bytes[start..].chunks(unit);
            let run = units.take_while(|unit| !is_zero(unit)).count() * unit;
            if run > 0 {
                let first = Sector((at + start as u64) / SECTOR_BYTES);
                self.cipher
                    .encrypt_in_place(first, &mut bytes[start..start + run]);
            }
            start += run.max(unit);
        }
    }

    fn told(&self, boundary: u64) {
        let moved = self.moved(boundary);
        self.progress.moved.store(moved, Ordering::Relaxed);
    }

    fn moved(&self, boundary: u64) -> u64 {
        match self.way {
            Way::Up => self.size - boundary,
            Way::Down => boundary,
        }
    }
}

/// Waits until so many bytes may have been moved.
fn wait(begun: Instant, moved: u64, pace: Pace<'_>) {
    let Some(limit) = pace.limit else { return };
    let due = begun + Duration::from_secs_f64(moved as f64 / limit.max(1) as f64);
    while !pace.stop.load(Ordering::Relaxed) {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(TICK));
    }
}
