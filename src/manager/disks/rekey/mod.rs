//! Moving all data of attached disks to another key, or out of encryption: what is
//! wanted ([`Jobs`]), in which order the disks have their turn, and how an
//! operation begins and ends in the header of a volume. The data itself is moved
//! by the worker of a disk (`plane::moving`), which its task looks after
//! (`supervise::moving`).
//!
//! Nothing here is lost with the manager: what waits is in files, what is under
//! way in the headers, and a task looks at all disks whenever something about them
//! changes.
#![forbid(unsafe_code)]

mod begin;
mod files;
mod finish;
mod jobs;
mod marks;

pub(in crate::manager) use begin::Begun;
pub(in crate::manager) use files::{mover_files, mover_files_unmarked};
pub(in crate::manager) use finish::{Ended, position, previous_key};
pub use jobs::{Job, Jobs};
pub use marks::Marks;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Command, Disks, Entry, blocking, ended, no_header};
use crate::audit::{Event, RekeyEvent};
use crate::error::{Failure, Kind as ErrorKind};
use crate::keys::{Actor, Context};
use crate::manager::model::{
    DiskInfo, DiskState, PaceChange, Problem, RekeyChange, RekeyInfo, RekeyState, RekeysStarted,
    StartRekey, StartedRekey,
};
use crate::plane::moving::{Orders, Pace};
use crate::rekey::{Direction, Kind};

/// How soon what failed for a reason that may pass is tried again, at first.
const SHORTLY: Duration = Duration::from_secs(5);

/// What the task of this room remembers from one look to the next.
#[derive(Default)]
struct Memory {
    /// Volumes that are left alone until then.
    not_before: BTreeMap<Uuid, Instant>,
}

fn of_manager() -> Context {
    Context::new(Actor::this_process("manager"), None)
}

/// Whether it may succeed by itself when it is tried again.
fn may_pass(failure: &Failure) -> bool {
    matches!(
        failure.kind(),
        ErrorKind::Busy | ErrorKind::Unreachable | ErrorKind::Io
    )
}

impl Disks {
    /// Has all data of disks re-encrypted or decrypted: of as many as may be at
    /// once from now on, and of the others when it is their turn.
    ///
    /// # Errors
    /// When nothing makes sense of it, or none of the disks can be.
    pub async fn rekey(
        &self,
        context: &Context,
        wanted: StartRekey,
    ) -> Result<RekeysStarted, Failure> {
        let names = self.names_of(&wanted)?;
        let pace = wanted.pace.over(Pace::default());
        check_pace(&pace)?;
        check_kind(&wanted, &names)?;
        let mut started = Vec::new();
        for name in &names {
            let queued = self.queue(name, wanted.kind, pace).await;
            let volume = self.get(name).and_then(|disk| disk.uuid);
            started.push(StartedRekey {
                disk: name.clone(),
                volume,
                begun: false,
                problem: queued.err().map(|failure| Problem::from(&failure)),
            });
        }
        tracing::info!(
            uid = context.actor.uid, disks = names.len(), kind = ?wanted.kind,
            "the data of disks is to be moved"
        );
        self.take_turns(context, &mut Memory::default()).await;
        for one in &mut started {
            let info = self.get(&one.disk).and_then(|disk| disk.rekey);
            one.begun = one.problem.is_none()
                && info
                    .as_ref()
                    .is_some_and(|info| !info.state.is_only_wanted());
            let queued = info.filter(|info| info.state.is_only_wanted());
            one.problem = one.problem.take().or(queued.and_then(|info| info.problem));
        }
        // Who names one disk wants to know what is wrong with that.
        if let [only] = started.as_mut_slice()
            && let Some(problem) = only.problem.take()
            && !only.begun
        {
            if let Some(volume) = only.volume {
                self.forget_unbegun(volume).await?;
            }
            return Err(Failure::new(problem.kind, problem.message, problem.help));
        }
        Ok(RekeysStarted { disks: started })
    }

    fn names_of(&self, wanted: &StartRekey) -> Result<Vec<String>, Failure> {
        let usage = |what: &str, help: &str| {
            Err(Failure::new(
                ErrorKind::Usage,
                what.to_owned(),
                Some(help.into()),
            ))
        };
        match (&wanted.key_set, wanted.disks.is_empty()) {
            (None, true) => usage("no disk was named", "name disks, or a key set"),
            (Some(_), false) => usage(
                "there are both disks and a key set",
                "name disks, or the key set all of whose disks are meant",
            ),
            (None, false) => {
                for name in &wanted.disks {
                    self.entry(name)?;
                }
                Ok(wanted.disks.clone())
            }
            (Some(key_set), true) => {
                let disks = self.list().into_iter();
                let of = disks.filter(|disk| disk.key_set.as_ref() == Some(key_set));
                let names: Vec<String> = of.map(|disk| disk.name).collect();
                match names.is_empty() {
                    false => Ok(names),
                    true => Err(Failure::new(
                        ErrorKind::NotFound,
                        format!("no disk is attached that is of key set {key_set:?}"),
                        Some("`sealblk list` shows the disks and their key sets".into()),
                    )),
                }
            }
        }
    }

