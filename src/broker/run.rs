//! The life of a broker: start, signals, end.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use rustix::process::{Resource, Rlimit};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::listener;
use super::recorder::Recorder;
use super::state::Broker;
use crate::audit::{self, Event, Outcome};
use crate::config::broker::Broker as Settings;
use crate::config::{self, Config};
use crate::durable;
use crate::error::{Explain, Failure, Kind, io_kind};
use crate::keys::{Definition, KeySets, Witness};
use crate::logging;
use crate::manager::{api, walls};
use crate::metrics::{self, BrokerMetrics};
use crate::sandbox::{self, Reach};
use crate::secret;
use crate::vhost::{Listener, SocketParams};

/// How long to wait, at the end, for work that is still being done.
const LAST: Duration = Duration::from_secs(5);

/// How often the policy is looked at without a call.
const LOOK: Duration = Duration::from_secs(1);

/// How often group keys whose time is over are wiped.
const FORGET: Duration = Duration::from_secs(30);

/// Reads the configuration as it was read when the process started.
pub type Load = Arc<dyn Fn() -> Result<Config, config::Error> + Send + Sync>;

/// What a broker starts with.
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
    #[error("cannot make the directory {path}")]
    Directory { path: String, source: io::Error },
    #[error("cannot listen at {address}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("{what}")]
    System {
        what: &'static str,
        source: io::Error,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Listen { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable => {
                Kind::Usage
            }
            Error::Directory { source, .. }
            | Error::Listen { source, .. }
            | Error::System { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Directory { .. } => {
                "set state_dir in [broker] to a directory that the user of the broker may write"
                    .into()
            }
            Error::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "another process listens there: stop it, or set another listen in [broker]".into()
            }
            Error::Listen { .. } => "set listen in [broker] to an address of this host".into(),
            Error::System { .. } => "check the limits of the process (`ulimit -a`)".into(),
        })
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// The settings of the broker in a configuration that has them.
///
/// # Errors
/// When it has none.
pub fn settings(config: &Config) -> Result<&Settings, Failure> {
    config.broker.as_ref().ok_or_else(|| {
        Failure::new(
            Kind::Usage,
            "there is no table [broker] in the configuration",
            Some("describe the broker in [broker]: docs/broker.md has an example".into()),
        )
    })
}

/// Runs a broker until a signal ends it.
///
/// # Errors
/// When it cannot start.
pub fn run(setup: Setup) -> Result<(), Failure> {
    raise_limit();
    // What is below is known by where it is.
    let state_dir = &settings(&setup.config)?.state_dir;
    durable::directory(state_dir).map_err(|source| Error::Directory {
        path: state_dir.display().to_string(),
        source,
    })?;
    // While there is one thread.
    let walls = sandbox::shut_keeper(&sandbox::Kind::Broker(reach(&setup.config)?));
    walls.settle(settings(&setup.config)?.require_sandbox)?;
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("broker")
        .enable_all()
        .on_thread_park(secret::before_rest)
        .build()
        .map_err(system("cannot start threads"))?;
    let result = runtime.block_on(broker(setup));
    // A name look-up that hangs is not waited for.
    runtime.shutdown_timeout(LAST);
    result
}

/// What the broker reaches once it runs. It reads what its user may read, and
/// writes where its own files are.
fn reach(config: &Config) -> Result<Reach, Failure> {
    let settings = settings(config)?;
    let is_token = |definition: &Definition| definition.source.provider() == "pkcs11";
    // The library of a token writes where it likes.
    let has_tokens = config.key_sets.values().any(is_token);
    let write = (!has_tokens || !settings.paths.is_empty()).then(|| {
        let mut write = settings.paths.clone();
        write.push(settings.state_dir.clone());
        write.push("/dev/null".into());
        let metrics = settings.metrics.iter().filter_map(|path| path.parent());
        write.extend(metrics.map(Path::to_owned));
        write.extend(walls::of_keys(config));
        write
    });
    Ok(Reach {
        write,
        read: true,
        run: Some(vec![]),
        listen: Some(vec![settings.listen.port()]),
        connect: true,
        ..Reach::default()
    })
}

/// A connection takes a descriptor, and the usual limit of 1024 is there for
/// programs that use `select(2)`.
fn raise_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

