//! `sealblk rekey`.

mod show;

use std::str::FromStr;

pub use show::Line;
use show::{Started, Statuses};

use super::disk::{changes, named};
use super::{Ask, print, print_json};
use crate::error::{Failure, Kind as ErrorKind};
use crate::manager::client::Client;
use crate::manager::model::{DiskInfo, PaceChange, RekeyChange, StartRekey};
use crate::plane::moving::{Go, Priority};
use crate::rekey::{Direction, Kind};
use crate::units::Bytes;

/// What follows `sealblk rekey`.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("what").multiple(false)),
    after_help = "\
Examples:
  sealblk rekey vm1 --start --limit 200M --watch
  sealblk rekey --key-set production --start
  sealblk rekey vm1 --pause
  sealblk rekey vm1 --limit 0 --latency 5ms
  sealblk rekey vm1 --back

Each disk gets a new key, and all its data is re-encrypted under that, while its
guest reads and writes. Whatever crashes meanwhile, nothing is lost, and it goes
on. It can rest for ever. There is no way to end it but to the end, or back to
the old key. So many disks as rekey_concurrency of the configuration says are
moved at once; the others wait for their turn.

A disk that was attached with a header of `sealblk volume encrypt --prepare` is
encrypted from the start: --status, --pause, --limit and the others are for that
as well. With --decrypt its data becomes plain."
)]
pub struct Args {
    /// The disks: their names, or the paths of their volumes
    #[arg(value_name = "NAME|VOLUME", required_unless_present = "key_set")]
    disks: Vec<String>,

    /// All disks of this key set
    #[arg(long, value_name = "NAME", conflicts_with = "disks")]
    key_set: Option<String>,

    /// Begin, or take a place in the queue
    #[arg(long, group = "what")]
    start: bool,

    /// Rest, for as long as you like
    #[arg(long, group = "what")]
    pause: bool,

    /// Go on
    #[arg(long, group = "what")]
    resume: bool,

    /// Move back what was moved: the disk is then as it was. Out of the queue, if
    /// it waits for its turn
    #[arg(long, group = "what")]
    back: bool,

    /// Go forward again, after --back
    #[arg(long, group = "what")]
    forward: bool,

    /// Say how far it is (the default)
    #[arg(long, group = "what")]
    status: bool,

    /// Say so again and again, until it is done
    #[arg(long)]
    watch: bool,

    /// Decrypt instead: with --start, one disk, and --confirm
    #[arg(long, requires = "start", conflicts_with = "key_set")]
    decrypt: bool,

    /// The name of the disk once more, to decrypt it: everybody who has the storage
    /// can then read its data
    #[arg(long, value_name = "NAME", requires = "decrypt")]
    confirm: Option<String>,

    /// Bytes of the disk per second at most, such as 200M; 0 lifts the limit
    #[arg(long, value_name = "BYTES")]
    limit: Option<Bytes>,

    /// How long a request of the guest shall wait for it at most, such as 5ms; 0s:
    /// for as long as it takes
    #[arg(long, value_name = "TIME")]
    latency: Option<Latency>,

    /// For the I/O scheduler of the disk below: normal, or idle, which moves only
    /// while nobody else uses that
    #[arg(long, value_name = "PRIORITY")]
    priority: Option<Priority>,

    /// As JSON, for scripts; with --watch one object a line
    #[arg(long)]
    json: bool,
}

/// A time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Latency(u64);

impl FromStr for Latency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "us" => Some(1),
            "ms" => Some(1000),
            "s" => Some(1_000_000),
            _ => None,
        };
        let number: Option<u64> = digits.parse().ok();
        let time = number.zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
        time.map(Latency)
            .ok_or_else(|| format!("{text:?} is no latency: write 5ms, 500us or 1s"))
    }
}

impl Args {
    fn pace(&self) -> PaceChange {
        PaceChange {
            limit: self.limit.map(|Bytes(limit)| limit),
            latency_us: self.latency.map(|Latency(time)| time),
            priority: self.priority,
        }
    }

    fn change(&self) -> RekeyChange {
        let go = match (self.pause, self.resume) {
            (true, _) => Some(Go::Pause),
            (_, true) => Some(Go::Run),
            (false, false) => None,
        };
        RekeyChange {
            go,
            pace: self.pace(),
        }
    }

