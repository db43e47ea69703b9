//! `sealblk volume encrypt`.

use std::path::PathBuf;
use std::time::Duration;

use super::LocationArgs;
use super::operation::{Done, Operation, SpeedArgs, State, WayArgs, in_use};
use super::shifting::{self, StateArgs};
use crate::cli::ask;
use crate::cli::opening::OpeningArgs;
use crate::config::Config;
use crate::conversion::{self, Sides, begin_encrypt, check_no_loop};
use crate::error::{Failure, Kind as ErrorKind};
use crate::keys::Context;
use crate::prepare::Opening;
use crate::rekey::Kind;
use crate::units::{Bytes, SectorSize};
use crate::volume::{
    Access, CreateOptions, DEFAULT_HEADER_AREA, Error, Location, PlainPlan, Volume,
};

/// What follows `sealblk volume encrypt`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealblk volume encrypt web.img
  sealblk volume encrypt /dev/vg0/web --header /var/lib/sealblk/web.header

Without --header the data is moved up, to make room for the header before it: the
file becomes as much longer, and a block device needs that room behind the disk.
Until that is done the header is in a file beside.

With --header the disk keeps its size and its place, and the file of the header is
from then on a part of it: WITHOUT IT THE DATA IS LOST, so make a backup of it.
With --prepare nothing is encrypted yet: attach the disk with its header, and the
daemon encrypts it while its guest runs.

Interrupted at any instant (Ctrl-C, kill, power), nothing is lost: the same
command goes on. Nobody may use the disk meanwhile.")]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    #[command(flatten)]
    pub state: StateArgs,

    /// Size of the disk on a block device that has room behind it [default: all
    /// of it]
    #[arg(long, value_name = "SIZE", conflicts_with = "header")]
    size: Option<Bytes>,

    /// Bytes encrypted as one unit: 512 works everywhere, 4096 is faster, and
    /// the guest's firmware must be able to boot from it
    #[arg(long, value_name = "512|4096", default_value_t)]
    sector_size: SectorSize,

    /// Key set that wraps the key of the volume
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub key_set: String,

    /// Name for people, at most 47 bytes
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,

    /// Let units whose stored bytes are all zero read as zeroes
    ///
    /// What is empty then stays so, and takes no space. It lets whoever can write
    /// the backing file turn any unit into zeroes unnoticed, and shows which
    /// units were never written. Cannot be changed later.
    #[arg(long)]
    zero_units: bool,

    /// Length of the header area
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_HEADER_AREA)]
    header_area: Bytes,

    /// Also if the disk looks as if it were an image of another format, or
    /// encrypted
    #[arg(long)]
    force: bool,

    /// Make the header alone, and encrypt nothing yet
    #[arg(long)]
    pub prepare: bool,

    #[command(flatten)]
    pub way: WayArgs,

    #[command(flatten)]
    pub speed: SpeedArgs,

    /// What it is opened with, to go on.
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
    let done = match location.header.clone() {
        Some(header) => in_place(args, config, &location, header, &opening)?,
        None => shifting::encrypt(args, config, &location.data, &opening)?,
    };
    done.tell(json)
}

impl Args {
    /// What the volume is to be like.
    pub fn options(&self) -> CreateOptions {
        CreateOptions {
            label: self.label.clone().unwrap_or_default(),
            sector_size: self.sector_size,
            size: self.size,
            zero_units: self.zero_units,
            header_area: self.header_area,
            force: self.force,
            ..CreateOptions::default()
        }
    }
}

/// A new header can have a larger area.
fn no_room(error: conversion::Error) -> conversion::Error {
    match error {
        conversion::Error::Volume(Error::CannotBegin { why, .. }) => conversion::Error::Refused {
            kind: ErrorKind::Usage,
            why,
            next: "choose a larger --header-area: 1M is enough, 16M is fast".into(),
        },
        error => error,
    }
}

/// With a header in a file of its own; the data stays where it is.
fn in_place(
    args: Args,
    config: &Config,
    location: &Location,
    header: PathBuf,
    opening: &Opening,
) -> Result<Done, Failure> {
    let keys = config.key_sets();
    let operation = Operation {
        config,
        location,
        speed: args.speed.into(),
        way: args.way,
    };
    let (volume, sides, begun) = match is_volume(&header)? {
        true => {
            let volume = Volume::open(location, Access::ReadWrite).map_err(in_use)?;
            check_encrypts(&volume)?;
            let context = Context::local(Some(volume.uuid()));
            let sides = ask(Sides::of(&keys, &context, &volume, opening))?;
            (volume, sides, false)
        }
        false => {
            args.way.check_none(location)?;
            check_no_loop(&location.data)?;
            let plan = PlainPlan::new(location, args.options(), 0).map_err(in_use)?;
            let context = Context::local(Some(plan.binding().uuid));
            let unit = args.sector_size;
            let begin = begin_encrypt(&keys, &context, plan, &args.key_set, unit);
            let (volume, sides) = ask(async { begin.await.map_err(no_room) })?;
            operation.known(&volume);
            (volume, sides, true)
        }
    };
    let backup = format!(
        "next: back up its header, without which the data is lost:\n  \
         sealblk volume backup-header {} --header {} --to FILE\n",
        location.data.display(),
        header.display()
    );
    if args.prepare {
        if begun {
            operation.record(&volume, &sides, "begin")?;
        }
        return Ok(Done {
            next: format!(
                "{backup}attach it with this header to have it encrypted while its guest runs, or \
                 repeat the command without --prepare\n"
            ),
            ..operation.done(&volume, &sides, State::Prepared, Duration::ZERO)
        });
    }
    let done = operation.carry_out(volume, &sides, begun)?;
    Ok(Done {
        next: match done.state {
            State::Done => backup,
            State::TakenBack => format!("the file {} is of no use any more\n", header.display()),
            State::Prepared | State::Paused => String::new(),
        },
        ..done
    })
}

/// Fails unless a plain disk is being encrypted.
pub(super) fn check_encrypts(volume: &Volume) -> Result<(), Failure> {
    let path = volume.header_path();
    match volume.rekey() {
        Some(rekey) if rekey.kind == Kind::Encrypt => Ok(()),
        Some(rekey) => Err(Error::UnderWay {
            path: path.into(),
            what: "encrypt",
            rekey: rekey.clone(),
        }
        .into()),
        None => {
            volume.facts_to_begin(Kind::Encrypt)?;
            Ok(())
        }
    }
}

/// Whether there is a header in a file. What an interrupted beginning has left
/// there is cleared away: nothing depends on it before there is a header.
pub(super) fn is_volume(header: &std::path::Path) -> Result<bool, Failure> {
    crate::volume::clear_unfinished(header).map_err(in_use)
}
