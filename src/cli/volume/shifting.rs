//! `sealblk volume encrypt` and `decrypt` of a disk that has its header with its
//! data: the data is moved.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use uuid::Uuid;

use super::decrypt;
use super::decrypt::confirm;
use super::encrypt::{self, check_encrypts, is_volume};
use super::operation::{self, Done, Operation, State, WayArgs, in_use, until_signal};
use super::watch::watched;
use crate::cli::ask;
use crate::config::Config;
use crate::conversion::{Shifting, Speed, check_no_loop};
use crate::error::{Failure, Kind as ErrorKind};
use crate::keys::Context;
use crate::prepare::Opening;
use crate::rekey::Kind;
use crate::shift::Progress;
use crate::volume::{Access, Error, Location, PlainPlan, Volume};

/// Flags of a disk that is moved.
#[derive(Debug, clap::Args)]
pub struct StateArgs {
    /// File for the header until the disk has been moved [default: the name of
    /// the disk with ".sealblk-moving", if it is a file]
    ///
    /// Without it the disk is lost: it has to be on storage that lasts.
    #[arg(long, value_name = "PATH", conflicts_with = "header")]
    state: Option<PathBuf>,
}

/// Encrypts a plain disk, with its header before it in the end.
pub fn encrypt(
    args: encrypt::Args,
    config: &Config,
    disk: &Path,
    opening: &Opening,
) -> Result<Done, Failure> {
    no_way_back(args.way, args.prepare)?;
    let beside = Shifting::beside(disk, args.state.state.clone())?;
    let location = Location {
        data: disk.to_owned(),
        header: Some(beside.clone()),
    };
    let operation = Operation {
        config,
        location: &location,
        speed: args.speed.into(),
        way: args.way,
    };
    let keys = config.key_sets();
    let (shifting, begun) = match is_volume(&beside)? {
        true => {
            let volume = Volume::open_beside(&location).map_err(in_use)?;
            check_encrypts(&volume)?;
            let context = Context::local(Some(volume.uuid()));
            let resumed = Shifting::resume(&keys, &context, volume, opening);
            (ask(resumed)?, false)
        }
        false => {
            check_no_loop(disk)?;
            check_plain(disk)?;
            let plan = PlainPlan::to_be_moved(&location, args.options());
            let plan = plan.map_err(in_use)?;
            let context = Context::local(Some(plan.binding().uuid));
            let begun = Shifting::begin_up(&keys, &context, plan, &args.key_set);
            (ask(begun)?, true)
        }
    };
    if begun {
        operation.known(&shifting.volume);
    }
    if shifting.volume.has_inline_header() {
        // It was done, and cut off before the file beside was removed.
        return ended(&operation, shifting, disk);
    }
    let done = carry_out(&operation, shifting, begun, &beside)?;
    match done {
        Carried::Paused(done) => Ok(done),
        Carried::Moved(shifting, done) => Ok(Done {
            moved: done.moved,
            seconds: done.seconds,
            ..ended(&operation, *shifting, disk)?
        }),
    }
}

/// Fails if the disk has a header already.
fn check_plain(disk: &Path) -> Result<(), Failure> {
    let location = Location {
        data: disk.to_owned(),
        header: None,
    };
    match Volume::open(&location, Access::ReadWrite) {
        Ok(volume) => check_encrypts(&volume),
        Err(error @ Error::Busy { .. }) => Err(in_use(error)),
        // Whatever it is, no volume.
        Err(_) => Ok(()),
    }
}

/// The header is put where it belongs.
fn ended(operation: &Operation<'_>, shifting: Shifting, disk: &Path) -> Result<Done, Failure> {
    let done = operation.done(
        &shifting.volume,
        &shifting.sides,
        State::Done,
        Default::default(),
    );
    let (volume, sides) = shifting.settle()?;
    let location = Location {
        data: disk.to_owned(),
        header: None,
    };
    let operation = Operation {
        location: &location,
        ..*operation
    };
    operation.known(&volume);
    operation.record(&volume, &sides, "finish")?;
    Ok(Done {
        left: 0,
        next: format!(
            "next: back up its header, without which the data is lost:\n  \
             sealblk volume backup-header {} --to FILE\n",
            disk.display()
        ),
        ..done
    })
}

