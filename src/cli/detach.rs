//! `sealblk detach`.

use super::disk::named;
use super::{Ask, print_json};
use crate::error::Failure;

/// What follows `sealblk detach`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The disk: its name, or the path of its volume
    #[arg(value_name = "NAME|VOLUME")]
    disk: String,

    /// Also with a front end connected, and without waiting for requests that
    /// do not end
    #[arg(long)]
    force: bool,

    /// The disk as it was, in JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When there is no such disk, it does not end, or the daemon does not answer.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    let disk = ask.daemon(async |client| {
        let disk = named(&client, &args.disk).await?;
        client.detach(&disk.name, args.force).await?;
        Ok(disk)
    })?;
    match args.json {
        true => print_json(&disk),
        false => Ok(()),
    }
}
