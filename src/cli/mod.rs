//! The command line: raw arguments in, calls of the library out.
//!
//! Each command has a file: its arguments as clap reads them, and what it
//! runs. Settings are checked in `config`; a command trusts what it is given.
//! A command prints its result on standard output ([`print()`]) and returns a
//! [`Failure`], which `main` prints once.
#![forbid(unsafe_code)]

pub mod attach;
pub mod audit;
#[cfg(feature = "broker")]
pub mod broker;
pub mod daemon;
pub mod detach;
mod disk;
pub mod doctor;
pub mod freeze;
pub mod generate;
pub mod key;
pub mod keyset;
pub mod limit;
pub mod list;
mod opening;
pub mod rekey;
pub mod report;
pub mod resize;
pub mod resume;
pub mod serve;
pub mod show;
pub mod status;
pub mod upgrade;
pub mod verify;
pub mod volume;
pub mod worker;

use std::fmt::Display;
use std::future::Future;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::audit as audit_log;
use crate::config::{Config, FilePath, LogFormat, LogLevel, Overrides, path_parser};
use crate::error::{Failure, Kind, io_kind};
use crate::keys::Actor;
use crate::logging;
use crate::manager::client::Client;
use crate::printable;
use crate::runtime::block_on;

/// What `--help` ends with.
const AFTER_HELP: &str = "\
First steps:
  sealblk key init                                    make the platform key, once per host;
                                                      then back it up
  sealblk volume create --size 10G disk.img           make an encrypted volume
  sealblk serve disk.img --socket /run/disk.sock      serve it to QEMU; or, where
  sealblk attach disk.img --socket /run/disk.sock     the daemon runs, let it do that
  sealblk help COMMAND                                explain a command

Exit status:
   0  it worked
   1  a defect of sealblk itself
   2  the command line or the configuration is wrong
   3  a file, key set or key that was named does not exist
   4  the system does not permit it, or a mode or owner is unsafe
   5  somebody else holds the volume, the socket or the key file
   6  it would destroy something; an explicit flag is needed
   7  stored bytes are damaged or have been tampered with
   8  the key is wrong, denied, or its version is gone
   9  a key management service, or the daemon, does not answer
  10  reading or writing failed, or no space or memory is left
  11  this kernel, CPU or sealblk version cannot do it
  12  a disk is not what `sealblk verify` was to prove
  13  `sealblk verify` could not find out whether it is";

