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

use super::disks::{Settings, Step, blocking, mover_files, system};
use super::held::{Baggage, FrontEnds, Held, KeyFacts};
use super::link::{self, Link};
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
use crate::worker::protocol::{Answer, Contents, Message, Request, Start, Status};

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
                (Some(signal), _) => format!("was ended by signal {signal}"),
                (_, Some(status)) => format!("ended with status {status}"),
                _ => "ended".into(),
            },
            _ => "ended".into(),
        }
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
    let spawned = blocking(move || prepare(&plan, &step)).await??;
    settings.step(Step::Spawned);
    let (pidfd, pid) = spawned.process;
    let process = Process::new(pidfd, pid).map_err(system("cannot wait for a process"))?;
    let told = tell(spawned.connection, spawned.start, spawned.parcel, settings);
    match tokio::time::timeout(settings.start_timeout, told).await {
        Ok(Ok((link, status))) => {
            settings.step(Step::Serving);
            Ok(Worker {
                link,
                process,
                status,
            })
        }
        result => {
            process.kill();
            process.ended().await;
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
            Err(result.map_or_else(|_| late(), |told| told.err().unwrap_or_else(late)))
        }
    }
}

/// Tells a new process what to serve, and waits until it does.
async fn tell(
    connection: OwnedFd,
    start: Start,
    parcel: Parcel,
    settings: &Settings,
) -> Result<(Link, Status), Failure> {
    let broken = || system("the worker ended before it served");
    let (mut link, ..) = Link::open(connection).await.map_err(broken())?;
    let request = Request::Start(Box::new(start));
    let id = link.send(request, parcel).await.map_err(broken())?;
    settings.step(Step::Told);
    match link_answer(&mut link, id).await.map_err(broken())? {
        Answer::Started { status } => Ok((link, status)),
        Answer::Failed { fault } => Err(fault.into()),
        _ => Err(Failure::new(
            Kind::Internal,
            "the worker does not know how to start",
            None,
        )),
    }
}

async fn link_answer(link: &mut Link, id: u64) -> io::Result<Answer> {
    loop {
        match link.next().await? {
            Some(Message::Answer { id: of, answer }) if of == id => return Ok(answer),
            Some(_) => {}
            None => return Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// A process that waits to be told what to serve.
struct Spawned {
    process: (OwnedFd, u32),
    connection: OwnedFd,
    start: Start,
    parcel: Parcel,
}

/// All that blocks: opens the data for the queues, makes the socket for
/// managers, and starts the process, which does nothing yet.
fn prepare(plan: &Plan, settings: &Settings) -> Result<Spawned, Failure> {
    let Plan { held, record, .. } = plan;
    let spec = held.current_spec();
    let store = prepare::open_store(&spec, &held.files.data, &record.volume)?;
    let mut parcel = held
        .parcel(&plan.front_ends, plan.dek.as_deref())
        .map_err(system("cannot pass on the files of a disk"))?;
    for file in store.files() {
        let shared = parcel.share(Role::Queue, file);
        shared.map_err(system("cannot pass on the files of a disk"))?;
    }
    let lost = || system("cannot pass on the keys and files of a disk");
    if let Some(to_move) = &plan.to_move {
        for (role, file) in mover_files(held)?.into_parts() {
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
    };
    let managers =
        link::bind(&plan.control).map_err(system("cannot make the socket of a worker"))?;
    parcel.add(Role::Managers, managers);
    settings.step(Step::ControlBound);
    let (ours, theirs) = link::pair().map_err(system("cannot make a pair of sockets"))?;
    let mut command = Command::new(&settings.worker);
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
    })
}
