//! Where a log ends: its last whole line, and what an append that was cut off
//! has left after it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use super::error::Cause;
use super::head::Head;
use super::line::{self, START, TornBytes};
use super::place::Place;

/// How much is read at first from the end of a file. Most lines are shorter.
const WINDOW: u64 = 16 << 10;

/// How the next line has to go on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Resume {
    /// The last whole line of all files.
    pub(super) last: Option<Head>,
    /// Whether the current file has a whole line.
    pub(super) begun: bool,
    /// Whether the last bytes of the current file lack their newline.
    pub(super) open_end: bool,
    /// The bytes after the last whole line, with the newline that they lack.
    pub(super) torn: Option<TornBytes>,
}

/// Finds out how the log goes on after the `length` bytes of `current`.
pub(super) fn resume(place: &Place, current: &File, length: u64) -> Result<Resume, Cause> {
    let fail = || Cause::io("read");
    let mut resume = Resume::default();
    let found = last_line(current, length, OpenEnd::IsLine).map_err(fail())?;
    resume.open_end = ends_open(current, length).map_err(fail())?;
    resume.begun = found.is_some();
    if found.is_none() && !begins_like_a_log(current, length).map_err(fail())? {
        return Err(Cause::Foreign);
    }
    // Files with bytes after the last whole line, the newest first.
    let mut after = Vec::new();
    let from = found.map_or(0, |(_, end)| end);
    resume.last = found.map(|(head, _)| head);
    if resume.last.is_none() {
        for number in place.rotated()?.into_iter().rev() {
            let file = place.open_rotated(number)?;
            let length = file.metadata().map_err(fail())?.len();
            let found = last_line(&file, length, OpenEnd::IsTorn).map_err(fail())?;
            after.push((file, found.map_or(0, |(_, end)| end), length));
            if let Some((head, _)) = found {
                resume.last = Some(head);
                break;
            }
        }
    }
    let mut torn = Torn::default();
    for (file, from, length) in after.into_iter().rev() {
        torn.add(&file, from, length).map_err(fail())?;
    }
    if from < length {
        torn.add(current, from, length).map_err(fail())?;
        if resume.open_end {
            torn.update(b"\n");
        }
    }
    resume.torn = torn.finish();
    Ok(resume)
}

/// The last line of a rotated file.
pub(super) fn last_of_rotated(place: &Place, number: u64) -> Result<Option<Head>, Cause> {
    let file = place.open_rotated(number)?;
    let length = file.metadata().map_err(Cause::io("read"))?.len();
    let found = last_line(&file, length, OpenEnd::IsTorn).map_err(Cause::io("read"))?;
    Ok(found.map(|(head, _)| head))
}

/// Adds up bytes that are no lines.
#[derive(Default)]
pub(super) struct Torn {
    bytes: u64,
    hasher: Sha256,
}

impl Torn {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hasher.update(bytes);
    }

    fn add(&mut self, file: &File, mut from: u64, to: u64) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        while from < to {
            let take = usize::try_from(to - from).map_or(buffer.len(), |n| n.min(buffer.len()));
            file.read_exact_at(&mut buffer[..take], from)?;
            self.update(&buffer[..take]);
            from += take as u64;
        }
        Ok(())
    }

    /// All of it, if there was any. Starts anew.
    pub(super) fn finish(&mut self) -> Option<TornBytes> {
        let Torn { bytes, hasher } = std::mem::take(self);
        (bytes > 0).then(|| TornBytes {
            bytes,
            sha256: hasher.into(),
        })
    }
}

/// What a whole line without its newline at the end of a file is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OpenEnd {
    /// A line, whose newline is written with the next one.
    IsLine,
    /// No line: none can follow.
    IsTorn,
}

/// The last whole line in the first `length` bytes of `file`, and where it ends.
fn last_line(file: &File, length: u64, open_end: OpenEnd) -> io::Result<Option<(Head, u64)>> {
    let mut window = WINDOW;
    loop {
        let start = length.saturating_sub(window);
        let mut bytes = vec![0; usize::try_from(length - start).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, start)?;
        let mut end = bytes.len();
        while end > 0 {
            let terminated = bytes[end - 1] == b'\n';
            let content = end - usize::from(terminated);
            let begin = bytes[..content]
                .iter()
                .rposition(|&c| c == b'\n')
                .map_or(0, |newline| newline + 1);
            // What begins before the window cannot be judged yet.
            let whole = begin > 0 || start == 0;
            if whole
                && (terminated || open_end == OpenEnd::IsLine)
                && let Ok(line) = line::check(&bytes[begin..content])
            {
                return Ok(Some((Head::from(&line), start + end as u64)));
            }
            end = begin;
        }
        if start == 0 {
            return Ok(None);
        }
        window = window.saturating_mul(4);
    }
}

fn ends_open(file: &File, length: u64) -> io::Result<bool> {
    let mut last = [0];
    match length.checked_sub(1) {
        Some(at) => file.read_exact_at(&mut last, at).map(|()| last != *b"\n"),
        None => Ok(false),
    }
}

/// Whether a file without a whole line can be what a crash left of a first
/// one, where zeroes stand for what had not reached the disk. Anything else is
/// not ours to write into.
fn begins_like_a_log(file: &File, length: u64) -> io::Result<bool> {
    let mut bytes = vec![0; START.len()];
    let take = usize::try_from(length).map_or(bytes.len(), |n| n.min(bytes.len()));
    file.read_exact_at(&mut bytes[..take], 0)?;
    let mut both = START.bytes().zip(&bytes[..take]);
    Ok(both.all(|(start, &byte)| byte == start || byte == 0))
}
