//! Which disks there are, and what each is doing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::rekey::{Begun, Ended};
use crate::config::{Discard, Limits};
use crate::error::{Failure, Kind};
use crate::manager::held::{Held, KeyFacts};
use crate::manager::model::{
    Attach, Detach, DiskInfo, DiskState, FrozenInfo, NewSize, Problem, StuckInfo, TroubleInfo,
    Troubles, UpgradeDisk,
};
use crate::manager::state::{Record, Scratch};
use crate::manager::supervise::{Limited, Loan, Resized, Upgraded};
use crate::plane::Spec;
use crate::plane::moving::Orders;
use crate::timestamp::Timestamp;
use crate::volume::Standing;
use crate::worker::protocol::Status;

/// What the task of a disk can be asked for.
#[derive(Debug)]
pub enum Command {
    /// Take the disk away.
    Detach {
        /// How.
        how: Detach,
        /// Gets the outcome.
        reply: oneshot::Sender<Result<(), Failure>>,
    },
    /// Keep its guest to other limits.
    Limit {
        /// Those that change.
        limits: Box<Limits>,
        /// Gets the disk as it is then.
        reply: Limited,
    },
    /// Lend what it takes to give its volume other wraps.
    Lend {
        /// Gets it.
        reply: oneshot::Sender<Result<Loan, Failure>>,
    },
    /// The wraps of its volume are other ones now.
    Rewrapped {
        /// What they say.
        key: Box<KeyFacts>,
    },
    /// Make it larger.
    Resize {
        /// How large.
        wanted: NewSize,
        /// Gets the disk as it is then.
        reply: Resized,
    },
    /// Let its requests wait, with everything written and durable.
    Freeze {
        /// At most for so long.
        timeout: Duration,
        /// Gets the disk as soon as that is so.
        reply: Limited,
    },
    /// Let it go on.
    Thaw {
        /// Gets the disk as it is then.
        reply: Limited,
    },
    /// Try what waits because the disk below fails, or fail it.
    Resume {
        /// Whether to fail it.
        give_up: bool,
        /// Gets the disk as it is then.
        reply: Limited,
    },
    /// An operation on all its data has begun, as its header says: move the data.
    Begun {
        /// What it is, and its keys.
        begun: Box<Begun>,
        /// Gets the disk as it is then.
        reply: Limited,
    },
    /// Let that rest or go on, in another way or direction.
    Orders {
        /// What changes.
        orders: Orders,
        /// Gets the disk as it is then.
        reply: Limited,
    },
    /// It has ended, as its header says: forget the other key.
    Moved {
        /// What is left.
        ended: Ended,
    },
    /// Have another process serve it.
    Upgrade {
        /// Which, and how.
        wanted: UpgradeDisk,
        /// Gets the outcome.
        reply: Upgraded,
    },
}

impl Command {
    /// Tells who asked that it is not done.
    pub fn refuse(self, failure: Failure) {
        // Who asked may not be waiting any more.
        match self {
            Command::Detach { reply, .. } => drop(reply.send(Err(failure))),
            Command::Limit { reply, .. }
            | Command::Resize { reply, .. }
            | Command::Freeze { reply, .. }
            | Command::Thaw { reply }
            | Command::Resume { reply, .. }
            | Command::Begun { reply, .. }
            | Command::Orders { reply, .. } => drop(reply.send(Err(failure))),
            Command::Lend { reply } => drop(reply.send(Err(failure))),
            Command::Upgrade { reply, .. } => drop(reply.send(Err(failure))),
            Command::Rewrapped { .. } | Command::Moved { .. } => {}
        }
    }
}

/// Which file or device it is, whatever its path: see `stat(2)`.
pub type Identity = (u64, u64);

/// The files at these paths. Blocks.
pub fn identities<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Vec<Identity> {
    let identity = |path: &Path| {
        let meta = path.metadata().ok()?;
        Some(match meta.rdev() {
            0 => (meta.dev(), meta.ino()),
            device => (u64::MAX, device),
        })
    };
    paths.into_iter().filter_map(identity).collect()
}

