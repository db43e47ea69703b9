//! The `sealblk` program: runs the command, prints what went wrong once.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use sealblk::cli::{self, Cli};

fn main() -> ExitCode {
    keep_memory_private();
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

/// Any command may come to hold a key or a credential, and not all of that is
/// in secret memory: a request on its way to a service is not. So no process
/// leaves a core dump or lets another one of the same user look into it. Both
/// are needed: a core dump that goes to a program ignores the limit.
fn keep_memory_private() {
    // Giving up what one has is never refused.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(Resource::Core, none);
}
