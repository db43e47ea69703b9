//! The task of one disk: it owns everything of it, brings its worker up, and
//! brings up another when that dies, until somebody detaches the disk.
//!
//! Attaching does in this order: volume opened and locked, key unwrapped,
//! desired state recorded, socket made, worker started. Detaching undoes it
//! backwards, so that whatever a crash of the manager leaves, the record of
//! it is there.
#![forbid(unsafe_code)]

mod denied;
mod ephemeral;
mod freeze;
mod lend;
mod limit;
mod moving;
mod obtain;
mod resize;
mod resume;
mod stop;
mod tenure;
mod upgrade;
mod watch;

pub use lend::Loan;
pub use limit::Limited;
pub use moving::{ToMove, Under};
pub use resize::Resized;
pub use upgrade::Upgraded;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use super::adopt::Found;
use super::disks::{Command, Entry, Pace, Shared};
use super::held::{FrontEnds, Held, KeyFacts};
use super::model::{DiskInfo, DiskState, Problem};
use super::state::Record;
use super::worker_process::{Process, Worker};
use crate::engine::hold::Mode;
use crate::engine::throttle::Limits;
use crate::error::{Failure, Kind};
use crate::keys::{Actor, Context};
use crate::plane::Spec;
use crate::prepare::Opening;
use crate::quota::Quota;
use crate::secret::Dek;
use crate::vhost::SocketParams;
use crate::volume::{Standing, Volume};
use crate::worker::protocol::Status;

/// How a disk comes to a manager.
pub enum Outset {
    /// Somebody asks for it.
    Requested {
        /// Who, and under which correlation id.
        context: Context,
        /// Whether to try until it succeeds.
        wait: bool,
        /// Its volume.
        opened: Box<Opened>,
        /// What it may be opened with.
        opening: Opening,
    },
    /// It is on record. Its worker may be running.
    Desired,
    /// It is not on record, and its worker is running.
    Found(Box<Found>),
    /// It is on record, in a way that cannot be used.
    Unusable(Failure),
}

/// A volume that was opened to be served, or space for an ephemeral disk.
pub struct Opened {
    /// The data, locked.
    pub data: Data,
    /// What its data plane will be told.
    pub spec: Spec,
    /// How its socket is made.
    pub socket: SocketParams,
}

/// What is opened to be served.
pub enum Data {
    /// A volume.
    Volume(Box<Volume>),
    /// Space in a directory or on a block device.
    Scratch(File),
}

/// How soon what failed is tried again.
enum Retry {
    /// What was away may come back: after this time, or when it is the turn.
    Soon(Option<Duration>),
    /// Somebody has to mend it.
    Later,
    /// The worker did not start.
    Restart,
    /// The service of its key has to let it be used.
    Denied,
}

/// An attempt that failed.
struct Trouble {
    failure: Failure,
    retry: Retry,
}

/// What becomes of a disk.
enum Fate {
    /// Its worker serves.
    Served(Box<Worker>),
    /// It is not, or not any more: on to the next worker, after a pause.
    Again(Duration),
    /// Nothing is left of it.
    Gone,
    /// Nothing can be done but to detach it.
    Stuck,
}

/// What the manager does of itself.
fn of_manager() -> Context {
    Context::new(Actor::this_process("manager"), None)
}

/// The task of one disk.
pub struct Supervisor {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    record: Record,
    /// Who is told how it began.
    begun: Option<oneshot::Sender<Result<DiskInfo, Failure>>>,
    /// Who wants it.
    context: Context,
    /// Whether it shall be served even if that does not work at once.
    desired: bool,
    /// Whether it is on record.
    recorded: bool,
    /// Whether it may be put there.
    may_record: bool,
    /// A worker may be running to which there is no connection.
    maybe_alive: bool,
    /// The process of that worker, if it is known.
    lost: Option<Process>,
    /// The volume as it was opened, for as long as its header was just read.
    fresh: Option<Volume>,
    held: Option<Arc<Held>>,
    key: Option<KeyFacts>,
    /// What the guest may do per second.
    limits: Limits,
    dek: Option<Arc<Dek>>,
    /// How its socket is made.
    socket: Option<SocketParams>,
    front_ends: Option<Arc<FrontEnds>>,
    /// Attempts that failed, or workers that died, in a row.
    failures: u32,
    served_before: bool,
    /// What somebody has just asked for it to be opened with. What is opened
    /// later by itself is opened with what is on record.
    opening: Option<Opening>,
    /// The worker of an ephemeral disk is gone, and with it all that was there.
    contents_lost: bool,
    /// How its worker treats requests, for the sake of its key.
    mode: Mode,
    /// Its key was denied, and wiped.
    withdrawn: bool,
    freezing: Option<freeze::Freezing>,
    /// An operation on all its data that is under way. Known where its key is.
    moving: Option<Under>,
    /// The worker may not know what the header says of such an operation.
    behind: bool,
    /// The program that its workers are, if it is not that of all.
    program: Option<PathBuf>,
    /// What this host has of the volume, as its worker said last.
    standing: Standing,
    /// What it said with that, which is shown when it is on record.
    unsettled: Option<Status>,
    /// How often what it says of that is written down.
    settling: Quota,
}

