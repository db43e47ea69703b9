//! `sealblk key new-recovery-key` and `check-recovery-key`: a key for a safe.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::cli::print;
use crate::durable;
use crate::error::{Failure, Kind, io_kind};
use crate::kms::recovery::RecoveryKey;
use crate::paths;
use crate::secret::Secret;
use crate::timestamp::Timestamp;

/// What follows `sealblk key new-recovery-key`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The key is 256 random bits that no host keeps. Print the file, put the paper into
a safe, give volumes a wrap by it (`sealblk volume add-wrap --recovery-key-file`), and
destroy the file: whoever has the key and a volume with such a wrap can read it,
whatever any key service says.")]
pub struct NewArgs {
    /// File to write, with mode 0600, best in memory (/dev/shm); it must not exist yet
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// What follows `sealblk key check-recovery-key`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// File that it was typed into
    file: PathBuf,
}

/// Makes one.
///
/// # Errors
/// When it cannot be made or written.
pub fn new(args: &NewArgs) -> Result<(), Failure> {
    let fail = |error: io::Error| failed(&args.to, &error);
    let key = RecoveryKey::generate().map_err(no_memory)?;
    let text = key.to_text().map_err(no_memory)?;
    let mut file = paths::create_new(&args.to, 0o600).map_err(fail)?;
    let write = |file: &mut std::fs::File, text: &Secret| {
        // The key goes from its own memory to the file, and is in no buffer.
        writeln!(file, "# sealblk recovery key {}", key.id())?;
        writeln!(file, "# made {}", Timestamp::now())?;
        writeln!(file, "#")?;
        writeln!(
            file,
            "# It opens the volumes that have a wrap by it, when their key service is"
        )?;
        writeln!(
            file,
            "# lost: sealblk attach VOLUME --socket PATH --recovery-key-file FILE"
        )?;
        writeln!(file, "#")?;
        file.write_all(text)?;
        file.sync_all()?;
        // Volumes may need it as soon as this is done.
        durable::sync_directory(&args.to)
    };
    write(&mut file, &text).map_err(|error| {
        // Half a key is still half a key.
        let _ = std::fs::remove_file(&args.to);
        fail(error)
    })?;
    print(format_args!(
        "made recovery key {} in {}\nnext: print it, put the paper into a safe, give volumes a wrap by \
         it (`sealblk volume add-wrap`), and destroy the file\n",
        key.id(),
        args.to.display()
    ))
}

/// Says whether what was typed is one, and which.
///
/// # Errors
/// Which group is wrong.
pub fn check(args: &CheckArgs) -> Result<(), Failure> {
    let key = RecoveryKey::read(&args.file)?;
    print(format_args!("this is recovery key {}, whole\n", key.id()))
}

fn no_memory(error: io::Error) -> Failure {
    Failure::new(
        Kind::Io,
        format!("cannot get locked memory or random bytes for a key: {error}"),
        Some("raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)".into()),
    )
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    let exists = error.kind() == io::ErrorKind::AlreadyExists;
    Failure::new(
        if exists {
            Kind::Refused
        } else {
            io_kind(error)
        },
        format!(
            "cannot write the recovery key to {}: {error}",
            path.display()
        ),
        Some(match exists {
            true => "name a file that does not exist yet".into(),
            false => "choose a place where you may create files, best in memory (/dev/shm)".into(),
        }),
    )
}
