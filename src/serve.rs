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
use crate::engine::{self, DiskParams, SERIAL_BYTES};
use crate::error::{Explain, Failure, Kind, io_kind};
use crate::keys::KeySets;
use crate::runtime::block_on;
use crate::store::{DirectMode, Store};
use crate::vhost::{Listener, Server, SocketParams, Stopper};
use crate::volume::{Access, Location, Volume};

/// Why serving cannot begin, or ended. What the rooms below say is passed on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "{0} was made without zero units, so that space which a guest discards would not read as zeroes"
    )]
    NoZeroUnits(PathBuf),
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
            Error::PidFile { source, .. } | Error::System { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
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

/// A disk that is ready to be served. The volume holds the lock.
struct Ready {
    server: Server,
    _volume: Volume,
}

/// Serves the disks until a signal ends it.
///
/// # Errors
/// When a volume, its key, or its socket cannot be had. Nothing is served then.
pub fn run(config: &config::Serve, key_sets: &KeySets) -> Result<(), Failure> {
    // First of all, so that no signal finds the default disposition.
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(system("cannot handle signals"))?;
    let disks = config
        .disks
        .iter()
        .map(|disk| prepare(disk, config, key_sets))
        .collect::<Result<Vec<_>, Failure>>()?;
    let _pid_file = config.pid_file.as_deref().map(PidFile::write).transpose()?;
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
            std::process::exit(Kind::Internal.exit_status().into());
        }
        tracing::info!(signal, "stopping: requests in flight are completed first");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        stoppers.iter().for_each(Stopper::stop);
        told = true;
    }
    match servers.join() {
        Ok(result) => Ok(result.map_err(system("a socket failed"))?),
        Err(_) => Err(Failure::new(
            Kind::Internal,
            "a server thread panicked",
            None,
        )),
    }
}

/// Serves all disks, each on a thread. When one fails, all end.
fn run_all(disks: Vec<Ready>) -> io::Result<()> {
    let stoppers: Vec<Stopper> = disks.iter().map(|disk| disk.server.stopper()).collect();
    thread::scope(|scope| {
        let running: Vec<_> = disks
            .iter()
            .map(|disk| {
                let stoppers = &stoppers;
                scope.spawn(move || {
                    let result = disk.server.run();
                    if result.is_err() {
                        stoppers.iter().for_each(Stopper::stop);
                    }
                    result
                })
            })
            .collect();
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a session thread panicked")))
        })
    })
}

/// Opens the volume, gets its key, and makes the socket.
fn prepare(
    disk: &config::Disk,
    config: &config::Serve,
    key_sets: &KeySets,
) -> Result<Ready, Failure> {
    let access = match config.read_only {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    let location = Location {
        data: disk.volume.clone(),
        header: disk.header.clone(),
    };
    let volume = Volume::open(&location, access)?;
    let layout = volume.layout();
    let discard = config.discard == config::Discard::Pass;
    if discard && !layout.zero_units {
        return Err(Error::NoZeroUnits(disk.volume.clone()).into());
    }
    let cipher = {
        let dek = block_on(key_sets.unwrap(volume.token(), &volume.binding()))
            .map_err(system("cannot start asking for the key"))??;
        volume.verify_dek(&dek)?;
        let params = crypt::Params {
            sector_size: layout.sector_size,
            iv_tweak: layout.iv_tweak,
            zero_units: layout.zero_units,
        };
        SectorCipher::new(config.engine.resolve(), &dek, params)?
    };
    let engine = cipher.engine();
    let store = Store::open(
        std::os::fd::AsFd::as_fd(volume.data_file()),
        (layout.data_offset, layout.size),
        layout.sector_size,
        (config.read_only, config.direct.into()),
        config.queues.into(),
    )?;
    let direct = store.is_direct();
    let disk_to_serve = engine::Disk::new(DiskParams {
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
    });
    let listener = Listener::bind(&SocketParams {
        path: disk.socket.clone(),
        mode: config.socket_mode.bits(),
        group: config.socket_group.as_ref().map(|group| group.gid),
    })?;
    let server =
        Server::new(Arc::new(disk_to_serve), listener).map_err(system("cannot make an eventfd"))?;
    tracing::info!(
        volume = %disk.volume.display(),
        uuid = %volume.uuid(),
        socket = %disk.socket.display(),
        bytes = layout.size,
        sector_size = layout.sector_size.bytes(),
        read_only = config.read_only,
        %engine,
        direct,
        "serving"
    );
    Ok(Ready {
        server,
        _volume: volume,
    })
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

/// The file with our process id, removed when we end.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self, Error> {
        fs::write(path, format!("{}\n", std::process::id())).map_err(|source| Error::PidFile {
            path: path.to_owned(),
            source,
        })?;
        Ok(PidFile(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