/// Decrypts a volume with its header before it, to where that was.
pub fn decrypt(
    args: decrypt::Args,
    config: &Config,
    disk: &Path,
    opening: &Opening,
) -> Result<Done, Failure> {
    no_way_back(args.way, false)?;
    let beside = Shifting::beside(disk, args.state.state.clone())?;
    let location = Location {
        data: disk.to_owned(),
        header: Some(beside.clone()),
    };
    let operation = Operation {
        config,
        location: &location,
        speed: args.speed.into(),
        way: args.way,
    };
    let keys = config.key_sets();
    let mut under_way = match is_volume(&beside)? {
        true => Some(Volume::open_beside(&location).map_err(in_use)?),
        false => None,
    };
    if let Some(volume) = under_way.take() {
        if volume.token().plain.is_some() {
            return left_over(config, volume, disk, args.confirm);
        }
        check_decrypts(&volume)?;
        confirm(&volume, args.confirm)?;
        match Shifting::is_unbegun(&volume)? {
            true => volume.remove_header_file()?,
            false => under_way = Some(volume),
        }
    }
    let (shifting, begun) = match under_way {
        Some(volume) => {
            let context = Context::local(Some(volume.uuid()));
            let resumed = Shifting::resume(&keys, &context, volume, opening);
            (ask(resumed)?, false)
        }
        None => {
            let inline = Location {
                header: None,
                ..location.clone()
            };
            let volume = Volume::open(&inline, Access::ReadWrite).map_err(in_use)?;
            volume.facts_to_begin(Kind::Decrypt)?;
            check_no_loop(disk)?;
            confirm(&volume, args.confirm)?;
            let context = Context::local(Some(volume.uuid()));
            let begun = Shifting::begin_down(&keys, &context, volume, &beside, opening);
            (ask(begun)?, true)
        }
    };
    match carry_out(&operation, shifting, begun, &beside)? {
        Carried::Paused(done) => Ok(done),
        Carried::Moved(shifting, done) => {
            // Not on record, it does not end.
            operation.record(&shifting.volume, &shifting.sides, "finish")?;
            let volume = shifting.finish()?;
            operation.known(&volume);
            volume.remove_header_file()?;
            Ok(Done {
                next: format!("{} is a raw disk now\n", disk.display()),
                ..done
            })
        }
    }
}

/// It was all decrypted, and cut off before the file beside was removed.
fn left_over(
    config: &Config,
    volume: Volume,
    disk: &Path,
    confirmed: Option<Uuid>,
) -> Result<Done, Failure> {
    confirm(&volume, confirmed)?;
    let (uuid, size) = (volume.uuid(), volume.layout().size);
    let location = Location {
        data: disk.to_owned(),
        header: None,
    };
    operation::known(config, &location, &volume);
    volume.remove_header_file()?;
    Ok(Done {
        uuid,
        operation: Uuid::nil(),
        kind: Kind::Decrypt,
        state: State::Done,
        size,
        left: 0,
        moved: 0,
        seconds: 0.0,
        next: format!("{} is a raw disk now\n", disk.display()),
    })
}

fn check_decrypts(volume: &Volume) -> Result<(), Failure> {
    match volume.rekey() {
        Some(rekey) if rekey.kind != Kind::Decrypt => Err(Error::UnderWay {
            path: volume.header_path().into(),
            what: "decrypt",
            rekey: rekey.clone(),
        }
        .into()),
        _ => Ok(()),
    }
}

/// What came of it.
enum Carried {
    /// It goes on another time.
    Paused(Done),
    /// Everything was moved, and it is to be ended.
    Moved(Box<Shifting>, Done),
}

fn carry_out(
    operation: &Operation<'_>,
    shifting: Shifting,
    begun: bool,
    beside: &Path,
) -> Result<Carried, Failure> {
    let action = if begun { "begin" } else { "resume" };
    operation.record(&shifting.volume, &shifting.sides, action)?;
    let (stop, progress) = (AtomicBool::new(false), Progress::default());
    let (size, speed): (u64, Speed) = (shifting.sides.facts.size, operation.speed);
    let start = Instant::now();
    let far = || (progress.moved.load(Ordering::Relaxed), size);
    let run = || watched(far, || shifting.run(speed, &stop, &progress));
    let moved = until_signal(|| stop.store(true, Ordering::Relaxed), run)?;
    let (volume, sides) = (&shifting.volume, &shifting.sides);
    let moved = moved.inspect_err(|_| operation.failed(volume, sides))?;
    let at = progress.moved.load(Ordering::Relaxed);
    let state = if moved { State::Done } else { State::Paused };
    let done = Done {
        left: size - at,
        moved: at.saturating_sub(progress.before.load(Ordering::Relaxed)),
        ..operation.done(volume, sides, state, start.elapsed())
    };
    if moved {
        return Ok(Carried::Moved(Box::new(shifting), done));
    }
    operation.record(volume, sides, "pause")?;
    Ok(Carried::Paused(Done {
        next: format!(
            "until it is done, the header of the disk is in {}, without which its data is lost\n",
            beside.display()
        ),
        ..done
    }))
}

/// A disk that is moved goes on to its end.
fn no_way_back(way: WayArgs, prepare: bool) -> Result<(), Failure> {
    if way.is_given() || prepare {
        return Err(Failure::new(
            ErrorKind::Usage,
            "a disk that is moved, to have its header before it, is moved to the end",
            Some(
                "leave the flag out, and take it back with the opposite command when it is done; \
                 with --header the data stays in its place, and the flag is possible"
                    .into(),
            ),
        ));
    }
    Ok(())
}
