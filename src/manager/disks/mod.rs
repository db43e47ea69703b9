//! The disks of a manager: attach, detach, and what each is doing.
//!
//! What enters: requests that somebody was permitted to make. Each disk has a
//! task (`supervise`) that owns everything of it; this room only knows who
//! there is, and keeps two from having the same name, volume or socket.
#![forbid(unsafe_code)]

mod registry;
mod rekey;
mod request;
mod rewrap;
mod settings;
mod take_over;
mod try_out;

pub(in crate::manager) use registry::{Command, Entry, Registry, identities};
pub(in crate::manager) use rekey::{
    Begun, Ended, Job, Jobs, Marks, mover_files, mover_files_unmarked, position, previous_key,
};
pub(in crate::manager) use request::resolve;
pub use rewrap::replaced;
pub use settings::{Pace, Settings, Step};

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use super::access::Access;
use super::directory::OwnDirectory;
use super::held::KeyFacts;
use super::model::{Attach, Detach, DiskInfo, NewSize, UpgradeDisk, UpgradedDisk};
use super::recorder::Recorder;
use super::state::{Record, State};
use super::supervise::{Opened, Outset, Supervisor};
use crate::audit::Event;
use crate::config::{Limits, Options};
use crate::error::{Failure, Kind, io_kind};
use crate::keys::{Context, KeySets};
use crate::prepare::{self, Opening};
use crate::secret::before_rest;
use crate::volume::{self, Location, Volume};

/// How long an attach that is to wait is waited for before it is answered: a
/// key service that works needs less, and what is wrong can be said at once.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How long somebody waits to hear what came of trying again.
const RESUMING: Duration = Duration::from_secs(3);

/// What all tasks of disks share.
pub(in crate::manager) struct Shared {
    pub settings: Settings,
    pub registry: Registry,
    pub state: State,
    pub keys: Arc<KeySets>,
    /// Whether their keys may be used.
    pub access: Access,
    /// Who keeps a record of what becomes of disks by itself.
    pub recorder: OnceLock<Arc<Recorder>>,
    /// The defaults for disks that are attached from now on.
    pub serve: RwLock<Options>,
    /// How many may be attached at once.
    pub permits: Arc<Semaphore>,
    /// Where workers accept managers.
    pub workers: PathBuf,
    /// Volumes that are not attached, and whose headers are being rewritten.
    pub rewriting: rewrap::Rewriting,
    /// What is wanted of operations on all data of volumes.
    pub jobs: Jobs,
    /// What was seen of their headers.
    pub marks: Arc<Marks>,
    /// How many disks may have one at once.
    pub rekey_concurrency: AtomicUsize,
    /// Who begins one has this.
    pub turns: tokio::sync::Mutex<()>,
    _run: OwnDirectory,
}

impl Shared {
    pub fn serve(&self) -> Options {
        let serve = self.serve.read().unwrap_or_else(PoisonError::into_inner);
        serve.clone()
    }

    /// Records what the manager does of itself.
    pub fn record(&self, event: Event<'_>) {
        if let Some(recorder) = self.recorder.get()
            && let Err(failure) = recorder.of_manager(event)
        {
            tracing::error!("it cannot be recorded: {failure}");
        }
    }
}

/// All disks of one manager. Dropping it ends the manager's part; the workers
/// go on.
pub struct Disks {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

/// Runs what blocks where that harms nobody.
pub(in crate::manager) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let span = tracing::Span::current();
    let result = tokio::task::spawn_blocking(move || {
        let result = span.in_scope(work);
        // Keys are proven here, and the thread waits for whatever comes next.
        before_rest();
        result
    });
    let result = result.await;
    result.map_err(|error| Failure::new(Kind::Internal, format!("work ended early: {error}"), None))
}

/// A failed system call that nothing more is known of.
pub(in crate::manager) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| {
        Failure::new(
            io_kind(&error),
            format!("{what}: {error}"),
            Some("check the limits and the log of the manager".into()),
        )
    }
}

