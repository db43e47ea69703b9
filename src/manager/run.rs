//! The life of the manager: start, signals, end.
#![forbid(unsafe_code)]

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::api::{self, Api, Limits};
use super::control::{Load, Manager};
use super::replace;
use super::socket::Socket;
use super::{walls, wiring};
use crate::audit::Event;
use crate::config::Config;
use crate::durable;
use crate::error::{Explain, Failure, Kind, io_kind};
use crate::logging;
use crate::sandbox;
use crate::secret;

/// How long to wait, at the end, for work that is still being done.
const LAST: Duration = Duration::from_secs(5);

/// What the manager starts with.
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// Reads it again.
    pub load: Load,
    /// The logs.
    pub log: logging::Handle,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot make the directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("{what}")]
    System {
        what: &'static str,
        source: io::Error,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Directory { source, .. } | Error::System { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Directory { .. } => {
                "run the daemon as root, or set state_dir and run_dir in [daemon] to directories that it may write".into()
            }
            Error::System { .. } => "check the limits of the process (`ulimit -a`)".into(),
        })
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Runs the manager until a signal ends it. Disks are served on.
///
/// # Errors
/// When it cannot start.
pub fn run(setup: Setup) -> Result<(), Failure> {
    let daemon = &setup.config.daemon;
    make_directory(&daemon.run_dir, 0o755)?;
    make_directory(&daemon.state_dir, 0o700)?;
    // While there is one thread.
    let walls = sandbox::shut_keeper(&sandbox::Kind::Manager(walls::of(&setup.config)));
    walls.settle(setup.config.daemon.require_sandbox)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("manager")
        .enable_all()
        .on_thread_park(secret::before_rest)
        .build()
        .map_err(system("cannot start threads"))?;
    let result = runtime.block_on(manage(setup));
    // A name look-up that hangs is not waited for.
    runtime.shutdown_timeout(LAST);
    let Some(next) = result.inspect_err(replace::give_back)? else {
        return Ok(());
    };
    let Next { program, socket } = next;
    let error = replace::become_program(&program, socket);
    tracing::error!(%error, program = %program.display(), "the program cannot be exchanged");
    // Disks are served on, and whoever looks after services starts it again.
    let error = replace::become_program(Path::new("/proc/self/exe"), None);
    Err(system("cannot start again")(error).into())
}

/// What this process is to be next.
struct Next {
    program: PathBuf,
    /// The socket of the API, and whether it is ours to remove.
    socket: Option<(OwnedFd, bool)>,
}

async fn manage(setup: Setup) -> Result<Option<Next>, Failure> {
    let Setup { config, load, log } = setup;
    let mut signals = Signals::new().map_err(system("cannot handle signals"))?;
    let socket = Socket::open(&config.daemon)?;
    let listener = socket
        .listener()
        .and_then(tokio::net::UnixListener::from_std)
        .map_err(system("cannot accept connections"))?;
    let (roles, warnings) = Manager::roles(&config);
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let (successor, mut successors) = mpsc::channel(1);
    let path = socket.path().to_owned();
    let manager = Arc::new(Manager::new(&config, path, load, log, successor));
    let (services, recorder, poll) = wiring::services(&config, manager.clone()).await?;
    let record = |event| match &recorder {
        Some(recorder) => recorder.of_manager(event),
        None => Ok(()),
    };
    record(Event::DaemonStarted {
        version: crate::version::version(),
    })?;
    let disks = services.disks.clone();
    let (stop, stopping) = watch::channel(false);
    let limits = Limits::default();
    let api = Api::new(services, roles, stopping.clone(), limits);
    manager.connect(api.clone());
    let server = tokio::spawn(api::serve(listener, api.router(), limits, stopping));

    notify(&[NotifyState::Ready]);
    replace::started();
    tracing::info!(
        socket = %socket.path().display(),
        activated = socket.is_inherited(),
        "ready"
    );
    let watchdog = tokio::spawn(watchdog());
    let successor = loop {
        tokio::select! {
            what = signals.next() => match what {
                What::Reload => reload(&manager).await,
                What::End => break None,
            },
            Some(successor) = successors.recv() => break Some(successor),
        }
    };
    match &successor {
        Some(next) => {
            let (program, version) = (next.program.display(), &next.probe.version);
            tracing::info!(%program, version, "replacing the manager: disks are served on");
            notify_reloading();
        }
        None => {
            tracing::info!("stopping: disks are served on");
            notify(&[NotifyState::Stopping]);
        }
    }
    if let Err(failure) = record(Event::DaemonStopped) {
        tracing::error!("{failure}");
    }
    watchdog.abort();
    // It would be asking when the clock of the runtime stops.
    poll.abort();
    let _ = poll.await;
    let _ = stop.send(true);
    if let Err(error) = server.await {
        tracing::error!(%error, "the API ended early");
    }
    disks.close().await;
    Ok(successor.map(|successor| Next {
        program: successor.program,
        socket: socket.pass_on().ok(),
    }))
}

async fn reload(manager: &Arc<Manager>) {
    notify_reloading();
    let manager = manager.clone();
    let reading = tokio::task::spawn_blocking(move || manager.read_again());
    match reading.await {
        Ok(Ok(reloaded)) => tracing::info!(
            changed = reloaded.changed.len(),
            needs_restart = reloaded.needs_restart.len(),
            "the configuration was read again"
        ),
        Ok(Err(failure)) => {
            let help = failure.help();
            tracing::error!(help, "the configuration stays as it was: {failure}");
        }
        Err(error) => tracing::error!(%error, "reading the configuration ended early"),
    }
    notify(&[NotifyState::Ready]);
}

/// What a signal means.
enum What {
    Reload,
    End,
}

struct Signals {
    hang_up: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Signals {
            hang_up: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> What {
        tokio::select! {
            _ = self.terminate.recv() => What::End,
            _ = self.interrupt.recv() => What::End,
            _ = self.hang_up.recv() => What::Reload,
        }
    }
}

/// Tells systemd, if it asks for that, that this runtime still does its work.
async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(period / 3);
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify_reloading() {
    // `Type=notify-reload` wants to know when it began.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

fn notify(state: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(state);
}

/// Makes a directory of ours, unless it is there: as systemd made it, or
/// somebody who knows why. What is made survives the host's power.
fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    let made = match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| durable::sync_directory(path)),
    };
    made.map_err(|source| Error::Directory {
        path: path.to_owned(),
        source,
    })
}
