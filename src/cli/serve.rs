//! `sealblk serve`: its arguments.

use super::opening::OpeningArgs;
use crate::config::path_parser;
use crate::config::{self, Config, FilePath, Options, Serve};

/// What follows `sealblk serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  sealblk serve /var/lib/vm/disk.img --socket /run/sealblk/disk.sock

and then QEMU, whose memory must be shared:
  qemu-system-x86_64 … \\
    -object memory-backend-memfd,id=mem,size=2G,share=on -machine memory-backend=mem \\
    -chardev socket,id=disk,path=/run/sealblk/disk.sock \\
    -device vhost-user-blk-pci,chardev=disk

What is not given here is taken from the [serve] table of the configuration.
SIGTERM or SIGINT ends it: requests in flight are completed and flushed first.")]
pub struct Args {
    /// Volumes to serve: files or block devices that `sealblk volume create` made
    #[arg(required = true, value_name = "VOLUME", value_parser = path_parser())]
    pub volumes: Vec<FilePath>,

    /// Socket that QEMU connects to; once for each volume, in the same order
    #[arg(long, required = true, value_name = "PATH", value_parser = path_parser())]
    pub socket: Vec<FilePath>,

    /// Detached header; once for each volume, in the same order [default: in the volume]
    #[arg(long, value_name = "PATH", value_parser = path_parser())]
    pub header: Vec<FilePath>,

    /// Go on decrypting a volume that is being decrypted: otherwise that rests
    #[arg(long)]
    pub decrypt: bool,

    /// Serve nothing if this host cannot shut the process in as it should be
    ///
    /// Without, a warning says what is missing. `sealblk doctor` tells, too.
    #[arg(long)]
    pub require_sandbox: bool,

    /// The guests come from another host, which has the volumes until then
    ///
    /// Opens them and gets their keys now, and takes each when its guest's disk
    /// starts here.
    #[arg(long, conflicts_with_all = ["decrypt", "read_only"])]
    pub incoming: bool,

    /// What to open them with.
    #[command(flatten)]
    pub opening: OpeningArgs,

    /// Settings that the configuration file has, too.
    #[command(flatten)]
    pub options: Options,
}

impl Args {
    /// The flags over the `[serve]` table of `config`, over the defaults.
    ///
    /// # Errors
    /// When settings contradict each other.
    pub fn resolve(self, config: &Config) -> Result<Serve, config::Error> {
        let paths = |paths: Vec<FilePath>| paths.into_iter().map(Into::into).collect();
        let serve = Serve::resolve(
            paths(self.volumes),
            paths(self.header),
            paths(self.socket),
            self.options,
            config.serve.clone(),
        )?;
        Ok(Serve {
            break_glass: self.opening.break_glass,
            even_if_denied: self.opening.even_if_denied,
            recovery_key_file: self.opening.recovery_key_file,
            decrypt: self.decrypt,
            require_sandbox: self.require_sandbox,
            incoming: self.incoming,
            ..serve
        })
    }
}

#[cfg(test)]
mod tests;
