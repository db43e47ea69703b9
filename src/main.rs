//! The `sealblk` program: runs the command, prints what went wrong once.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use sealblk::cli::{self, Cli};

fn main() -> ExitCode {
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
