//! `sealblk completions` and `sealblk man`: what is made from the command line
//! itself.

use std::fs;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, print};
use crate::error::{Failure, Kind, io_kind};

/// What follows `sealblk completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Where they are usually put:
  sealblk completions bash > /usr/share/bash-completion/completions/sealblk
  sealblk completions zsh  > /usr/share/zsh/vendor-completions/_sealblk
  sealblk completions fish > /usr/share/fish/vendor_completions.d/sealblk.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// What follows `sealblk man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Directory to write them to, such as /usr/share/man/man1
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Prints the completions of a shell.
///
/// # Errors
/// When they cannot be written.
pub fn completions(args: CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sealblk", &mut script);
    let script = String::from_utf8(script)
        .map_err(|error| Failure::new(Kind::Internal, error.to_string(), None))?;
    print(script)
}

/// Writes a manual page for each command.
///
/// # Errors
/// When they cannot be written.
pub fn man(args: ManArgs) -> Result<(), Failure> {
    let directory = args.directory;
    fs::create_dir_all(&directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &directory))
        .map_err(|error| {
            Failure::new(
                io_kind(&error),
                format!("cannot write to {}: {error}", directory.display()),
                Some("name a directory that can be written".into()),
            )
        })
}
