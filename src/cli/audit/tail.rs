//! `sealblk audit tail`.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;

use super::PathArgs;
use super::follow::{self, Shown};
use super::show::Filter;
use crate::audit::{Files, Segment};
use crate::cli::print;
use crate::config::Config;
use crate::error::{Failure, io_kind};

/// What follows `sealblk audit tail`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    log: PathArgs,

    /// How many lines to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: usize,

    /// Go on with the lines that are added
    #[arg(short, long)]
    follow: bool,

    #[command(flatten)]
    filter: Filter,
}

pub(super) fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let path = args.log.resolve(config);
    let files = Files::of(&path)?;
    let mut shown = VecDeque::new();
    // The newest file first, and from its end, until there are enough.
    'files: for segment in files.segments.iter().rev() {
        let bytes = content(segment, 0)?;
        for line in lines(&bytes).rev() {
            if shown.len() == args.lines {
                break 'files;
            }
            if let Some(text) = args.filter.show(line) {
                shown.push_front(text);
            }
        }
    }
    print(Vec::from(shown).concat())?;
    match args.follow {
        true => follow::run(&path, &args.filter, Shown::all_of(&files)?),
        false => Ok(()),
    }
}

/// What a file has from `start` on.
pub(super) fn content(segment: &Segment, start: u64) -> Result<Vec<u8>, Failure> {
    let length = segment.length.saturating_sub(start);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    segment
        .file
        .read_exact_at(&mut bytes, start)
        .map_err(|error| {
            Failure::new(
                io_kind(&error),
                format!("cannot read {}: {error}", segment.path.display()),
                Some("check the file system that it is on".into()),
            )
        })?;
    Ok(bytes)
}

pub(super) fn lines(bytes: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    bytes.split(|&c| c == b'\n').filter(|line| !line.is_empty())
}
