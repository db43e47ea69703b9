//! Moving all data of a volume where it is, with all CPUs and in large pieces.
#![forbid(unsafe_code)]

use std::fs::File;
use std::num::NonZeroU64;
use std::thread;

use super::eager::Eager;
use super::{Error, Sides, wraps_like};
use crate::keys::{Context, KeySets};
use crate::rekey::{
    Alone, Direction, Geometry, Handle, Journal, Kind, Mover, Options, Outcome, Pace, Position,
    recover,
};
use crate::volume::Volume;

/// More threads than that make no disk faster.
const MOST_THREADS: usize = 16;
/// The longest region: each costs two syncs, and memory for two of them.
const REGION: u64 = 32 << 20;
/// The longest where there is a limit: it is kept over a second or so.
const LEAST_REGION: u64 = 1 << 20;

/// How fast it may go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    /// Bytes per second, if there is a limit.
    pub limit: Option<NonZeroU64>,
}

impl Speed {
    fn options(self) -> Options {
        let region = self.limit.map_or(REGION, |limit| {
            (limit.get() / 4).clamp(LEAST_REGION, REGION)
        });
        let threads = thread::available_parallelism();
        Options {
            region_least: LEAST_REGION,
            region_most: region,
            threads: threads.map_or(1, |count| count.get().min(MOST_THREADS)),
            pace: Pace {
                bytes_per_second: self.limit,
                latency: None,
            },
        }
    }
}

/// An operation that is under way on a volume that nobody uses, at rest.
pub struct InPlace {
    mover: Mover<File, Eager, Alone>,
}

impl InPlace {
    /// Finds out how far it is, and finishes what a crash has cut off.
    ///
    /// # Errors
    /// When its journal says nothing that is authentic: nothing is changed then.
    pub fn recover(volume: &Volume, sides: &Sides, speed: Speed) -> Result<Self, Error> {
        let layout = volume.layout();
        let geometry = Geometry::new(&sides.facts, layout.sector_size)?;
        let transforms = sides.transforms(&layout)?;
        let data = Eager::of(volume.data_file())?;
        let journal = volume.journal_file().try_clone();
        let journal = journal.map_err(Error::system("duplicate a file"))?;
        let area = volume.journal_area()?;
        let mut journal = Journal::new(journal, area, sides.derive()?, geometry)?;
        let options = speed.options();
        let position = recover(&mut journal, &data, geometry, &transforms, options.threads)?;
        let mover = Mover::new(
            journal, data, Alone, geometry, transforms, position, options,
        )?;
        Ok(InPlace { mover })
    }

    /// The way to it while it runs.
    pub fn handle(&self) -> Handle {
        self.mover.handle()
    }

    /// How far it is.
    pub fn position(&self) -> Position {
        self.mover.position()
    }

    /// Moves what is left, in the direction that its handle says. False: it was
    /// told to rest before.
    ///
    /// # Errors
    /// When a device fails. It goes on from there at any time.
    pub fn run(&mut self) -> Result<bool, Error> {
        // Nobody keeps it out: it has no fence that could.
        Ok(self.mover.run()? == Outcome::Done)
    }
}

/// Ends an operation all of whose data was moved, in `direction`, in the header
/// of its volume.
///
/// # Errors
/// When the header cannot be written, or the old key not be wrapped: the operation
/// is then under way as before, with nothing left to be moved.
pub async fn finish(
    key_sets: &KeySets,
    context: &Context,
    volume: &mut Volume,
    sides: &Sides,
    direction: Direction,
) -> Result<(), Error> {
    match (sides.facts.kind, direction, &sides.old) {
        (Kind::Rekey, Direction::Back, Some(old)) => {
            let wraps = wraps_like(key_sets, context, volume, old).await?;
            volume.finish_back(old, wraps)?;
        }
        (Kind::Decrypt, Direction::Forward, _) | (Kind::Encrypt, Direction::Back, _) => {
            volume.finish_decrypt()?;
        }
        _ => volume.finish_rekey()?,
    }
    Ok(())
}
