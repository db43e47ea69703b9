//! `sealblk serve`: resolve the keys, open everything, then be the data plane.
//!
//! All that can fail for a reason that a person can mend fails before the
//! socket is there. Once the sockets listen, no path is opened any more and no
//! key service is asked: what is left is the data plane, until a signal ends it.
#![forbid(unsafe_code)]

mod moving;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config;
use crate::conversion::Sides;
use crate::engine;
use crate::engine::stats::Stats;
use crate::error::{Explain, Failure, Kind, io_kind};
use crate::keys::{Context, KeySets};
use crate::plane::{self, Plane};
use crate::prepare::{self, Opening};
use crate::runtime::block_on;
use crate::vhost::{Listener, Server, SocketParams, Stopper};
use crate::volume::Volume;

/// Why serving cannot begin, or ended. What the rooms below say is passed on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Plane(#[from] plane::Error),
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
            Error::Plane(source) => source.kind(),
            Error::PidFile { source, .. } | Error::System { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Plane(source) => return source.help(),
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
    /// What is done to all its data beside.
    recovered: Option<moving::Recovered>,
}

/// A disk that is ready to be served.
struct Ready {
    plane: Plane,
    path: PathBuf,
    /// Keeps the lock.
    volume: Mutex<Volume>,
    /// What is done to all its data beside.
    operation: Mutex<Option<moving::Operation>>,
}

impl Ready {
    /// Serves front ends until stopped, and then makes durable what they wrote.
    fn run(&self, key_sets: &KeySets) -> Result<(), Error> {
        let span = tracing::error_span!("disk", path = %self.path.display());
        let _span = span.clone().entered();
        let operation = locked(&self.operation).take();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            if let Some(operation) = operation {
                scope.spawn(|| {
                    let _span = span.entered();
                    operation.look_after(&mut locked(&self.volume), key_sets, &stop);
                });
            }
            let result = self.plane.run();
            stop.store(true, Ordering::Relaxed);
            Ok(result?)
        })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the disks until a signal ends it.
///
/// # Errors
/// When a volume, its key, or its socket cannot be had. Nothing is served then.
pub fn run(config: &config::Serve, key_sets: KeySets) -> Result<(), Failure> {
    // Until here a signal ends the process as it always does, also while a key
    // service lets it wait: there is nothing yet that it could leave behind.
    let opening = Opening::new(
        config.break_glass,
        config.even_if_denied,
        config.recovery_key_file.as_deref(),
    )?;
    let opened = config
        .disks
        .iter()
        .map(|disk| open(disk, config, &opening, &key_sets))
        .collect::<Result<Vec<_>, Failure>>()?;
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(system("cannot handle signals"))?;
    let disks = config
        .disks
        .iter()
        .zip(opened)
        .map(|(disk, opened)| listen(disk, config, opened))
        .collect::<Result<Vec<_>, Failure>>()?;
    let pid_file = config.pid_file.as_deref().map(PidFile::write).transpose()?;
    let stoppers: Vec<Stopper> = disks.iter().map(|disk| disk.plane.stopper()).collect();
    let handle = signals.handle();
    let servers = thread::Builder::new()
        .name("disks".into())
        .spawn(move || {
            let result = run_all(disks, &key_sets);
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
fn run_all(disks: Vec<Ready>, key_sets: &KeySets) -> Result<(), Error> {
    let stoppers: Vec<Stopper> = disks.iter().map(|disk| disk.plane.stopper()).collect();
    thread::scope(|scope| {
        let running: Vec<_> = disks
            .iter()
            .map(|disk| {
                let stoppers = &stoppers;
                scope.spawn(move || {
                    let result = disk.run(key_sets);
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
    opening: &Opening,
    key_sets: &KeySets,
) -> Result<Opened, Failure> {
    let path = &disk.volume;
    let _span = tracing::error_span!("disk", path = %path.display()).entered();
    let volume = prepare::open_volume(disk, config)?;
    let context = Context::local(Some(volume.uuid()));
    let spec = prepare::spec(disk, config, &volume);
    let stats = || Stats::private(spec.queues);
    let asking = system("cannot start asking for the key");
    if volume.rekey().is_none() {
        let opened = block_on(prepare::unwrap(key_sets, &context, &volume, opening));
        let dek = opened.map_err(asking)??.dek;
        volume.verify_dek(&dek)?;
        let store = prepare::open_store(&spec, volume.data_file(), path)?;
        let disk = plane::disk(&spec, store, &dek, stats()?)?;
        return Ok(Opened {
            disk: Arc::new(disk),
            volume,
            recovered: None,
        });
    }
    let sides = block_on(Sides::of(key_sets, &context, &volume, opening));
    let sides = sides.map_err(asking)??;
    // First, since it waits for what a killed process is still writing.
    let store = prepare::open_store(&spec, volume.data_file(), path)?;
    let mut recovered = moving::Recovered::of(&spec, &volume, sides, config.decrypt)?;
    let disk = plane::disk_of(&spec, store, recovered.transform()?, stats()?);
    Ok(Opened {
        disk: Arc::new(disk),
        volume,
        recovered: Some(recovered),
    })
}

/// Makes the socket.
fn listen(disk: &config::Disk, config: &config::Serve, opened: Opened) -> Result<Ready, Failure> {
    let listener = Listener::bind(&SocketParams::of(disk, config))?;
    let server =
        Server::new(opened.disk.clone(), listener).map_err(system("cannot make an eventfd"))?;
    tracing::info!(
        volume = %disk.volume.display(),
        socket = %disk.socket.display(),
        "serving"
    );
    let operation = opened
        .recovered
        .map(|recovered| recovered.begin(&opened.disk));
    Ok(Ready {
        plane: Plane::new(opened.disk, server, disk.volume.clone()),
        path: disk.volume.clone(),
        volume: Mutex::new(opened.volume),
        operation: Mutex::new(operation.transpose()?),
    })
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
