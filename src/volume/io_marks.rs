//! The descriptors that guests' data is written through.
//!
//! They are marked, so that what a process has in flight when it is killed is
//! known to be gone before anybody else writes (`lock`).
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use super::error::Error;
use super::lock;

/// Waits, for a moment, until nothing is in flight any more of what a process
/// that has ended was writing to the data file `holder`, which is locked for us.
///
/// # Errors
/// [`Error::Dying`], [`Error::Io`].
pub fn await_quiet(holder: &File, path: &Path) -> Result<(), Error> {
    judge(lock::is_quiet(holder), path)
}

/// Marks `files` as those that data is written through from now on. It was
/// [waited for](await_quiet) that there are no others.
///
/// # Errors
/// As [`await_quiet`].
pub fn mark_io(holder: &File, files: &[File], path: &Path) -> Result<(), Error> {
    judge(lock::mark_io(holder, files), path)
}

/// Marks `file` as the one that the data is moved through. The files of the queues
/// are [marked](mark_io) before.
///
/// # Errors
/// As [`await_quiet`].
pub fn mark_mover(file: &File, path: &Path) -> Result<(), Error> {
    judge(lock::mark_mover(file), path)
}

fn judge(quiet: io::Result<bool>, path: &Path) -> Result<(), Error> {
    match quiet {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Dying(path.to_owned())),
        Err(error) => Err(Error::io("lock", path, error)),
    }
}
