//! A volume that is served while all its data is moved: what was begun is recovered
//! before anybody is served, goes on beside the guest, and is ended in the header
//! when everything is moved.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::conversion::{self, Sides};
use crate::crypt::Transform;
use crate::engine::Disk;
use crate::error::Failure;
use crate::keys::{Context, KeySets};
use crate::plane::Spec;
use crate::plane::moving::{self, Files, Go, Moving, Pace, Phase, Task};
use crate::rekey::Kind;
use crate::runtime::block_on;
use crate::store::{self, DirectMode, Store};
use crate::units::SectorSize;
use crate::volume::{self, Volume};

use super::system;

/// How soon it looks again whether it is done, should nobody tell.
const LOOK: Duration = Duration::from_secs(1);

/// An operation that was recovered, before its volume is served.
pub struct Recovered {
    ready: moving::Ready,
    sides: Sides,
    go: Go,
}

/// One that is under way beside the guest.
pub struct Operation {
    moving: Moving,
    sides: Sides,
    go: Go,
    told: Receiver<()>,
}

impl Recovered {
    /// Finds out how far an operation is. With `decrypt`, one that decrypts goes on
    /// as well: nobody decrypts by serving alone.
    ///
    /// # Errors
    /// When its journal says nothing that is authentic, or a device fails.
    pub fn of(spec: &Spec, volume: &Volume, sides: Sides, decrypt: bool) -> Result<Self, Failure> {
        let go = match sides.facts.kind {
            Kind::Decrypt if !decrypt => {
                tracing::warn!(
                    "the data of this volume is being decrypted, which rests: add --decrypt, and \
                     it goes on"
                );
                Go::Pause
            }
            _ => Go::Run,
        };
        let task = Task {
            facts: sides.facts.clone(),
            journal: volume.journal_area()?,
            pace: Pace::default(),
            go,
            direction: None,
            at_least: 0,
        };
        let place = (spec.data_offset, spec.size);
        let start = (0, SectorSize::B4096.bytes() as u64);
        let journal = volume.journal_file();
        let data = anew(volume.data_file(), place, spec.sector_size, spec.direct)?;
        volume::mark_mover(&data, volume.data_path())?;
        let files = Files {
            data,
            journal: anew(journal, start, SectorSize::B512, DirectMode::Never)?,
        };
        let ready = moving::recover(spec, &task, &sides.main, sides.old.as_ref(), files)?;
        Ok(Recovered { ready, sides, go })
    }

    /// How the data is stored that was not moved yet: what the disk is made with.
    ///
    /// # Errors
    /// When it was asked for before.
    pub fn transform(&mut self) -> Result<Transform, Failure> {
        let twice = || io::Error::other("a disk is made once");
        let transform = self.ready.old_transform();
        Ok(transform
            .ok_or_else(twice)
            .map_err(system("make the disk"))?)
    }

    /// Goes on with it, beside whoever uses `disk`.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn begin(self, disk: &Arc<Disk>) -> Result<Operation, Failure> {
        let (tell, told): (Sender<()>, _) = channel();
        // Nobody listens when the server ends.
        let moving = self.ready.begin(disk, move || _ = tell.send(()))?;
        Ok(Operation {
            moving,
            sides: self.sides,
            go: self.go,
            told,
        })
    }
}

impl Operation {
    /// Ends it when all is moved, in the header and then in the disk; or lets it
    /// rest when `stop` is set, and somebody is told.
    pub fn look_after(self, volume: &mut Volume, key_sets: &KeySets, stop: &AtomicBool) {
        let Operation {
            moving,
            sides,
            go,
            told,
        } = self;
        while !stop.load(Ordering::Relaxed) {
            if moving.progress().phase == Phase::Done && go == Go::Run {
                match finish(moving, volume, key_sets, &sides) {
                    Ok(()) => tracing::info!("the operation on all data of the volume is done"),
                    Err(failure) => tracing::error!(
                        "all data was moved, and the header does not say so: serve the volume \
                         again to try it once more: {failure}"
                    ),
                }
                return;
            }
            let _ = told.recv_timeout(LOOK.min(Duration::from_millis(100)));
        }
        // It comes to rest when it is dropped.
    }
}

fn finish(
    moving: Moving,
    volume: &mut Volume,
    key_sets: &KeySets,
    sides: &Sides,
) -> Result<(), Failure> {
    let context = Context::local(Some(volume.uuid()));
    let direction = moving.progress().direction;
    let finished = conversion::finish(key_sets, &context, volume, sides, direction);
    block_on(finished).map_err(system("cannot ask for a key"))??;
    moving.end().map_err(|(_, error)| Failure::from(error))?;
    Ok(())
}

/// A file that is opened once more, so that an error of writing back is reported
/// to whoever moves data as well as to the queues.
fn anew(
    file: &File,
    place: (u64, u64),
    unit: SectorSize,
    direct: DirectMode,
) -> Result<File, Failure> {
    let store: Result<Store, store::Error> =
        Store::open(file.as_fd(), place, unit, (false, direct), 1);
    let store = store?;
    let none = || Err(io::ErrorKind::NotFound.into());
    let opened = store.files().first().map_or_else(none, File::try_clone);
    Ok(opened.map_err(system("cannot open a file once more"))?)
}
