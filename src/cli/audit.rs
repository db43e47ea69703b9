//! `sealblk audit`: the record of key use.

mod follow;
mod show;
mod tail;
mod verify;

use std::path::PathBuf;

use clap::Subcommand;

use crate::config::Config;
use crate::error::Failure;

/// What follows `sealblk audit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The audit log has one line for each use of a key, and each line has the hash of
the one before. `verify` finds every change but one: lines that were cut off the
end. FOR THAT, KEEP THE HEAD THAT IT SHOWS SOMEWHERE ELSE, and name it the next
time with --expect.")]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

/// The commands of `sealblk audit`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Check the whole log, with its rotated files
    ///
    /// Exits with status 7 if anything in it was changed, and names the first
    /// line that is wrong.
    Verify(verify::Args),
    /// Show the last lines
    Tail(tail::Args),
}

/// The log that a command is about.
#[derive(Debug, clap::Args)]
pub struct PathArgs {
    /// The log; rotated files beside it belong to it [default: as configured, or
    /// /var/log/sealblk/audit.jsonl]
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
}

impl PathArgs {
    fn resolve(self, config: &Config) -> PathBuf {
        self.path.unwrap_or_else(|| config.audit.path())
    }
}

/// Runs the command.
///
/// # Errors
/// When the log cannot be read, or was changed.
pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    match args.action {
        Action::Verify(args) => verify::run(args, config),
        Action::Tail(args) => tail::run(args, config),
    }
}
