//! `sealblk freeze` and `sealblk thaw`.

use super::disk::{Details, named};
use super::{Ask, print, print_json};
use crate::config::Period;
use crate::error::{Failure, Kind};
use crate::manager::model::{FREEZE_SECONDS_MAX, Freeze};

/// What follows `sealblk freeze`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sealblk freeze vm1 && lvcreate --snapshot --name snap --size 1G vg/vm1; sealblk thaw vm1

Requests in flight are completed and made durable, and all that come after them
wait: the volume is quiet when this command returns, and what is in it is what a
guest would find after a crash. Let the guest flush its file systems before, for
more than that. `sealblk thaw` fails if the disk had gone on by itself: take the
snapshot again then.")]
pub struct Args {
    /// The disk: its name, or the path of its volume
    #[arg(value_name = "NAME|VOLUME")]
    disk: String,

    /// After this time the disk goes on by itself, whatever has become of the
    /// daemon and of whoever was to thaw it: 1s to 1h
    #[arg(long, value_name = "TIME", default_value = "60s")]
    timeout: String,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What follows `sealblk thaw`.
#[derive(Debug, clap::Args)]
pub struct ThawArgs {
    /// The disk: its name, or the path of its volume
    #[arg(value_name = "NAME|VOLUME")]
    disk: String,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<u64, Failure> {
    let period = text.parse::<Period>().map(|period| period.get().as_secs());
    match period {
        Ok(seconds) if seconds <= FREEZE_SECONDS_MAX => Ok(seconds),
        _ => Err(Failure::new(
            Kind::Usage,
            format!("a disk cannot be frozen for {text:?}"),
            Some("write 1s to 1h, such as --timeout 60s: its guest hangs for as long".into()),
        )),
    }
}

/// Freezes a disk.
///
/// # Errors
/// When there is no such disk, it does not become quiet in its time, or the
/// daemon does not answer.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    let timeout_seconds = seconds(&args.timeout)?;
    let disk = ask.daemon(async |client| {
        let disk = named(&client, &args.disk).await?;
        client.freeze(&disk.name, Freeze { timeout_seconds }).await
    })?;
    match args.json {
        true => print_json(&disk),
        false => print(Details(&disk)),
    }
}

/// Lets a frozen disk go on.
///
/// # Errors
/// When there is no such disk, it is not frozen any more, or the daemon does
/// not answer.
pub fn thaw(args: ThawArgs, ask: &Ask) -> Result<(), Failure> {
    let disk = ask.daemon(async |client| {
        let disk = named(&client, &args.disk).await?;
        client.thaw(&disk.name).await
    })?;
    match args.json {
        true => print_json(&disk),
        false => print(Details(&disk)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_frozen_for_an_hour_at_most() {
        assert_eq!(seconds("1s").unwrap(), 1);
        assert_eq!(seconds("60m").unwrap(), 3600);
        for wrong in ["0s", "61m", "2h", "60", "", "5 s", "-1s"] {
            let failure = seconds(wrong).unwrap_err();
            assert_eq!(failure.kind(), Kind::Usage, "{wrong}");
            assert!(failure.help().unwrap().contains("--timeout"), "{wrong}");
        }
    }
}
