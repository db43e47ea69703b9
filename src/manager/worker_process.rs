//! Worker processes, and how one is started.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::disks::{Settings, Step, blocking, mover_files, mover_files_unmarked, system};
use super::held::{Baggage, FrontEnds, Held, KeyFacts};
use super::link::{self, Link};
use super::replace;
use super::state::Record;
use super::supervise::ToMove;
use super::watched::watched;
use crate::engine::hold::Mode;
use crate::engine::throttle::Limits;
use crate::error::{Failure, Kind};
use crate::plane::Spec;
use crate::prepare;
use crate::secret::Dek;
use crate::worker::parcel::{Parcel, Role};
use crate::worker::protocol::{Answer, Contents, Request, Start, Status};

/// A process that is a worker.
pub struct Process {
    pidfd: AsyncFd<OwnedFd>,
    /// Its number.
    pub pid: u32,
}

impl Process {
    /// The process `pid`, whose descriptor `pidfd` is.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    pub fn new(pidfd: OwnedFd, pid: u32) -> io::Result<Self> {
        // A process is readable when it has ended.
        Ok(Process {
            pidfd: watched(pidfd, Interest::READABLE)?,
            pid,
        })
    }

    /// Waits until it has ended, and says how, as far as that can be known.
    pub async fn ended(&self) -> String {
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!(%error, "cannot wait for a process");
        }
        let id = WaitId::PidFd(self.pidfd.get_ref().as_fd());
        // It is no child of ours if another manager has started it.
        match rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.terminating_signal(), status.exit_status()) {
                (Some(libc::SIGSYS), _) => {
                    "was ended by the kernel (SIGSYS), for a system call that no worker makes: \
                     see what its guest or its front end does"
                        .into()
                }
                (Some(libc::SIGBUS), _) => format!(
                    "was ended by signal {} (SIGBUS): memory of its guest is gone, as its front \
                     end cut it short, or is broken",
                    libc::SIGBUS
                ),
                (Some(signal), _) => format!("was ended by signal {signal}"),
                (_, Some(status)) => format!("ended with status {status}"),
                _ => "ended".into(),
            },
            _ => "ended".into(),
        }
    }

    /// Another descriptor of it.
    ///
    /// # Errors
    /// When there are no more.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.pidfd.get_ref().try_clone()
    }

    /// Ends it at once.
    pub fn kill(&self) {
        // It fails when it has ended.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)
    }
}

/// A worker that serves its disk, and the connection to it.
pub struct Worker {
    /// The connection.
    pub link: Link,
    /// The process.
    pub process: Process,
    /// How it fared when it was last heard of.
    pub status: Status,
    /// The version of sealblk that it is.
    pub version: String,
}

/// A process that is ready to go on with a disk that another one serves.
pub struct Heir {
    /// The connection to it.
    pub link: Link,
    /// The process.
    pub process: Process,
    /// The version of sealblk that it is.
    pub version: String,
    /// How it takes disks over: see `worker::protocol`.
    pub hand_over: u32,
    /// The call that it answers when it serves.
    pub call: u64,
    /// What goes to the one that serves.
    pub peer: Option<OwnedFd>,
    /// What the one that serves can end it by. One of an earlier version has none.
    pub cord: Option<OwnedFd>,
}

/// Where the worker of an attachment accepts managers.
pub fn control_path(workers: &Path, record: &Record) -> PathBuf {
    workers.join(format!("{}.sock", record.id))
}

/// What a disk's next worker is made of.
pub struct Plan {
    /// The desired state.
    pub record: Record,
    /// The volume.
    pub held: Arc<Held>,
    /// What the volume says about its key.
    pub key: KeyFacts,
    /// What the guest may do per second, which the volume does not say.
    pub limits: Limits,
    /// How it treats requests from the start.
    pub mode: Mode,
    /// For how many milliseconds the disk stays frozen.
    pub frozen_ms: Option<u64>,
    /// The socket.
    pub front_ends: Arc<FrontEnds>,
    /// The key, unless it is the worker's own affair.
    pub dek: Option<Arc<Dek>>,
    /// What is on the disk.
    pub contents: Contents,
    /// What is done to its data.
    pub to_move: Option<ToMove>,
    /// Where it shall accept managers.
    pub control: PathBuf,
    /// The program that it is, if not that of all workers.
    pub program: Option<PathBuf>,
}