/// Transparent encryption at rest for QEMU guests
///
/// sealblk serves encrypted disks to QEMU over vhost-user-blk sockets. Each
/// volume is a LUKS2 device with a key of its own, which is wrapped by the key
/// of a key set: the platform key of this host, unless configured otherwise.
#[derive(Debug, Parser)]
#[command(name = "sealblk", version = crate::version::with_commit(), after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Configuration file [default: /etc/sealblk/sealblk.toml if it exists]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help_heading = "Global options"
    )]
    pub config: Option<PathBuf>,

    /// Platform key file of key set "default" [default: /etc/sealblk/platform.key]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help_heading = "Global options"
    )]
    pub key_file: Option<PathBuf>,

    /// Least severe level to log: off, error, warn, info, debug or trace [default: info]
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    pub log_level: Option<LogLevel>,

    /// How log lines look on standard error: text or json [default: text]
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    pub log_format: Option<LogFormat>,

    /// Socket of the daemon [default: /run/sealblk/sealblk.sock]
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        value_parser = path_parser(),
        help_heading = "Global options"
    )]
    pub daemon: Option<FilePath>,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make volumes, and look after their headers
    Volume(volume::Args),
    /// Serve volumes to QEMU, without a daemon
    Serve(serve::Args),
    /// Run the daemon that attaches disks and looks after them
    Daemon(daemon::Args),
    /// Let the daemon serve a volume to QEMU
    Attach(attach::Args),
    /// Let the daemon serve a volume no longer
    Detach(detach::Args),
    /// Limit what the guest of one of the daemon's disks may do per second
    Limit(limit::Args),
    /// Make one of the daemon's disks larger, while its guest uses it
    Resize(resize::Args),
    /// Let the requests of a disk wait, with everything durable, for a snapshot
    Freeze(freeze::Args),
    /// Let a frozen disk go on
    Thaw(freeze::ThawArgs),
    /// Try again what waits because the disk below fails, or have it fail
    Resume(resume::Args),
    /// Give disks another key, and re-encrypt all their data, while guests use them
    Rekey(rekey::Args),
    /// Replace the daemon, and what serves its disks, by another version under guests
    Upgrade(upgrade::Args),
    /// List the daemon's disks
    List(list::Args),
    /// Show one of the daemon's disks
    Show(show::Args),
    /// Show what the daemon is doing
    Status(status::Args),
    /// Let the daemon read its configuration again
    Reload(status::Args),
    /// Make and look after key sets: which key of which service wraps what
    Keyset(keyset::Args),
    /// Make, rotate and look after the platform key of this host
    Key(key::Args),
    /// Wrap and unwrap for other hosts, which hold no credential
    #[cfg(feature = "broker")]
    Broker(broker::Args),
    /// Try whether this host and its key sets work, and say what does not
    Doctor(doctor::Args),
    /// Read the record of key use, and see that nobody changed it
    Audit(audit::Args),
    /// Prove that a disk is encrypted, or that it is not
    Verify(verify::Args),
    /// Check signed reports of verifications, and make the key that signs them
    Report(report::Args),
    /// Serve the disk of an attached volume, started by the manager
    #[command(hide = true)]
    Worker(worker::Args),
    /// Print what lets a shell complete command lines
    Completions(generate::CompletionsArgs),
    /// Write manual pages
    Man(generate::ManArgs),
    /// Show the version of sealblk
    Version,
}

/// Runs the command that `cli` asks for.
///
/// # Errors
/// Whatever the command fails with, for `main` to print.
pub fn run(cli: Cli) -> Result<(), Failure> {
    // The manager that started it says everything, and no file is read.
    if matches!(cli.command, Command::Worker(_)) {
        return crate::worker::run();
    }
    if let (Command::Key(args), Some(_)) = (&cli.command, &cli.key_file) {
        args.refuse_key_file()?;
    }
    let overrides = Overrides {
        key_file: cli.key_file,
        log_level: cli.log_level,
        log_format: cli.log_format,
        daemon: cli.daemon,
    };
    let named = cli.config;
    let config = match cli.command {
        // They work with a configuration that is broken.
        Command::Version | Command::Completions(_) | Command::Man(_) => Config::default(),
        _ => Config::load(named.as_deref(), overrides.clone())?,
    };
    let log = match cli.command {
        Command::Serve(_) => logging::init_bounded(config.log),
        _ => logging::init(config.log),
    };
    match cli.command {
        Command::Volume(args) => volume::run(args, &config),
        Command::Serve(args) => {
            args.opening.check()?;
            crate::serve::run(&args.resolve(&config)?, config.key_sets())
        }
        Command::Keyset(args) => keyset::run(args, named, overrides, &config),
        Command::Key(args) => key::run(args, &config),
        Command::Doctor(args) => doctor::run(&args, &config),
        Command::Audit(args) => audit::run(args, &config),
        Command::Verify(args) => verify::run(args, &config),
        Command::Report(args) => report::run(args, &config),
        Command::Daemon(args) => daemon::run(args, named.as_deref(), overrides, config, log),
        #[cfg(feature = "broker")]
        Command::Broker(args) => broker::run(args, named.as_deref(), overrides, config, log),
        Command::Attach(args) => attach::run(args, &Ask::of(&config)),
        Command::Detach(args) => detach::run(args, &Ask::of(&config)),
        Command::Limit(args) => limit::run(args, &Ask::of(&config)),
        Command::Resize(args) => resize::run(args, &Ask::of(&config)),
        Command::Freeze(args) => freeze::run(args, &Ask::of(&config)),
        Command::Thaw(args) => freeze::thaw(args, &Ask::of(&config)),
        Command::Resume(args) => resume::run(args, &Ask::of(&config)),
        Command::Rekey(args) => rekey::run(args, &Ask::of(&config)),
        Command::Upgrade(args) => upgrade::run(args, &Ask::of(&config)),
        Command::List(args) => list::run(args, &Ask::of(&config)),
        Command::Show(args) => show::run(args, &Ask::of(&config)),
        Command::Status(args) => status::run(args, &Ask::of(&config)),
        Command::Reload(args) => status::reload(args, &Ask::of(&config)),
        Command::Completions(args) => generate::completions(args),
        Command::Man(args) => generate::man(args),
        Command::Version => print(format_args!("sealblk {}\n", crate::version::with_commit())),
        Command::Worker(_) => Ok(()),
    }
}

