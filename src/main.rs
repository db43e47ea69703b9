//! The `sealblk` program: runs the command, prints what went wrong once.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use sealblk::cli::{self, Cli};

fn main() -> ExitCode {
    // A limit on file sizes is an error of the write that meets it, and no
    // reason to die. Where the handler cannot be had, nothing is worse.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut text = format!("error: {failure}\n");
            if let Some(help) = failure.help() {
                text.push_str(&format!("help: {help}\n"));
            }
            // Without standard error there is nobody left to tell.
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
            ExitCode::from(failure.kind().exit_status())
        }
    }
}