    fn turn(&self) -> Option<Direction> {
        match (self.back, self.forward) {
            (true, _) => Some(Direction::Back),
            (_, true) => Some(Direction::Forward),
            (false, false) => None,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When there is no such disk, it cannot be done to it, or the daemon does not
/// answer. To watch fails when an operation does.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    ask.daemon(async |client| {
        let names = names(&client, &args).await?;
        if args.start {
            start(&client, &args, &names).await?;
        } else if let Some(direction) = args.turn() {
            for name in &names {
                client.turn_rekey(name, direction).await?;
            }
        }
        let change = args.change();
        if !args.start && change != RekeyChange::default() {
            for name in &names {
                client.change_rekey(name, change).await?;
            }
        }
        match (args.watch, args.start) {
            (true, _) => watch(&client, &names, args.json).await,
            (false, true) => Ok(()),
            (false, false) => {
                let disks = picked(client.disks().await?.disks, &names);
                show(&disks, args.json)
            }
        }
    })
}

async fn names(client: &Client, args: &Args) -> Result<Vec<String>, Failure> {
    let Some(key_set) = &args.key_set else {
        let mut names = Vec::new();
        for text in &args.disks {
            names.push(named(client, text).await?.name);
        }
        return Ok(names);
    };
    let disks = client.disks().await?.disks.into_iter();
    let of = disks.filter(|disk| disk.key_set.as_ref() == Some(key_set));
    Ok(of.map(|disk| disk.name).collect())
}

async fn start(client: &Client, args: &Args, names: &[String]) -> Result<(), Failure> {
    let wanted = StartRekey {
        disks: match args.key_set {
            Some(_) => Vec::new(),
            None => names.to_vec(),
        },
        key_set: args.key_set.clone(),
        kind: if args.decrypt {
            Kind::Decrypt
        } else {
            Kind::Rekey
        },
        confirm: args.confirm.clone(),
        pace: args.pace(),
    };
    let started = client.rekey(&wanted).await?;
    match args.json {
        true if args.watch => {}
        true => print_json(&started)?,
        false => print(Started(&started))?,
    }
    let refused = started
        .disks
        .iter()
        .filter(|disk| disk.problem.is_some())
        .count();
    match refused {
        0 => Ok(()),
        refused => Err(Failure::new(
            ErrorKind::Refused,
            format!("{refused} of {} disks cannot be moved", started.disks.len()),
            Some("see above why each cannot; the others go on".into()),
        )),
    }
}

fn picked(disks: Vec<DiskInfo>, names: &[String]) -> Vec<DiskInfo> {
    let wanted = |disk: &DiskInfo| names.contains(&disk.name);
    disks.into_iter().filter(wanted).collect()
}

fn show(disks: &[DiskInfo], json: bool) -> Result<(), Failure> {
    match json {
        true => print_json(&show::Json::of(disks)),
        false => print(Statuses(disks)),
    }
}

/// Says how far they are whenever that changes, until all are done.
async fn watch(client: &Client, names: &[String], json: bool) -> Result<(), Failure> {
    let mut changes = changes(client);
    let mut last = None;
    loop {
        let disks = picked(changes.next().await?.disks, names);
        let seen: Vec<_> = disks.iter().map(|disk| disk.rekey.clone()).collect();
        if last.as_ref() != Some(&seen) {
            match json {
                true => {
                    let line = serde_json::to_string(&show::Json::of(&disks)).map_err(|error| {
                        Failure::new(ErrorKind::Internal, error.to_string(), None)
                    })?;
                    print(format_args!("{line}\n"))?;
                }
                false => print(Statuses(&disks))?,
            }
            last = Some(seen);
        }
        if let Some(failure) = disks.iter().find_map(show::stuck) {
            return Err(failure);
        }
        if disks.iter().all(show::is_over) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_have_units() {
        for (text, time) in [("5ms", 5000), ("500us", 500), ("1s", 1_000_000), ("0s", 0)] {
            assert_eq!(text.parse(), Ok(Latency(time)), "{text}");
        }
        for wrong in ["5", "ms", "", "5m", "-1ms", "5 ms", "99999999999999999999s"] {
            assert!(wrong.parse::<Latency>().is_err(), "{wrong}");
        }
    }
}
