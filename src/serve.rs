//! `sealblk serve`: resolve the keys, open everything, then be the data plane.
//!
//! All that can fail for a reason that a person can mend fails before the
//! socket is there. Once the sockets listen, no path is opened any more and no
//! key service is asked: what is left is the data plane, until a signal ends it.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config;
use crate::crypt::{self, SectorCipher};
use crate::engine::stats::{self, Stats};
use crate::engine::{self, DiskParams, SERIAL_BYTES};
use crate::error::{Explain, Failure, Kind, io_kind};
use crate::keys::{self, KeySets};
use crate::runtime::block_on;
use crate::store::{self, DirectMode, Store};
use crate::units::Bytes;
use crate::vhost::{Listener, Server, SocketParams, Stopper};
use crate::volume::{self, Access, Location, Volume};

/// Why serving cannot begin, or ended. What the rooms below say is passed on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "{0} was made without zero units, so that space which a guest discards would not read as zeroes"
    )]
    NoZeroUnits(PathBuf),
    /// May be read, and not written.
    #[error(transparent)]
    NotWritable(volume::Error),
    #[error("cannot open the volume {path}")]
    Key {
        path: PathBuf,
        #[source]
        source: keys::Error,
    },
    #[error("cannot serve {path}")]
    Store {
        path: PathBuf,
        #[source]
        source: store::Error,
    },
    #[error("what guests wrote last to {path} may be lost")]
    NotDurable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the pid file {path}")]
    PidFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::NoZeroUnits(_) => Kind::Usage,
            Error::NotWritable(source) => source.kind(),
            Error::Key { source, .. } => source.kind(),
            Error::Store { source, .. } => source.kind(),
            Error::NotDurable { .. } => Kind::Io,
            Error::PidFile { source, .. } | Error::System { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::NotWritable(source) => {
                format!("{}; or serve it with --read-only", source.help()?)
            }
            Error::Key { source, .. } => return source.help(),
            Error::Store { source, .. } => return source.help(),
            Error::NotDurable { .. } => "check the disk below, for example with `dmesg`; then let \
                 the guest check its file systems"
                .into(),
            Error::NoZeroUnits(_) => "serve it with --discard ignore, or make a volume with \
                 `sealblk volume create --zero-units` and copy the data"
                .into(),
            Error::PidFile { path, .. } => format!(
                "check that {} exists and is writable",
                path.parent().unwrap_or(Path::new("/")).display()
            ),
            Error::System { .. } => "check the limits of the process (`ulimit -a`)".into(),
        })
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// A disk that has all but a socket. The volume holds the lock.
struct Opened {
    disk: Arc<engine::Disk>,
    volume: Volume,
}

/// A disk that is ready to be served.
struct Ready {
    server: Server,
    opened: Opened,
}

impl Ready {
    /// Serves front ends until stopped, and then makes durable what they wrote.
    fn run(&self) -> Result<(), Error> {
        let path = self.opened.volume.data_path();
        let _span = tracing::error_span!("disk", path = %path.display()).entered();
        self.server.run().map_err(system("a socket failed"))?;
        let synced = self.opened.disk.sync_now();
        let done = self.opened.disk.stats().snapshot();
        let total = done.total();
        tracing::info!(
            requests = total.requests,
            errors = total.errors,
            read = %Bytes(done.requests(stats::Kind::Read).bytes),
            written = %Bytes(done.requests(stats::Kind::Write).bytes),
            "served"
        );
        synced.map_err(|source| Error::NotDurable {
            path: path.to_owned(),
            source,
        })
    }
}

/// Serves the disks until a signal ends it.
///
/// # Errors
/// When a volume, its key, or its socket cannot be had. Nothing is served then.
pub fn run(config: &config::Serve, key_sets: &KeySets) -> Result<(), Failure> {
    // Until here a signal ends the process as it always does, also while a key
    // service lets it wait: there is nothing yet that it could leave behind.
    let opened = config
        .disks
        .iter()
        .map(|disk| open(disk, config, key_sets))
        .collect::<Result<Vec<_>, Failure>>()?;
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(system("cannot handle signals"))?;
    let disks = config
        .disks
        .iter()
        .zip(opened)
        .map(|(disk, opened)| listen(disk, config, opened))
        .collect::<Result<Vec<_>, Failure>>()?;
    let pid_file = config.pid_file.as_deref().map(PidFile::write).transpose()?;
    let stoppers: Vec<Stopper> = disks.iter().map(|disk| disk.server.stopper()).collect();
    let handle = signals.handle();
    let servers = thread::Builder::new()
        .name("disks".into())
        .spawn(move || {
            let result = run_all(disks);
            handle.close();
            result
        })
        .map_err(system("cannot start a thread"))?;

    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(disks = config.disks.len(), "ready");
    let mut told = false;
    for signal in signals.forever() {
        if told {
            tracing::warn!(
                signal,
                "stopping at once: requests in flight stay unanswered; what was flushed is safe"
            );
            drop(pid_file);
            std::process::exit(Kind::Internal.exit_status().into());
        }
        tracing::info!(signal, "stopping: requests in flight are completed first");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        stoppers.iter().for_each(Stopper::stop);
        told = true;
    }
    match servers.join() {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failure::new(
            Kind::Internal,
            "a server thread panicked",
            None,
        )),
    }
}

