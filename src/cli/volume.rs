//! `sealblk volume`: make volumes and look after their headers.

mod backup;
mod backups;
mod clone;
mod create;
mod decrypt;
mod encrypt;
mod erase;
mod export;
mod import;
mod info;
mod making;
mod move_keys;
mod operation;
mod rekey;
mod resize;
mod shifting;
mod verify;
mod watch;
mod wraps;

use std::path::PathBuf;

use clap::Subcommand;

use crate::config::Config;
use crate::error::Failure;
use crate::volume::Location;

/// What follows `sealblk volume`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A volume is a LUKS2 device: `cryptsetup luksDump VOLUME` shows it too. THE HEADER
HOLDS THE WRAPPED KEY (unless it is in a key store): WITHOUT IT THE DATA IS LOST. Keep a backup of it
(`sealblk volume backup-header`), apart from the volume.")]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

/// The commands of `sealblk volume`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Make an encrypted volume in a file or on a block device
    ///
    /// A new random key is made and wrapped by the key set. Nothing that can
    /// be recognised is overwritten without --force.
    Create(create::Args),
    /// Show what a volume is; it may be in use
    Info(info::Args),
    /// Check both header copies and the length of the data; writes nothing
    ///
    /// The volume may be in use. Exits with status 7 if anything is damaged,
    /// even where the volume can still be opened.
    VerifyHeader(verify::Args),
    /// Make a damaged or outdated header copy good again, from the other one
    Repair(backup::RepairArgs),
    /// Copy the header to a new file; the volume may be in use
    ///
    /// Without the key service the backup opens nothing, but whoever had the
    /// right to open the volume when it was made can open it with the backup:
    /// delete old backups when keys are revoked.
    BackupHeader(backup::BackupArgs),
    /// Write a backup of the header back
    ///
    /// Refused, unless --force, if the backup is of another volume, older
    /// than the header that is there, or has another key.
    RestoreHeader(backup::RestoreArgs),
    /// List the backups of headers that were made on this host, and what they need
    Backups(backups::ListArgs),
    /// Tell the ledger of this host that a backup of a header was destroyed
    ForgetBackup(backups::ForgetArgs),
    /// Move the wrapped keys into a key store, to another one, or back into the header
    ///
    /// The volume must not be in use. It opens at every instant, also when this
    /// is interrupted: the same command then finishes it.
    MoveKeys(move_keys::Args),
    /// Make a volume that is not in use larger or smaller
    ///
    /// A disk that is attached is made larger with `sealblk resize`.
    Resize(resize::Args),
    /// Copy a volume that is not in use to a new one, with a key of its own
    ///
    /// All data is decrypted and encrypted again. Without its header, which is
    /// written last, an interrupted copy is no volume.
    Clone(clone::Args),
    /// Write the bare data encryption key to a file, for rescue with cryptsetup
    ExportDek(export::Args),
    /// Destroy the key of a volume for ever, wherever it is known to be
    ///
    /// The volume must not be in use, unless --force lets the daemon detach it.
    Erase(erase::Args),
    /// Give volumes one more wrapped key, for break-glass access
    ///
    /// By the key of another key set, or by a recovery key from a safe.
    AddWrap(wraps::AddArgs),
    /// Destroy a wrapped key that was for break-glass access
    RemoveWrap(wraps::RemoveArgs),
    /// Copy a disk image onto a new volume
    ///
    /// Raw images, and through qemu-img all formats that it reads. Nothing of
    /// it is on a disk unencrypted on the way. Without its header, which is
    /// written last, an interrupted import is no volume.
    Import(import::Args),
    /// Re-encrypt all data of a volume that is not in use, under a new key
    ///
    /// In place, on all CPUs. It may be interrupted at any instant.
    Rekey(rekey::Args),
    /// Encrypt a plain disk that is not in use, where it is
    Encrypt(encrypt::Args),
    /// Make all data of a volume that is not in use plain, where it is
    Decrypt(decrypt::Args),
}

/// The volume that a command is about.
#[derive(Debug, clap::Args)]
pub struct LocationArgs {
    /// File or block device with the data (and the header, unless detached)
    #[arg(value_name = "VOLUME")]
    pub volume: PathBuf,

    /// File with the detached header
    #[arg(long, value_name = "PATH")]
    pub header: Option<PathBuf>,
}

impl From<LocationArgs> for Location {
    fn from(args: LocationArgs) -> Self {
        Location {
            data: args.volume,
            header: args.header,
        }
    }
}

/// Runs one of the commands.
///
/// # Errors
/// Whatever the command fails with.
pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    match args.action {
        Action::Create(args) => create::run(args, config),
        Action::Info(args) => info::run(args, config),
        Action::VerifyHeader(args) => verify::run(args),
        Action::Repair(args) => backup::repair(args),
        Action::BackupHeader(args) => backup::backup(args, config),
        Action::RestoreHeader(args) => backup::restore(args, config),
        Action::Backups(args) => backups::list(args, config),
        Action::ForgetBackup(args) => backups::forget(args, config),
        Action::MoveKeys(args) => move_keys::run(args, config),
        Action::Resize(args) => resize::run(args, config),
        Action::Clone(args) => clone::run(args, config),
        Action::ExportDek(args) => export::run(args, config),
        Action::Erase(args) => erase::run(args, config),
        Action::AddWrap(args) => wraps::add(args, config),
        Action::RemoveWrap(args) => wraps::remove(args, config),
        Action::Import(args) => import::run(args, config),
        Action::Rekey(args) => rekey::run(args, config),
        Action::Encrypt(args) => encrypt::run(args, config),
        Action::Decrypt(args) => decrypt::run(args, config),
    }
}
