//! The `sealblk` program: runs the command, prints what went wrong once.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use sealblk::cli::{self, Cli};
use sealblk::printable;
use sealblk::secret::WipingHeap;

/// Keys and credentials pass through buffers of libraries that do not wipe them.
#[global_allocator]
static HEAP: WipingHeap = WipingHeap;

fn main() -> ExitCode {
    keep_memory_private();
    keep_files_our_own();
    // A limit on file sizes is an error of the write that meets it, and no
    // reason to die. Where the handler cannot be had, nothing is worse.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    end(match cli::run(Cli::parse()) {
        Ok(()) => 0,
        Err(failure) => {
            let mut text = format!("error: {failure}\n");
            if let Some(help) = failure.help() {
                text.push_str(&format!("help: {help}\n"));
            }
            let text = printable::text(&text);
            // Without standard error there is nobody left to tell.
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
            failure.kind().exit_status()
        }
    })
}

/// Ends the process with that status. The library of a token has destructors, of its
/// own and of the libraries that it uses, and maybe threads that are in it or leave
/// it: with one of them still there they crash, and the status says so instead of
/// what was done. So they are not run.
fn end(status: u8) -> ExitCode {
    if sealblk::kms::runs_code_of_others() {
        let _ = std::io::stdout().flush();
        signal_hook::low_level::exit(status.into());
    }
    ExitCode::from(status)
}

/// Whoever starts us without a umask does not thereby let everybody write to what
/// we make. There is no way to ask for it but to set another one.
fn keep_files_our_own() {
    let others = Mode::WGRP | Mode::WOTH;
    let given = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::umask(given | others);
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