    /// Writes down that it is to be done to a disk.
    async fn queue(&self, name: &str, kind: Kind, pace: Pace) -> Result<(), Failure> {
        let entry = self.entry(name)?;
        // Nobody is just beginning what is said to be only wanted.
        let _alone = self.shared.turns.lock().await;
        let info = entry.info();
        let volume = can_be_moved(&info)?;
        if let Some(is) = info.rekey.filter(|it| !it.state.is_only_wanted()) {
            return Err(Failure::new(
                ErrorKind::Busy,
                format!(
                    "all data of disk {name:?} is being moved already: it is {}",
                    is.state.as_str()
                ),
                Some(format!(
                    "`sealblk rekey {name} --status` says how far it is"
                )),
            ));
        }
        let shared = self.shared.clone();
        blocking(move || shared.jobs.queue(volume, kind, pace)).await??;
        show_queued(&entry, kind, pace, None);
        Ok(())
    }

    /// What was only wanted is wanted no more.
    async fn forget_unbegun(&self, volume: Uuid) -> Result<(), Failure> {
        let _alone = self.shared.turns.lock().await;
        let shared = self.shared.clone();
        let removed = blocking(move || match shared.jobs.get(volume) {
            Some(job) if !job.begun => shared.jobs.remove(volume).map(|()| true),
            _ => Ok(false),
        });
        if removed.await?? {
            for entry in self.shared.registry.entries() {
                if entry.has_volume(volume) {
                    entry.update(|info| {
                        info.rekey.take_if(|it| it.state.is_only_wanted());
                    });
                }
            }
        }
        Ok(())
    }

    /// Lets an operation rest or go on, or says how fast it may be: one that is
    /// under way, or that waits for its turn.
    ///
    /// # Errors
    /// When nothing is done to the disk, or it cannot be written down or told to
    /// the worker.
    pub async fn change_rekey(
        &self,
        context: &Context,
        name: &str,
        change: RekeyChange,
    ) -> Result<DiskInfo, Failure> {
        tracing::info!(
            disk = name,
            uid = context.actor.uid,
            ?change,
            "moving of data"
        );
        self.order(name, change, None).await
    }

    /// Has an operation go the other way. One that waits for its turn is forgotten
    /// if it is to go back.
    ///
    /// # Errors
    /// As [`Disks::change_rekey`].
    pub async fn turn_rekey(
        &self,
        context: &Context,
        name: &str,
        direction: Direction,
    ) -> Result<DiskInfo, Failure> {
        tracing::info!(
            disk = name,
            uid = context.actor.uid,
            ?direction,
            "moving of data"
        );
        let entry = self.entry(name)?;
        let info = entry.info();
        let only_wanted = info
            .rekey
            .as_ref()
            .is_some_and(|it| it.state.is_only_wanted());
        if let (true, Direction::Back, Some(volume)) = (only_wanted, direction, info.uuid) {
            self.forget_unbegun(volume).await?;
            return Ok(entry.info());
        }
        self.order(name, RekeyChange::default(), Some(direction))
            .await
    }