impl Disks {
    /// Takes over the workers of an earlier manager, and begins to attach what
    /// else shall be served. Needs a runtime of several threads.
    ///
    /// # Errors
    /// When another manager has the directories, or they cannot be used.
    pub async fn open(settings: Settings, keys: Arc<KeySets>) -> Result<Arc<Self>, Failure> {
        raise_limit();
        let (state_dir, run_dir) = (settings.state_dir.clone(), settings.run_dir.clone());
        let opened = blocking(move || -> Result<_, Failure> {
            let state = State::open(&state_dir)?;
            // Front ends of other users may connect there.
            let run = OwnDirectory::take(&run_dir, 0o755)?;
            let workers = run.within("workers")?;
            let records = state.all()?;
            let sockets = take_over::sockets_in(&workers)?;
            let jobs = Jobs::open(&state_dir).map_err(system("cannot read what was wanted"))?;
            Ok((state, run, workers, records, sockets, jobs))
        });
        let (state, run, workers, records, sockets, jobs) = opened.await??;
        let shared = Arc::new(Shared {
            registry: Registry::default(),
            state,
            keys,
            access: Access::default(),
            recorder: OnceLock::new(),
            serve: RwLock::new(settings.serve.clone()),
            permits: Arc::new(Semaphore::new(settings.concurrency.max(1))),
            workers,
            jobs,
            marks: Arc::new(Marks::below(&settings.state_dir)),
            rekey_concurrency: AtomicUsize::new(settings.rekey_concurrency.max(1)),
            turns: tokio::sync::Mutex::default(),
            settings,
            rewriting: rewrap::Rewriting::default(),
            _run: run,
        });
        let disks = Arc::new(Disks {
            shared,
            tasks: Mutex::default(),
        });
        disks.take_over(records, sockets).await?;
        disks
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spawn(Self::look_after_rekeys(Arc::downgrade(&disks)));
        Ok(disks)
    }

