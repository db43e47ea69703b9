//! `sealblk audit tail --follow`: what is added, also while files are rotated.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::show::Filter;
use super::tail::{content, lines};
use crate::audit::{Cause, Files, Segment};
use crate::error::{Failure, io_kind};

/// How often to look.
const LOOK: Duration = Duration::from_millis(200);

/// How much of each file has been shown. A file keeps its number when it is
/// rotated.
pub(super) struct Shown(HashMap<(u64, u64), u64>);

impl Shown {
    pub(super) fn all_of(files: &Files) -> Result<Self, Failure> {
        let each = files.segments.iter().map(|s| Ok((identity(s)?, s.length)));
        each.collect::<Result<_, Failure>>().map(Shown)
    }
}

fn identity(segment: &Segment) -> Result<(u64, u64), Failure> {
    match segment.file.metadata() {
        Ok(meta) => Ok((meta.dev(), meta.ino())),
        Err(error) => Err(Failure::new(
            io_kind(&error),
            format!("cannot examine {}: {error}", segment.path.display()),
            None,
        )),
    }
}

/// Whether nobody reads any more. A write would tell, but there may be none.
fn is_gone(out: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(out, PollFlags::empty())];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok()
        && fds[0].revents().contains(PollFlags::ERR)
}

/// Shows what is added, until the reader goes away.
pub(super) fn run(path: &Path, filter: &Filter, mut shown: Shown) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    loop {
        thread::sleep(LOOK);
        if is_gone(&out) {
            return Ok(());
        }
        let files = match Files::of(path) {
            Ok(files) => files,
            // Somebody may have moved all of it away; a new one may come.
            Err(error) if matches!(error.cause, Cause::Missing) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut text = String::new();
        let mut now = HashMap::new();
        for segment in &files.segments {
            let identity = identity(segment)?;
            let from = shown.0.get(&identity).copied().unwrap_or(0);
            // A shorter file is another one with the same number.
            let from = if from > segment.length { 0 } else { from };
            let bytes = content(segment, from)?;
            // What has no end yet is shown when it has.
            let whole = bytes
                .iter()
                .rposition(|&c| c == b'\n')
                .map_or(0, |at| at + 1);
            text.extend(lines(&bytes[..whole]).filter_map(|line| filter.show(line)));
            now.insert(identity, from + whole as u64);
        }
        shown = Shown(now);
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => {
                return Err(Failure::new(
                    io_kind(&error),
                    format!("cannot write to standard output: {error}"),
                    None,
                ));
            }
        }
    }
}
