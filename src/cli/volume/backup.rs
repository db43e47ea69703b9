//! `sealblk volume backup-header`, `restore-header` and `repair`.

use std::path::{Path, PathBuf};

use super::LocationArgs;
use crate::audit::{Event, Outcome};
use crate::cli::{print, record};
use crate::config::Config;
use crate::error::Failure;
use crate::keys::ledger::{Known, Ledger};
use crate::relocate::Place;
use crate::volume::{self, Access, Description, Inspection, Location, Token, Volume};

/// What follows `sealblk volume repair`.
#[derive(Debug, clap::Args)]
pub struct RepairArgs {
    #[command(flatten)]
    location: LocationArgs,
}

/// What follows `sealblk volume backup-header`.
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    #[command(flatten)]
    location: LocationArgs,

    /// File to write; it must not exist yet
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
}

/// What follows `sealblk volume restore-header`.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    location: LocationArgs,

    /// File that `backup-header` or `cryptsetup luksHeaderBackup` wrote
    #[arg(long, value_name = "PATH")]
    from: PathBuf,

    /// Restore even an older backup, or one with another UUID or key
    #[arg(long)]
    force: bool,
}

pub fn repair(args: RepairArgs) -> Result<(), Failure> {
    let volume = Volume::open(&args.location.into(), Access::ReadWrite)?;
    match volume.repaired() {
        Some(which) => print(format_args!(
            "rewrote the {which} header copy from the other one; both are good now\n"
        )),
        None => print("both header copies are good; there was nothing to repair\n"),
    }
}

pub fn backup(args: BackupArgs, config: &Config) -> Result<(), Failure> {
    let location = Location::from(args.location);
    let description = volume::backup(&location, &args.to)?;
    let event = Event::HeaderBackup {
        volume: Some(description.uuid),
        path: &args.to,
    };
    record(config, event, Outcome::Ok)?;
    note_backup(config, &location, &description, &args.to);
    print(format_args!(
        "wrote the header of volume {} (update {}) to {}\n{}",
        description.uuid,
        description.seqid,
        args.to.display(),
        match &description.token.key_store {
            Some(name) => format!(
                "note: the wrapped keys are in key store {name:?}, and not in this backup: back that up too\n"
            ),
            None => String::new(),
        }
    ))
}

/// Notes that there is a backup, which opens the volume even when that was
/// erased.
fn note_backup(config: &Config, location: &Location, description: &Description, to: &Path) {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let token = &description.token;
    let place = (
        absolute(&location.data),
        location.header.as_deref().map(absolute),
    );
    let known = Known {
        backups: vec![absolute(to)],
        erased: token.erased.as_ref().map(|erased| erased.since),
        ..Known::new(description.uuid, place, &token.key_set, &token.wraps)
    };
    if let Err(error) = Ledger::below(&config.daemon.state_dir).note(&known) {
        tracing::warn!(%error, "the ledger does not know of this backup");
    }
}

/// What the restored header means for where the wrapped keys are.
fn note(before: Option<&Token>, now: &Token) -> String {
    let place = |token: &Token| Place::of(token);
    match (before.map(place), place(now)) {
        (Some(Place::Store(store)), Place::Header) => format!(
            "note: this backup has the wrapped keys in itself, and they are in the header again; \
             key store {store:?} keeps its own: `sealblk volume move-keys --to {store}` moves them there again\n"
        ),
        (_, Place::Store(store)) => {
            format!("note: the wrapped keys are in key store {store:?}, and not in this backup\n")
        }
        (_, Place::Header) => String::new(),
    }
}

pub fn restore(args: RestoreArgs, config: &Config) -> Result<(), Failure> {
    let location = Location::from(args.location);
    let before = Inspection::of(&location).and_then(|found| found.description());
    let before = before.ok().map(|description| description.token);
    let volume = volume::restore(&location, &args.from, args.force)?;
    let event = Event::HeaderRestore {
        volume: Some(volume.uuid()),
        path: &args.from,
    };
    record(config, event, Outcome::Ok)?;
    print(format_args!(
        "restored the header of volume {} from {} (now update {})\n{}",
        volume.uuid(),
        args.from.display(),
        volume.description().seqid,
        note(before.as_ref(), volume.token()),
    ))
}
