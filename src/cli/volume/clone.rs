//! `sealblk volume clone`.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use serde::Serialize;
use uuid::Uuid;

use super::making::make_filled;
use super::watch::watched;
use crate::audit::{Event, Outcome};
use crate::cli::opening::OpeningArgs;
use crate::cli::{ask, print, print_json, record};
use crate::clone::{self, Progress, Side};
use crate::config::Config;
use crate::crypt::{Engine, Params, SectorCipher};
use crate::error::{Explain as _, Failure, Kind};
use crate::keys::Context;
use crate::prepare;
use crate::units::Bytes;
use crate::volume::{Access, CreateOptions, Error, Location, Plan, Volume};

/// What follows `sealblk volume clone`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The copy is a volume of its own, with another UUID, another key, and the same
size, sector size and zero units. It takes the space that the source takes.
If it is interrupted, there is no volume: repeat it with --force.")]
pub struct Args {
    /// Volume to copy; it must not be in use
    #[arg(value_name = "SOURCE")]
    source: PathBuf,

    /// File or block device to make the new volume in
    #[arg(value_name = "DESTINATION")]
    destination: PathBuf,

    /// File with the detached header of the source
    #[arg(long, value_name = "PATH")]
    header: Option<PathBuf>,

    /// File for a detached header of the new volume
    #[arg(long, value_name = "PATH")]
    to_header: Option<PathBuf>,

    /// Key set that wraps the new key [default: that of the source]
    #[arg(long, value_name = "NAME")]
    key_set: Option<String>,

    /// Name of the new volume for people [default: that of the source]
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,

    /// Reserve the space of the new volume first
    #[arg(long)]
    preallocate: bool,

    /// Destroy what the destination holds now
    #[arg(long)]
    force: bool,

    /// What the source is opened with.
    #[command(flatten)]
    opening: OpeningArgs,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What was done. The names are part of the interface.
#[derive(Serialize)]
struct Done {
    /// The new volume.
    uuid: Uuid,
    source: Uuid,
    key_set: String,
    size: u64,
    /// Bytes that were written, without what takes no space.
    written: u64,
}

pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let keys = config.key_sets();
    let from = Location {
        data: args.source,
        header: args.header,
    };
    let to = Location {
        data: args.destination,
        header: args.to_header,
    };
    let source = Volume::open(&from, Access::ReadOnly).map_err(in_use)?;
    source.check_settled("copy")?;
    let layout = source.layout();
    let key_set = args.key_set.unwrap_or(source.token().key_set.clone());
    let options = CreateOptions {
        label: args.label.unwrap_or_else(|| source.label().to_owned()),
        sector_size: layout.sector_size,
        size: Some(Bytes(layout.size)),
        preallocate: args.preallocate,
        zero_units: layout.zero_units,
        force: args.force,
        ..CreateOptions::default()
    };
    let opening = args.opening.resolve()?;
    // Nothing of the destination is touched before there are both keys.
    let plan = Plan::new(&to, options)?;
    let context = Context::local(Some(source.uuid()));
    let old = ask(prepare::unwrap(&keys, &context, &source, &opening))?.dek;
    source.verify_dek(&old)?;
    let params = Params {
        sector_size: layout.sector_size,
        iv_tweak: layout.iv_tweak,
        zero_units: layout.zero_units,
    };
    let old = SectorCipher::new(Engine::best(), &old, params)?;
    let progress = Progress::default();
    let mut fill = |cipher: &SectorCipher, file: &File, offset: u64| {
        let sides = [
            Side {
                file: source.data_file(),
                offset: layout.data_offset,
                path: &from.data,
                cipher: &old,
            },
            Side {
                file,
                offset,
                path: &to.data,
                cipher,
            },
        ];
        let far = || (progress.passed.load(Ordering::Relaxed), layout.size);
        watched(far, || {
            clone::copy(&layout, &sides[0], &sides[1], &progress)
        })
    };
    let made = make_filled(config, plan, &to, (&key_set, None), &mut fill)?;
    let uuid = made.uuid();
    let event = Event::VolumeCloned {
        volume: source.uuid(),
        clone: uuid,
        key_set: &key_set,
        path: &to.data,
    };
    record(config, event, Outcome::Ok)?;
    let done = Done {
        uuid: made.uuid(),
        source: source.uuid(),
        key_set,
        size: layout.size,
        written: progress.written.load(Ordering::Relaxed),
    };
    if args.json {
        return print_json(&done);
    }
    print(format_args!(
        "made volume {}, a copy of {} with a key of its own: {} for the guest, of which {} were \
         written, key set {}\nnext: back up its header, without which the data is lost\n",
        done.uuid,
        done.source,
        Bytes(done.size),
        Bytes(done.written),
        done.key_set,
    ))
}

fn in_use(error: Error) -> Failure {
    match error {
        Error::Busy { .. } => Failure::new(
            Kind::Busy,
            error.to_string(),
            Some(
                "a volume that is served changes while it is copied: detach it first, or copy a \
                 snapshot of it"
                    .into(),
            ),
        ),
        error => Failure::new(error.kind(), crate::error::chain(&error), error.help()),
    }
}
