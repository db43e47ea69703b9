//! `sealblk verify`.

use std::io;
use std::os::unix::net::UnixStream;

use super::volume::LocationArgs;
use super::{Ask, ask, print, print_json, record};
use crate::attest;
use crate::audit::{Event, Outcome as Recorded};
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::keys::{Actor, Context};
use crate::manager::model::{Verification, Verify};
use crate::paths;
use crate::units::Bytes;
use crate::verify::{
    self, Envelope, Expect, Extent, HostKey, Keys, Means, Outcome, Report, Requester, Seed,
    Subject, Verdict, Wanted,
};
use crate::volume::Location;

/// How many units are looked at unless told otherwise.
pub const SAMPLE: u64 = 10_000;

/// What follows `sealblk verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealblk verify disk.img                       a sample, in seconds
  sealblk verify disk.img --full                every unit, at the speed of the disk
  sealblk verify disk.img --sign > REPORT       with a signature: see sealblk help report
  sealblk verify other.img --expect plain       that it is not encrypted

Reads, writes nothing, and takes no lock: the disk may be in use. A disk that one
may not read, and names as the daemon does, the daemon verifies.

Exit status: 0 it is proved, 12 it is disproved, 13 it could not be found out; and
others if it could not be tried.")]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    /// Look at every unit
    #[arg(long, conflicts_with_all = ["sample", "seed"])]
    full: bool,

    /// Look at so many units, and at both ends [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    sample: Option<u64>,

    /// Look at the same units as an earlier report, which has the seed
    #[arg(long, value_name = "HEX")]
    seed: Option<Seed>,

    /// What the disk has to be: encrypted or plain
    #[arg(long, value_name = "WHAT", default_value = "encrypted")]
    expect: Expect,

    /// Do not ask for the key: for those who may not use it. It is then not
    /// shown that the disk is encrypted with this key, and not proved
    #[arg(long)]
    no_key: bool,

    /// Print the report signed with the key of this host
    #[arg(long)]
    sign: bool,

    /// Text to be repeated in the report, which so cannot be an old one
    #[arg(long, value_name = "TEXT")]
    nonce: Option<String>,

    /// Read no more per second than this, such as 100M. The daemon has a
    /// limit of its own
    #[arg(long, value_name = "SIZE")]
    rate: Option<Bytes>,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Kind::Disproved`] or [`Kind::Undecided`], as the verdict is; and whatever
/// kept it from being found.
pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let (json, sign) = (args.json, args.sign);
    let (report, signed) = match readable(&args) {
        Ok(()) => here(args, config)?,
        Err(error) if has_daemon(config) => {
            tracing::debug!(%error, "asking the daemon");
            by_daemon(args, config)?
        }
        // It says what is wrong.
        Err(_) => here(args, config)?,
    };
    match (sign, json) {
        (true, _) => print_json(&signed)?,
        (false, true) => print_json(&report)?,
        (false, false) => print(&report)?,
    }
    judged(&report)
}

/// Whether this process may read the disk.
fn readable(args: &Args) -> io::Result<()> {
    let paths = [Some(&args.location.volume), args.location.header.as_ref()];
    paths
        .into_iter()
        .flatten()
        .try_for_each(|path| paths::find(path)?.open_to_read().map(drop))
}

fn has_daemon(config: &Config) -> bool {
    UnixStream::connect(&config.daemon.socket).is_ok()
}

/// Verifies it in this process.
fn here(args: Args, config: &Config) -> Result<(Report, Option<Envelope>), Failure> {
    // Before an hour's work is for nothing.
    let key = match args.sign {
        true => Some(HostKey::read(&config.verify.key)?),
        false => None,
    };
    let extent = match (args.full, args.seed) {
        (true, _) => Extent::Full,
        (false, seed) => Extent::Sample {
            units: args.sample.unwrap_or(SAMPLE),
            seed: seed.map_or_else(random, Ok)?,
        },
    };
    let location = Location::from(args.location);
    let subject = Subject::open(&location, args.expect)?;
    let actor = Actor::this_process("local");
    let keys = match subject.description() {
        Some(description) if args.expect == Expect::Encrypted && !args.no_key => {
            let context = Context::local(Some(description.uuid));
            let key_sets = config.key_sets();
            ask(async {
                Ok::<_, Failure>(attest::keys_of(&key_sets, &context, description).await)
            })?
        }
        _ => Keys::NotAsked,
    };
    let wanted = Wanted {
        extent,
        requester: Requester {
            uid: actor.uid,
            role: actor.role.into_owned(),
        },
        nonce: args.nonce,
    };
    let means = Means {
        rate: args.rate.map(|rate| rate.0),
        ..Means::all()
    };
    let volume = subject.description().map(|description| description.uuid);
    let report = verify::run(&subject, keys, wanted, &means)?;
    let event = Event::Verified {
        volume,
        path: &location.data,
        verdict: report.verdict.as_str(),
        signed: key.is_some(),
    };
    record(config, event, Recorded::Ok)?;
    let signed = key.map(|key| Envelope::sign(&report, &key)).transpose()?;
    Ok((report, signed))
}

fn random() -> Result<Seed, Failure> {
    Seed::random().map_err(|error| {
        Failure::new(
            Kind::Internal,
            format!("there are no random bytes: {error}"),
            Some("check that getrandom(2) is not blocked".into()),
        )
    })
}

/// Has the daemon verify it.
fn by_daemon(args: Args, config: &Config) -> Result<(Report, Option<Envelope>), Failure> {
    let volume = args.location.volume;
    let asked = Verify {
        disk: volume.to_str().map(str::to_owned),
        volume: std::path::absolute(&volume).ok(),
        full: args.full,
        sample: args.sample,
        seed: args.seed.map(|seed| seed.to_string()),
        expect: args.expect,
        no_key: args.no_key,
        sign: args.sign,
        nonce: args.nonce,
        rate: args.rate.map(|rate| rate.0),
    };
    let Verification { report, signed } =
        Ask::of(config).daemon(async |client| client.verify(&asked).await)?;
    let not_understood = |error: serde_json::Error| {
        Failure::new(
            Kind::Unsupported,
            format!("the daemon's report is not understood: {error}"),
            Some("check that it is of this version: `sealblk status`".into()),
        )
    };
    let report = serde_json::from_value(report).map_err(not_understood)?;
    let signed = signed.map(serde_json::from_value).transpose();
    Ok((report, signed.map_err(not_understood)?))
}

/// What the command ends with.
fn judged(report: &Report) -> Result<(), Failure> {
    let (kind, outcome) = match report.verdict {
        Verdict::Proved => return Ok(()),
        Verdict::Disproved => (Kind::Disproved, Outcome::Failed),
        Verdict::Undecided => (Kind::Undecided, Outcome::Unknown),
    };
    let is = match (report.expect, kind) {
        (Expect::Encrypted, Kind::Disproved) => "is not encrypted with the key of its header",
        (Expect::Encrypted, _) => "may be encrypted with the key of its header, or not",
        (Expect::Plain, Kind::Disproved) => "is encrypted",
        (Expect::Plain, _) => "may be encrypted, or not",
    };
    let first = report.checks.iter().find(|check| check.outcome == outcome);
    let (name, why) = first.map_or(("", ""), |check| (&*check.name, &*check.says));
    let path = report.disk.path.display();
    Err(Failure::new(
        kind,
        format!("{path} {is}: {name}: {why}"),
        Some(help(kind, name).into()),
    ))
}

/// The next step.
fn help(kind: Kind, check: &str) -> &'static str {
    match (kind, check) {
        (Kind::Disproved, "header") => {
            "if its header is detached, say where with --header; if it has to be plain, say --expect plain"
        }
        (Kind::Disproved, "units") => {
            "look at these places, with care for what they hold; then copy the data to a new volume, and destroy this disk"
        }
        (Kind::Disproved, "settled") => {
            "its data was decrypted, by somebody who could: if that was not meant, find out who did so in the audit log"
        }
        (_, "settled") => {
            "let it end (`sealblk rekey DISK --status` says how far it is), and verify it again"
        }
        (Kind::Disproved, _) => "keep the disk as it is, and find out what wrote it",
        (_, "key") => "ask somebody who may use the key, when its service answers",
        (_, "header") => "repair or restore the header, and verify it again",
        (_, "whole" | "units") => "verify it again when something was written to it",
        (_, "zeroes") => {
            "make holes of the zeroes (`fallocate --dig-holes`, while nobody uses the disk), and verify it again"
        }
        (_, "decrypted") => {
            "verify all of it (--full); if that says the same, the guest encrypts or compresses all that it writes"
        }
        _ => "verify all of it (--full)",
    }
}
