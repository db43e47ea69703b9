//! `sealblk worker`: what the manager starts for each disk.

/// What follows `sealblk worker`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the disk, for whoever lists processes; it is told by the manager
    pub name: Option<String>,
}