/// A guest moves now and then. What says that it does so all the time was taken over,
/// and would fill the disks of the records.
const SETTLING: Quota = Quota::new(8, Duration::from_secs(1));

impl Supervisor {
    /// The task of the disk `record`, which tells `begun` how it began.
    pub fn new(
        shared: Arc<Shared>,
        entry: Arc<Entry>,
        record: Record,
        begun: oneshot::Sender<Result<DiskInfo, Failure>>,
    ) -> Self {
        Supervisor {
            shared,
            entry,
            standing: record.standing,
            record,
            begun: Some(begun),
            context: of_manager(),
            desired: false,
            recorded: false,
            may_record: true,
            maybe_alive: false,
            lost: None,
            fresh: None,
            held: None,
            key: None,
            limits: Limits::default(),
            dek: None,
            socket: None,
            front_ends: None,
            failures: 0,
            served_before: false,
            opening: None,
            contents_lost: false,
            mode: Mode::Run,
            withdrawn: false,
            freezing: None,
            moving: None,
            behind: false,
            program: None,
            unsettled: None,
            settling: SETTLING,
        }
    }

    /// Looks after the disk until it is detached.
    pub async fn run(mut self, outset: Outset, mut commands: Receiver<Command>) {
        let mut fate = self.begin(outset).await;
        loop {
            fate = match fate {
                Fate::Served(worker) => self.watch(*worker, &mut commands).await,
                Fate::Again(Duration::ZERO) => self.bring_up(&mut commands).await,
                Fate::Again(pause) => self.pause(pause, &mut commands).await,
                Fate::Stuck => self.linger(&mut commands).await,
                Fate::Gone => return,
            }
        }
    }

    async fn begin(&mut self, outset: Outset) -> Fate {
        match outset {
            Outset::Requested {
                context,
                wait,
                opened,
                opening,
            } => {
                self.context = context;
                self.opening = Some(opening);
                self.desired = wait;
                if let Err(failure) = self.hold(*opened) {
                    return self.give_up(failure).await;
                }
                // One that is to wait is wanted from now on.
                if wait && let Err(failure) = self.put_on_record().await {
                    return self.give_up(failure).await;
                }
                Fate::Again(Duration::ZERO)
            }
            Outset::Desired => {
                self.desired = true;
                self.recorded = true;
                self.maybe_alive = true;
                Fate::Again(Duration::ZERO)
            }
            Outset::Found(found) => {
                self.desired = true;
                self.may_record = false;
                let worker = self.take_over(*found);
                self.entry
                    .update(|info| info.last_error = Some(not_on_record()));
                self.serves(worker)
            }
            Outset::Unusable(failure) => {
                self.recorded = true;
                self.entry.fail(DiskState::Failed, &failure);
                self.tell_begun();
                Fate::Stuck
            }
        }
    }

    /// The disk is served: whoever asked for it is told.
    fn serves(&mut self, worker: Worker) -> Fate {
        self.served_before = true;
        self.opening = None;
        self.desired = true;
        if !self.shared.settings.keep_deks {
            self.dek = None;
            self.moving = None;
        }
        let pid = worker.process.pid;
        self.mode = worker.status.mode;
        self.heed_freeze(&worker.status);
        self.hear_standing(&worker.status);
        if std::mem::take(&mut self.withdrawn) {
            self.note_released();
        }
        self.entry.set_status(worker.status);
        self.entry.update(|info| {
            info.state = worker.status.state();
            info.pid = Some(pid);
            info.version = Some(worker.version.clone());
        });
        self.show_loss();
        self.show_verdict();
        tracing::info!(pid, "the disk is served");
        self.tell_begun();
        Fate::Served(Box::new(worker))
    }

    fn tell_begun(&mut self) {
        if let Some(begun) = self.begun.take() {
            // Nobody may be waiting any more.
            let _ = begun.send(Ok(self.entry.info()));
        }
    }

