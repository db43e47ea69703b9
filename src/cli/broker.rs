//! `sealblk broker`: wraps and unwraps for hosts that hold no credential of a
//! key service.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde::Serialize;

use super::{print, print_json};
use crate::broker;
use crate::config::{Config, Overrides};
use crate::doctor::Check;
use crate::error::{Failure, Kind, io_kind};
use crate::kms::broker::keyfile;
use crate::kms::credential::SecretFile;
use crate::logging;

/// What follows `sealblk broker`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Wrap and unwrap for hosts, as [broker] in the configuration says
    #[command(after_help = "\
It runs in the foreground, and is meant to be started by systemd
(sealblk-broker.service). Everything is set in [broker] of the configuration, and
in the policy that it names: who may do what.

SIGHUP lets it read certificates, key, policy, key sets and the log level again;
the policy is read again whenever its file changes. SIGTERM or SIGINT ends it,
after the calls that it was working on.")]
    Serve,
    /// Try the configuration, certificates, key and policy of the broker
    #[command(after_help = "\
Nothing is listened at, and no key service is asked: `sealblk doctor` does that.
Exits with status 0 if nothing failed, and else with the status of the first
check that did.")]
    Check {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Make the key of a broker, or of a host that asks one
    #[command(after_help = "\
Writes an X25519 private key, which only its owner can read, and prints the
public key. Those of hosts stand in the policy of the broker; that of the broker
is broker_key in the key sets of hosts.")]
    Keygen {
        /// Where to write it. Nothing must be there yet
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the public key that belongs to a private one
    Pubkey {
        /// The file of the private key
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Runs the command.
///
/// # Errors
/// Whatever it fails with.
pub fn run(
    args: Args,
    file: Option<&Path>,
    overrides: Overrides,
    config: Config,
    log: logging::Handle,
) -> Result<(), Failure> {
    match args.command {
        Command::Serve => {
            let file = file.map(Path::to_owned);
            broker::run(broker::Setup {
                config,
                load: Arc::new(move || Config::load(file.as_deref(), overrides.clone())),
                log,
            })
        }
        Command::Check { json } => check(&config, json),
        Command::Keygen { out } => {
            let key = keyfile::generate(&out).map_err(|error| not_made(&out, &error))?;
            print(format_args!("{}\n", key.public()))
        }
        Command::Pubkey { file } => {
            let key = keyfile::read(&SecretFile::new(&file))?;
            print(format_args!("{}\n", key.public()))
        }
    }
}

fn not_made(path: &Path, error: &io::Error) -> Failure {
    let exists = error.kind() == io::ErrorKind::AlreadyExists;
    Failure::new(
        match exists {
            true => Kind::Refused,
            false => io_kind(error),
        },
        format!("cannot make the key {}: {error}", path.display()),
        Some(match exists {
            true => "name another file, or move that one away: who replaces a key loses what it is known for".into(),
            false => "name a file in a directory that can be written".into(),
        }),
    )
}

/// What was found.
#[derive(Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "broker")?;
        self.checks.iter().try_for_each(|check| check.fmt(f))
    }
}

fn check(config: &Config, json: bool) -> Result<(), Failure> {
    let checks = broker::examine(broker::settings(config)?, config);
    let report = Report {
        ok: !checks.iter().any(Check::is_failed),
        checks,
    };
    match json {
        true => print_json(&report)?,
        false => print(&report)?,
    }
    let failure = report.checks.iter().find_map(Check::failure);
    failure.map_or(Ok(()), Err)
}
