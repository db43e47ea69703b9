//! `sealblk volume backup-header`, `restore-header` and `repair`.

use std::io;
use std::path::{Path, PathBuf};

use super::LocationArgs;
use crate::audit::{Event, Outcome};
use crate::cli::{ask, not_asked, print, record};
use crate::config::Config;
use crate::error::{Explain as _, Failure, Kind};
use crate::key_store;
use crate::keys::ledger::{Backup, Ledger};
use crate::keys::{self, Access, Context};
use crate::kms::Class;
use crate::relocate::Place;
use crate::runtime::block_on;
use crate::volume::{self, Description, Inspection, Location, Restored, Token, Volume};

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

    /// Restore even an older backup, one with another UUID or key, or one whose
    /// wrapped keys do not open
    #[arg(long)]
    force: bool,

    /// Do not try whether the wrapped keys of the backup open
    #[arg(long)]
    no_check: bool,
}

pub fn repair(args: RepairArgs) -> Result<(), Failure> {
    let volume = Volume::open(&args.location.into(), volume::Access::ReadWrite)?;
    match volume.repaired() {
        Some(which) => print(format_args!(
            "rewrote the {which} header copy from the other one; both are good now\n"
        )),
        None => print("both header copies are good; there was nothing to repair\n"),
    }
}