/// A disk that is attached, or shall be, or was until a moment ago.
#[derive(Debug)]
pub struct Entry {
    /// Its place in the file system. Empty where it is not known.
    paths: Paths,
    info: Mutex<DiskInfo>,
    files: Mutex<Vec<Identity>>,
    commands: mpsc::Sender<Command>,
    changes: watch::Sender<u64>,
    held: Mutex<Option<Arc<Held>>>,
    key: Mutex<Option<KeyFacts>>,
    believed: Mutex<Option<Instant>>,
    /// Is told when another key is needed than before.
    pub key_changed: Notify,
    /// Who reads the header has a part of this, and who lets go of the volume all.
    pub reading: Arc<tokio::sync::RwLock<()>>,
    /// Who rewrites the header has this, and who wants nobody to.
    pub header: Arc<tokio::sync::Mutex<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    /// What is known of it now.
    pub fn info(&self) -> DiskInfo {
        lock(&self.info).clone()
    }

    /// Changes what is known of it. Whoever watches is told if it did change.
    pub fn update(&self, change: impl FnOnce(&mut DiskInfo)) {
        let mut info = lock(&self.info);
        let before = info.clone();
        change(&mut info);
        if info.state != before.state {
            info.since = Timestamp::now().to_string();
        }
        let changed = *info != before;
        drop(info);
        if changed {
            self.changes.send_modify(|revision| *revision += 1);
        }
    }

    /// It is in another state.
    pub fn set_state(&self, state: DiskState) {
        self.update(|info| info.state = state);
    }

    /// It is in another state because of a failure.
    pub fn fail(&self, state: DiskState, failure: &Failure) {
        self.update(|info| {
            info.state = state;
            info.last_error = Some(Problem::from(failure));
        });
    }

    /// Its volume was opened.
    pub fn set_volume(&self, held: Arc<Held>, key: &KeyFacts) {
        let Spec {
            uuid,
            size,
            sector_size,
            engine,
            read_only,
            ref limits,
            ..
        } = held.spec;
        let limits = Limits::of(limits);
        self.update(|info| {
            info.uuid = Some(uuid);
            info.size = Some(size);
            info.sector_size = u32::try_from(sector_size.bytes()).ok();
            info.engine = Some(engine.name().into());
            info.read_only = read_only;
            info.limits = limits;
        });
        self.set_key(key);
        *lock(&self.held) = Some(held);
    }

    /// What the volume says about its key.
    pub fn set_key(&self, key: &KeyFacts) {
        self.update(|info| {
            // That of an ephemeral disk has no name.
            info.key_set = Some(key.key_set.clone()).filter(|name| !name.is_empty());
            info.provider = key.provider.clone();
            info.key_id = key.key_id.clone();
            info.key_version = key.key_version.clone();
            // What opened it stays so, whatever its wraps become.
            if key.break_glass.is_some() {
                info.break_glass = key.break_glass.clone();
            }
        });
        let mut known = lock(&self.key);
        let key = key.clone().after(known.as_ref());
        if known.as_ref() != Some(&key) {
            *known = Some(key);
            drop(known);
            self.key_changed.notify_one();
        }
    }

    /// Its key was unwrapped just now, or it was found being served.
    pub fn set_believed(&self) {
        *lock(&self.believed) = Some(Instant::now());
    }

    /// When that was: for a while nobody need be asked.
    pub fn believed(&self) -> Option<Instant> {
        *lock(&self.believed)
    }

    /// What its volume says about its key.
    pub fn key(&self) -> Option<KeyFacts> {
        lock(&self.key).clone()
    }

    /// Its volume is not held any more, as far as this is concerned.
    pub fn forget_volume(&self) {
        *lock(&self.held) = None;
    }

    /// Whether its volume is open.
    pub fn is_held(&self) -> bool {
        lock(&self.held).is_some()
    }

    /// Its volume, if that is open.
    pub fn held(&self) -> Option<Arc<Held>> {
        lock(&self.held).clone()
    }