async fn broker(setup: Setup) -> Result<(), Failure> {
    let settings = settings(&setup.config)?.clone();
    let mut signals = Signals::new().map_err(system("cannot handle signals"))?;
    let state_dir = &settings.state_dir;
    let metrics = Arc::new(BrokerMetrics::new());
    let log = match setup.config.audit.of_manager() {
        Some(settings) => Some(audit::Log::open(settings)?),
        None => {
            tracing::warn!("no audit log is kept: [audit] says so");
            None
        }
    };
    let recorder = Arc::new(Recorder::new(log, metrics.clone()));
    recorder.of_broker(
        Event::BrokerStarted {
            version: env!("CARGO_PKG_VERSION"),
        },
        Outcome::Ok,
    )?;
    // The record first: a use that it cannot take is no use.
    let witnesses: Vec<Arc<dyn Witness>> = vec![recorder.clone(), metrics.kms().clone()];
    let key_sets = KeySets::new(setup.config.key_sets.clone())
        .with_state(state_dir)
        .with_witnesses(witnesses);
    let broker = Broker::new(&settings, key_sets, recorder.clone(), metrics.clone())?;
    let broker = Arc::new(broker);
    let (stop, stopping) = watch::channel(false);
    // Removed at the end.
    let _socket = match &settings.metrics {
        Some(path) => Some(tell_metrics(path, metrics, stopping.clone())?),
        None => None,
    };
    let address = settings.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })?;
    let listening = listener.local_addr().unwrap_or(address);
    let serving = listener::serve(listener, broker.clone(), settings.limits, stopping);
    let server = tokio::spawn(serving);
    let background = tokio::spawn(background(broker.clone()));
    notify(&[NotifyState::Ready]);
    tracing::info!(address = %listening, "ready");
    let watchdog = tokio::spawn(watchdog());
    while let What::Reload = signals.next().await {
        reload(&setup, &settings, &broker).await;
    }
    tracing::info!("stopping: calls in flight are answered");
    notify(&[NotifyState::Stopping]);
    let _ = stop.send(true);
    if let Err(error) = server.await {
        tracing::error!(%error, "the server ended early");
    }
    watchdog.abort();
    background.abort();
    if let Err(error) = recorder.of_broker(Event::BrokerStopped, Outcome::Ok) {
        tracing::error!("{error}");
    }
    Ok(())
}

/// What is done without anybody asking for it.
async fn background(broker: Arc<Broker>) {
    let mut look = tokio::time::interval(LOOK);
    let mut forget = tokio::time::interval(FORGET);
    loop {
        tokio::select! {
            _ = look.tick() => {
                // The file may lie on another host, which hangs.
                let broker = broker.clone();
                let _ = tokio::task::spawn_blocking(move || broker.policy()).await;
            }
            _ = forget.tick() => broker.key_sets.forget_old_keys(),
        }
    }
}

/// Serves the metrics on a unix socket.
fn tell_metrics(
    path: &Path,
    metrics: Arc<BrokerMetrics>,
    stopping: watch::Receiver<bool>,
) -> Result<Listener, Failure> {
    let socket = Listener::bind(&SocketParams {
        path: path.to_owned(),
        mode: 0o660,
        group: None,
    })?;
    let listener = socket
        .as_fd()
        .try_clone_to_owned()
        .and_then(|socket| {
            let listener = std::os::unix::net::UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        })
        .map_err(system("cannot accept connections for metrics"))?;
    let render = move || {
        let text = metrics.render();
        async move { ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text) }
    };
    let app = Router::new().route("/metrics", get(render));
    let limits = api::Limits {
        end_time: Duration::from_secs(1),
        ..api::Limits::default()
    };
    tokio::spawn(api::serve(listener, app, limits, stopping));
    Ok(socket)
}

async fn reload(setup: &Setup, settings: &Settings, broker: &Arc<Broker>) {
    // `Type=notify-reload` wants to know when it began.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    let load = setup.load.clone();
    let read = tokio::task::spawn_blocking(move || load()).await;
    let (mut taken, mut new) = (Vec::new(), settings.clone());
    match read {
        Ok(Ok(config)) => {
            setup.log.set_level(config.log.level);
            broker.key_sets.replace(config.key_sets.clone());
            taken.push("key_sets".to_owned());
            match config.broker {
                Some(read) => {
                    needs_restart(settings, &read);
                    new.tls = read.tls;
                    new.key = read.key;
                }
                None => tracing::error!("the configuration has no table [broker] any more"),
            }
        }
        Ok(Err(error)) => {
            let help = error.help();
            let error = Failure::from(error);
            tracing::error!(help, "the configuration stays as it was: {error}");
        }
        Err(error) => tracing::error!(%error, "reading the configuration ended early"),
    }
    let (more, failed) = tokio::task::block_in_place(|| broker.read_again(&new));
    taken.extend(more);
    for failure in failed {
        tracing::error!(help = failure.help(), "it stays as it was: {failure}");
    }
    let event = Event::BrokerReloaded { changed: &taken };
    if let Err(error) = broker.recorder.of_broker(event, Outcome::Ok) {
        tracing::error!("{error}");
    }
    tracing::info!(taken = taken.join(", "), "read again");
    notify(&[NotifyState::Ready]);
}

/// Tells which settings are different, and stay as they are until a restart.
fn needs_restart(old: &Settings, new: &Settings) {
    // Taken apart, so that a new setting cannot be forgotten here.
    let Settings {
        listen,
        tls: _,
        key: _,
        policy,
        state_dir,
        metrics,
        limits,
        require_sandbox,
        paths,
    } = old;
    for (setting, same) in [
        ("listen", *listen == new.listen),
        ("policy", *policy == new.policy),
        ("state_dir", *state_dir == new.state_dir),
        ("metrics", *metrics == new.metrics),
        ("the limits of connections", *limits == new.limits),
        ("require_sandbox", *require_sandbox == new.require_sandbox),
        ("paths", *paths == new.paths),
    ] {
        if !same {
            tracing::warn!(
                setting,
                "changed in the file, and needs a restart of the broker"
            );
        }
    }
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

fn notify(state: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(state);
}
