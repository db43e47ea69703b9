//! `sealblk resume`.

use super::disk::{Details, named};
use super::{Ask, print, print_json};
use crate::error::Failure;
use crate::manager::model::Resume;

/// What follows `sealblk resume`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sealblk resume vm1

A disk that was attached with --on-error stop, enospc or retry lets requests wait
which the file or device below it has failed. They are tried again every few
seconds, and the disk goes on by itself when they succeed; this tries them at
once, and shows what came of it. What no time mends, such as a bad sector, can be
given up with --fail: the guest has an I/O error for each request that waits, and
the disk goes on.")]
pub struct Args {
    /// The disk: its name, or the path of its volume
    #[arg(value_name = "NAME|VOLUME")]
    disk: String,

    /// Have what waits fail, instead of trying it again
    #[arg(long)]
    fail: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Tries again what waits, or has it fail.
///
/// # Errors
/// When there is no such disk, nothing of it waits, or the daemon does not answer.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    let wanted = Resume { fail: args.fail };
    let disk = ask.daemon(async |client| {
        let disk = named(&client, &args.disk).await?;
        client.resume(&disk.name, wanted).await
    })?;
    match args.json {
        true => print_json(&disk),
        false => print(Details(&disk)),
    }
}
