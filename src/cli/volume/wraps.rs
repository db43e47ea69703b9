//! `sealblk volume add-wrap` and `remove-wrap`: wraps for break-glass access.

use std::fmt;
use std::path::PathBuf;

use crate::audit::{Event, Outcome};
use crate::cli::opening::OpeningArgs;
use crate::cli::{ask, print, print_json, record, running_daemon};
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::keys::Context;
use crate::keys::ledger::Ledger;
use crate::manager::model::{ChangeWraps, WrapAction, WrapsChanged};
use crate::manager::wraps::{Meant, Plan, told};
use crate::rewrap::{self, KeyFrom, Rewrapped};
use crate::volume::{Access, Volume};

/// Which volumes.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// File or block device with the data (and the header, unless detached)
    #[arg(value_name = "VOLUME", required_unless_present = "all_of")]
    volume: Option<PathBuf>,

    /// File with the detached header
    #[arg(long, value_name = "PATH", requires = "volume")]
    header: Option<PathBuf>,

    /// All volumes of this key set that this host knows, attached or not
    #[arg(long, value_name = "KEY SET", conflicts_with = "volume")]
    all_of: Option<String>,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What follows `sealblk volume add-wrap`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealblk key new-recovery-key --to /dev/shm/key    print it, and put it into a safe
  sealblk volume add-wrap disk.img --recovery-key-file /dev/shm/key
  sealblk volume add-wrap --all-of prod --key-set safe

Attached disks are served on. What a wrap is made with opens the volume when its
own key set is lost: `sealblk attach --break-glass` or `--recovery-key-file FILE`.")]
pub struct AddArgs {
    #[command(flatten)]
    which: Which,

    /// Key set whose wrap is added, best at another service
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "recovery_key_file"
    )]
    key_set: Option<String>,

    /// What to open the volume with, if its own key set yields no key. Without
    /// --key-set, the recovery key in the file is that whose wrap is added
    #[command(flatten)]
    opening: OpeningArgs,
}

/// What follows `sealblk volume remove-wrap`.
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    which: Which,

    /// Key set whose wrap is destroyed
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "recovery_key",
        conflicts_with = "recovery_key"
    )]
    key_set: Option<String>,

    /// Recovery key whose wrap is destroyed, by its id
    #[arg(long, value_name = "ID")]
    recovery_key: Option<String>,
}

pub fn add(args: AddArgs, config: &Config) -> Result<(), Failure> {
    let opening = args.opening;
    let asked = ChangeWraps {
        key_set: args.key_set,
        recovery_key_file: opening.recovery_key_file.map(absolute),
        break_glass: opening.break_glass,
        even_if_denied: opening.even_if_denied,
        ..asked(WrapAction::Add, &args.which)
    };
    run(asked, args.which.json, config)
}

pub fn remove(args: RemoveArgs, config: &Config) -> Result<(), Failure> {
    let asked = ChangeWraps {
        key_set: args.key_set,
        recovery_key: args.recovery_key,
        ..asked(WrapAction::Remove, &args.which)
    };
    run(asked, args.which.json, config)
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn asked(action: WrapAction, which: &Which) -> ChangeWraps {
    ChangeWraps {
        action,
        volume: which.volume.clone().map(absolute),
        header: which.header.clone().map(absolute),
        all_of: which.all_of.clone(),
        key_set: None,
        recovery_key_file: None,
        recovery_key: None,
        break_glass: false,
        even_if_denied: false,
    }
}

fn run(asked: ChangeWraps, json: bool, config: &Config) -> Result<(), Failure> {
    let changed = match running_daemon(config)? {
        Some(client) => ask(client.change_wraps(&asked))?,
        None => here(&asked, config)?,
    };
    let (_, failed) = changed.counts();
    let first = changed.volumes.iter().find_map(|it| it.problem.as_ref());
    // Of one volume that stays as it was, the error says all.
    match (asked.volume.is_some() && failed > 0, json) {
        (true, _) => {}
        (false, true) => print_json(&changed)?,
        (false, false) => print(&changed)?,
    }
    match first {
        None => Ok(()),
        Some(problem) => Err(Failure::new(
            problem.kind,
            match failed {
                1 => problem.message.clone(),
                failed => format!(
                    "{failed} volumes stay as they were; the first: {}",
                    problem.message
                ),
            },
            problem.help.clone(),
        )),
    }
}

/// Without a daemon.
fn here(asked: &ChangeWraps, config: &Config) -> Result<WrapsChanged, Failure> {
    let keys = config.key_sets();
    let ledger = Ledger::below(&config.daemon.state_dir);
    let plan = Plan::of(asked, &keys, &ledger)?;
    let work = |meant: &Meant| -> Result<Rewrapped, Failure> {
        let mut volume = Volume::open(&meant.location, Access::ReadWrite)?;
        if volume.uuid() != meant.uuid {
            return Err(Failure::new(
                Kind::NotFound,
                format!(
                    "{} is another volume now: {}",
                    meant.location.data.display(),
                    volume.uuid()
                ),
                Some("attach the volume once where it is now: it is known there then".into()),
            ));
        }
        let context = Context::local(Some(meant.uuid));
        let (key, change) = (KeyFrom::default(), &*plan.change);
        ask(rewrap::rewrap(&keys, &context, &mut volume, key, change))
    };
    let mut volumes = Vec::new();
    for meant in &plan.volumes {
        let told = told(&ledger, meant, None, work(meant));
        if told.changed {
            let event = Event::WrapsChanged {
                volume: told.uuid,
                action: asked.action.as_str(),
                key_set: &plan.key_set,
                key_id: plan.key_id.as_deref().unwrap_or_default(),
            };
            record(config, event, Outcome::Ok)?;
        }
        volumes.push(told);
    }
    Ok(WrapsChanged {
        action: asked.action,
        key_set: plan.key_set,
        key_id: plan.key_id,
        volumes,
    })
}

impl fmt::Display for WrapsChanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match &self.key_id {
            Some(id) => format!("recovery key {id}"),
            None => format!("key set {}", self.key_set),
        };
        if self.volumes.is_empty() {
            writeln!(f, "this host knows no such volume")?;
        }
        for volume in &self.volumes {
            write!(f, "{} ({}): ", volume.volume.display(), volume.uuid)?;
            match (&volume.problem, volume.changed, self.action) {
                (Some(problem), ..) => writeln!(f, "NOT CHANGED: {}", problem.message)?,
                (None, true, WrapAction::Add) => writeln!(f, "added a wrap by {whose}")?,
                (None, true, WrapAction::Remove) => writeln!(f, "destroyed the wrap by {whose}")?,
                (None, false, WrapAction::Add) => writeln!(f, "has a wrap by {whose} already")?,
                (None, false, WrapAction::Remove) => writeln!(f, "has no wrap by {whose}")?,
            }
        }
        let (changed, _) = self.counts();
        if changed > 0 {
            f.write_str(match self.action {
                WrapAction::Add => {
                    "next: back up the headers: older backups do not have this wrap\n"
                }
                WrapAction::Remove => {
                    "next: destroy older backups of the headers, which still have that wrap\n"
                }
            })?;
        }
        Ok(())
    }
}