    async fn order(
        &self,
        name: &str,
        change: RekeyChange,
        direction: Option<Direction>,
    ) -> Result<DiskInfo, Failure> {
        let entry = self.entry(name)?;
        let info = entry.info();
        let volume = can_be_moved(&info)?;
        let Some(known) = info.rekey else {
            return Err(nothing_moved(name));
        };
        let pace = match change.pace.is_empty() {
            true => None,
            false => Some(changed_pace(&change.pace, known.pace)?),
        };
        if known.state.is_only_wanted() {
            let _alone = self.shared.turns.lock().await;
            let shared = self.shared.clone();
            let job = blocking(move || -> Result<Option<Job>, Failure> {
                let Some(mut job) = shared.jobs.get(volume).filter(|job| !job.begun) else {
                    return Ok(None);
                };
                job.go = change.go.unwrap_or(job.go);
                job.pace = pace.unwrap_or(job.pace);
                job.problem = None;
                shared.jobs.put(volume, job.clone())?;
                Ok(Some(job))
            });
            if let Some(job) = job.await?? {
                show_queued(&entry, job.kind, job.pace, None);
                return Ok(entry.info());
            }
        }
        let orders = Orders {
            go: change.go,
            pace,
            direction,
        };
        let (reply, answer) = oneshot::channel();
        entry.send(Command::Orders { orders, reply }).await?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Looks after the queue, and after operations that have to end, until the
    /// disks are gone.
    pub(super) async fn look_after_rekeys(disks: Weak<Disks>) {
        let Some((mut changes, poll)) = disks
            .upgrade()
            .map(|disks| (disks.subscribe(), disks.shared.settings.poll))
        else {
            return;
        };
        let mut memory = Memory::default();
        loop {
            changes.borrow_and_update();
            {
                let Some(disks) = disks.upgrade() else {
                    return;
                };
                disks.end_those_done(&mut memory).await;
                disks.take_turns(&of_manager(), &mut memory).await;
            }
            let next = memory.not_before.values().min();
            let next = next.map_or(poll, |at| at.saturating_duration_since(Instant::now()));
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(next.min(poll)) => {}
            }
        }
    }

    /// Ends in their headers all operations whose data was all moved.
    async fn end_those_done(&self, memory: &mut Memory) {
        let entries = self.shared.registry.entries();
        for entry in entries {
            let info = entry.info();
            let (Some(volume), Some(rekey)) = (info.uuid, &info.rekey) else {
                continue;
            };
            // The header of a frozen disk is a part of the snapshot.
            let may_write = self.takes_wraps(&info.name);
            if rekey.state != RekeyState::Finishing || !may_write || memory.leaves(volume) {
                continue;
            }
            if let Err(failure) = self.finish(&of_manager(), &info.name).await {
                tracing::error!(disk = info.name, "all data was moved: {failure}");
                let problem = Problem::from(&failure);
                entry.update(|info| {
                    if let Some(rekey) = &mut info.rekey {
                        rekey.problem = Some(problem);
                    }
                });
                memory.leave(volume);
            }
        }
    }

    /// Begins what waits, as far as there is room for it.
    async fn take_turns(&self, context: &Context, memory: &mut Memory) {
        // Of several who look, one begins.
        let _alone = self.shared.turns.lock().await;
        let most = self.shared.rekey_concurrency.load(Ordering::SeqCst);
        for (volume, job) in self.shared.jobs.all() {
            if job.begun {
                continue;
            }
            let entries = self.shared.registry.entries();
            let Some(entry) = entries.iter().find(|entry| entry.has_volume(volume)) else {
                continue;
            };
            // A manager that ended as it began.
            let is = entry.info().rekey;
            if is.as_ref().is_some_and(|it| !it.state.is_only_wanted()) {
                self.note_begun(volume, job).await;
                continue;
            }
            if is.is_none() {
                show_queued(entry, job.kind, job.pace, job.problem.clone());
            }
            let busy = entries
                .iter()
                .filter(|entry| is_moved(&entry.info()))
                .count();
            let served = entry.info().state == DiskState::Running;
            if !job.is_queued() || busy >= most || !served || memory.leaves(volume) {
                continue;
            }
            if job.go == crate::plane::moving::Go::Pause {
                continue;
            }
            if let Err(failure) = self.begin_job(context, entry, volume, job.clone()).await {
                tracing::error!(disk = entry.info().name, "its data is not moved: {failure}");
                let problem = Problem::from(&failure);
                show_queued(entry, job.kind, job.pace, Some(problem.clone()));
                match may_pass(&failure) {
                    true => memory.leave(volume),
                    false => self.refuse_job(volume, job, problem).await,
                }
            }
        }
    }

    async fn refuse_job(&self, volume: Uuid, job: Job, problem: Problem) {
        let shared = self.shared.clone();
        let mut refused = job;
        refused.problem = Some(problem);
        let put = blocking(move || shared.jobs.put(volume, refused)).await;
        if let Err(failure) = put.and_then(|put| put) {
            tracing::error!("{failure}");
        }
    }

    async fn begin_job(
        &self,
        context: &Context,
        entry: &Arc<Entry>,
        volume: Uuid,
        job: Job,
    ) -> Result<(), Failure> {
        let info = entry.info();
        can_be_moved(&info)?;
        let begun = self.begin_in_header(context, &info.name, job.kind).await?;
        self.shared.record(Event::Rekey(RekeyEvent {
            severity: RekeyEvent::severity_of(job.kind),
            kind: job.kind,
            action: "begin",
            volume,
            operation: begun.under.facts().id,
            disk: &info.name,
            key_set: info.key_set.as_deref().unwrap_or_default(),
            path: &info.volume,
        }));
        self.note_begun(volume, job).await;
        let (reply, answer) = oneshot::channel();
        let begun = Box::new(begun);
        entry.send(Command::Begun { begun, reply }).await?;
        answer.await.unwrap_or_else(|_| Err(ended())).map(drop)
    }

