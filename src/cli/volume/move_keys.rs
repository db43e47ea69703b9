//! `sealblk volume move-keys`.

use std::fmt::Write as _;

use serde::Serialize;
use uuid::Uuid;

use super::LocationArgs;
use crate::audit::{Event, Outcome};
use crate::cli::{ask, print, print_json, record};
use crate::config::Config;
use crate::error::Failure;
use crate::keys::Context;
use crate::relocate::{self, Place};
use crate::volume::{Access, Location, Volume};

/// What follows `sealblk volume move-keys`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The wrapped keys are overwritten where they were. Flash, copy-on-write file
systems, snapshots and backups of the volume may still have them, and so do
backups of its header: they open nothing once the key version that wrapped them
is disabled at the key service.")]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    /// Key store of this host's configuration, or "header" for the volume's own header
    #[arg(long, value_name = "NAME|header")]
    to: Place,

    /// Destroy an entry of this volume in a key store that has other wrapped
    /// keys than those that count, or is damaged; and leave a copy in a key
    /// store that this host does not have any more
    #[arg(long)]
    force: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What was done. The names are part of the interface.
#[derive(Serialize)]
struct Done {
    uuid: Uuid,
    from: String,
    to: String,
    /// How many wrapped keys there are.
    wraps: usize,
    /// Whether they were somewhere else before.
    moved: bool,
    /// A key store in which a copy was destroyed that an earlier move had left.
    cleared: Option<String>,
}

pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let location = Location::from(args.location);
    let keys = config.key_sets();
    let volume = Volume::open(&location, Access::ReadWrite).map_err(relocate::Error::from);
    let mut volume = volume?;
    let uuid = volume.uuid();
    let context = Context::local(Some(uuid));
    let work = relocate::relocate(&keys, &context, &mut volume, &args.to, args.force);
    let moved = ask(work)?;
    let done = Done {
        uuid,
        from: moved.from.as_str().into(),
        to: moved.to.as_str().into(),
        wraps: moved.wraps,
        moved: moved.from != moved.to,
        cleared: moved.cleared,
    };
    if done.moved {
        let event = Event::KeysMoved {
            volume: uuid,
            from: &done.from,
            to: &done.to,
        };
        record(config, event, Outcome::Ok)?;
    }
    if args.json {
        return print_json(&done);
    }
    let mut text = String::new();
    let _ = match done.moved {
        true => writeln!(
            text,
            "moved the wrapped keys of volume {uuid} from {} to {}",
            moved.from, moved.to
        ),
        false => writeln!(
            text,
            "the wrapped keys of volume {uuid} are in {} already",
            moved.to
        ),
    };
    if let Some(store) = &done.cleared {
        let _ = writeln!(
            text,
            "destroyed a copy that an interrupted move had left in key store {store:?}"
        );
    }
    if done.moved {
        text.push_str(match moved.to {
            Place::Header => "next: back up the header: older backups do not have the wrapped keys\n",
            Place::Store(_) => {
                "next: destroy older backups of the header, which still have the wrapped keys, and make \
                 a new one; back up the key store, without which the data is lost\n"
            }
        });
    }
    print(text)
}
