//! Moving the data of a disk that is served, from one key to another, or into
//! encryption or out of it (`docs/rekey.md`): a thread around [`rekey::Mover`], with
//! what it is told and what it says.
//!
//! What enters: the keys of both states, two opened files, and a [`Task`] that says
//! what to do with them. In this order: [`recover`], before anybody is served;
//! a disk whose data is stored in the way that [`Ready::old_transform`] says;
//! [`Ready::begin`], which gives the disk the other way and starts the thread. The
//! header is not of this room: that all was moved is said ([`Phase::Done`]), and
//! then whoever owns the header writes it, and [ends](Moving::end) this.
//!
//! [`rekey::Mover`]: crate::rekey::Mover

mod control;
mod task;
mod thread;

pub use control::{Ended, Moving};
pub use task::{Go, LEAST_LATENCY_US, LEAST_LIMIT, Orders, Pace, Phase, Priority, Progress, Task};

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::Spec;
use crate::crypt::{self, SectorCipher, Transform};
use crate::engine::{Disk, fence};
use crate::error::{Explain, Kind as ErrorKind};
use crate::rekey::{self, Direction, Geometry, Journal, Keys, Kind, Position, Transforms};
use crate::secret::Dek;

/// Why data cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operation, its keys or its journal.
    #[error(transparent)]
    Rekey(#[from] rekey::Error),
    /// The cipher.
    #[error(transparent)]
    Cipher(#[from] crypt::Error),
    /// The disk that is served.
    #[error(transparent)]
    Fence(#[from] fence::Error),
    /// It is another disk than the operation is about.
    #[error("the operation is about another size or place of the data than the disk has")]
    OtherDisk,
    /// Of a disk that is served, something was moved before anybody told it so.
    #[error("a part of the data was moved before the worker of the disk was told of it")]
    Begun,
    /// What has come to its end does not go the other way any more.
    #[error("all data was moved already: what is left is to write so into the header")]
    Over,
    /// The end that was asked for is not reached.
    #[error("not all data was moved")]
    NotDone,
    /// No thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

impl Explain for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Rekey(source) => source.kind(),
            Error::Cipher(source) => source.kind(),
            Error::Fence(source) => source.kind(),
            Error::OtherDisk => ErrorKind::Corrupt,
            Error::Begun => ErrorKind::Internal,
            Error::Over => ErrorKind::Refused,
            Error::NotDone => ErrorKind::Busy,
            Error::Thread(_) => ErrorKind::Io,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Rekey(source) => return source.help(),
            Error::Cipher(source) => return source.help(),
            Error::Fence(source) => return source.help(),
            Error::OtherDisk => {
                "detach the disk, and look at its header: `sealblk volume info`".into()
            }
            Error::Begun => "detach the disk, and attach it again: it is recovered then".into(),
            Error::Over => "wait until that is done, and begin anew".into(),
            Error::NotDone => "wait until it is".into(),
            Error::Thread(_) => "check the limits of the process (`ulimit -a`)".into(),
        })
    }
}

/// The keys of the data: the main one, which the header's wraps are of, and of a
/// rekey the one that data is moved away from.
pub fn sides<'k>(
    kind: Kind,
    main: &'k Dek,
    old: Option<&'k Dek>,
) -> (Option<&'k Dek>, Option<&'k Dek>) {
    match kind {
        Kind::Rekey => (old, Some(main)),
        Kind::Encrypt => (None, Some(main)),
        Kind::Decrypt => (Some(main), None),
    }
}

/// The files that data is moved with: opened for that alone, so that errors of
/// writing back are reported here, too.
#[derive(Debug)]
pub struct Files {
    /// The data file, with O_DIRECT if the queues have it so.
    pub data: File,
    /// The file with the header, where the journal is.
    pub journal: File,
}