    async fn note_begun(&self, volume: Uuid, mut job: Job) {
        job.begun = true;
        job.problem = None;
        let shared = self.shared.clone();
        let put = blocking(move || shared.jobs.put(volume, job)).await;
        if let Err(failure) = put.and_then(|put| put) {
            // The header counts. What is lost is how fast it was to be.
            tracing::error!("{failure}");
        }
    }

    /// How many disks may be moved at once, from now on.
    pub fn set_rekey_concurrency(&self, most: usize) {
        self.shared
            .rekey_concurrency
            .store(most.max(1), Ordering::SeqCst);
    }
}

impl Memory {
    fn leaves(&mut self, volume: Uuid) -> bool {
        match self.not_before.get(&volume) {
            Some(at) if *at > Instant::now() => true,
            _ => {
                self.not_before.remove(&volume);
                false
            }
        }
    }

    fn leave(&mut self, volume: Uuid) {
        self.not_before.insert(volume, Instant::now() + SHORTLY);
    }
}

/// Whether data of a disk is moved, or is about to be, so that another one waits.
fn is_moved(info: &DiskInfo) -> bool {
    let comes_back = matches!(info.state, DiskState::Restarting | DiskState::Attaching);
    info.rekey.as_ref().is_some_and(|rekey| match rekey.state {
        RekeyState::Moving | RekeyState::Finishing => true,
        // What rests for somebody to do something keeps nobody else waiting.
        RekeyState::Waiting => comes_back,
        RekeyState::Queued
        | RekeyState::Refused
        | RekeyState::Paused
        | RekeyState::Held
        | RekeyState::Failed
        | RekeyState::Plain => false,
    })
}

/// The volume of a disk whose data can be moved as far as that can be said without
/// its header.
fn can_be_moved(info: &DiskInfo) -> Result<Uuid, Failure> {
    if info.ephemeral {
        return Err(no_header(&info.name));
    }
    if info.read_only {
        return Err(Failure::new(
            ErrorKind::Usage,
            format!("disk {:?} is attached read-only", info.name),
            Some("detach it, and attach it without read_only".into()),
        ));
    }
    info.uuid.ok_or_else(|| {
        Failure::new(
            ErrorKind::Busy,
            format!("the volume of disk {:?} is not open yet", info.name),
            Some("wait until the disk is running".into()),
        )
    })
}

fn show_queued(entry: &Arc<Entry>, kind: Kind, pace: Pace, problem: Option<Problem>) {
    entry.update(|info| {
        let is = info.rekey.as_ref();
        if is.is_none_or(|rekey| rekey.state.is_only_wanted()) {
            let size = info.size.unwrap_or_default();
            info.rekey = Some(RekeyInfo::queued(kind, size, pace, problem));
        }
    });
}

fn check_pace(pace: &Pace) -> Result<(), Failure> {
    match pace.fault() {
        None => Ok(()),
        Some(what) => Err(Failure::new(
            ErrorKind::Usage,
            what,
            Some("to have it rest, pause it".into()),
        )),
    }
}

fn changed_pace(change: &PaceChange, pace: Pace) -> Result<Pace, Failure> {
    let pace = change.over(pace);
    check_pace(&pace).map(|()| pace)
}

fn check_kind(wanted: &StartRekey, names: &[String]) -> Result<(), Failure> {
    match (wanted.kind, names, &wanted.confirm) {
        (Kind::Rekey, ..) => Ok(()),
        (Kind::Encrypt, ..) => Err(Failure::new(
            ErrorKind::Usage,
            "a disk that is attached has a header, and is encrypted or being encrypted already",
            Some(
                "to encrypt a plain disk, make a header for it (`sealblk volume encrypt \
                 --prepare`) and attach it with that"
                    .into(),
            ),
        )),
        (Kind::Decrypt, [name], Some(confirm)) if name == confirm => Ok(()),
        (Kind::Decrypt, ..) => Err(Failure::new(
            ErrorKind::Refused,
            "to decrypt a disk makes its data readable for everybody who has the storage",
            Some("name one disk, and confirm with its name once more".into()),
        )),
    }
}

fn nothing_moved(name: &str) -> Failure {
    Failure::new(
        ErrorKind::NotFound,
        format!("the data of disk {name:?} is not being moved"),
        Some(format!(
            "`sealblk rekey {name} --start` gives it another key"
        )),
    )
}
