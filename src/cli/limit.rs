//! `sealblk limit`.

use super::disk::{Details, named};
use super::{Ask, print, print_json};
use crate::config::Limits;
use crate::error::Failure;
use crate::manager::model::DiskChange;

/// What follows `sealblk limit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealblk limit vm1 --iops-total 2000 --iops-total-max 10000 --iops-total-max-length 30
  sealblk limit vm1 --bps-read 200M --bps-write 100M
  sealblk limit vm1 --none

Limits of a kind, of requests (iops) or of bytes (bps), are set together: who
sets one of them sets all, and lifts those that are left out. They hold at once,
and for as long as the disk is attached. Requests that have to wait are
completed later; none fails.")]
pub struct Args {
    /// The disk: its name, or the path of its volume
    #[arg(value_name = "NAME|VOLUME")]
    disk: String,

    /// Lift all limits
    #[arg(long)]
    none: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,

    /// What its guest may do per second.
    #[command(flatten)]
    limits: Limits,
}

/// Runs the command. Without any limit it shows the disk.
///
/// # Errors
/// When there is no such disk, the limits contradict each other, or the daemon
/// does not answer.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    args.limits.resolve()?;
    let limits = match args.none {
        true => args.limits.over(Limits::none()),
        false => args.limits,
    };
    let disk = ask.daemon(async |client| {
        let disk = named(&client, &args.disk).await?;
        match limits.is_unset() {
            true => Ok(disk),
            false => {
                client
                    .change_disk(&disk.name, &DiskChange::limits(limits))
                    .await
            }
        }
    })?;
    match args.json {
        true => print_json(&disk),
        false => print(Details(&disk)),
    }
}
