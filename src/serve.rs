//! `sealblk serve`: resolve the keys, open everything, then be the data plane.
//!
//! All that can fail for a reason that a person can mend fails before the
//! socket is there. Once the sockets listen, no path is opened any more and no
//! key service is asked: what is left is the data plane, until a signal ends it.
#![forbid(unsafe_code)]

mod moving;
mod notify;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use self::notify::Notifier;
use crate::config;
use crate::conversion::Sides;
use crate::durable;
use crate::engine::stats::Stats;
use crate::engine::{self, Lookout};
use crate::error::{Explain, Failure, Kind, io_kind};
use crate::keys::{Context, KeySets};
use crate::migration::Migration;
use crate::paths;
use crate::plane::{self, Plane};
use crate::prepare::{self, Opening};
use crate::runtime::block_on;
use crate::sandbox;
use crate::secret::Dek;
use crate::vhost::{self, Listener, Server, SocketParams, Stopper};
use crate::volume::{Standing, Tenure, Volume};

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
    /// Takes the volume and lets it go, if guests may move.
    migration: Option<Arc<Migration>>,
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
            let watching = scope.spawn(|| watch(self.plane.disk(), &stop));
            let result = self.plane.run();
            stop.store(true, Ordering::Relaxed);
            watching.thread().unpark();
            Ok(result?)
        })
    }
}