/// Starts a worker, and waits until it serves.
///
/// # Errors
/// When it cannot be started, or cannot serve. No process is left then.
pub async fn start(plan: Plan, settings: &Settings) -> Result<Worker, Failure> {
    let control = plan.control.clone();
    let started = try_start(plan, settings).await;
    if started.is_err() {
        // Nobody will be found there.
        let _ = blocking(move || std::fs::remove_file(control)).await;
    }
    started
}

async fn try_start(plan: Plan, settings: &Settings) -> Result<Worker, Failure> {
    let step = settings.clone();
    let spawned = blocking(move || prepare(&plan, &step, false)).await??;
    settings.step(Step::Spawned);
    let (pidfd, pid) = spawned.process;
    let process = Process::new(pidfd, pid).map_err(system("cannot wait for a process"))?;
    let request = Request::Start(Box::new(spawned.start));
    let told = tell(spawned.connection, request, spawned.parcel, settings);
    let told = in_time(&process, settings, told).await?;
    match told.answer {
        Answer::Started { status } => {
            settings.step(Step::Serving);
            Ok(Worker {
                link: told.link,
                process,
                status,
                version: told.version,
            })
        }
        answer => Err(unwilling(&process, answer).await),
    }
}

/// Starts a process that is ready to go on with the disk that another one serves.
///
/// # Errors
/// When it cannot be started, or is not ready. No process is left then.
pub async fn start_heir(plan: Plan, settings: &Settings) -> Result<Heir, Failure> {
    let step = settings.clone();
    let spawned = blocking(move || prepare(&plan, &step, true)).await??;
    let (pidfd, pid) = spawned.process;
    let process = Process::new(pidfd, pid).map_err(system("cannot wait for a process"))?;
    let request = Request::Succeed(Box::new(spawned.start));
    let told = tell(spawned.connection, request, spawned.parcel, settings);
    let mut told = in_time(&process, settings, told).await?;
    match told.answer {
        Answer::Prepared { version: hand_over } => Ok(Heir {
            link: told.link,
            process,
            version: told.version,
            hand_over,
            call: told.call,
            peer: spawned.peer,
            cord: told.parcel.take(Role::Cord),
        }),
        answer => Err(unwilling(&process, answer).await),
    }
}

/// Ends a process that answers something else than it should.
async fn unwilling(process: &Process, answer: Answer) -> Failure {
    process.kill();
    process.ended().await;
    match answer {
        Answer::Failed { fault } => fault.into(),
        _ => Failure::new(
            Kind::Unsupported,
            "the new worker is of a version that does not know how to begin so",
            Some("give it the version of the manager".into()),
        ),
    }
}

/// What a process answers in its time. One that does not is ended.
async fn in_time(
    process: &Process,
    settings: &Settings,
    told: impl Future<Output = Result<Told, Failure>>,
) -> Result<Told, Failure> {
    let late = || {
        Failure::new(
            Kind::Io,
            format!(
                "the worker does not serve after {} s",
                settings.start_timeout.as_secs()
            ),
            Some("check the load of this host".into()),
        )
    };
    let told = tokio::time::timeout(settings.start_timeout, told).await;
    match told.unwrap_or_else(|_| Err(late())) {
        Ok(told) => Ok(told),
        Err(failure) => {
            process.kill();
            process.ended().await;
            Err(failure)
        }
    }
}

/// What a process answered that was told what to do.
struct Told {
    link: Link,
    version: String,
    call: u64,
    answer: Answer,
    parcel: Parcel,
}

