//! From the path of a volume to all that its data plane needs: the opened and
//! locked files, the data encryption key, and a [`Spec`].
//!
//! `serve` and the manager share it. The steps that read files block, and the
//! one that asks a key service is asynchronous, so that each can be run where
//! it belongs. Nothing here listens, serves, or keeps anything.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::config;
use crate::engine::placement;
use crate::error::{Explain, Kind};
use crate::keys::{self, KeySets, Opened};
use crate::kms::recovery::{self, RecoveryKey};
use crate::plane::Spec;
use crate::rekey;
use crate::shift;
use crate::store::{self, DirectMode, Store};
use crate::vhost::SocketParams;
use crate::volume::{self, Access, Erased, Location, Standing, Volume};

/// Why a volume cannot be served. What the rooms below say is passed on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Discards are asked for, and the format does not allow them.
    #[error(
        "{0} was made without zero units, so that space which a guest discards would not read as zeroes"
    )]
    NoZeroUnits(PathBuf),
    /// The volume cannot be opened.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// May be read, and not written.
    #[error(transparent)]
    NotWritable(volume::Error),
    /// It has no key any more.
    #[error("{path} was erased on {}: its key was destroyed, and its data cannot be had{}", erased.since, unfinished(.erased))]
    Erased {
        /// The volume.
        path: PathBuf,
        /// When, and whether all of it.
        erased: Erased,
    },
    /// No key.
    #[error("cannot open the volume {path}")]
    Key {
        /// The volume.
        path: PathBuf,
        /// What the key sets say.
        #[source]
        source: keys::Error,
    },
    /// Queues cannot run where they shall.
    #[error("queues shall run on CPU {0}, which this process may not use")]
    NoCpu(u16),
    /// It is being moved, so that there is no disk to be served.
    #[error("{path} is being {doing}, and its data moved for that: it is in pieces meanwhile")]
    InPieces {
        /// The volume.
        path: PathBuf,
        /// What is done to it.
        doing: &'static str,
        /// The command that does it.
        command: &'static str,
    },
    /// Its journal cannot be read.
    #[error(transparent)]
    Journal(shift::Error),
    /// What the host has cached of it is not what another host wrote.
    #[error(
        "{0} is a block device that other hosts write, and would be served through the page cache"
    )]
    CachedDevice(PathBuf),
    /// The data cannot be read.
    #[error("cannot serve {path}")]
    Store {
        /// The volume.
        path: PathBuf,
        /// Why.
        #[source]
        source: store::Error,
    },
}

fn unfinished(erased: &Erased) -> &'static str {
    match erased.finished {
        true => "",
        false => "; erasing it was not finished",
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::NoZeroUnits(_) | Error::NoCpu(_) | Error::CachedDevice(_) => Kind::Usage,
            Error::Volume(source) | Error::NotWritable(source) => source.kind(),
            Error::Erased { .. } => Kind::Key,
            Error::Key { source, .. } => source.kind(),
            Error::InPieces { .. } => Kind::Refused,
            Error::Journal(source) => source.kind(),
            Error::Store { source, .. } => source.kind(),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Volume(source) => return source.help(),
            Error::NotWritable(source) => {
                format!("{}; or serve it with --read-only", source.help()?)
            }
            Error::Erased { path, erased } => match erased.finished {
                true => "if it was not meant to be erased, restore its header from a backup: \
                         sealblk volume restore-header --force"
                    .into(),
                false => format!("finish it: sealblk volume erase {} --yes", path.display()),
            },
            Error::Key { source, .. } => return source.help(),
            Error::Store { source, .. } => return source.help(),
            Error::InPieces { path, command, .. } => {
                format!("finish it: sealblk volume {command} {}", path.display())
            }
            Error::Journal(source) => return source.help(),
            Error::CachedDevice(_) => "serve it with --direct auto or --direct always".into(),
            Error::NoCpu(_) => "name other CPUs with --cpus: `grep Cpus_allowed_list \
                 /proc/PID/status` has those of a process"
                .into(),
            Error::NoZeroUnits(_) => "serve it with --discard ignore, or make a volume with \
                 `sealblk volume create --zero-units` and copy the data"
                .into(),
        })
    }
}

/// Opens and locks the volume of `disk`, and checks that it can be served as
/// `config` says. The lock goes with the files of the volume.
///
/// # Errors
/// See [`Error`].
pub fn open_volume(disk: &config::Disk, config: &config::Serve) -> Result<Volume, Error> {
    open_as(disk, config, Standing::Held)
}

