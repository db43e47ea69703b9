//! `sealblk status` and `sealblk reload`.

use std::fmt;

use super::{Ask, print, print_json};
use crate::error::Failure;
use crate::manager::model::{DiskState, Reloaded, Status};

/// What follows `sealblk status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs `sealblk status`.
///
/// # Errors
/// When the daemon does not answer.
pub fn run(args: Args, ask: &Ask) -> Result<(), Failure> {
    let status = ask.daemon(async |client| client.status().await)?;
    match args.json {
        true => print_json(&status),
        false => print(&status),
    }
}

/// Runs `sealblk reload`.
///
/// # Errors
/// When the configuration is wrong, or the daemon does not answer.
pub fn reload(args: Args, ask: &Ask) -> Result<(), Failure> {
    let reloaded = ask.daemon(async |client| client.reload().await)?;
    match args.json {
        true => print_json(&reloaded),
        false => print(&reloaded),
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "daemon         sealblk {}, process {}, since {}",
            self.version, self.pid, self.since
        )?;
        match &self.config {
            Some(path) => writeln!(f, "configuration  {}", path.display())?,
            None => writeln!(f, "configuration  none: the defaults")?,
        }
        writeln!(f, "socket         {}", self.socket.display())?;
        writeln!(f, "state          {}", self.state_dir.display())?;
        let counts: Vec<String> = DiskState::ALL
            .into_iter()
            .map(|state| (self.disks.get(state), state.as_str()))
            .filter(|(count, _)| *count > 0)
            .map(|(count, state)| format!("{count} {state}"))
            .collect();
        match counts.as_slice() {
            [] => writeln!(f, "disks          none")?,
            counts => writeln!(f, "disks          {}", counts.join(", "))?,
        }
        writeln!(f, "key sets       {}", self.key_sets)?;
        let roles: Vec<&str> = self.you.roles.iter().map(|role| role.as_str()).collect();
        writeln!(
            f,
            "you            user {}: {}",
            self.you.uid,
            roles.join(", ")
        )?;
        for setting in &self.needs_restart {
            writeln!(f, "needs restart  {setting}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.changed.is_empty() && self.needs_restart.is_empty() {
            writeln!(f, "nothing has changed")?;
        }
        for setting in &self.changed {
            writeln!(f, "changed        {setting}")?;
        }
        for setting in &self.needs_restart {
            writeln!(f, "needs restart  {setting}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning        {warning}")?;
        }
        Ok(())
    }
}
