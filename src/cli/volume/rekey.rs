//! `sealblk volume rekey`.

use super::LocationArgs;
use super::operation::{Operation, SpeedArgs, WayArgs, in_use};
use crate::cli::ask;
use crate::cli::opening::OpeningArgs;
use crate::config::Config;
use crate::conversion::{Sides, begin_rekey};
use crate::error::Failure;
use crate::keys::Context;
use crate::rekey::Kind;
use crate::volume::{Access, Error, Location, Volume};

/// What follows `sealblk volume rekey`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Whoever has the old key, from a process or a backup of the header, reads nothing
that was moved. Interrupted at any instant (Ctrl-C, kill, power), nothing is lost:
the same command goes on, here or on another host. A disk that is attached is
re-encrypted with `sealblk rekey`, while its guest uses it. Afterwards, make a new
backup of the header: older ones have the old key, and open nothing any more.")]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    #[command(flatten)]
    way: WayArgs,

    #[command(flatten)]
    speed: SpeedArgs,

    /// What the volume is opened with.
    #[command(flatten)]
    opening: OpeningArgs,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let location = Location::from(args.location);
    let opening = args.opening.resolve()?;
    let mut volume = Volume::open(&location, Access::ReadWrite).map_err(in_use)?;
    let (keys, context) = (config.key_sets(), Context::local(Some(volume.uuid())));
    let under_way = volume.rekey().cloned();
    let begun = under_way.is_none();
    let sides = match under_way {
        None => {
            args.way.check_none(&location)?;
            ask(begin_rekey(&keys, &context, &mut volume, &opening))?
        }
        Some(rekey) if rekey.kind == Kind::Rekey => {
            ask(Sides::of(&keys, &context, &volume, &opening))?
        }
        Some(rekey) => {
            return Err(Error::UnderWay {
                path: volume.header_path().into(),
                what: "re-encrypt",
                rekey,
            }
            .into());
        }
    };
    let operation = Operation {
        config,
        location: &location,
        speed: args.speed.into(),
        way: args.way,
    };
    if begun {
        operation.known(&volume);
    }
    let done = operation.carry_out(volume, &sides, begun)?;
    done.tell(args.json)
}