pub fn backup(args: BackupArgs, config: &Config) -> Result<(), Failure> {
    let location = Location::from(args.location);
    let ledger = Ledger::below(&config.daemon.state_dir);
    let expected = Inspection::of(&location)?.description()?;
    // Noted first: a backup that nobody knows of would be forgotten when keys
    // are destroyed. What is there already is not ours to note, and is refused.
    let noted = match args.to.symlink_metadata() {
        Ok(_) => None,
        Err(_) => Some(note_backup(&ledger, &location, &args.to, &expected)),
    };
    let made = volume::backup(&location, &args.to);
    if made.is_err() && matches!(noted, Some(Ok(()))) {
        // Nothing is left of it.
        let _ = ledger.forget_backup(&absolute(&args.to));
    }
    let description = made?;
    let noted = match noted {
        // The header was changed in between.
        _ if description.seqid != expected.seqid => {
            note_backup(&ledger, &location, &args.to, &description)
        }
        Some(noted) => noted,
        None => note_backup(&ledger, &location, &args.to, &description),
    };
    let event = Event::HeaderBackup {
        volume: Some(description.uuid),
        path: &args.to,
    };
    record(config, event, Outcome::Ok)?;
    print(format_args!(
        "wrote the header of volume {} (update {}) to {}\n{}{}{}",
        description.uuid,
        description.seqid,
        args.to.display(),
        match &description.token.key_store {
            Some(name) => format!(
                "note: the wrapped keys are in key store {name:?}, and not in this backup: back that up too\n"
            ),
            None => String::new(),
        },
        match &description.token.rekey {
            Some(rekey) => format!(
                "note: the volume is being {} now. This backup brings its header back where that is \
                 damaged, as long as the journal behind it is not; make a new one when that has \
                 ended, since this one opens nothing then\n",
                rekey.doing()
            ),
            None => String::new(),
        },
        match noted {
            Ok(()) => String::new(),
            Err(error) => not_noted(&ledger, &error),
        },
    ))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Lets the ledger of this host know of a backup.
fn note_backup(
    ledger: &Ledger,
    location: &Location,
    path: &Path,
    description: &Description,
) -> io::Result<()> {
    let (data, header) = (
        absolute(&location.data),
        location.header.as_deref().map(absolute),
    );
    let backup = Backup::new(absolute(path), description);
    ledger.note_backup((&data, header.as_deref()), description, backup)
}

fn not_noted(ledger: &Ledger, error: &io::Error) -> String {
    format!(
        "warning: the ledger of this host ({}) does not know of this backup ({error}): nobody will be told that it \
         still needs its key version, or opens the volume after that was erased. Make backups as the \
         user that runs the daemon, or keep a list of your own\n",
        ledger.path_of_all().display()
    )
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
    let checked = match args.no_check {
        true => String::new(),
        false => check(&args.from, config, args.force)?,
    };
    let Restored { volume, against } = volume::restore(&location, &args.from, args.force)?;
    let event = Event::HeaderRestore {
        volume: Some(volume.uuid()),
        path: &args.from,
    };
    record(config, event, Outcome::Ok)?;
    // It may have been made elsewhere, or before backups were noted.
    let ledger = Ledger::below(&config.daemon.state_dir);
    let backup = volume::description_of_backup(&args.from);
    let backup = backup.as_ref().unwrap_or(volume.description());
    let noted = note_restored(&ledger, &location, &args.from, backup);
    print(format_args!(
        "restored the header of volume {} from {} (now update {})\n{}{}{checked}{}",
        volume.uuid(),
        args.from.display(),
        volume.description().seqid,
        against.map_or(String::new(), |against| format!("warning: {against}\n")),
        note(before.as_ref(), volume.token()),
        match noted {
            Ok(()) => String::new(),
            Err(error) => not_noted(&ledger, &error),
        },
    ))
}

/// Lets the ledger know of a backup that was restored, unless it does.
fn note_restored(
    ledger: &Ledger,
    location: &Location,
    from: &Path,
    description: &Description,
) -> io::Result<()> {
    let path = absolute(from);
    let known = ledger.backups(description.uuid)?;
    match known.iter().any(|backup| backup.path == path) {
        true => Ok(()),
        false => note_backup(ledger, location, from, description),
    }
}

/// Whether the volume would open with the backup: its keys are asked for. What
/// is to be known of it, where it would.
fn check(from: &Path, config: &Config, force: bool) -> Result<String, Failure> {
    // What is wrong with the backup itself is found again, and said, by
    // restoring it.
    let Ok(description) = volume::description_of_backup(from) else {
        return Ok(String::new());
    };
    let keys = config.key_sets();
    let context = Context::local(Some(description.uuid));
    let (token, binding) = (&description.token, description.binding().bytes());
    let opened = block_on(keys.unwrap(&context, token, &binding, Access::OwnKeySet));
    let opened = match opened.map_err(not_asked)? {
        Ok(opened) => opened,
        Err(error) => return not_opened(error, force),
    };
    description.verify_dek(&opened.dek, from)?;
    let Some(wrap) = opened.wraps.get(opened.wrap) else {
        return Ok(String::new());
    };
    let now = ask(keys.current_version(&context, &wrap.key_set));
    Ok(match now {
        Ok(now) if now.id != wrap.key_version => format!(
            "note: this backup has the key wrapped by version {} of key set {:?}, which wraps with \
             version {} now: rotate the key set before that version is disabled, and make a new \
             backup\n",
            wrap.key_version, wrap.key_set, now.id
        ),
        _ => String::new(),
    })
}

/// What it means that the wraps of a backup do not open.
fn not_opened(error: keys::Error, force: bool) -> Result<String, Failure> {
    // That a service is away says nothing of the backup, and another host may
    // have other key sets. That a service knows no such key, or a key store no
    // such entry, does.
    let decided = match &error {
        keys::Error::Store(key_store::Error::Missing { .. }) => true,
        error if error.class() == Some(Class::NotFound) => true,
        error => matches!(error.kind(), Kind::Key | Kind::Corrupt),
    };
    let failure = Failure::from(error);
    match (decided, force) {
        (false, _) => Ok(format!(
            "note: it could not be tried whether the volume opens now: {failure}\n"
        )),
        (true, true) => Ok(format!(
            "warning: the volume does not open now: {failure}\n"
        )),
        (true, false) => Err(Failure::new(
            Kind::Refused,
            format!("with this backup the volume would not open: {failure}"),
            Some(format!(
                "{}; or restore a later backup; --force restores this one all the same",
                failure
                    .help()
                    .unwrap_or("enable the key version that it needs")
            )),
        )),
    }
}
