//! `sealblk upgrade`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::disk::named;
use super::{Ask, print, print_json};
use crate::error::{Failure, Kind};
use crate::manager::client::Client;
use crate::manager::model::{
    DiskInfo, Problem, UpgradeDisk, UpgradeManager, UpgradedDisk, UpgradedManager,
};

/// How long the daemon may take to answer again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What follows `sealblk upgrade`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without names, the daemon is replaced first, and then the workers of all disks
that are of another version than it is; with --all, those of all disks. A daemon
that is replaced keeps its process, and disks are served on.

The new worker of a disk goes on where the old one stops, with the connection to
QEMU that there is: its guest sees a pause of some milliseconds. What cannot be
handed over stays with the old worker, and the command says why and fails when
all others are done. It may be repeated.")]
pub struct Args {
    /// The disks whose workers are replaced, and nothing else: names, or paths of
    /// volumes
    #[arg(value_name = "NAME|VOLUME", conflicts_with = "all")]
    disks: Vec<String>,

    /// All disks, also those whose workers have the version of the daemon
    #[arg(long)]
    all: bool,

    /// The program to be upgraded to, instead of the one that is installed now
    /// where the daemon was started from
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,

    /// Where a worker cannot hand its disk over to the new version: complete its
    /// requests, end it, and have QEMU connect anew (it needs `reconnect-ms=`)
    #[arg(long)]
    reconnect: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What became of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    manager: Option<UpgradedManager>,
    disks: Vec<UpgradedDisk>,
    /// Disks that stay as they are.
    failed: Vec<Stays>,
}

#[derive(Debug, Serialize)]
struct Stays {
    disk: String,
    problem: Problem,
}

/// Upgrades.
///
/// # Errors
/// When the daemon does not answer or refuses, or a disk stays as it is.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    let binary = args.binary.as_ref().map(std::path::absolute).transpose();
    let binary = binary.map_err(|error| {
        let what = format!("the path of the program cannot be made absolute: {error}");
        Failure::new(Kind::Usage, what, None)
    })?;
    let report = ask.daemon(async |client| {
        let mut report = Report::default();
        let mut disks = Vec::new();
        for disk in &args.disks {
            disks.push(named(&client, disk).await?);
        }
        if args.disks.is_empty() {
            report.manager = Some(manager(&client, &binary, args.json).await?);
            disks = due(&client, args.all).await?;
        }
        let named_binary = binary.clone().filter(|_| !args.disks.is_empty());
        let how = UpgradeDisk {
            binary: named_binary,
            reconnect: args.reconnect,
        };
        for disk in disks {
            match client.upgrade_disk(&disk.name, &how).await {
                Ok(upgraded) => {
                    if !args.json {
                        print(line(&upgraded))?;
                    }
                    report.disks.push(upgraded);
                }
                Err(failure) => {
                    if !args.json {
                        print(format_args!("{}: stays as it is: {failure}\n", disk.name))?;
                    }
                    let problem = Problem::from(&failure);
                    let disk = disk.name;
                    report.failed.push(Stays { disk, problem });
                }
            }
        }
        Ok(report)
    })?;
    if args.json {
        print_json(&report)?;
    }
    match report.failed.first() {
        None => Ok(()),
        Some(first) => Err(Failure::new(
            first.problem.kind,
            format!(
                "{} of {} disks stay as they are, the first one {}: {}",
                report.failed.len(),
                report.failed.len() + report.disks.len(),
                first.disk,
                first.problem.message
            ),
            first.problem.help.clone(),
        )),
    }
}

/// Replaces the daemon, and waits until it answers again.
async fn manager(
    client: &Client,
    binary: &Option<PathBuf>,
    json: bool,
) -> Result<UpgradedManager, Failure> {
    let how = UpgradeManager {
        binary: binary.clone(),
    };
    let upgraded = client.upgrade(&how).await?;
    let begun = Instant::now();
    let status = loop {
        match client.status().await {
            Ok(status) if status.instance != upgraded.instance => break status,
            Err(failure) if begun.elapsed() > PATIENCE => return Err(failure),
            Ok(_) if begun.elapsed() > PATIENCE => {
                return Err(Failure::new(
                    Kind::Io,
                    "the daemon is not replaced",
                    Some("its log says why".into()),
                ));
            }
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    if status.version != upgraded.version {
        return Err(Failure::new(
            Kind::Refused,
            format!(
                "the daemon is still of version {}: the new program did not start",
                status.version
            ),
            Some("its log says why; workers were not touched".into()),
        ));
    }
    if !json {
        let UpgradedManager {
            before, version, ..
        } = &upgraded;
        print(format_args!("daemon: {before} -> {version}\n"))?;
    }
    Ok(upgraded)
}

/// The disks that are served by workers of another version than the daemon is.
async fn due(client: &Client, all: bool) -> Result<Vec<DiskInfo>, Failure> {
    let status = client.status().await?;
    let mut disks = client.disks().await?.disks;
    disks.retain(|disk| {
        let other = disk.version.as_deref() != Some(status.version.as_str());
        disk.state.is_served() && (all || other)
    });
    Ok(disks)
}

fn line(upgraded: &UpgradedDisk) -> String {
    let UpgradedDisk {
        disk,
        before,
        version,
        pause_us,
    } = upgraded;
    let how = match pause_us {
        Some(pause) => {
            let pause = Duration::from_micros(*pause);
            format!("its guest waited for {pause:.1?}")
        }
        None => "its front end connects anew".into(),
    };
    format!("{}: {before} -> {version}, {how}\n", disk.name)
}