/// The same, of which this host has so much. A volume whose guest comes from another
/// host, or may come back, is neither locked nor written.
///
/// # Errors
/// See [`Error`].
pub fn open_as(
    disk: &config::Disk,
    config: &config::Serve,
    standing: Standing,
) -> Result<Volume, Error> {
    check_cpus(config)?;
    let access = match config.read_only {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    let location = Location {
        data: disk.volume.clone(),
        header: disk.header.clone(),
    };
    let opened = match standing {
        Standing::Held => Volume::open(&location, access),
        Standing::Incoming | Standing::Moved => Volume::open_incoming(&location),
    };
    let volume = opened.map_err(|error| {
        let denied = access == Access::ReadWrite && error.kind() == Kind::Permission;
        match denied && is_readable(&location) {
            true => Error::NotWritable(error),
            false => Error::Volume(error),
        }
    })?;
    if let Some(erased) = volume.token().erased.clone() {
        return Err(Error::Erased {
            path: disk.volume.clone(),
            erased,
        });
    }
    check_in_one_piece(&volume)?;
    // What its header says is not what its data is, from one end to the other.
    // One that is under way is recovered first, by whoever serves it, and that
    // writes.
    let recovers = access == Access::ReadWrite && standing == Standing::Held;
    if volume.rekey().is_none() || !recovers {
        volume.check_settled("serve")?;
    }
    if standing != Standing::Held && volume.is_block() && config.direct == config::Direct::Never {
        return Err(Error::CachedDevice(disk.volume.clone()));
    }
    if config.discard == config::Discard::Pass && !volume.layout().zero_units {
        return Err(Error::NoZeroUnits(disk.volume.clone()));
    }
    Ok(volume)
}

/// Fails if the disk is in pieces, since it is being moved to make room for its
/// header, or over the one that it had: then nobody can be served.
fn check_in_one_piece(volume: &Volume) -> Result<(), Error> {
    let Some(rekey) = volume.rekey() else {
        return Ok(());
    };
    let area = volume.journal_area()?;
    let is_moved = shift::is_journal(volume.journal_file(), &area);
    match is_moved.map_err(Error::Journal)? {
        false => Ok(()),
        true => Err(Error::InPieces {
            path: volume.data_path().to_owned(),
            doing: rekey.doing(),
            command: match rekey.kind {
                rekey::Kind::Decrypt => "decrypt",
                rekey::Kind::Rekey | rekey::Kind::Encrypt => "encrypt",
            },
        }),
    }
}

/// Checks that queues can run where they shall.
///
/// # Errors
/// [`Error::NoCpu`].
pub fn check_cpus(config: &config::Serve) -> Result<(), Error> {
    match placement::not_permitted(&config.cpus) {
        Ok(Some(cpu)) => Err(Error::NoCpu(cpu)),
        // A kernel that does not say where we may run has no say in it either.
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Whether all files of the volume may be read.
fn is_readable(location: &Location) -> bool {
    let mut paths = [Some(&location.data), location.header.as_ref()]
        .into_iter()
        .flatten();
    paths.all(|path| {
        let found = crate::paths::find(path);
        found.and_then(|found| found.open_to_read()).is_ok()
    })
}

/// What a volume may be opened with, beside its own key set.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// Which of its wraps.
    pub access: keys::Access,
    /// A recovery key that somebody has shown.
    pub recovery: Option<Arc<RecoveryKey>>,
}

impl Opening {
    /// What somebody asks for: other key sets, even if the own one denies its
    /// key, and the recovery key in a file.
    ///
    /// # Errors
    /// When there is no recovery key in that file.
    pub fn new(
        break_glass: bool,
        even_if_denied: bool,
        recovery_key_file: Option<&Path>,
    ) -> Result<Self, recovery::ReadError> {
        let recovery = recovery_key_file.map(RecoveryKey::read).transpose()?;
        let access = match (break_glass, even_if_denied) {
            (_, true) => keys::Access::DespiteDenial,
            (true, false) => keys::Access::BreakGlass,
            (false, false) => keys::Access::OwnKeySet,
        };
        Ok(Opening {
            access,
            recovery: recovery.map(Arc::new),
        })
    }

    /// The same, lent.
    pub fn means(&self) -> keys::Means<'_> {
        keys::Means {
            access: self.access,
            recovery: self.recovery.as_deref(),
        }
    }
}

/// Asks the key sets for the key of a volume, wherever its wraps are, and with all
/// that `opening` permits. It is not proven yet: see [`Volume::verify_dek`].
///
/// # Errors
/// [`Error::Key`].
pub async fn unwrap(
    key_sets: &KeySets,
    context: &keys::Context,
    volume: &Volume,
    opening: &Opening,
) -> Result<Opened, Error> {
    let context = &keys::Context {
        volume: Some(volume.uuid()),
        ..context.clone()
    };
    let binding = volume.binding();
    let unwrapping = key_sets.unwrap_with(context, volume.token(), &binding, opening.means());
    unwrapping.await.map_err(|source| Error::Key {
        path: volume.data_path().to_owned(),
        source,
    })
}

/// What the data plane has to know.
pub fn spec(disk: &config::Disk, config: &config::Serve, volume: &Volume) -> Spec {
    spec_of(disk, config, volume.uuid(), volume.layout())
}

/// The same for data that lies as `layout` says, and has no header.
pub fn spec_of(
    disk: &config::Disk,
    config: &config::Serve,
    uuid: Uuid,
    layout: volume::Layout,
) -> Spec {
    Spec {
        uuid,
        data_offset: layout.data_offset,
        size: layout.size,
        sector_size: layout.sector_size,
        iv_tweak: layout.iv_tweak,
        zero_units: layout.zero_units,
        engine: config.engine.resolve(),
        direct: config.direct.into(),
        read_only: config.read_only,
        discard: config.discard == config::Discard::Pass,
        // What was configured, or the first hexadecimal digits of the UUID.
        serial: match &disk.serial {
            Some(serial) => serial.as_str().to_owned(),
            None => uuid.simple().to_string(),
        },
        queues: config.queues,
        cpus: config.cpus.clone(),
        queue_size: config.queue_size,
        write_cache: config.cache == config::Cache::Writeback,
        poll_us: u64::try_from(config.poll.as_micros()).unwrap_or(u64::MAX),
        limits: config.limits.clone(),
        on_error: config.on_error.into(),
        stuck_after_ms: u64::try_from(config.stuck_after.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Opens the data of a volume for its queues, through its data file `data`, as
/// soon as nothing is in flight of an earlier process. `path` is for the message.
///
/// # Errors
/// [`Error::Store`], and [`volume::Error::Dying`].
pub fn open_store(spec: &Spec, data: &File, path: &Path) -> Result<Store, Error> {
    open_store_as(spec, data, path, Standing::Held)
}

/// The same of a volume of which this host has so much. What is not this host's is
/// not waited for, nor marked: that is done when it is taken.
///
/// # Errors
/// As [`open_store`].
pub fn open_store_as(
    spec: &Spec,
    data: &File,
    path: &Path,
    standing: Standing,
) -> Result<Store, Error> {
    let ours = standing == Standing::Held && !spec.read_only;
    // Readers do no harm by what they have left, nor by what they find.
    if ours {
        volume::await_quiet(data, path)?;
    }
    let store = open_store_unmarked(spec, data, path)?;
    if ours {
        volume::mark_io(data, store.files(), path)?;
    }
    Ok(store)
}

/// The same for a process that is to go on where another one writes still. It marks
/// what it gets when that one has let go.
///
/// # Errors
/// When the data cannot be opened.
pub fn open_store_unmarked(spec: &Spec, data: &File, path: &Path) -> Result<Store, Error> {
    let store = Store::open(
        data.as_fd(),
        (spec.data_offset, spec.size),
        spec.sector_size,
        (spec.read_only, spec.direct),
        spec.queues.into(),
    )
    .map_err(|source| Error::Store {
        path: path.to_owned(),
        source,
    })?;
    tracing::info!(
        uuid = %spec.uuid,
        bytes = spec.size,
        sector_size = spec.sector_size.bytes(),
        read_only = spec.read_only,
        engine = %spec.engine,
        direct = store.is_direct(),
        "opened"
    );
    Ok(store)
}

impl SocketParams {
    /// The socket of `disk`, as `config` has it.
    pub fn of(disk: &config::Disk, config: &config::Serve) -> Self {
        SocketParams {
            path: disk.socket.clone(),
            mode: config.socket_mode.bits(),
            group: config.socket_group.as_ref().map(|group| group.gid),
        }
    }
}

impl From<config::Direct> for DirectMode {
    fn from(direct: config::Direct) -> Self {
        match direct {
            config::Direct::Auto => DirectMode::Auto,
            config::Direct::Always => DirectMode::Always,
            config::Direct::Never => DirectMode::Never,
        }
    }
}
