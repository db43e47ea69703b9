//! Moving a disk up while it is encrypted, to make room for its header, or down
//! while it is decrypted, over the header that it had. The header is in a file
//! beside meanwhile.
#![forbid(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::begin::{new_key, own_key};
use super::eager::Eager;
use super::{Error, Sides, Speed};
use crate::error::Kind as ErrorKind;
use crate::keys::{Context, KeySets};
use crate::prepare::Opening;
use crate::rekey::Kind;
use crate::shift::{AREA_BYTES, Ended, Journal, Key, Pace, Progress, Shift, Way, has_moved};
use crate::units::Bytes;
use crate::volume::{Access, Location, PlainPlan, Volume};

/// What is put behind the name of a disk to name the file beside it.
const BESIDE: &str = ".sealblk-moving";

/// File systems whose files are gone after the next start.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// A disk that is moved, with its header beside, and open.
#[derive(Debug)]
pub struct Shifting {
    /// The volume.
    pub volume: Volume,
    /// Its key.
    pub sides: Sides,
}

impl Shifting {
    /// The file beside a disk: the one that was named, or else one next to the
    /// disk, which has to be a file then.
    ///
    /// # Errors
    /// When it would not last as long as the disk.
    pub fn beside(disk: &Path, named: Option<PathBuf>) -> Result<PathBuf, Error> {
        let is_file = std::fs::metadata(disk).is_ok_and(|meta| meta.is_file());
        let path = match named {
            Some(path) => path,
            None if is_file || !disk.exists() => {
                let mut path = disk.as_os_str().to_owned();
                path.push(BESIDE);
                return Ok(path.into());
            }
            None => {
                return Err(Error::refused(
                    ErrorKind::Usage,
                    format!(
                        "{} is no file, so that there is no place beside it for its header, which \
                         is in a file until the disk has been moved",
                        disk.display()
                    ),
                    "say with --state in which file, on a disk that lasts",
                ));
            }
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let lasts = rustix::fs::statfs(directory)
            .map_or(true, |fs| !IN_MEMORY.contains(&(fs.f_type as u64)));
        match lasts || is_file {
            true => Ok(path),
            false => Err(Error::refused(
                ErrorKind::Usage,
                format!(
                    "{} is in memory alone: if this host were started anew, the header would be \
                     lost, and all data with it",
                    path.display()
                ),
                "name a file on a disk with --state",
            )),
        }
    }

    /// Begins to encrypt a plain disk; nothing of it is moved yet.
    ///
    /// # Errors
    /// When the key cannot be had, or writing fails: there is nothing beside then.
    pub async fn begin_up(
        key_sets: &KeySets,
        context: &Context,
        plan: PlainPlan,
        key_set: &str,
    ) -> Result<Self, Error> {
        let main = new_key()?;
        let binding = plan.binding().bytes();
        let wraps = key_sets.wrap(context, key_set, &main, &binding).await?;
        let sides = Sides {
            facts: plan.facts(),
            main,
            old: None,
        };
        let begin = |file: &File, area: Range<u64>| begin(file, area, &sides, sides.facts.size);
        let volume = plan.write(&sides.main, key_set, wraps, begin)?;
        Ok(Shifting { volume, sides })
    }

    /// Begins to decrypt a volume whose header is with its data: copies that to
    /// `beside`. Nothing is moved yet.
    ///
    /// # Errors
    /// When the key cannot be had, or writing fails. The volume is as it was.
    pub async fn begin_down(
        key_sets: &KeySets,
        context: &Context,
        volume: Volume,
        beside: &Path,
        opening: &Opening,
    ) -> Result<Self, Error> {
        let facts = volume.facts_to_begin(Kind::Decrypt)?;
        let main = own_key(key_sets, context, &volume, opening).await?;
        let sides = Sides {
            facts,
            main,
            old: None,
        };
        let begin = |file: &File, area: Range<u64>| begin(file, area, &sides, 0);
        let volume = volume.begin_decrypt_beside(beside, &sides.facts, begin)?;
        Ok(Shifting { volume, sides })
    }

    /// Whether what is beside was cut off before anything was moved, so that the
    /// header with the data counts; that one may have been rewritten since.
    ///
    /// # Errors
    /// When there is a header with the data though something was moved.
    pub fn is_unbegun(volume: &Volume) -> Result<bool, Error> {
        if !volume.has_inline_header() {
            return Ok(false);
        }
        let area = volume.journal_area()?;
        match has_moved(volume.journal_file(), &area, 0)? {
            false => Ok(true),
            true => Err(Error::refused(
                ErrorKind::Corrupt,
                format!(
                    "{} has a header again, though a part of it was decrypted and moved over the \
                     one that it had",
                    volume.data_path().display()
                ),
                "somebody has restored it: what it has overwritten is lost. Find a copy of the \
                 disk from before",
            )),
        }
    }

    /// One that is under way.
    ///
    /// # Errors
    /// When its key cannot be had.
    pub async fn resume(
        key_sets: &KeySets,
        context: &Context,
        volume: Volume,
        opening: &Opening,
    ) -> Result<Self, Error> {
        let sides = Sides::of(key_sets, context, &volume, opening).await?;
        Ok(Shifting { volume, sides })
    }

    /// Moves what is left. False: it was told to stop before.
    ///
    /// # Errors
    /// When its journal is not authentic, or a device fails.
    pub fn run(&self, speed: Speed, stop: &AtomicBool, progress: &Progress) -> Result<bool, Error> {
        let (volume, facts) = (&self.volume, &self.sides.facts);
        let Some(way) = Way::of(facts.kind) else {
            return Err(crate::shift::Error::Impossible("a rekey moves no disk").into());
        };
        if way == Way::Down && volume.has_inline_header() {
            // Until now that was the one that counts. Nothing was moved.
            volume.destroy_inline_header()?;
        }
        let key = Key::derive(facts, &self.sides.main);
        let area = volume.journal_area()?;
        let (mut journal, boundary) = Journal::open(volume.journal_file(), &area, &key)?;
        let cipher = self.sides.cipher(&volume.layout())?;
        let disk = Eager::of(volume.data_file())?;
        let shift = Shift {
            disk: &disk,
            id: facts.id,
            way,
            by: facts.data_offset,
            size: facts.size,
            cipher: &cipher,
            threads: 0,
            progress,
        };
        let pace = Pace {
            limit: speed.limit.map(Into::into),
            stop,
        };
        Ok(shift.run(&mut journal, boundary, pace)? == Ended::Done)
    }

    /// Everything was moved and encrypted: writes the header before it, and
    /// removes the file beside.
    ///
    /// # Errors
    /// When writing fails. Called again, it ends.
    pub fn settle(self) -> Result<(Volume, Sides), Error> {
        if !self.volume.has_inline_header() {
            return Ok((self.volume.settle_inline()?, self.sides));
        }
        // It is there already, and may have been rewritten since.
        let location = Location {
            data: self.volume.data_path().to_owned(),
            header: None,
        };
        self.volume.remove_header_file()?;
        let volume = Volume::open(&location, Access::ReadWrite)?;
        Ok((volume, self.sides))
    }

    /// Everything was moved and decrypted: ends it. What is left is the file
    /// beside, with a header that says so ([`Volume::remove_header_file`]).
    ///
    /// # Errors
    /// As [`Shifting::settle`].
    pub fn finish(self) -> Result<Volume, Error> {
        let mut volume = self.volume;
        volume.cut_to_disk()?;
        volume.finish_decrypt()?;
        Ok(volume)
    }
}

/// Writes the journal of an operation that is to begin.
fn begin(file: &File, area: Range<u64>, sides: &Sides, boundary: u64) -> Result<(), Error> {
    let room = area.end - area.start;
    if room < AREA_BYTES {
        return Err(Error::refused(
            ErrorKind::Refused,
            format!(
                "the header area has {} behind both copies of the header, and moving the disk takes {}",
                Bytes(room),
                Bytes(AREA_BYTES)
            ),
            "encrypt with a larger --header-area; to decrypt, copy the volume to one that has it: \
             sealblk volume clone",
        ));
    }
    let key = Key::derive(&sides.facts, &sides.main);
    Journal::create(file, &area, &key, boundary)?;
    Ok(())
}
