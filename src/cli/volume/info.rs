//! `sealblk volume info`.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::LocationArgs;
use crate::cli::{print, print_json};
use crate::config::Config;
use crate::error::Failure;
use crate::keys::is_recovery;
use crate::rekey::Kind;
use crate::timestamp::Timestamp;
use crate::units::Bytes;
use crate::volume::luks2::metadata::ENCRYPTION;
use crate::volume::{Erased, Error, Inspection, Location, Plain, plain_help};

/// What follows `sealblk volume info`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    location: LocationArgs,

    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What is said of a volume. The names are part of the interface.
#[derive(Debug, Serialize)]
struct Info {
    volume: String,
    header: Option<String>,
    uuid: Uuid,
    label: String,
    /// What the guest sees, in bytes.
    size: u64,
    sector_size: usize,
    encryption: &'static str,
    zero_units: bool,
    data_offset: u64,
    /// Length of the data file in bytes.
    data_length: Option<u64>,
    header_area: u64,
    header_json: Json,
    header_copies: Copies,
    /// Passphrase keyslots that were added with cryptsetup.
    keyslots: usize,
    key_set: String,
    /// The key store that has the wrapped keys; null: they are here.
    key_store: Option<KeyStore>,
    /// A key store that may have a copy of them, since a move was interrupted.
    copy_in: Option<String>,
    wraps: Vec<WrapInfo>,
    /// When it was erased, and whether that was finished; null: it was not.
    erased: Option<Erased>,
    /// What is done to all of its data just now; null: nothing.
    rekey: Option<UnderWay>,
    /// Since when its data is plain; null: it is encrypted.
    plain: Option<Plain>,
    in_use: bool,
    in_use_by: Option<u32>,
}

#[derive(Debug, Serialize)]
struct KeyStore {
    name: String,
    /// Where the entry is; null: this host has no such key store.
    place: Option<String>,
}

/// An operation that is under way.
#[derive(Debug, Serialize)]
struct UnderWay {
    id: Uuid,
    kind: Kind,
    since: Timestamp,
    /// In plain words.
    #[serde(skip)]
    doing: &'static str,
}

#[derive(Debug, Serialize)]
struct Json {
    used: u64,
    room: u64,
}

/// State of the two header copies.
#[derive(Debug, Serialize)]
pub(super) struct Copies {
    /// Number of the header update.
    pub update: u64,
    pub primary: String,
    pub secondary: String,
}

#[derive(Debug, Serialize)]
struct WrapInfo {
    key_set: String,
    provider: String,
    key_id: String,
    key_version: String,
    alg: String,
    bound: String,
    bytes: usize,
    /// The group key between, if there is one.
    group: Option<Uuid>,
    /// Whether it is for break-glass access: not of the volume's own key set.
    break_glass: bool,
}

impl Copies {
    pub fn of(inspection: &Inspection) -> Self {
        let found = inspection.found();
        Copies {
            update: found.header.binary.seqid,
            primary: found.primary.to_string(),
            secondary: found.secondary.to_string(),
        }
    }
}

pub fn run(args: Args, config: &Config) -> Result<(), Failure> {
    let location = Location::from(args.location);
    let inspection = Inspection::of(&location)?;
    let description = inspection.description()?;
    let data = match inspection.check_data(&description) {
        // The facts are worth seeing also when some of the data is missing.
        data @ (Ok(_) | Err(Error::Shorter { .. })) => data,
        Err(error) => return Err(error.into()),
    };
    let user = inspection.user()?;
    let layout = description.layout;
    let (used, room) = inspection.found().header.fill();
    let own = description.token.key_set.clone();
    let info = Info {
        volume: location.data.display().to_string(),
        header: location.header.map(|path| path.display().to_string()),
        uuid: description.uuid,
        label: description.label,
        size: layout.size,
        sector_size: layout.sector_size.bytes(),
        encryption: ENCRYPTION,
        zero_units: layout.zero_units,
        data_offset: layout.data_offset,
        data_length: data.as_ref().ok().copied(),
        header_area: description.header_area,
        header_json: Json { used, room },
        header_copies: Copies::of(&inspection),
        keyslots: description.keyslots,
        key_set: description.token.key_set,
        key_store: description.token.key_store.map(|name| KeyStore {
            place: place(config, &name, description.uuid),
            name,
        }),
        copy_in: description.token.copy_in,
        erased: description.token.erased,
        rekey: description.token.rekey.map(|rekey| UnderWay {
            doing: rekey.doing(),
            id: rekey.id,
            kind: rekey.kind,
            since: rekey.since,
        }),
        plain: description.token.plain,
        wraps: description
            .token
            .wraps
            .into_iter()
            .map(|wrap| WrapInfo {
                break_glass: wrap.key_set != own || is_recovery(&wrap),
                key_set: wrap.key_set,
                provider: wrap.provider,
                key_id: wrap.key_id,
                key_version: wrap.key_version,
                alg: wrap.alg,
                bound: wrap.bound.into(),
                bytes: wrap.bytes.len(),
                group: wrap.group.map(|group| group.id),
            })
            .collect(),
        in_use: user.is_some(),
        in_use_by: user.flatten(),
    };
    match args.json {
        true => print_json(&info)?,
        false => print(&info)?,
    }
    data.map(|_| ()).map_err(Failure::from)
}

