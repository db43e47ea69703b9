//! `sealblk show`.

use super::disk::{Details, named};
use super::{Ask, print, print_json};
use crate::error::Failure;

/// What follows `sealblk show`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The disk: its name, or the path of its volume
    #[arg(value_name = "NAME|VOLUME")]
    disk: String,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When there is no such disk, or the daemon does not answer.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    let disk = ask.daemon(async |client| named(&client, &args.disk).await)?;
    match args.json {
        true => print_json(&disk),
        false => print(Details(&disk)),
    }
}