/// An operation that was found, recovered, and is at rest.
pub struct Ready {
    task: Task,
    spec: Spec,
    journal: Journal<File>,
    data: File,
    geometry: Geometry,
    transforms: Transforms,
    /// Both ways once more, for the disk.
    old: Option<Transform>,
    new: Transform,
    position: Position,
}

/// Finds out how far an operation is, and brings to rest what a crash has left. It
/// reads and writes what may have been under way, and takes its time for that.
/// Nobody is served meanwhile.
///
/// # Errors
/// When neither record of the journal is authentic, or a device fails. Nothing may
/// be served then.
pub fn recover(
    spec: &Spec,
    task: &Task,
    main: &Dek,
    old: Option<&Dek>,
    files: Files,
) -> Result<Ready, Error> {
    let facts = &task.facts;
    if (facts.size, facts.data_offset) != (spec.size, spec.data_offset) {
        return Err(Error::OtherDisk);
    }
    let geometry = Geometry::new(facts, spec.sector_size)?;
    let (old, new) = sides(facts.kind, main, old);
    let keys = Keys::derive(facts, old, new)?;
    let transforms = Transforms {
        old: Arc::new(transform(spec, old)?),
        new: Arc::new(transform(spec, new)?),
    };
    let (for_disk, new) = (transform(spec, old)?, transform(spec, new)?);
    let Files { data, journal } = files;
    let mut journal = Journal::new(journal, task.journal.clone(), keys, geometry)?;
    let state = journal.read()?;
    state.check_not_before(task.at_least)?;
    let position = rekey::recover(&mut journal, &data, geometry, &transforms, 1)?;
    tracing::info!(
        id = %facts.id, kind = facts.kind.as_str(), boundary = position.boundary,
        direction = ?position.direction, "data of this disk is being moved"
    );
    Ok(Ready {
        task: task.clone(),
        spec: spec.clone(),
        journal,
        data,
        geometry,
        transforms,
        old: Some(for_disk),
        new,
        position,
    })
}

fn transform(spec: &Spec, dek: Option<&Dek>) -> Result<Transform, Error> {
    let Some(dek) = dek else {
        return Ok(Transform::Plain(spec.sector_size));
    };
    let params = crypt::Params {
        sector_size: spec.sector_size,
        iv_tweak: spec.iv_tweak,
        zero_units: spec.zero_units,
    };
    Ok(Transform::Cipher(SectorCipher::new(
        spec.engine,
        dek,
        params,
    )?))
}

impl Ready {
    /// How far it is.
    pub fn position(&self) -> Position {
        self.position
    }

    /// How the data is stored from the boundary on: what the disk is made with.
    /// Only once.
    pub fn old_transform(&mut self) -> Option<Transform> {
        self.old.take()
    }

    /// Gives `disk` the other way in which its data is stored, and begins to move
    /// it. `told` is called on a thread of its own whenever the phase changes.
    ///
    /// # Errors
    /// When the disk is not one of this operation, or there is no thread.
    pub fn begin(
        self,
        disk: &Arc<Disk>,
        told: impl Fn() + Send + Sync + 'static,
    ) -> Result<Moving, Error> {
        Moving::begin(self, disk, Box::new(told))
    }

    /// The same for a disk that is served already with the old way alone: nothing
    /// of it may have been moved.
    ///
    /// # Errors
    /// As [`Ready::begin`], or [`Error::Begun`].
    pub fn begin_served(
        self,
        disk: &Arc<Disk>,
        told: impl Fn() + Send + Sync + 'static,
    ) -> Result<Moving, Error> {
        match self.position.boundary {
            0 => self.begin(disk, told),
            _ => Err(Error::Begun),
        }
    }
}

/// Whether nothing is left to be moved that way. What has come to its end stays
/// there: its header may be written at any time.
fn is_over(position: Position, size: u64) -> bool {
    match position.direction {
        Direction::Forward => position.boundary == size,
        Direction::Back => position.boundary == 0,
    }
}

#[cfg(test)]
mod tests;
