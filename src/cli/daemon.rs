//! `sealblk daemon`.

use std::path::Path;
use std::sync::Arc;

use super::print_json;
use crate::config::{Config, Overrides};
use crate::error::Failure;
use crate::logging;
use crate::manager;

/// What follows `sealblk daemon`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It runs in the foreground, and is meant to be started by systemd (sealblk.service,
sealblk.socket). Everything else is set in [daemon] of the configuration.

SIGHUP lets it read the configuration again. SIGTERM or SIGINT ends it; disks
are served on, and the next daemon finds them again.")]
pub struct Args {
    /// Say what this program is, after reading the configuration, and end: for a
    /// daemon that is to be replaced by it
    #[arg(long, hide = true)]
    probe: bool,
}

/// Runs the daemon, until a signal ends it.
///
/// # Errors
/// When it cannot start: a configuration that is wrong, another daemon.
pub fn run(
    args: Args,
    file: Option<&Path>,
    overrides: Overrides,
    config: Config,
    log: logging::Handle,
) -> Result<(), Failure> {
    if args.probe {
        return print_json(&manager::Probe::own());
    }
    let file = file.map(Path::to_owned);
    manager::run(manager::Setup {
        config,
        load: Arc::new(move || Config::load(file.as_deref(), overrides.clone())),
        log,
    })
}
