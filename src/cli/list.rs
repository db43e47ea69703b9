//! `sealblk list`.

use super::disk::{Table, changes};
use super::{Ask, print, print_json};
use crate::error::{Failure, Kind};
use crate::manager::model::DiskList;

/// What follows `sealblk list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show the disks again whenever something about them changes
    #[arg(long)]
    watch: bool,

    /// As JSON, for scripts; with --watch one object a line
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    if !args.watch {
        let list = ask.daemon(async |client| client.disks().await)?;
        return match args.json {
            true => print_json(&list.disks),
            false => print(Table(&list.disks)),
        };
    }
    ask.daemon(async |client| {
        let mut changes = changes(&client);
        let mut first = true;
        loop {
            let list = changes.next().await?;
            show(&list, args.json, first)?;
            first = false;
        }
    })
}

/// One state of the disks, below the one before.
fn show(list: &DiskList, json: bool, first: bool) -> Result<(), Failure> {
    if json {
        let line = serde_json::to_string(list)
            .map_err(|error| Failure::new(Kind::Internal, error.to_string(), None))?;
        return print(format_args!("{line}\n"));
    }
    let gap = if first { "" } else { "\n" };
    print(format_args!("{gap}{}", Table(&list.disks)))
}
