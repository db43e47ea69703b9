//! What there is to be read: the log and its rotated files, as they were at
//! one moment.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value};

use super::error::{Cause, Error};
use super::head::{self, Head};
use super::place::{Place, Purpose};
use super::writer::wait_for;

/// The files of a log, open, with their lengths between two appends.
#[derive(Debug)]
pub struct Files {
    /// The oldest first; the last one is the file that is written, if there is
    /// one.
    pub segments: Vec<Segment>,
    /// What the head file says; an error where that is no head.
    pub head: Result<Option<Head>, String>,
    /// The path of the head file.
    pub head_path: PathBuf,
}

/// One file of a log.
#[derive(Debug)]
pub struct Segment {
    /// Its path.
    pub path: PathBuf,
    /// The file, open to be read.
    pub file: File,
    /// How many bytes of it to read.
    pub length: u64,
}

impl Files {
    /// The files of the log at `path`. Appends are held up for no longer than
    /// it takes to open them.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn of(path: &Path) -> Result<Self, Error> {
        open(path).map_err(|cause| cause.at(path))
    }
}

fn open(path: &Path) -> Result<Files, Cause> {
    let place = Place::of(path, Purpose::Read).map_err(|cause| match cause {
        Cause::NoDirectory => Cause::Missing,
        other => other,
    })?;
    loop {
        let current = match place.open_current() {
            Ok(file) => Some(file),
            // A crash between the two steps of a rotation leaves it so.
            Err(Cause::Missing) => None,
            Err(other) => return Err(other),
        };
        if let Some(file) = &current {
            wait_for(file, FlockOperation::NonBlockingLockShared)?;
            if !place.is_current(file)? {
                continue;
            }
        }
        let mut segments = Vec::new();
        for number in place.rotated()? {
            let file = place.open_rotated(number)?;
            segments.push(segment(place.rotated_path(number), file)?);
        }
        let head = head::read(&place)?;
        if let Some(file) = current {
            let current = segment(path.into(), file)?;
            // Ends with the file at the latest.
            let _ = flock(&current.file, FlockOperation::Unlock);
            segments.push(current);
        }
        if segments.is_empty() {
            return Err(Cause::Missing);
        }
        return Ok(Files {
            segments,
            head,
            head_path: place.head_path(),
        });
    }
}

fn segment(path: PathBuf, file: File) -> Result<Segment, Cause> {
    let length = file.metadata().map_err(Cause::io("examine"))?.len();
    Ok(Segment { path, file, length })
}

/// The last `count` lines of the log at `path`, oldest first.
///
/// # Errors
/// When there is none, or it cannot be read. Lines that are not whole are left
/// out.
pub fn last(path: &Path, count: usize) -> Result<Vec<Map<String, Value>>, Error> {
    let files = Files::of(path)?;
    let mut found = VecDeque::new();
    'files: for segment in files.segments.iter().rev() {
        let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        segment
            .file
            .read_exact_at(&mut bytes, 0)
            .map_err(|error| Cause::io("read")(error).at(&segment.path))?;
        for line in bytes.split(|&c| c == b'\n').rev() {
            if found.len() == count {
                break 'files;
            }
            if let Ok(line) = serde_json::from_slice(line) {
                found.push_front(line);
            }
        }
    }
    Ok(found.into())
}
