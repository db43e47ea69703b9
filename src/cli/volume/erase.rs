//! `sealblk volume erase`: the end of a volume.

use std::fmt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::LocationArgs;
use crate::audit::{Event, Outcome};
use crate::cli::{ask, print, print_json, record, running_daemon};
use crate::config::Config;
use crate::erase::{self, How};
use crate::error::{Failure, Kind};
use crate::keys::Context;
use crate::keys::ledger::Ledger;
use crate::manager::model::{EraseVolume, ErasedVolume};
use crate::volume::{Inspection, Location};

/// What follows `sealblk volume erase`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
All wrapped keys of the volume are overwritten, in both copies of its header and in
key stores, with all their versions. From then on NOBODY CAN READ ITS DATA, but
with a backup of its header: those that this host made are listed. Flash,
copy-on-write file systems, snapshots and backups of the volume may keep old
blocks; disable the key version at the key service where that matters. What is
interrupted is finished by the same command.")]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    /// Confirm that the data may be lost
    #[arg(long)]
    yes: bool,

    /// Also if it is attached: the daemon detaches it first, whatever its guest
    /// does. And also if a key store that has its keys does not answer
    #[arg(long)]
    force: bool,

    /// Give the space of the data back as well, where that is possible
    #[arg(long)]
    discard: bool,

    /// Also if a part of its data is plain, because it is being encrypted or
    /// decrypted: THAT PART STAYS READABLE
    #[arg(long)]
    leave_plain: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let location = absolute(args.location.into());
    // Which volume it is: what is there when it comes to it may be another one.
    let looked = Inspection::of(&location).and_then(|inspection| inspection.description());
    let uuid = looked.as_ref().ok().map(|description| description.uuid);
    if !args.yes {
        looked?;
        return Err(unconfirmed(&location, uuid));
    }
    let how = How {
        force: args.force,
        discard: args.discard,
        leave_plain: args.leave_plain,
    };
    let erased = match running_daemon(config)? {
        Some(client) => ask(client.erase_volume(&EraseVolume {
            volume: location.data.clone(),
            header: location.header.clone(),
            uuid,
            force: how.force,
            discard: how.discard,
            leave_plain: how.leave_plain,
        }))?,
        None => here(config, &location, uuid, how)?,
    };
    match args.json {
        true => print_json(&erased)?,
        false => print(Told {
            volume: &location.data,
            erased: &erased,
        })?,
    }
    match erased.left.first() {
        None => Ok(()),
        Some(left) => Err(Failure::new(
            Kind::Unreachable,
            format!(
                "its wrapped keys are still in key store {:?}: {}",
                left.key_store, left.why
            ),
            Some(
                "repeat the command when that key store answers: until then they are there".into(),
            ),
        )),
    }
}

fn absolute(location: Location) -> Location {
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    Location {
        data: absolute(location.data),
        header: location.header.map(absolute),
    }
}

fn unconfirmed(location: &Location, uuid: Option<Uuid>) -> Failure {
    let uuid = uuid.map_or(String::new(), |uuid| format!(" {uuid}"));
    Failure::new(
        Kind::Refused,
        format!(
            "this destroys the key of volume{uuid} in {}, and with it all of its data, for ever",
            location.data.display()
        ),
        Some("if that is what you want, add --yes".into()),
    )
}

/// Without a daemon.
fn here(
    config: &Config,
    location: &Location,
    uuid: Option<Uuid>,
    how: How,
) -> Result<ErasedVolume, Failure> {
    let (path, force) = (location.data.as_path(), how.force);
    // That it cannot be had is found out before anything is on record.
    drop(erase::open(location, uuid, how)?);
    let begun = Event::VolumeErasing {
        volume: uuid,
        path,
        force,
        leave_plain: how.leave_plain,
    };
    record(config, begun, Outcome::Ok)?;
    let keys = config.key_sets();
    let ledger = Ledger::below(&config.daemon.state_dir);
    let context = Context::local(uuid);
    let done = ask(erase::at(&keys, &ledger, &context, location, uuid, how));
    let erased = done.map(|done| {
        let backups = erase::backups(&ledger, done.uuid);
        ErasedVolume::new(done, None, backups)
    });
    let told = erased.as_ref().ok();
    let ended = Event::VolumeErased {
        volume: told.map(|erased| erased.uuid).or(uuid),
        path,
        force,
        disk: "",
        left: &told.map(ErasedVolume::left_in).unwrap_or_default(),
        backups: told.map_or(0, |erased| erased.backups.len() as u64),
    };
    record(config, ended, Outcome::of(&erased))?;
    erased
}

/// What was done, for people.
struct Told<'a> {
    volume: &'a Path,
    erased: &'a ErasedVolume,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let erased = self.erased;
        if let Some(disk) = &erased.detached {
            writeln!(f, "detached the disk {disk:?}")?;
        }
        writeln!(
            f,
            "erased volume {} in {}: no key of it is in its header{}",
            erased.uuid,
            self.volume.display(),
            match erased.finished {
                true => " or in any key store",
                false => "",
            }
        )?;
        if erased.partly_plain {
            writeln!(
                f,
                "STILL READABLE: a part of its data, which was not encrypted. Overwrite it"
            )?;
        }
        for store in &erased.purged {
            writeln!(
                f,
                "destroyed its entry in key store {store:?}, with all versions"
            )?;
        }
        for store in &erased.unasked {
            writeln!(
                f,
                "note: key store {:?} did not answer; the header did not name it, but if it has an \
                 entry of this volume, that is still there: {}",
                store.key_store, store.why
            )?;
        }
        match (&erased.not_discarded, erased.discarded) {
            (Some(why), _) => writeln!(f, "note: the space of its data was not given back: {why}")?,
            (None, true) => writeln!(f, "gave the space of its data back")?,
            (None, false) => {}
        }
        if !erased.backups.is_empty() {
            writeln!(
                f,
                "STILL DANGEROUS: this host made backups of its header, and copies of them may be \
                 anywhere. Destroy them:"
            )?;
        }
        for backup in &erased.backups {
            writeln!(
                f,
                "  {}: {}",
                backup.path.display(),
                backup.state.describe()
            )?;
        }
        writeln!(
            f,
            "old blocks may be left where it lies on flash, a copy-on-write or journalling file \
             system, or in snapshots; backups that this host did not make are not known"
        )
    }
}
