//! `sealblk resize`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::disk::{by_name, changes, named};
use super::{Ask, print, print_json};
use crate::error::Failure;
use crate::manager::client::Client;
use crate::manager::model::{DiskChange, DiskInfo};
use crate::units::Bytes;

/// How long the front end may take to read the new size: QEMU does at once.
const NOTICE: Duration = Duration::from_secs(5);

/// What follows `sealblk resize`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealblk resize vm1 200G
  lvextend -L 200G vg/vm1 && sealblk resize vm1 max

The guest sees a larger disk at once, and goes on meanwhile; its partitions and
file systems are its own affair (`growpart`, `resize2fs`). A disk that is attached
does not shrink: see `sealblk volume resize`.")]
pub struct Args {
    /// The disk: its name, or the path of its volume
    #[arg(value_name = "NAME|VOLUME")]
    disk: String,

    /// What the guest is to see, such as 200G, or "max": as much as the file or
    /// block device has room for
    #[arg(value_name = "SIZE|max")]
    size: Wanted,

    /// Reserve the new space now, instead of as the guest writes
    #[arg(long)]
    preallocate: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// A size, or all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// So many bytes.
    Size(Bytes),
    /// As many as there is room for.
    Max,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "max" => Ok(Wanted::Max),
            text => text.parse().map(Wanted::Size),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When there is no such disk, it cannot be that large, or the daemon does not
/// answer.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    let change = DiskChange {
        size: match args.size {
            Wanted::Size(Bytes(size)) => Some(size),
            Wanted::Max => None,
        },
        fill: args.size == Wanted::Max,
        preallocate: args.preallocate,
        ..DiskChange::default()
    };
    let disk = ask.daemon(async |client| {
        let disk = named(&client, &args.disk).await?;
        let disk = client.change_disk(&disk.name, &change).await?;
        until_read(&client, disk).await
    })?;
    match args.json {
        true => print_json(&disk),
        false => print(Grown(&disk)),
    }
}

/// Waits a while for the front end to read the new size, if it is told of it.
async fn until_read(client: &Client, disk: DiskInfo) -> Result<DiskInfo, Failure> {
    let waits = |disk: &DiskInfo| disk.takes_notices && disk.size_read != disk.size;
    let (name, mut last) = (disk.name.clone(), disk);
    let mut changes = changes(client);
    let reading = async {
        while waits(&last) {
            match by_name(changes.next().await?.disks, &name) {
                Some(disk) => last = disk,
                None => break,
            }
        }
        Ok(())
    };
    // Over time: it is as it was seen last.
    if let Ok(Err(failure)) = tokio::time::timeout(NOTICE, reading).await {
        return Err(failure);
    }
    Ok(last)
}

/// What became of it.
struct Grown<'a>(&'a DiskInfo);

impl fmt::Display for Grown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.0;
        let size = disk.size.unwrap_or_default();
        let guest = match (disk.front_end, disk.size_read == disk.size) {
            (false, _) => "no front end is connected: the next one sees it",
            (true, true) => "its front end knows of it",
            (true, false) if disk.takes_notices => {
                "its front end was told, and has not read it yet: a guest that does not use the \
                 disk by now sees it when it begins to"
            }
            (true, false) => {
                "its front end cannot be told (it gave no channel for that): the guest sees it \
                 when it connects anew"
            }
        };
        writeln!(f, "{}: {} ({size} bytes); {guest}", disk.name, Bytes(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_or_all_there_is() {
        assert_eq!("max".parse(), Ok(Wanted::Max));
        assert_eq!("1G".parse(), Ok(Wanted::Size(Bytes(1 << 30))));
        assert!("+1G".parse::<Wanted>().is_err());
    }
}