/// Where the key store has the entry of the volume. It is not asked.
fn place(config: &Config, store: &str, volume: Uuid) -> Option<String> {
    let definition = config.key_stores.get(store)?;
    Some(definition.client().place(volume))
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = Bytes(self.size);
        let surplus = self.data_length.map_or(0, |length| {
            length.saturating_sub(self.data_offset + self.size)
        });
        writeln!(f, "volume         {}", self.volume)?;
        writeln!(f, "uuid           {}", self.uuid)?;
        if !self.label.is_empty() {
            writeln!(f, "label          {}", self.label)?;
        }
        writeln!(f, "size           {size} ({} bytes)", self.size)?;
        writeln!(
            f,
            "encryption     {}, {}-byte sectors",
            self.encryption, self.sector_size
        )?;
        writeln!(
            f,
            "zero units     {}",
            match self.zero_units {
                true => "yes: a unit stored as zeroes reads as zeroes",
                false => "no",
            }
        )?;
        write!(f, "data           from byte {}", self.data_offset)?;
        match surplus {
            0 => writeln!(f)?,
            more => writeln!(f, "; {} after it are not used", Bytes(more))?,
        }
        match &self.header {
            Some(path) => write!(f, "header         detached, {path}")?,
            None => write!(f, "header         in the volume")?,
        }
        let Json { used, room } = self.header_json;
        writeln!(
            f,
            ", {} reserved, {used} of {room} bytes of JSON used",
            Bytes(self.header_area)
        )?;
        let copies = &self.header_copies;
        writeln!(
            f,
            "header copies  primary {}, secondary {}, update {}",
            copies.primary, copies.secondary, copies.update
        )?;
        if self.keyslots > 0 {
            writeln!(
                f,
                "keyslots       {} (added with cryptsetup: a passphrase opens the volume too)",
                self.keyslots
            )?;
        }
        writeln!(f, "key set        {}", self.key_set)?;
        match &self.key_store {
            Some(KeyStore { name, place }) => {
                write!(f, "wrapped keys   in key store {name:?}")?;
                match place {
                    Some(place) => writeln!(f, ": {place}")?,
                    None => writeln!(f, ", which this host does not have")?,
                }
            }
            None if self.plain.is_some() => {
                writeln!(f, "wrapped keys   none")?;
            }
            None if self.wraps.is_empty() => {
                let since = self.erased.as_ref().map(|erased| erased.since);
                let since = since.map_or(String::new(), |since| format!(" on {since}"));
                writeln!(f, "wrapped keys   none: the volume was erased{since}")?;
            }
            None => {}
        }
        if let Some(rekey) = &self.rekey {
            writeln!(
                f,
                "under way      its data is being {} since {}: `sealblk rekey DISK --status` says \
                 how far that is",
                rekey.doing, rekey.since
            )?;
        }
        if let Some(plain) = &self.plain {
            writeln!(
                f,
                "plain          since {}: {}",
                plain.since,
                plain_help(self.data_offset)
            )?;
        }
        if self
            .erased
            .as_ref()
            .is_some_and(|erased| erased.partly_plain)
        {
            writeln!(
                f,
                "still legible  a part of its data, which was not encrypted when it was erased"
            )?;
        }
        if let Some(erased) = self.erased.as_ref().filter(|erased| !erased.finished) {
            write!(
                f,
                "unfinished     erasing it: repeat `sealblk volume erase`"
            )?;
            match erased.key_stores.as_slice() {
                [] => writeln!(f)?,
                stores => writeln!(f, "; its wrapped keys may be in {}", stores.join(", "))?,
            }
        }
        if let Some(name) = &self.copy_in {
            let place = match &self.key_store {
                Some(store) => store.name.as_str(),
                None => "header",
            };
            writeln!(
                f,
                "unfinished     key store {name:?} may have a copy of the wrapped keys: finish the \
                 move, or take it back, with `sealblk volume move-keys --to {name}` or `--to {place}`"
            )?;
        }
        for wrap in &self.wraps {
            writeln!(
                f,
                "wrapped key    by {} key {} version {} ({}, {} bytes, key set {})",
                wrap.provider, wrap.key_id, wrap.key_version, wrap.alg, wrap.bytes, wrap.key_set
            )?;
            if wrap.break_glass {
                writeln!(f, "               for break-glass access")?;
            }
            if let Some(group) = wrap.group {
                writeln!(f, "               through group key {group}")?;
            }
        }
        match (self.in_use, self.in_use_by) {
            (false, _) => writeln!(f, "in use         no"),
            (true, None) => writeln!(f, "in use         yes"),
            (true, Some(pid)) => writeln!(f, "in use         yes, by process {pid}"),
        }
    }
}