/// Serves all disks, each on a thread. When one fails, all end.
fn run_all(disks: Vec<Ready>) -> Result<(), Error> {
    let stoppers: Vec<Stopper> = disks.iter().map(|disk| disk.server.stopper()).collect();
    thread::scope(|scope| {
        let running: Vec<_> = disks
            .iter()
            .map(|disk| {
                let stoppers = &stoppers;
                scope.spawn(move || {
                    let result = disk.run();
                    if result.is_err() {
                        stoppers.iter().for_each(Stopper::stop);
                    }
                    result
                })
            })
            .collect();
        running.into_iter().try_for_each(|thread| {
            let panicked = || Error::System {
                what: "a disk ended early",
                source: io::Error::other("its thread panicked"),
            };
            thread.join().unwrap_or_else(|_| Err(panicked()))
        })
    })
}

/// Opens the volume, and gets its key.
fn open(
    disk: &config::Disk,
    config: &config::Serve,
    key_sets: &KeySets,
) -> Result<Opened, Failure> {
    let path = &disk.volume;
    let _span = tracing::error_span!("disk", path = %path.display()).entered();
    let access = match config.read_only {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    let location = Location {
        data: disk.volume.clone(),
        header: disk.header.clone(),
    };
    let volume = Volume::open(&location, access).map_err(|error| {
        let denied = access == Access::ReadWrite && error.kind() == Kind::Permission;
        match denied && is_readable(&location) {
            true => Error::NotWritable(error).into(),
            false => Failure::from(error),
        }
    })?;
    let layout = volume.layout();
    let discard = config.discard == config::Discard::Pass;
    if discard && !layout.zero_units {
        return Err(Error::NoZeroUnits(path.clone()).into());
    }
    let cipher = {
        let binding = volume.binding();
        let context = keys::Context::local(Some(volume.uuid()));
        let access = match config.break_glass {
            true => keys::Access::BreakGlass,
            false => keys::Access::OwnKeySet,
        };
        let unwrapping = key_sets.unwrap(&context, volume.token(), &binding, access);
        let opened = block_on(unwrapping)
            .map_err(system("cannot start asking for the key"))?
            .map_err(|source| Error::Key {
                path: path.clone(),
                source,
            })?;
        volume.verify_dek(&opened.dek)?;
        let params = crypt::Params {
            sector_size: layout.sector_size,
            iv_tweak: layout.iv_tweak,
            zero_units: layout.zero_units,
        };
        SectorCipher::new(config.engine.resolve(), &opened.dek, params)?
    };
    let engine = cipher.engine();
    let store = Store::open(
        std::os::fd::AsFd::as_fd(volume.data_file()),
        (layout.data_offset, layout.size),
        layout.sector_size,
        (config.read_only, config.direct.into()),
        config.queues.into(),
    )
    .map_err(|source| Error::Store {
        path: path.clone(),
        source,
    })?;
    tracing::info!(
        uuid = %volume.uuid(),
        bytes = layout.size,
        sector_size = layout.sector_size.bytes(),
        read_only = config.read_only,
        %engine,
        direct = store.is_direct(),
        "opened"
    );
    let disk = engine::Disk::new(DiskParams {
        cipher,
        store,
        bytes: layout.size,
        read_only: config.read_only,
        discard,
        serial: serial(disk, &volume),
        num_queues: config.queues,
        queue_size: config.queue_size,
        write_cache: config.cache == config::Cache::Writeback,
        poll: config.poll,
        stats: Stats::private(config.queues)?,
    });
    Ok(Opened {
        disk: Arc::new(disk),
        volume,
    })
}

/// Whether all files of the volume may be read.
fn is_readable(location: &Location) -> bool {
    let mut paths = [Some(&location.data), location.header.as_ref()]
        .into_iter()
        .flatten();
    paths.all(|path| fs::File::open(path).is_ok())
}

/// Makes the socket.
fn listen(disk: &config::Disk, config: &config::Serve, opened: Opened) -> Result<Ready, Failure> {
    let listener = Listener::bind(&SocketParams {
        path: disk.socket.clone(),
        mode: config.socket_mode.bits(),
        group: config.socket_group.as_ref().map(|group| group.gid),
    })?;
    let server =
        Server::new(opened.disk.clone(), listener).map_err(system("cannot make an eventfd"))?;
    tracing::info!(
        volume = %disk.volume.display(),
        socket = %disk.socket.display(),
        "serving"
    );
    Ok(Ready { server, opened })
}

/// What was configured, or the first hexadecimal digits of the UUID.
fn serial(disk: &config::Disk, volume: &Volume) -> [u8; SERIAL_BYTES] {
    let text = match &disk.serial {
        Some(serial) => serial.as_str().to_owned(),
        None => volume.uuid().simple().to_string(),
    };
    let mut serial = [0; SERIAL_BYTES];
    for (byte, digit) in serial.iter_mut().zip(text.bytes()) {
        *byte = digit;
    }
    serial
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

/// The file with our process id, removed when we end, unless somebody else has
/// written theirs.
struct PidFile(PathBuf);

impl PidFile {
    fn text() -> String {
        format!("{}\n", std::process::id())
    }

    fn write(path: &Path) -> Result<Self, Error> {
        fs::write(path, Self::text()).map_err(|source| Error::PidFile {
            path: path.to_owned(),
            source,
        })?;
        Ok(PidFile(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if fs::read_to_string(&self.0).is_ok_and(|text| text == Self::text()) {
            let _ = fs::remove_file(&self.0);
        }
    }
}