    async fn files_of(&self, record: &Record) -> Result<Vec<(u64, u64)>, Failure> {
        let paths: Vec<PathBuf> = [Some(&record.volume), record.header.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let shared = record.ephemeral.is_some();
        blocking(move || {
            // A directory is nobody's.
            let paths = paths.iter().filter(|path| !shared || !path.is_dir());
            identities(paths.map(PathBuf::as_path))
        })
        .await
    }

    /// Starts the task of a disk. What is returned is told how it began.
    fn begin(
        &self,
        record: Record,
        (entry, commands): (Arc<Entry>, tokio::sync::mpsc::Receiver<Command>),
        outset: Outset,
    ) -> oneshot::Receiver<Result<DiskInfo, Failure>> {
        let (begun, receiver) = oneshot::channel();
        let span = tracing::error_span!(parent: None, "disk", name = record.name);
        let task = Supervisor::new(self.shared.clone(), entry, record, begun);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended are not needed any more.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(tracing::Instrument::instrument(
            task.run(outset, commands),
            span,
        ));
        receiver
    }

    /// Attaches a disk, as `context` says for whom. It is carried to its end,
    /// also when nobody waits for that any more.
    ///
    /// # Errors
    /// Whatever keeps it from being served, unless that is worth waiting for
    /// and the request says so.
    pub async fn attach(&self, context: &Context, request: Attach) -> Result<DiskInfo, Failure> {
        request::check(&request)?;
        let asked = request.clone();
        let opening = blocking(move || {
            let (glass, denied) = (asked.break_glass, asked.even_if_denied);
            Opening::new(glass, denied, asked.recovery_key_file.as_deref())
        });
        let opening = opening.await??;
        let mut record = registry::record_of(&request, request.name.clone().unwrap_or_default());
        let (disk, serve) = resolve(&record, &self.shared.serve())?;
        let files = self.files_of(&record).await?;
        self.shared.registry.check_free(&record, &files)?;
        let scratch = record.ephemeral.clone();
        let standing = record.standing;
        let force = request.ephemeral.as_ref();
        let force = force.is_some_and(|wanted| wanted.force);
        let open = async || {
            let (disk, serve, scratch) = (disk.clone(), serve.clone(), scratch.clone());
            blocking(move || match scratch {
                None => {
                    let volume = prepare::open_as(&disk, &serve, standing)?;
                    Ok(Opened::new(volume, &disk, &serve))
                }
                Some(scratch) => Opened::scratch(&scratch, force, &disk, &serve),
            })
            .await
        };
        // One whose header is being rewritten is free in a moment.
        let rewriting = &self.shared.rewriting;
        let changed = rewriting.subscribe();
        rewriting.wait(&files).await;
        let mut opened = open().await?;
        if matches!(
            &opened,
            Err(prepare::Error::Volume(volume::Error::Busy { .. }))
        ) && (rewriting.wait(&files).await || changed.has_changed().unwrap_or(false))
        {
            opened = open().await?;
        }
        let opened = opened.map_err(|error| {
            match &error {
                // By another attach, perhaps, that was as fast.
                prepare::Error::Volume(volume::Error::Busy { .. }) => {
                    let taken = self.shared.registry.check_free(&record, &files);
                    taken.err().unwrap_or_else(|| error.into())
                }
                _ => error.into(),
            }
        })?;
        if request.dry_run {
            return self.try_out(context, record, opened, opening).await;
        }
        if request.name.is_none() {
            record.name = opened.spec.uuid.to_string();
        }
        let reserved = self.shared.registry.reserve(&record, files)?;
        let outset = Outset::Requested {
            context: context.clone(),
            wait: request.wait,
            opened: Box::new(opened),
            opening,
        };
        let entry = reserved.0.clone();
        let begun = self.begin(record, reserved, outset);
        let patience = match request.wait {
            true => AT_ONCE,
            false => Duration::MAX,
        };
        match tokio::time::timeout(patience, begun).await {
            Ok(begun) => begun.unwrap_or_else(|_| Err(ended())),
            Err(_) => Ok(entry.info()),
        }
    }

    /// Detaches the disk of that name: its requests in flight are completed,
    /// what was written is made durable, its worker ends.
    ///
    /// # Errors
    /// When there is no such disk, or a front end is connected and nobody says
    /// that this does not matter. When what was written last may be lost: the
    /// disk is detached then all the same.
    pub async fn detach(&self, context: &Context, name: &str, how: Detach) -> Result<(), Failure> {
        let entry = self.entry(name)?;
        let (uid, force) = (context.actor.uid, how.force);
        tracing::info!(disk = name, uid, force, "detaching");
        let (reply, outcome) = oneshot::channel();
        entry.send(Command::Detach { how, reply }).await?;
        outcome.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Keeps the guest of a disk to other limits, from now on and for good:
    /// those of a kind that `limits` sets are set, all others stay.
    ///
    /// # Errors
    /// When there is no such disk, the limits contradict each other, or they
    /// cannot be recorded or told to its worker.
    pub async fn limit(
        &self,
        context: &Context,
        name: &str,
        limits: Limits,
    ) -> Result<DiskInfo, Failure> {
        let entry = self.entry(name)?;
        tracing::info!(disk = name, uid = context.actor.uid, %limits, "limiting");
        let (reply, outcome) = oneshot::channel();
        let limits = Box::new(limits);
        entry.send(Command::Limit { limits, reply }).await?;
        outcome.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Makes a disk larger, from now on and for good, and tells its front end.
    ///
    /// # Errors
    /// When there is no such disk, the size is smaller or cannot be, the space
    /// is not there, or the worker does not take it.
    pub async fn resize(
        &self,
        context: &Context,
        name: &str,
        wanted: NewSize,
    ) -> Result<DiskInfo, Failure> {
        let entry = self.entry(name)?;
        tracing::info!(disk = name, uid = context.actor.uid, ?wanted, "resizing");
        let (reply, outcome) = oneshot::channel();
        entry.send(Command::Resize { wanted, reply }).await?;
        outcome.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Completes what is in flight of a disk, makes it durable, and lets all
    /// other requests wait, until it is thawed or for so long.
    ///
    /// # Errors
    /// When there is no such disk, it is not served or is frozen already, or
    /// the time is over before. It goes on then.
    pub async fn freeze(
        &self,
        context: &Context,
        name: &str,
        timeout: Duration,
    ) -> Result<DiskInfo, Failure> {
        let entry = self.entry(name)?;
        tracing::info!(disk = name, uid = context.actor.uid, ?timeout, "freezing");
        let (reply, outcome) = oneshot::channel();
        entry.send(Command::Freeze { timeout, reply }).await?;
        outcome.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Lets a frozen disk go on.
    ///
    /// # Errors
    /// When there is no such disk, or it is not frozen any more.
    pub async fn thaw(&self, context: &Context, name: &str) -> Result<DiskInfo, Failure> {
        let entry = self.entry(name)?;
        tracing::info!(disk = name, uid = context.actor.uid, "thawing");
        let (reply, outcome) = oneshot::channel();
        entry.send(Command::Thaw { reply }).await?;
        outcome.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Replaces the worker of a disk by a new process, of another version perhaps,
    /// which goes on with its front end where the old one stops.
    ///
    /// # Errors
    /// When there is no such disk, it is not served, or the new worker cannot take
    /// it over: the old one serves it on, then.
    pub async fn upgrade(
        &self,
        context: &Context,
        name: &str,
        wanted: UpgradeDisk,
    ) -> Result<UpgradedDisk, Failure> {
        let entry = self.entry(name)?;
        tracing::info!(
            disk = name,
            uid = context.actor.uid,
            ?wanted,
            "upgrading its worker"
        );
        let (reply, outcome) = oneshot::channel();
        entry.send(Command::Upgrade { wanted, reply }).await?;
        outcome.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Tries again what waits because the disk below fails, or fails it. Returns
    /// when that has succeeded or failed, or a few seconds later.
    ///
    /// # Errors
    /// When there is no such disk, it is not served, or nothing of it waits.
    pub async fn resume(
        &self,
        context: &Context,
        name: &str,
        give_up: bool,
    ) -> Result<DiskInfo, Failure> {
        let entry = self.entry(name)?;
        tracing::info!(disk = name, uid = context.actor.uid, give_up, "resuming");
        let (reply, outcome) = oneshot::channel();
        entry.send(Command::Resume { give_up, reply }).await?;
        let told = outcome.await.unwrap_or_else(|_| Err(ended()))?;
        // Its worker says what came of it.
        let deadline = tokio::time::Instant::now() + RESUMING;
        let mut changes = self.subscribe();
        loop {
            let info = entry.info();
            let tried = match (&told.trouble, &info.trouble) {
                (_, None) => true,
                // What was given up is followed by others, of which fewer were tried.
                (Some(before), Some(now)) if give_up => now.attempts < before.attempts,
                (Some(before), Some(now)) => now.attempts > before.attempts,
                (None, Some(_)) => false,
            };
            if tried {
                return Ok(info);
            }
            if tokio::time::timeout_at(deadline, changes.changed())
                .await
                .is_err()
            {
                return Ok(entry.info());
            }
        }
    }

    /// Has a record kept of what becomes of disks by itself.
    pub(in crate::manager) fn record_to(&self, recorder: Arc<Recorder>) {
        // There is one, from the start on.
        let _ = self.shared.recorder.set(recorder);
    }

    pub(in crate::manager) fn record(&self, event: Event<'_>) {
        self.shared.record(event);
    }

    /// What is known of the keys that disks need.
    pub(in crate::manager) fn access(&self) -> &Access {
        &self.shared.access
    }

    pub(in crate::manager) fn entries(&self) -> Vec<Arc<Entry>> {
        self.shared.registry.entries()
    }

    fn entry(&self, name: &str) -> Result<Arc<Entry>, Failure> {
        self.shared.registry.get(name).ok_or_else(|| {
            Failure::new(
                Kind::NotFound,
                format!("there is no disk {name:?}"),
                Some("`sealblk list` shows the disks".into()),
            )
        })
    }

    /// The disk that has this volume, or a part of it, by whatever path.
    ///
    /// # Errors
    /// When the work to find out ended early.
    pub async fn disk_of(&self, location: &Location) -> Result<Option<String>, Failure> {
        let paths: Vec<PathBuf> = [Some(&location.data), location.header.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let looked = paths.clone();
        let files = blocking(move || identities(looked.iter().map(PathBuf::as_path))).await?;
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        Ok(self.shared.registry.with_files(&paths, &files))
    }

    /// All disks, sorted by name.
    pub fn list(&self) -> Vec<DiskInfo> {
        self.shared.registry.list()
    }

    /// The disk of that name.
    pub fn get(&self, name: &str) -> Option<DiskInfo> {
        Some(self.shared.registry.get(name)?.info())
    }

    /// Is told of every change of a disk.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.registry.subscribe()
    }

    /// Has `work` done on the volume of an attached disk, whose header it may
    /// rewrite ([`Volume::set_token`]). Nobody else of this manager does
    /// meanwhile. The work may block.
    ///
    /// # Errors
    /// When there is no such disk, or its volume is not open or has no header
    /// that can be read.
    pub async fn with_volume<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&mut Volume) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let entry = self.entry(name)?;
        let _alone = entry.header.lock().await;
        if entry.info().ephemeral {
            return Err(no_header(name));
        }
        let held = entry.held().ok_or_else(|| {
            Failure::new(
                Kind::Busy,
                format!("the volume of disk {name:?} is not open"),
                Some("wait until the disk is running".into()),
            )
        })?;
        let done = blocking(move || -> Result<_, Failure> {
            let mut volume = held.volume()?;
            let result = work(&mut volume);
            // Wraps in a key store are not changed with the header.
            let here = volume.token().key_store.is_none();
            Ok((result, here.then(|| KeyFacts::of(&volume))))
        });
        let (result, key) = done.await??;
        if let Some(key) = key {
            entry.set_key(&key);
        }
        Ok(result)
    }

    /// What the volume of an attached disk says about its key.
    pub fn key_of(&self, name: &str) -> Option<KeyFacts> {
        self.shared.registry.get(name)?.key()
    }

    /// The memory in which the workers of a disk count what they do, once its
    /// volume is open.
    pub fn statistics(&self, name: &str) -> Option<OwnedFd> {
        let held = self.shared.registry.get(name)?.held()?;
        held.statistics.as_ref()?.try_clone().ok()
    }

    /// Gives other defaults to disks that are attached from now on.
    pub fn set_defaults(&self, serve: Options) {
        *self
            .shared
            .serve
            .write()
            .unwrap_or_else(PoisonError::into_inner) = serve;
    }

    /// Ends the manager's part. The workers go on. Another manager can have
    /// the directories when this and everything else of it is gone.
    pub async fn close(&self) {
        let mut tasks = {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        tasks.shutdown().await;
    }
}

impl fmt::Debug for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

/// Every disk needs a handful of descriptors, and the usual limit of 1024 is
/// there for programs that use `select(2)`.
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

/// An ephemeral disk has no header that could be read or written.
pub(in crate::manager) fn no_header(name: &str) -> Failure {
    Failure::new(
        Kind::Usage,
        format!("disk {name:?} is ephemeral: it has no header, and nobody wraps its key"),
        Some("detach it, and attach one that is as you want it".into()),
    )
}

fn ended() -> Failure {
    Failure::new(
        Kind::Unreachable,
        "the manager is ending",
        Some("try again when it has been started again".into()),
    )
}
