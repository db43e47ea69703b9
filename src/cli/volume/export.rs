//! `sealblk volume export-dek`: the way out, without sealblk.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::LocationArgs;
use crate::audit::{Event, Outcome};
use crate::cli::opening::OpeningArgs;
use crate::cli::{ask, print, record};
use crate::config::Config;
use crate::durable;
use crate::error::{Failure, Kind, io_kind};
use crate::keys::Context;
use crate::paths;
use crate::rekey;
use crate::secret::Dek;
use crate::volume::{Description, Inspection, Location};

const CONFIRMATION: &str = "--i-understand-that-this-key-decrypts-the-disk";

/// What follows `sealblk volume export-dek`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With the key in FILE, cryptsetup opens the volume without sealblk:
  cryptsetup open --type luks2 --key-size 512 --volume-key-file FILE VOLUME NAME
Write it to a file system in memory, and delete it afterwards. Whoever has it
can decrypt the disk for ever: only a new key for the disk ends that.")]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    /// File to write, with mode 0600; it must not exist yet
    #[arg(long, value_name = "FILE")]
    to: PathBuf,

    /// While the volume is re-encrypted: the previous key in place of the new one.
    /// It opens what has not been moved yet
    #[arg(long)]
    previous: bool,

    #[command(flatten)]
    opening: OpeningArgs,

    /// Required: the file will hold the bare key
    #[arg(long = "i-understand-that-this-key-decrypts-the-disk")]
    confirmed: bool,
}

pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    if !args.confirmed {
        return Err(Failure::new(
            Kind::Refused,
            "the bare key decrypts the disk for whoever reads the file, for ever",
            Some(format!("if that is what you want, add {CONFIRMATION}")),
        ));
    }
    let location = Location::from(args.location);
    let inspection = Inspection::of(&location)?;
    let description = inspection.description()?;
    description.check_not_plain(location.header.as_ref().unwrap_or(&location.data))?;
    let binding = description.binding();
    let context = Context::local(Some(binding.uuid));
    let opening = args.opening.resolve()?;
    let token = &description.token;
    let keys = config.key_sets();
    let dek = ask(keys.unwrap_with(&context, token, &binding.bytes(), opening.means()))?.dek;
    inspection.verify_dek(&description, &dek)?;
    let dek = match args.previous {
        true => previous(&description, &dek)?,
        false => dek,
    };
    // Before it is there: what cannot be recorded is not handed out.
    let event = Event::KeyExported {
        volume: binding.uuid,
        path: &args.to,
    };
    record(config, event, Outcome::Ok)?;
    write(&args.to, &dek)?;
    let header = match &location.header {
        Some(header) => format!(" --header {}", header.display()),
        None => String::new(),
    };
    if let Some(rekey) = &description.token.rekey {
        return print(format_args!(
            "wrote the {which} key of volume {uuid} to {file}\nnote: the volume is being {doing} since \
             {since}: this key opens a part of its data alone, and cryptsetup does not open it until \
             that has ended\n",
            which = match args.previous {
                true => "previous",
                false => "main",
            },
            uuid = description.uuid,
            file = args.to.display(),
            doing = rekey.doing(),
            since = rekey.since,
        ));
    }
    print(format_args!(
        "wrote the key of volume {} to {file}; it proves right with\n  \
         cryptsetup open --test-passphrase --key-size 512 --volume-key-file {file}{header} {volume}\n",
        description.uuid,
        file = args.to.display(),
        volume = location.data.display(),
    ))
}

/// The key that the data is being moved away from.
fn previous(description: &Description, main: &Dek) -> Result<Dek, Failure> {
    let sealed = description
        .token
        .rekey
        .as_ref()
        .and_then(|rekey| rekey.previous.as_ref());
    let (Some(sealed), Some(facts)) = (sealed, description.rekey_facts()) else {
        return Err(Failure::new(
            Kind::Usage,
            "the volume has no previous key: it is not being re-encrypted",
            Some("leave --previous out".into()),
        ));
    };
    Ok(rekey::open_previous(&facts, main, sealed)?)
}

/// Writes the key to a new file that only its owner can read.
fn write(path: &Path, dek: &Dek) -> Result<(), Failure> {
    let fail = |error: std::io::Error| {
        let help = match error.kind() {
            std::io::ErrorKind::AlreadyExists => "name a file that does not exist yet",
            _ => "choose a place where you may create files, best in memory (/run, /dev/shm)",
        };
        Failure::new(
            match error.kind() {
                std::io::ErrorKind::AlreadyExists => Kind::Refused,
                _ => io_kind(&error),
            },
            format!("cannot write the key to {}: {error}", path.display()),
            Some(help.into()),
        )
    };
    let mut file = paths::create_new(path, 0o600).map_err(fail)?;
    let filled = fill(&mut file, dek).and_then(|()| durable::sync_directory(path));
    filled.map_err(|error| {
        // Half a key is still half a key. If it cannot be removed, the error
        // that is returned already tells where it is.
        let _ = std::fs::remove_file(path);
        fail(error)
    })
}

fn fill(file: &mut File, dek: &Dek) -> std::io::Result<()> {
    // A default ACL of the directory may have allowed others more.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(dek.bytes())?;
    file.sync_all()
}
