//! `sealblk volume decrypt`.

use uuid::Uuid;

use super::LocationArgs;
use super::operation::{self, Done, Operation, SpeedArgs, State, WayArgs, in_use};
use super::shifting::{self, StateArgs};
use crate::cli::ask;
use crate::cli::opening::OpeningArgs;
use crate::config::Config;
use crate::conversion::{Sides, begin_decrypt};
use crate::error::{Failure, Kind as ErrorKind};
use crate::keys::Context;
use crate::prepare::Opening;
use crate::rekey::Kind;
use crate::volume::{Access, Error, Location, Volume};

/// What follows `sealblk volume decrypt`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
WHOEVER HAS THE STORAGE READS THE DATA AFTERWARDS, and its key is destroyed. It
is recorded as an alert. With a detached header the data stays in its place;
otherwise it is moved down, over the header, which is in a file beside until that
is done, and the file becomes as much shorter. Interrupted at any instant (Ctrl-C, kill, power), nothing
is lost: the same command goes on. Nobody may use the volume meanwhile.")]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    /// Confirm that this volume is to be plain, by its UUID
    #[arg(long, value_name = "UUID")]
    pub confirm: Option<Uuid>,

    #[command(flatten)]
    pub state: StateArgs,

    #[command(flatten)]
    pub way: WayArgs,

    #[command(flatten)]
    pub speed: SpeedArgs,

    /// What the volume is opened with.
    #[command(flatten)]
    opening: OpeningArgs,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub fn run(mut args: Args, config: &Config) -> Result<(), Failure> {
    let json = args.json;
    let opening = args.opening.resolve()?;
    let location = Location {
        data: std::mem::take(&mut args.location.volume),
        header: args.location.header.take(),
    };
    let done = match location.header {
        Some(_) => in_place(args, config, &location, &opening)?,
        None => shifting::decrypt(args, config, &location.data, &opening)?,
    };
    done.tell(json)
}

/// The data stays where it is.
fn in_place(
    args: Args,
    config: &Config,
    location: &Location,
    opening: &Opening,
) -> Result<Done, Failure> {
    let mut volume = Volume::open(location, Access::ReadWrite).map_err(in_use)?;
    let (keys, context) = (config.key_sets(), Context::local(Some(volume.uuid())));
    let under_way = volume.rekey().cloned();
    let begun = under_way.is_none();
    if volume.token().plain.is_some() {
        // It may have been cut off before the ledger knew.
        operation::known(config, location, &volume);
    }
    match under_way {
        None => {
            volume.facts_to_begin(Kind::Decrypt)?;
            args.way.check_none(location)?;
        }
        Some(rekey) if rekey.kind == Kind::Decrypt => {}
        Some(rekey) => {
            return Err(Error::UnderWay {
                path: volume.header_path().into(),
                what: "decrypt",
                rekey,
            }
            .into());
        }
    }
    confirm(&volume, args.confirm)?;
    let sides = match begun {
        true => ask(begin_decrypt(&keys, &context, &mut volume, opening))?,
        false => ask(Sides::of(&keys, &context, &volume, opening))?,
    };
    let operation = Operation {
        config,
        location,
        speed: args.speed.into(),
        way: args.way,
    };
    let done = operation.carry_out(volume, &sides, begun)?;
    let next = match (done.state, &location.header) {
        (State::Done, Some(header)) => format!(
            "{} is a raw disk now; its header, {}, is of no use any more\n",
            location.data.display(),
            header.display()
        ),
        _ => String::new(),
    };
    Ok(Done { next, ..done })
}

/// Whether somebody wants this very volume to be plain.
pub(super) fn confirm(volume: &Volume, confirmed: Option<Uuid>) -> Result<(), Failure> {
    let uuid = volume.uuid();
    if confirmed == Some(uuid) {
        return Ok(());
    }
    Err(Failure::new(
        ErrorKind::Refused,
        match confirmed {
            None => format!(
                "this makes all data of volume {uuid} readable for whoever has the storage, and \
                 destroys its key"
            ),
            Some(other) => format!("the volume to be decrypted is {uuid}, and not {other}"),
        },
        Some(format!("if that is what you want, add --confirm {uuid}")),
    ))
}
