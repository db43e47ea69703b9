//! `sealblk volume import`.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use serde::Serialize;
use uuid::Uuid;

use super::making::make_filled;
use super::watch::watched;
use crate::audit::{Event, Outcome};
use crate::cli::{print, print_json, record};
use crate::clone::Progress;
use crate::config::Config;
use crate::crypt::SectorCipher;
use crate::error::{Failure, Kind};
use crate::import::{self, Format, Image, Sink};
use crate::relocate::Place;
use crate::units::{Bytes, SECTOR_BYTES, SectorSize};
use crate::volume::{CreateOptions, DEFAULT_HEADER_AREA, Error, Location, Plan};

/// What follows `sealblk volume import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sealblk volume import web.qcow2 --format qcow2 web.img
  sealblk volume import /dev/vg0/web web.img --zero-units

The image must not be in use, and stays as it is: destroy it once the volume is
known to be good, since it is not encrypted. A disk that is raw can also be
encrypted where it is: sealblk volume encrypt. If an import is interrupted,
there is no volume: repeat it with --force.")]
pub struct Args {
    /// Disk image: a file, or a block device
    #[arg(value_name = "IMAGE")]
    image: PathBuf,

    /// File or block device to make the volume in
    #[arg(value_name = "VOLUME")]
    volume: PathBuf,

    /// Format of the image, as qemu-img calls it: raw, qcow2, vmdk, vdi, vhdx, vpc…
    /// [default: raw, unless it looks like another one]
    ///
    /// It is never guessed: what looks like a format may be what a guest wrote
    /// to its raw disk, and name any file of this host.
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Also read the files that the image stands on (its backing chain)
    #[arg(long)]
    backing: bool,

    /// File for a detached header
    #[arg(long, value_name = "PATH")]
    header: Option<PathBuf>,

    /// Size of the disk that the guest sees [default: that of the image]
    #[arg(long, value_name = "SIZE")]
    size: Option<Bytes>,

    /// Bytes encrypted as one unit: 512 works everywhere, 4096 is faster, and
    /// the guest's firmware must be able to boot from it
    #[arg(long, value_name = "512|4096", default_value_t)]
    sector_size: SectorSize,

    /// Key set that wraps the key of the volume
    #[arg(long, value_name = "NAME", default_value = "default")]
    key_set: String,

    /// Key store that the wrapped key goes to, or "header" for the volume's own
    /// header [default: what the key set says, or else the header]
    #[arg(long, value_name = "NAME|header")]
    key_store: Option<Place>,

    /// Name for people, at most 47 bytes
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,

    /// Let units whose stored bytes are all zero read as zeroes
    ///
    /// What is empty in the image then takes no space. It lets whoever can write
    /// the backing file turn any unit into zeroes unnoticed, and shows which
    /// units were never written. Cannot be changed later.
    #[arg(long)]
    zero_units: bool,

    /// Length of the header area
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_HEADER_AREA)]
    header_area: Bytes,

    /// Reserve the space of the volume first
    #[arg(long)]
    preallocate: bool,

    /// Destroy what the file or device of the volume holds now
    #[arg(long)]
    force: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What was done. The names are part of the interface.
#[derive(Serialize)]
struct Done {
    uuid: Uuid,
    format: String,
    key_set: String,
    size: u64,
    /// Bytes that were written, without what takes no space.
    written: u64,
}

pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let image = Image::open(&args.image, args.format, args.backing)?;
    let size = match args.size {
        Some(size) => size,
        None => size_of(&image, args.sector_size)?,
    };
    if size.0 < image.size() {
        return Err(Failure::new(
            Kind::Usage,
            format!(
                "the disk in {} has {}, and a volume of {size} has no room for it",
                args.image.display(),
                Bytes(image.size())
            ),
            Some("choose a larger --size, or leave it out".into()),
        ));
    }
    let to = Location {
        data: args.volume,
        header: args.header,
    };
    let options = CreateOptions {
        label: args.label.unwrap_or_default(),
        sector_size: args.sector_size,
        size: Some(size),
        preallocate: args.preallocate,
        zero_units: args.zero_units,
        header_area: args.header_area,
        force: args.force,
        ..CreateOptions::default()
    };
    let plan = Plan::new(&to, options)?;
    let progress = Progress::default();
    let mut failed = None;
    let mut fill = |cipher: &SectorCipher, file: &File, offset: u64| {
        let sink = Sink {
            file,
            offset,
            size: size.0,
            path: &to.data,
            cipher,
            is_empty: is_empty(file),
            progress: &progress,
        };
        let far = || (progress.passed.load(Ordering::Relaxed), size.0);
        watched(far, || import::copy(&image, &sink)).map_err(|error| {
            failed = Some(error);
            Error::Options("the image could not be copied".into())
        })
    };
    let keys = (args.key_set.as_str(), args.key_store);
    let made = make_filled(config, plan, &to, keys, &mut fill);
    let made = match (made, failed) {
        (Err(_), Some(error)) => return Err(error.into()),
        (made, _) => made?,
    };
    let event = Event::VolumeImported {
        volume: made.uuid(),
        key_set: &args.key_set,
        path: &to.data,
        source: image.path(),
    };
    record(config, event, Outcome::Ok)?;
    let done = Done {
        uuid: made.uuid(),
        format: image.format().to_string(),
        key_set: args.key_set,
        size: size.0,
        written: progress.written.load(Ordering::Relaxed),
    };
    if args.json {
        return print_json(&done);
    }
    print(format_args!(
        "made volume {} of the {} image {}: {} for the guest, of which {} were written, key set {}\n\
         next: back up its header, without which the data is lost; and destroy the image, which is \
         not encrypted\n",
        done.uuid,
        done.format,
        args.image.display(),
        Bytes(done.size),
        Bytes(done.written),
        done.key_set,
    ))
}

/// As large as the disk in the image, which may end in the middle of a sector,
/// as QEMU serves it too, but not in the middle of a larger unit.
fn size_of(image: &Image, unit: SectorSize) -> Result<Bytes, Failure> {
    let size = image.size().next_multiple_of(SECTOR_BYTES);
    let unit = unit.bytes() as u64;
    if size.is_multiple_of(unit) {
        return Ok(Bytes(size));
    }
    Err(Failure::new(
        Kind::Usage,
        format!(
            "the disk in {} has {size} bytes, which are not a number of sectors of {unit} bytes",
            image.path().display()
        ),
        Some(format!(
            "choose --sector-size 512, or a larger disk: --size {}",
            size.next_multiple_of(unit)
        )),
    ))
}

/// Whether a file reads as zeroes where nothing was written: one that was just
/// made, or found to be empty. A block device keeps what it had.
fn is_empty(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file())
}