/// Waits for a key service.
fn ask<T, E>(answer: impl Future<Output = Result<T, E>>) -> Result<T, Failure>
where
    Failure: From<E>,
{
    block_on(answer).map_err(not_asked)?.map_err(Failure::from)
}

/// There is no way to wait for a key service.
fn not_asked(error: io::Error) -> Failure {
    Failure::new(Kind::Io, format!("cannot ask for a key: {error}"), None)
}

/// The daemon, where one runs.
///
/// # Errors
/// When there is no client to ask it with.
fn running_daemon(config: &Config) -> Result<Option<Client>, Failure> {
    use io::ErrorKind as E;
    let socket = &config.daemon.socket;
    let nobody = [E::NotFound, E::NotADirectory, E::ConnectionRefused];
    match UnixStream::connect(socket) {
        Err(error) if nobody.contains(&error.kind()) => Ok(None),
        // Whatever else is wrong with it, the client says.
        _ => Ok(Some(Client::new(socket)?)),
    }
}

/// Records what a command did or is about to do, if that is to be recorded.
///
/// # Errors
/// When it cannot be: the command then ends.
fn record(
    config: &Config,
    event: audit_log::Event<'_>,
    outcome: audit_log::Outcome,
) -> Result<(), Failure> {
    let actor = Actor::this_process("local");
    match config.audit_log() {
        Some(log) => Ok(log.record(&actor, event, outcome)?),
        None => Ok(()),
    }
}

/// Asks the daemon, for the commands that are its clients.
#[derive(Debug)]
pub struct Ask {
    socket: PathBuf,
}

impl Ask {
    /// The daemon that is configured.
    pub fn of(config: &Config) -> Self {
        Ask {
            socket: config.daemon.socket.clone(),
        }
    }

    /// Asks it something, and waits for the answer.
    ///
    /// # Errors
    /// When it does not answer, or with a problem.
    pub fn daemon<T>(
        &self,
        question: impl AsyncFnOnce(Client) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let client = Client::new(&self.socket)?;
        block_on(question(client)).map_err(|error| {
            Failure::new(Kind::Io, format!("cannot ask the daemon: {error}"), None)
        })?
    }
}

/// Writes the result of a command to standard output. That the reader has
/// gone away (as in `sealblk key list | head -1`) is no error.
///
/// # Errors
/// When it cannot be written, as on a full disk.
pub fn print(result: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let result = result.to_string();
    let result = printable::text(&result);
    match out.write_all(result.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            io_kind(&error),
            format!("cannot write to standard output: {error}"),
            None,
        )),
        _ => Ok(()),
    }
}

/// Writes the result of a command as JSON, for scripts.
///
/// # Errors
/// As [`print()`].
pub fn print_json(result: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(result)
        .map_err(|error| Failure::new(Kind::Internal, error.to_string(), None))?;
    print(format_args!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_lists_every_exit_status() {
        for kind in Kind::ALL {
            let line = format!("\n  {:2}  ", kind.exit_status());
            assert_eq!(AFTER_HELP.matches(&line).count(), 1, "{kind:?}");
        }
    }
}