/// Tells a new process what to serve, and waits for its answer.
async fn tell(
    connection: OwnedFd,
    request: Request,
    parcel: Parcel,
    settings: &Settings,
) -> Result<Told, Failure> {
    let broken = || system("the worker ended before it served");
    let (mut link, hello, _) = Link::open(connection).await.map_err(broken())?;
    let call = link.send(request, parcel).await.map_err(broken())?;
    settings.step(Step::Told);
    let (answer, parcel) = link.answer(call).await.map_err(broken())?;
    link.forget_news();
    Ok(Told {
        link,
        version: hello.version,
        call,
        answer,
        parcel,
    })
}

/// A process that waits to be told what to serve.
struct Spawned {
    process: (OwnedFd, u32),
    connection: OwnedFd,
    start: Start,
    parcel: Parcel,
    /// The other end of what an heir hears its elder at.
    peer: Option<OwnedFd>,
}

/// All that blocks: opens the data for the queues, makes the socket for
/// managers, and starts the process, which does nothing yet. An heir is given the
/// socket for managers by the worker that it succeeds, and takes the locks of its
/// files then.
fn prepare(plan: &Plan, settings: &Settings, heir: bool) -> Result<Spawned, Failure> {
    let Plan { held, record, .. } = plan;
    let spec = held.current_spec();
    let (data, path) = (&held.files.data, &record.volume);
    let store = match heir {
        true => prepare::open_store_unmarked(&spec, data, path)?,
        false => prepare::open_store_as(&spec, data, path, held.standing())?,
    };
    let mut parcel = held
        .parcel(&plan.front_ends, plan.dek.as_deref())
        .map_err(system("cannot pass on the files of a disk"))?;
    for file in store.files() {
        let shared = parcel.share(Role::Queue, file);
        shared.map_err(system("cannot pass on the files of a disk"))?;
    }
    let lost = || system("cannot pass on the keys and files of a disk");
    if let Some(to_move) = &plan.to_move {
        let files = match heir {
            true => mover_files_unmarked(held)?,
            false => mover_files(held)?,
        };
        for (role, file) in files.into_parts() {
            parcel.add(role, file);
        }
        if let Some(old) = &to_move.old {
            parcel.add(Role::OldDek, old.pass().map_err(lost())?);
        }
    }
    let baggage = Baggage {
        record: record.clone(),
        key: plan.key.clone(),
    };
    let start = Start {
        name: record.name.clone(),
        volume: record.volume.clone(),
        spec: Spec {
            limits: plan.limits.clone(),
            ..spec
        },
        direct: store.is_direct(),
        socket: plan.front_ends.file.clone(),
        log: settings.log,
        keep_dek: settings.keep_deks,
        contents: plan.contents,
        baggage: serde_json::to_value(baggage).map_err(|error| {
            Failure::new(
                Kind::Internal,
                format!("a record has no JSON: {error}"),
                None,
            )
        })?,
        mode: plan.mode,
        frozen_ms: plan.frozen_ms,
        moving: plan.to_move.as_ref().map(|it| Box::new(it.task.clone())),
        walls: settings.walls.clone(),
    };
    parcel.add(Role::Turn, held.turn().map_err(lost())?);
    let mut peer = None;
    if heir {
        let (elder, theirs) = link::pair().map_err(system("cannot make a pair of sockets"))?;
        parcel.add(Role::Peer, theirs);
        peer = Some(elder);
    } else {
        let managers = link::bind(&plan.control);
        parcel.add(
            Role::Managers,
            managers.map_err(system("cannot make the socket of a worker"))?,
        );
        settings.step(Step::ControlBound);
    }
    let (ours, theirs) = link::pair().map_err(system("cannot make a pair of sockets"))?;
    let program = match &plan.program {
        Some(program) => &replace::firm(program)?,
        None => &settings.worker,
    };
    let mut command = Command::new(program);
    command
        .arg0("sealblk")
        .args(["worker", &record.name])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null());
    let child = command.spawn();
    let child = child.map_err(system("cannot start a worker process"))?;
    // Its number is its own until it has been waited for.
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|error| system("cannot wait for a process")(error.into()))?;
    Ok(Spawned {
        process: (pidfd, child.id()),
        connection: ours,
        start,
        parcel,
        peer,
    })
}