    /// Tries once to have the disk served.
    async fn bring_up(&mut self, commands: &mut Receiver<Command>) -> Fate {
        self.entry.set_state(match self.served_before {
            true => DiskState::Restarting,
            false => DiskState::Attaching,
        });
        if self.maybe_alive {
            match self.look_for_worker().await {
                Ok(Some(worker)) => return self.serves(worker),
                Ok(None) => {}
                Err(trouble) => return self.cope(trouble).await,
            }
        }
        if self.standing == Standing::Moved && self.held.is_none() {
            // It is another host's, as far as is known, and nobody asks for it here.
            return self.rest_moved();
        }
        let obtained = tokio::select! {
            biased;
            Some(command) = commands.recv() => Err(command),
            obtained = self.obtain() => Ok(obtained),
        };
        // From here on it is not interrupted: there will be a process.
        let launched = match obtained {
            Err(Command::Limit { limits, reply }) => {
                self.limit(None, *limits, reply).await;
                return Fate::Again(Duration::ZERO);
            }
            Err(Command::Detach { how, reply }) => return self.take_away(how, reply).await,
            Err(Command::Resize { wanted, reply }) => {
                self.resize(None, wanted, reply).await;
                return Fate::Again(Duration::ZERO);
            }
            Err(command) => {
                self.lend_or_learn(None, command).await;
                return Fate::Again(Duration::ZERO);
            }
            Ok(Ok(permit)) => self.launch(permit).await,
            Ok(Err(trouble)) => Err(trouble),
        };
        match launched {
            Ok(worker) => self.serves(worker),
            Err(trouble) => {
                self.begin_afresh();
                self.cope(trouble).await
            }
        }
    }

    /// Decides what follows from an attempt that failed.
    async fn cope(&mut self, trouble: Trouble) -> Fate {
        let Trouble { failure, retry } = trouble;
        let listening = self.begun.as_ref().is_some_and(|begun| !begun.is_closed());
        let may_pass = matches!(retry, Retry::Soon(_));
        if !self.desired || (listening && !may_pass) {
            return self.give_up(failure).await;
        }
        let settings = &self.shared.settings;
        let state = match (&retry, self.served_before) {
            (Retry::Soon(_), _) => DiskState::Waiting,
            (Retry::Later, _) => DiskState::Failed,
            (Retry::Denied, _) => DiskState::Denied,
            (Retry::Restart, true) => DiskState::Restarting,
            (Retry::Restart, false) => DiskState::Attaching,
        };
        let pause = match retry {
            Retry::Soon(least) => {
                let pause = settings.retry.pause(self.failures);
                pause.max(least.unwrap_or_default())
            }
            Retry::Later | Retry::Denied => {
                let (first, most) = (settings.poll, settings.poll);
                Pace { first, most }.pause(0)
            }
            Retry::Restart => settings.restart.pause(self.failures),
        };
        self.failures += 1;
        tracing::warn!(again_in = ?pause, "the disk cannot be served yet: {failure}");
        self.entry.fail(state, &failure);
        self.tell_begun();
        Fate::Again(pause)
    }

    /// Waits before the next attempt, unless the disk is detached meanwhile.
    async fn pause(&mut self, pause: Duration, commands: &mut Receiver<Command>) -> Fate {
        let end = tokio::time::sleep(pause);
        tokio::pin!(end);
        let mut verdicts = self.shared.access.subscribe();
        let denied = self.entry.info().state == DiskState::Denied;
        loop {
            tokio::select! {
                Some(command) = commands.recv() => match command {
                    Command::Detach { how, reply } => return self.take_away(how, reply).await,
                    Command::Limit { limits, reply } => self.limit(None, *limits, reply).await,
                    Command::Resize { wanted, reply } => self.resize(None, wanted, reply).await,
                    command => self.lend_or_learn(None, command).await,
                },
                // A disk that waits for its key comes as soon as it can, and is
                // not tried before: the poll asks for all.
                Ok(()) = verdicts.changed(), if denied => {
                    self.show_verdict();
                    if self.is_granted() {
                        return Fate::Again(Duration::ZERO);
                    }
                }
                () = &mut end => match denied && self.is_denied() {
                    true => end.as_mut().reset(tokio::time::Instant::now() + pause),
                    false => return Fate::Again(Duration::ZERO),
                },
            }
        }
    }

    /// Waits for the disk to be detached, which is all that is left to do.
    async fn linger(&mut self, commands: &mut Receiver<Command>) -> Fate {
        loop {
            match commands.recv().await {
                Some(Command::Detach { how, reply }) => return self.take_away(how, reply).await,
                // What is on record cannot be used, nor changed.
                Some(Command::Limit { reply, .. }) => {
                    let _ = reply.send(Err(Failure::new(
                        Kind::Busy,
                        "the disk cannot be served, and so has no limits",
                        Some("detach it, and attach it again".into()),
                    )));
                }
                Some(Command::Resize { reply, .. }) => {
                    let _ = reply.send(Err(Failure::new(
                        Kind::Busy,
                        "the disk cannot be served, and so has no size",
                        Some("detach it, and attach it again".into()),
                    )));
                }
                Some(command) => self.lend_or_learn(None, command).await,
                None => return Fate::Gone,
            }
        }
    }
}

fn not_on_record() -> Problem {
    Problem {
        message: "the desired state does not have this disk: it is served as long as this host \
                  runs, and not attached again after that"
            .into(),
        help: Some("when its guest has ended, detach it and attach it again".into()),
        kind: Kind::NotFound,
    }
}
