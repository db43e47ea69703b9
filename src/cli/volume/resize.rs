//! `sealblk volume resize`.

use std::fmt::Write as _;

use serde::Serialize;
use uuid::Uuid;

use super::LocationArgs;
use crate::audit::{Event, Outcome};
use crate::cli::resize::Wanted;
use crate::cli::{print, print_json, record};
use crate::config::Config;
use crate::error::{Explain as _, Failure, Kind};
use crate::units::Bytes;
use crate::volume::{Access, Error, Location, Volume};

/// What follows `sealblk volume resize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Growing loses nothing. SHRINKING DESTROYS what lies beyond the new end: have the
guest shrink its file systems and partitions first. Nobody can see from outside
where they end, since they are encrypted; what can be seen is where nothing is
stored. Where something is, or was once, --shrink alone is refused.")]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    /// What the guest is to see, such as 200G, or "max": as much as the file or
    /// block device has room for
    #[arg(value_name = "SIZE|max")]
    size: Wanted,

    /// Make it smaller
    #[arg(long)]
    shrink: bool,

    /// With --shrink: also where data is stored, which is destroyed
    #[arg(long, requires = "shrink")]
    force: bool,

    /// Reserve the new space now, instead of as the guest writes
    #[arg(long, conflicts_with = "shrink")]
    preallocate: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What was done. The names are part of the interface.
#[derive(Serialize)]
struct Done {
    uuid: Uuid,
    /// In bytes.
    before: u64,
    size: u64,
    /// Bytes beyond the new end that held data.
    lost: u64,
}

pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let location = Location::from(args.location);
    let mut volume = Volume::open(&location, Access::ReadWrite).map_err(in_use)?;
    let before = volume.layout().size;
    let size = match args.size {
        Wanted::Size(Bytes(size)) => size,
        Wanted::Max => volume.room()?,
    };
    let mut done = Done {
        uuid: volume.uuid(),
        before,
        size,
        lost: 0,
    };
    if size < before {
        done.lost = confirm(&volume, size, args.shrink, args.force)?;
    }
    let event = Event::Resize {
        disk: "",
        volume: Some(done.uuid),
        before: Some(before),
        size: Some(size),
    };
    match change(&mut volume, size, args.preallocate, args.shrink) {
        Ok(()) => record(config, event, Outcome::Ok)?,
        Err(error) => {
            let failure = Failure::from(error);
            record(config, event, Outcome::from(&failure))?;
            return Err(failure);
        }
    }
    if args.json {
        return print_json(&done);
    }
    let mut text = match size.cmp(&before) {
        std::cmp::Ordering::Equal => format!("volume {} has {} already\n", done.uuid, Bytes(size)),
        _ => format!(
            "volume {} has {} now, and had {}\nnext: make a new backup of its header; older ones \
             say the old size\n",
            done.uuid,
            Bytes(size),
            Bytes(before)
        ),
    };
    if size < before && volume.is_block() {
        let _ = writeln!(
            text,
            "note: the block device keeps what lies beyond the new end, encrypted, and shows it \
             again if the volume grows: discard it if it is not to come back"
        );
    }
    print(text)
}

/// In the order that a crash cannot harm: see `volume::resize`.
fn change(volume: &mut Volume, size: u64, preallocate: bool, shrink: bool) -> Result<(), Error> {
    if size >= volume.layout().size {
        volume.extend(size, preallocate)?;
    }
    volume.set_size(size)?;
    // Also what an interrupted one has left.
    if shrink {
        volume.cut_off()?;
    }
    Ok(())
}

/// Whether what would be lost may be; returns how many bytes hold data.
fn confirm(volume: &Volume, size: u64, shrink: bool, force: bool) -> Result<u64, Failure> {
    let loss = volume.loss(size)?;
    let refused = |help: &str| {
        let message = format!("{} would lose {loss}", volume.data_path().display());
        Err(Failure::new(Kind::Refused, message, Some(help.into())))
    };
    match (shrink, loss.written, force) {
        (false, ..) => refused(
            "add --shrink, once the guest has shrunk its file systems and partitions: nothing \
             else can know where they end",
        ),
        (true, 0, _) | (true, _, true) => Ok(loss.written),
        (true, ..) => refused(
            "if the guest has shrunk its file systems and partitions to less than that, add \
             --force; what it discards beyond them first is not counted here, where the volume \
             has zero units",
        ),
    }
}

fn in_use(error: Error) -> Failure {
    match error {
        Error::Busy { .. } => Failure::new(
            error.kind(),
            error.to_string(),
            Some(
                "a disk that the daemon serves is made larger with `sealblk resize`; to make it \
                 smaller, detach it first"
                    .into(),
            ),
        ),
        error => error.into(),
    }
}
