//! `sealblk attach`.

use std::path::PathBuf;

use super::disk::{Row, by_name, changes};
use super::opening::OpeningArgs;
use super::{Ask, print, print_json};
use crate::config::{FilePath, Options, path_parser};
use crate::error::{Failure, Kind};
use crate::manager::client::Client;
use crate::manager::model::{Attach, DiskInfo, DiskState, Ephemeral};
use crate::units::{Bytes, SectorSize};

/// What follows `sealblk attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sealblk attach /var/lib/vm/disk.img --socket /run/sealblk/disk.sock --name vm1
  sealblk attach /var/scratch --ephemeral --size 10G --socket /run/sealblk/tmp.sock

The daemon serves the volume until it is detached, also after a restart of the
host. What is not given here is taken from the [serve] table of its
configuration.")]
pub struct Args {
    /// Volume to serve: a file or block device that `sealblk volume create` made;
    /// with --ephemeral, the directory or block device to take space from
    #[arg(value_name = "VOLUME", value_parser = path_parser())]
    volume: FilePath,

    /// Socket that QEMU connects to
    #[arg(long, value_name = "PATH", value_parser = path_parser())]
    socket: FilePath,

    /// Detached header [default: in the volume]
    #[arg(long, value_name = "PATH", value_parser = path_parser())]
    header: Option<FilePath>,

    /// What to call the disk [default: the volume's UUID]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Keep trying while something is away, and wait until the disk is served
    ///
    /// The daemon goes on trying also when this command is ended.
    #[arg(long)]
    wait: bool,

    /// With --wait: leave the waiting to the daemon
    #[arg(long, requires = "wait")]
    no_block: bool,

    /// What to open it with.
    #[command(flatten)]
    opening: OpeningArgs,

    /// A disk for swap, caches and temporary files: it begins empty, its key is in
    /// its worker alone, and nothing of it is left when it is detached
    ///
    /// Needs no volume and no key service. If its worker dies, what was on it is
    /// lost and all requests fail until it is detached; after a restart of the host
    /// it is there again, empty.
    #[arg(long, requires = "size", conflicts_with_all = ["header", "break_glass"])]
    ephemeral: bool,

    /// With --ephemeral: what the guest sees, such as 10G
    #[arg(long, value_name = "SIZE", requires = "ephemeral")]
    size: Option<Bytes>,

    /// With --ephemeral: bytes encrypted as one unit [default: 4096]
    #[arg(long, value_name = "512|4096", requires = "ephemeral")]
    sector_size: Option<SectorSize>,

    /// With --ephemeral: destroy what is found on the block device
    #[arg(long, requires = "ephemeral")]
    force: bool,

    /// Its guest comes from another host, which has the volume until then
    ///
    /// Opens the volume, gets its key and makes the socket now, so that what is wrong
    /// shows before the guest is stopped there; takes the volume when the guest's disk
    /// starts here.
    #[arg(long, conflicts_with_all = ["ephemeral", "wait"])]
    incoming: bool,

    /// With --incoming: only say whether it would work, and leave nothing
    #[arg(long, requires = "incoming")]
    dry_run: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,

    /// How to serve it.
    #[command(flatten)]
    options: Options,
}

/// Runs the command.
///
/// # Errors
/// When the disk cannot be served, or the daemon does not answer.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    args.opening.check()?;
    let recovery = args.opening.recovery_key_file;
    let request = Attach {
        volume: args.volume.into(),
        header: args.header.map(PathBuf::from),
        socket: args.socket.into(),
        name: args.name,
        options: args.options,
        wait: args.wait,
        break_glass: args.opening.break_glass,
        even_if_denied: args.opening.even_if_denied,
        recovery_key_file: recovery.map(|path| std::path::absolute(&path).unwrap_or(path)),
        ephemeral: match (args.ephemeral, args.size) {
            (true, Some(Bytes(size))) => Some(Ephemeral {
                size,
                sector_size: args.sector_size.map(|size| size.bytes() as u32),
                force: args.force,
            }),
            _ => None,
        },
        incoming: args.incoming,
        dry_run: args.dry_run,
    };
    let disk = ask.daemon(async |client| {
        let disk = client.attach(&request).await?;
        match request.wait && !args.no_block {
            true => until_served(&client, disk).await,
            false => Ok(disk),
        }
    })?;
    match args.json {
        true => print_json(&disk),
        false => print(Row(&disk)),
    }
}

/// Follows a disk until it is served, or never will be.
async fn until_served(client: &Client, mut disk: DiskInfo) -> Result<DiskInfo, Failure> {
    let name = disk.name.clone();
    let mut told = None;
    let mut changes = changes(client);
    loop {
        match disk.state {
            state if state.is_served() => return Ok(disk),
            DiskState::Failed | DiskState::Denied | DiskState::Stopping => return Err(lost(&disk)),
            _ => {}
        }
        if disk.last_error != told {
            if let Some(problem) = &disk.last_error {
                tracing::info!(disk = name, "waiting: {}", problem.message);
            }
            told = disk.last_error.clone();
        }
        let list = changes.next().await?;
        disk = by_name(list.disks, &name).ok_or_else(|| {
            Failure::new(
                Kind::NotFound,
                format!("disk {name:?} was detached by somebody else"),
                Some("attach it again".into()),
            )
        })?;
    }
}

/// Why a disk will not be served.
fn lost(disk: &DiskInfo) -> Failure {
    match &disk.last_error {
        Some(problem) => Failure::new(problem.kind, &problem.message, problem.help.clone()),
        None => Failure::new(
            Kind::Internal,
            format!("disk {:?} is {}", disk.name, disk.state.as_str()),
            Some(format!("see `sealblk show {}`", disk.name)),
        ),
    }
}