/// Sees, until that ends, whether a queue does not come back from the kernel.
fn watch(disk: &Arc<engine::Disk>, stop: &AtomicBool) {
    let mut lookout = Lookout::new(disk.clone());
    while !stop.load(Ordering::Relaxed) {
        lookout.look();
        thread::park_timeout(lookout.left());
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
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGUSR2])
        .map_err(system("cannot handle signals"))?;
    vhost::explain_bus_errors(match config.disks.len() {
        1 => "the disk",
        _ => "one of the disks",
    })
    .map_err(system("cannot handle signals"))?;
    let disks = config
        .disks
        .iter()
        .zip(opened)
        .map(|(disk, opened)| listen(disk, config, opened))
        .collect::<Result<Vec<_>, Failure>>()?;
    let pid_file = config.pid_file.as_deref().map(PidFile::write).transpose()?;
    let stoppers: Vec<Stopper> = disks.iter().map(|disk| disk.plane.stopper()).collect();
    let served: Vec<_> = disks.iter().map(|disk| disk.plane.disk().clone()).collect();
    let handle = signals.handle();
    let notifier = Notifier::connect();
    shut(config, &disks, &served)?;
    let servers = thread::Builder::new()
        .name("disks".into())
        .spawn(move || {
            let result = run_all(disks, &key_sets);
            handle.close();
            result
        })
        .map_err(system("cannot start a thread"))?;

    notifier.tell(NotifyState::Ready);
    tracing::info!(disks = config.disks.len(), "ready");
    let mut told = false;
    for signal in signals.forever() {
        if matches!(signal, SIGUSR1 | SIGUSR2) {
            look_after_trouble(&served, signal == SIGUSR2);
            continue;
        }
        if told {
            tracing::warn!(
                signal,
                "stopping at once: requests in flight stay unanswered; what was flushed is safe"
            );
            drop(pid_file);
            std::process::exit(Kind::Internal.exit_status().into());
        }
        tracing::info!(signal, "stopping: requests in flight are completed first");
        notifier.tell(NotifyState::Stopping);
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

/// Puts up the walls: from here on no path is opened, but to remove the sockets.
/// Unless all data of a volume is being moved: its header and its key set are
/// needed when that is done. Rings are made in between: their threads are behind the
/// walls, and none are made afterwards.
fn shut(
    config: &config::Serve,
    disks: &[Ready],
    served: &[Arc<engine::Disk>],
) -> Result<(), Failure> {
    let report = match disks.iter().any(|disk| locked(&disk.operation).is_some()) {
        true => sandbox::shut_keeper(&sandbox::Kind::Keeper),
        false => {
            let sockets = config.disks.iter().map(|disk| &disk.socket);
            let own: Vec<PathBuf> = sockets.chain(&config.pid_file).cloned().collect();
            sandbox::shut_server(&own)
        }
    };
    report.settle(config.require_sandbox)?;
    for disk in served {
        disk.muster()
            .map_err(system("cannot make the io_uring of a queue"))?;
    }
    sandbox::shut_for_good(config.require_sandbox)
}

/// Tries what waits because the disk below fails, or has it fail.
fn look_after_trouble(disks: &[Arc<engine::Disk>], fail: bool) {
    for trouble in disks.iter().map(|disk| disk.trouble()) {
        tracing::info!(
            waiting = trouble.standing().map_or(0, |it| it.waiting),
            fail,
            "told to go on"
        );
        match fail {
            true => trouble.give_up(),
            false => trouble.try_now(),
        }
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
    let standing = match config.incoming {
        true => Standing::Incoming,
        false => Standing::Held,
    };
    let volume = prepare::open_as(disk, config, standing)?;
    let context = Context::local(Some(volume.uuid()));
    let spec = prepare::spec(disk, config, &volume);
    let stats = || Stats::private(spec.queues);
    let asking = system("cannot start asking for the key");
    if volume.rekey().is_none() {
        let opened = block_on(prepare::unwrap(key_sets, &context, &volume, opening));
        let dek = opened.map_err(asking)??.dek;
        volume.verify_dek(&dek)?;
        let store = prepare::open_store_as(&spec, volume.data_file(), path, standing)?;
        let disk = Arc::new(plane::disk(&spec, store, &dek, stats()?)?);
        let migration = migration(&disk, &volume, config, standing, Some(&dek))?;
        return Ok(Opened {
            disk,
            migration,
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
    let disk = Arc::new(disk);
    let migration = migration(&disk, &volume, config, standing, None)?;
    Ok(Opened {
        disk,
        migration,
        volume,
        recovered: Some(recovered),
    })
}

/// What takes the volume and lets it go when a guest moves: with its `dek`, which has
/// to be the key still when it is taken.
fn migration(
    disk: &Arc<engine::Disk>,
    volume: &Volume,
    config: &config::Serve,
    standing: Standing,
    dek: Option<&Dek>,
) -> Result<Option<Arc<Migration>>, Failure> {
    // Who only reads shares it with others as it is.
    if config.read_only {
        return Ok(None);
    }
    let files = volume.files().map_err(system("cannot copy a descriptor"))?;
    let tenure = Tenure::new(standing).map_err(system("cannot have memory"))?;
    // What failed is in the log, and there is nobody else to be told.
    let migration = Migration::new(disk.clone(), files, tenure, Box::new(|_| {}));
    let migration = migration.map_err(system("cannot read memory"))?;
    Ok(Some(Arc::new(match dek {
        Some(dek) => migration.proven(dek)?,
        None => migration,
    })))
}

/// Makes the socket.
fn listen(disk: &config::Disk, config: &config::Serve, opened: Opened) -> Result<Ready, Failure> {
    let listener = Listener::bind(&SocketParams::of(disk, config))?;
    let mut server =
        Server::new(opened.disk.clone(), listener).map_err(system("cannot make an eventfd"))?;
    if let Some(migration) = opened.migration {
        server = server.claiming(migration);
    }
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
        // In place of what is there: what a link leads to stays as it is.
        let written = durable::replace(path, Self::text().as_bytes(), 0o644);
        written.map_err(|source| Error::PidFile {
            path: path.to_owned(),
            source,
        })?;
        Ok(PidFile(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let text = paths::read_own(&self.0, 32);
        if text.is_ok_and(|text| text == Self::text().as_bytes()) {
            let _ = fs::remove_file(&self.0);
        }
    }
}