    /// What a worker says.
    pub fn set_status(&self, status: Status) {
        self.update(|info| {
            info.front_end = status.front_end;
            info.size_read = status.size_read.filter(|_| status.front_end);
            info.takes_notices = status.front_end && status.takes_notices;
            if info.state.is_served() {
                info.state = status.state();
            }
            info.frozen = status.frozen.map(FrozenInfo::from);
            info.trouble = status.trouble.map(TroubleInfo::from);
            info.stuck = status.stuck.map(StuckInfo::from);
            info.troubles = status.troubles.into();
            if status.sync_failed {
                info.last_error = Some(Problem {
                    message: "an fdatasync failed: what was written may be lost, and flushes fail \
                              from now on"
                        .into(),
                    help: Some(
                        "check the disk below, for example with `dmesg`; then detach and attach, \
                         and let the guest check its file systems"
                            .into(),
                    ),
                    kind: Kind::Io,
                });
            }
        });
    }

    /// Its files were found.
    pub fn set_files(&self, files: Vec<Identity>) {
        *lock(&self.files) = files;
    }

    /// Whether it is of the volume with this UUID.
    pub fn has_volume(&self, uuid: uuid::Uuid) -> bool {
        lock(&self.info).uuid == Some(uuid)
    }

    /// The files that it was found in.
    pub fn files(&self) -> Vec<Identity> {
        lock(&self.files).clone()
    }

    /// Asks its task for something.
    ///
    /// # Errors
    /// When that has ended.
    pub async fn send(&self, command: Command) -> Result<(), Failure> {
        let gone = |_| Failure::new(Kind::NotFound, "the disk has just been detached", None);
        self.commands.send(command).await.map_err(gone)
    }
}

/// All disks, by name.
#[derive(Debug, Default)]
pub struct Registry {
    disks: Mutex<BTreeMap<String, Arc<Entry>>>,
    changes: watch::Sender<u64>,
}

impl Registry {
    /// All of them.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        lock(&self.disks).values().cloned().collect()
    }

    /// A place for a disk, and what its task is asked by.
    ///
    /// # Errors
    /// As [`Registry::check_free`].
    pub fn reserve(
        &self,
        record: &Record,
        files: Vec<Identity>,
    ) -> Result<(Arc<Entry>, mpsc::Receiver<Command>), Failure> {
        let mut disks = lock(&self.disks);
        check(&disks, record, &files)?;
        let (commands, receiver) = mpsc::channel(8);
        let entry = Arc::new(Entry {
            paths: Paths::of(record),
            info: Mutex::new(info_of(record)),
            files: Mutex::new(files),
            commands,
            changes: self.changes.clone(),
            held: Mutex::new(None),
            key: Mutex::default(),
            believed: Mutex::default(),
            key_changed: Notify::new(),
            reading: Arc::default(),
            header: Arc::default(),
        });
        disks.insert(record.name.clone(), entry.clone());
        drop(disks);
        self.changes.send_modify(|revision| *revision += 1);
        Ok((entry, receiver))
    }

    /// Checks that no disk has the volume, the name, or the socket.
    ///
    /// # Errors
    /// [`Kind::Busy`], with the name of the disk that has it.
    pub fn check_free(&self, record: &Record, files: &[Identity]) -> Result<(), Failure> {
        check(&lock(&self.disks), record, files)
    }

    /// The disk that has one of these paths or files as its volume or header.
    pub fn with_files(&self, paths: &[&Path], files: &[Identity]) -> Option<String> {
        let disks = lock(&self.disks);
        let found = disks.iter().find(|(_, entry)| {
            paths.iter().any(|path| entry.paths.has(path))
                || lock(&entry.files).iter().any(|file| files.contains(file))
        });
        found.map(|(name, _)| name.clone())
    }

    /// The disk of that name.
    pub fn get(&self, name: &str) -> Option<Arc<Entry>> {
        lock(&self.disks).get(name).cloned()
    }

    /// All disks, sorted by name.
    pub fn list(&self) -> Vec<DiskInfo> {
        let disks = lock(&self.disks);
        disks.values().map(|entry| entry.info()).collect()
    }

    /// There is no such disk any more.
    pub fn remove(&self, name: &str, entry: &Arc<Entry>) {
        let mut disks = lock(&self.disks);
        if disks.get(name).is_some_and(|has| Arc::ptr_eq(has, entry)) {
            disks.remove(name);
        }
        drop(disks);
        self.changes.send_modify(|revision| *revision += 1);
    }

    /// Is told of every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[derive(Debug)]
