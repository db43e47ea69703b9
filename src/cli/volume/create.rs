//! `sealblk volume create`.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use uuid::Uuid;

use super::LocationArgs;
use crate::cli::{ask, print, print_json};
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::key_store::Entry;
use crate::keys::ledger::{Known, Ledger};
use crate::keys::{Context, KeySets};
use crate::relocate::Place;
use crate::secret::Dek;
use crate::units::{Bytes, SectorSize};
use crate::volume::{CreateOptions, DEFAULT_HEADER_AREA, Location, Plan, Searched};

/// What follows `sealblk volume create`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    /// Size of the disk that the guest sees, such as 10G [default: what the
    /// existing file or block device has room for]
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

    /// UUID of the volume [default: a random one]
    #[arg(long, value_name = "UUID")]
    uuid: Option<Uuid>,

    /// Reserve the space now, instead of as the guest writes
    #[arg(long)]
    preallocate: bool,

    /// Let units whose stored bytes are all zero read as zeroes
    ///
    /// Needed for discard. It lets whoever can write the backing file turn
    /// any unit into zeroes unnoticed, and shows which units were never
    /// written. Cannot be changed later.
    #[arg(long)]
    zero_units: bool,

    /// Length of the header area: where inline data starts, or how long the
    /// detached header is
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_HEADER_AREA)]
    header_area: Bytes,

    /// Destroy what the file or device holds now
    #[arg(long)]
    force: bool,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Created {
    uuid: Uuid,
    size: u64,
    data_offset: u64,
    sector_size: usize,
    zero_units: bool,
    key_set: String,
    /// The key store that has the wrapped key; null: the header has it.
    key_store: Option<String>,
}

pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let keys = config.key_sets();
    let location = Location::from(args.location);
    let options = CreateOptions {
        label: args.label.unwrap_or_default(),
        uuid: args.uuid,
        sector_size: args.sector_size,
        size: args.size,
        preallocate: args.preallocate,
        zero_units: args.zero_units,
        header_area: args.header_area,
        force: args.force,
    };
    let plan = Plan::new(&location, options)?;
    let mut notes = String::new();
    if plan.searched() == Some(Searched::Ends) {
        let _ = writeln!(
            notes,
            "note: of this large device only {} were searched for data",
            Searched::Ends
        );
    }
    if plan.leaves_old_contents() {
        notes.push_str(
            "note: what the device held before stays on it, unencrypted if it was, until the \
             guest overwrites it; to be rid of it, discard or overwrite the device first\n",
        );
    }
    let dek = Dek::generate().map_err(no_secret_memory)?;
    let binding = plan.binding();
    let context = Context::local(Some(binding.uuid));
    let key_store = match args.key_store {
        Some(Place::Header) => None,
        Some(Place::Store(name)) => Some(name),
        None => keys.store_for(&args.key_set)?.map(|name| name.to_string()),
    };
    if let Some(name) = &key_store {
        // Before a key is made for nothing.
        keys.stores().place(name, binding.uuid)?;
    }
    let wraps = ask(keys.wrap(&context, &args.key_set, &dek, &binding.bytes()))?;
    let known = Known::new(binding.uuid, absolute(&location), &args.key_set, &wraps);
    let volume = match &key_store {
        None => plan.write(&dek, &args.key_set, wraps)?,
        Some(name) => {
            let entry = Entry::new(binding.uuid, &args.key_set, wraps);
            ask(keys.store(&context, name, &entry, None))?;
            let written = plan.write_referring(&dek, &args.key_set, name);
            written.map_err(|error| undone(&keys, &context, name, binding.uuid, error))?
        }
    };
    note(config, &known);
    let layout = volume.layout();
    if args.json {
        return print_json(&Created {
            uuid: volume.uuid(),
            size: layout.size,
            data_offset: layout.data_offset,
            sector_size: layout.sector_size.bytes(),
            zero_units: layout.zero_units,
            key_set: args.key_set,
            key_store,
        });
    }
    let backup_of = match &location.header {
        Some(header) => format!("{} --header {}", location.data.display(), header.display()),
        None => location.data.display().to_string(),
    };
    let kept = match &key_store {
        Some(name) => format!(", its wrapped key in key store {name}"),
        None => String::new(),
    };
    print(format_args!(
        "made volume {}: {} for the guest, {}-byte sectors, key set {}{kept}\n{notes}\
         next: back up its header, without which the data is lost:\n  \
         sealblk volume backup-header {backup_of} --to FILE\n",
        volume.uuid(),
        Bytes(layout.size),
        layout.sector_size,
        args.key_set,
    ))
}

/// Notes that this host has a volume that needs these key sets. It is made
/// already, and opens without the note.
fn note(config: &Config, known: &Known) {
    let is_defined = |name: &String| config.defined_in.contains_key(name.as_str());
    // The built-in one needs a note only where a manager looks after it.
    let state = &config.daemon.state_dir;
    if !known.key_sets.iter().any(is_defined) && !state.is_dir() {
        return;
    }
    if let Err(error) = Ledger::below(&config.daemon.state_dir).note(known) {
        tracing::debug!(%error, "the volume is not in the ledger");
    }
}

/// Where a volume is, wherever this process is.
fn absolute(location: &Location) -> (PathBuf, Option<PathBuf>) {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    (
        absolute(&location.data),
        location.header.as_ref().map(absolute),
    )
}

/// Takes back the entry of a volume that could not be written.
fn undone(
    keys: &KeySets,
    context: &Context,
    key_store: &str,
    volume: Uuid,
    error: crate::volume::Error,
) -> Failure {
    if let Err(left) = ask(keys.purge(context, key_store, volume)) {
        tracing::warn!(%volume, key_store, "an entry stays there that no volume needs: {left}");
    }
    error.into()
}

pub(super) fn no_secret_memory(error: std::io::Error) -> Failure {
    Failure::new(
        Kind::Io,
        format!("cannot get locked memory or random bytes for a key: {error}"),
        Some("raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)".into()),
    )
}
