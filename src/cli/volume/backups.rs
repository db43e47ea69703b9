//! `sealblk volume backups` and `forget-backup`: what the ledger of this host
//! knows of backups of headers.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use crate::cli::{print, print_json};
use crate::config::Config;
use crate::error::{Failure, Kind, io_kind};
use crate::keys::ledger::{Backup, Ledger};

/// What follows `sealblk volume backups`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A backup opens its volume for whoever may use the keys that it needs: it keeps a
key version from being free, and it is what is left of a volume that was erased.
Backups that were made on other hosts, and copies of backups, are not known here.")]
pub struct ListArgs {
    /// Only those of this volume: its path when it was seen last, or its UUID
    #[arg(value_name = "VOLUME|UUID")]
    volume: Option<String>,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What follows `sealblk volume forget-backup`.
#[derive(Debug, clap::Args)]
pub struct ForgetArgs {
    /// Where the backup was
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Also if the file is still there
    #[arg(long)]
    force: bool,
}

/// A backup, and what it is of. The names are part of the interface.
#[derive(Serialize)]
struct Listed {
    volume: Uuid,
    volume_path: PathBuf,
    /// Whether the file is still where it was written.
    present: bool,
    #[serde(flatten)]
    backup: Backup,
}

fn system(ledger: &Ledger) -> impl FnOnce(std::io::Error) -> Failure + '_ {
    move |error| {
        let path = ledger.path_of_all().display();
        Failure::new(
            io_kind(&error),
            format!("cannot use the ledger of this host, {path}: {error}"),
            Some("run it as the user that runs the daemon; move a damaged entry away".into()),
        )
    }
}

pub fn list(args: ListArgs, config: &Config) -> Result<(), Failure> {
    let ledger = Ledger::below(&config.daemon.state_dir);
    let mut known = ledger.all().map_err(system(&ledger))?;
    if let Some(wanted) = &args.volume {
        let path = std::path::absolute(wanted).unwrap_or_else(|_| wanted.into());
        let uuid = Uuid::try_parse(wanted).ok();
        known.retain(|known| Some(known.uuid) == uuid || known.path == path);
        if known.is_empty() {
            return Err(Failure::new(
                Kind::NotFound,
                format!("the ledger of this host knows no volume {wanted:?}"),
                Some("`sealblk volume backups` lists all; `sealblk volume info` shows the UUID of a volume".into()),
            ));
        }
    }
    let listed: Vec<Listed> = known
        .into_iter()
        .flat_map(|known| {
            let (volume, volume_path) = (known.uuid, known.path);
            known.backups.into_iter().map(move |backup| Listed {
                volume,
                volume_path: volume_path.clone(),
                present: backup.path.symlink_metadata().is_ok(),
                backup,
            })
        })
        .collect();
    match args.json {
        true => print_json(&listed),
        false => print(text(&listed)),
    }
}

fn text(listed: &[Listed]) -> String {
    let mut text = String::new();
    for one in listed {
        let backup = &one.backup;
        let gone = match one.present {
            true => "",
            false => ", which is not there any more",
        };
        let _ = writeln!(
            text,
            "{}{gone}\n  of volume {} ({}), made {}, update {}",
            backup.path.display(),
            one.volume,
            one.volume_path.display(),
            backup.time,
            backup.update
        );
        for need in &backup.needs {
            let _ = writeln!(
                text,
                "  needs key set {}: {} key {} version {}",
                need.key_set, need.by.provider, need.by.key_id, need.by.key_version
            );
        }
        match &backup.key_store {
            Some(store) => _ = writeln!(text, "  has no wrapped key: needs key store {store:?}"),
            None if !backup.has_wraps() => text.push_str("  has no wrapped key\n"),
            None => {}
        }
    }
    if listed.is_empty() {
        text.push_str("no backups are known here\n");
    }
    text
}

pub fn forget(args: ForgetArgs, config: &Config) -> Result<(), Failure> {
    let ledger = Ledger::below(&config.daemon.state_dir);
    let path = std::path::absolute(&args.path).unwrap_or_else(|_| args.path.clone());
    if !args.force && path.symlink_metadata().is_ok() {
        return Err(still_there(&path));
    }
    let forgotten = ledger.forget_backup(&path).map_err(system(&ledger))?;
    match forgotten.as_slice() {
        [] => Err(Failure::new(
            Kind::NotFound,
            format!("the ledger of this host knows no backup {}", path.display()),
            Some("`sealblk volume backups` lists those that it knows".into()),
        )),
        volumes => print(volumes.iter().fold(String::new(), |mut text, volume| {
            let _ = writeln!(text, "forgot {}, of volume {volume}", path.display());
            text
        })),
    }
}

fn still_there(path: &Path) -> Failure {
    Failure::new(
        Kind::Refused,
        format!(
            "{} is still there, and opens its volume as long as its keys do",
            path.display()
        ),
        Some(
            "destroy it first, and all copies of it (`shred -u`, where the file system overwrites in \
             place); --force forgets it all the same"
                .into(),
        ),
    )
}