struct Paths {
    volume: PathBuf,
    header: Option<PathBuf>,
    socket: PathBuf,
}

impl Paths {
    fn of(record: &Record) -> Self {
        Paths {
            // There is room for many in one directory. A block device is known
            // by what it is.
            volume: match record.ephemeral {
                None => record.volume.clone(),
                Some(_) => PathBuf::new(),
            },
            header: record.header.clone(),
            socket: record.socket.clone(),
        }
    }

    fn has(&self, path: &Path) -> bool {
        !path.as_os_str().is_empty()
            && (self.volume == path || self.header.as_deref() == Some(path))
    }
}

fn check(
    disks: &BTreeMap<String, Arc<Entry>>,
    record: &Record,
    files: &[Identity],
) -> Result<(), Failure> {
    let busy =
        |message: String, help: &str| Err(Failure::new(Kind::Busy, message, Some(help.to_owned())));
    let wanted = [Some(&record.volume), record.header.as_ref()];
    for (name, entry) in disks {
        let has = &entry.paths;
        let same_path = wanted.iter().flatten().find(|path| has.has(path));
        let same_file = lock(&entry.files).iter().any(|file| files.contains(file));
        if same_path.is_some() || same_file {
            let volume = same_path.unwrap_or(&&record.volume).display();
            return busy(
                format!("{volume} is attached already, as the disk {name:?}"),
                "detach that disk first",
            );
        }
        if *name == record.name {
            let volume = has.volume.display();
            return busy(
                format!("there is a disk {name:?} already, of the volume {volume}"),
                "give this one another name, or detach that one first",
            );
        }
        if has.socket == record.socket && !record.socket.as_os_str().is_empty() {
            let socket = has.socket.display();
            return busy(
                format!("{socket} is the socket of the disk {name:?}"),
                "choose another socket, or detach that disk first",
            );
        }
    }
    Ok(())
}

/// What is known of a disk that nothing was done for yet.
pub fn info_of(record: &Record) -> DiskInfo {
    DiskInfo {
        name: record.name.clone(),
        uuid: None,
        volume: record.volume.clone(),
        header: record.header.clone(),
        socket: record.socket.clone(),
        state: DiskState::Attaching,
        key_set: None,
        provider: None,
        key_id: None,
        key_version: None,
        break_glass: None,
        size: None,
        sector_size: None,
        read_only: record.options.read_only.unwrap_or(false),
        engine: None,
        pid: None,
        since: Timestamp::now().to_string(),
        restarts: 0,
        last_error: None,
        front_end: false,
        size_read: None,
        takes_notices: false,
        limits: record.options.limits.clone(),
        ephemeral: record.ephemeral.is_some(),
        denial: None,
        frozen: None,
        rekey: None,
        version: None,
        trouble: None,
        stuck: None,
        troubles: Troubles::default(),
    }
}

/// A record for what somebody asks for.
pub fn record_of(request: &Attach, name: String) -> Record {
    let mut record = Record::new(name, request.volume.clone(), request.socket.clone());
    record.header = request.header.clone();
    record.options = request.options.clone();
    record.break_glass = request.break_glass;
    if request.incoming {
        record.standing = Standing::Incoming;
    }
    if let Some(wanted) = &request.ephemeral {
        record.ephemeral = Some(Scratch {
            size: wanted.size,
            sector_size: wanted.sector_size.unwrap_or(4096),
            served_in: None,
        });
        // Whoever sees which of its space is in use sees it of a file, too.
        record.options.discard.get_or_insert(Discard::Pass);
    }
    record
}
