//! A disk all of whose data is being moved: what its worker is told, and what of
//! it this task knows. How it begins and ends in the header is in `disks::rekey`.
//!
//! The header counts, and never what was said between processes. As long as an
//! operation is under way there, every worker of the disk is given both keys and
//! the place of the journal, and reads that before it serves anything. What may
//! differ is a worker that was found: one of a manager that ended between writing
//! the header and telling it. That one is told now ([`Supervisor::catch_up_moving`]);
//! it has moved nothing, or has two keys where the header has one.
#![forbid(unsafe_code)]

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::{Limited, Supervisor, Trouble};
use crate::error::{Failure, Kind as ErrorKind, io_kind};
use crate::keys::ledger::Ledger;
use crate::manager::disks::{
    Begun, Ended, Job, Step, blocking, mover_files, position, previous_key, system,
};
use crate::manager::model::{Problem, RekeyInfo, RekeyState};
use crate::manager::worker_process::Worker;
use crate::plane::moving::{Orders, Phase, Progress, Task};
use crate::rekey::{Direction, Facts, Kind};
use crate::secret::Dek;
use crate::volume::Volume;
use crate::worker::parcel::{Parcel, Role};
use crate::worker::protocol::{Answer, Request};

/// An operation on all data of a disk that is under way, as its header has it.
#[derive(Clone, Debug)]
pub struct Under {
    facts: Facts,
    journal: Range<u64>,
    /// The key that data is moved away from, of a rekey, where keys are kept.
    old: Option<Arc<Dek>>,
}

impl Under {
    /// One with these facts, and its journal there.
    pub fn new(facts: Facts, journal: Range<u64>, old: Option<Arc<Dek>>) -> Self {
        Under {
            facts,
            journal,
            old,
        }
    }

    /// What `volume` has, whose main key is `main`.
    ///
    /// # Errors
    /// When its old key does not open.
    pub fn of(volume: &Volume, main: &Dek) -> Result<Option<Self>, Failure> {
        let Some(facts) = volume.rekey_facts() else {
            return Ok(None);
        };
        let old = previous_key(volume, &facts, main)?.map(Arc::new);
        let journal = volume.journal_area()?;
        Ok(Some(Under::new(facts, journal, old)))
    }

    /// What its keys are derived from.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The key that data is moved away from.
    pub fn old(&self) -> Option<&Dek> {
        self.old.as_deref()
    }

    /// As a worker is told.
    fn task(&self, job: &Job, at_least: u64) -> Task {
        Task {
            facts: self.facts.clone(),
            journal: self.journal.clone(),
            pace: job.pace,
            go: job.go,
            direction: job.direction,
            at_least,
        }
    }
}

/// What a next worker of the disk needs to go on.
pub struct ToMove {
    /// What is to be done.
    pub task: Task,
    /// The key that data is moved away from.
    pub old: Option<Arc<Dek>>,
}

impl Supervisor {
    /// What is wanted of the operation that is under way.
    fn job(&self, under: &Under) -> Job {
        let volume = self.held.as_ref().map(|held| held.spec.uuid);
        let job = volume.and_then(|volume| self.shared.jobs.get(volume));
        // Also one that was about to begin when the manager ended.
        job.filter(|job| job.kind == under.facts.kind)
            .unwrap_or_else(|| Job::found(under.facts.kind))
    }

    /// What a worker that is started now is to do to the data.
    pub(super) fn to_move(&self) -> Option<ToMove> {
        let under = self.moving.as_ref()?;
        Some(ToMove {
            task: under.task(&self.job(under), self.least_record(under)),
            old: under.old.clone(),
        })
    }

    fn least_record(&self, under: &Under) -> u64 {
        let volume = self.held.as_ref().map(|held| held.spec.uuid);
        volume.map_or(0, |volume| {
            self.shared.marks.least_record(volume, under.facts.id)
        })
    }

    /// Does what is asked of the moving of data.
    pub(super) async fn begun(
        &mut self,
        worker: Option<&mut Worker>,
        begun: Begun,
        reply: Limited,
    ) {
        let Begun { under, main } = begun;
        let outcome = match worker {
            Some(worker) => self.tell_to_move(worker, &under, &main).await,
            // The next one is told as it starts.
            None => Ok(()),
        };
        self.behind = outcome.is_err();
        if let Err(failure) = &outcome {
            tracing::error!("its data is not moved yet: {failure}");
            self.show_moving_problem(failure);
        }
        let keep = self.shared.settings.keep_deks;
        self.dek = keep.then_some(main);
        self.moving = keep.then_some(under);
        self.shared.settings.step(Step::RekeyTold);
        let _ = reply.send(outcome.map(|()| self.entry.info()));
    }

    async fn tell_to_move(
        &mut self,
        worker: &mut Worker,
        under: &Under,
        main: &Dek,
    ) -> Result<(), Failure> {
        let Some(held) = self.held.clone() else {
            return Err(super::freeze::not_served());
        };
        let lost = || system("cannot pass on the keys and files of a disk");
        let (old, main) = (under.old(), main.pass().map_err(lost())?);
        let mut parcel = blocking(move || mover_files(&held)).await??;
        parcel.add(Role::Dek, main);
        if let Some(old) = old {
            parcel.add(Role::OldDek, old.pass().map_err(lost())?);
        }
        let task = Box::new(under.task(&self.job(under), 0));
        match worker.link.call(Request::Move { task }, parcel).await {
            Ok((Answer::Moving { progress }, _)) => {
                if let Some(progress) = progress {
                    self.hear_progress(&progress);
                }
                Ok(())
            }
            Ok((Answer::Failed { fault }, _)) => Err(fault.into()),
            Ok(_) => Err(earlier_worker()),
            Err(error) => Err(not_heard(&error)),
        }
    }

    /// Has an operation rest or go on, or in another way: on record first.
    pub(super) async fn order(
        &mut self,
        worker: Option<&mut Worker>,
        orders: Orders,
        reply: Limited,
    ) {
        let outcome = self.try_order(worker, orders).await;
        if let Err(failure) = &outcome {
            tracing::warn!("the moving of its data: {failure}");
        }
        let _ = reply.send(outcome.map(|()| self.entry.info()));
    }

    async fn try_order(
        &mut self,
        worker: Option<&mut Worker>,
        orders: Orders,
    ) -> Result<(), Failure> {
        let info = self.entry.info();
        let (Some(volume), Some(rekey)) = (info.uuid, info.rekey) else {
            return Err(super::freeze::not_served());
        };
        let known = self.shared.jobs.get(volume);
        let mut job = known.unwrap_or_else(|| Job::found(rekey.kind));
        job.begun = true;
        job.go = orders.go.unwrap_or(job.go);
        job.pace = orders.pace.unwrap_or(job.pace);
        job.direction = orders.direction.or(job.direction);
        let shared = self.shared.clone();
        blocking(move || shared.jobs.put(volume, job)).await??;
        let Some(worker) = worker else {
            return Ok(());
        };
        let progress = ask(worker, orders).await?;
        if let Some(progress) = progress {
            self.hear_progress(&progress);
        }
        Ok(())
    }

    /// Takes note of how far it is.
    pub(super) fn hear_progress(&self, progress: &Progress) {
        if let Some(held) = &self.held {
            let (marks, volume) = (self.shared.marks.clone(), held.spec.uuid);
            let (id, record) = (progress.id, progress.sequence);
            let rests = progress.phase != Phase::Moving;
            // Nobody waits for it: it lags behind as it is.
            drop(tokio::task::spawn_blocking(move || {
                marks.note_record(volume, id, record, rests);
            }));
        }
        self.entry.update(|info| {
            let problem = info.rekey.as_ref().and_then(|rekey| rekey.problem.clone());
            let mut rekey = RekeyInfo::from(progress);
            // Why its header cannot say yet that it is done is not the worker's.
            if rekey.state == RekeyState::Finishing && rekey.problem.is_none() {
                rekey.problem = problem;
            }
            info.rekey = Some(rekey);
        });
    }

    fn show_moving_problem(&self, failure: &Failure) {
        let problem = Problem::from(failure);
        self.entry.update(|info| {
            if let Some(rekey) = &mut info.rekey {
                rekey.state = RekeyState::Waiting;
                rekey.problem = Some(problem);
            }
        });
    }

    /// There is no worker that moves data at this moment.
    pub(super) fn moving_waits(&self) {
        self.entry.update(|info| {
            if let Some(rekey) = info.rekey.as_mut().filter(|it| !it.state.is_only_wanted()) {
                rekey.state = RekeyState::Waiting;
                rekey.rate = 0;
                rekey.seconds_left = None;
            }
        });
    }

    /// The header says that all data is in one state: nobody has the other key
    /// any more.
    pub(super) async fn moved(&mut self, worker: Option<&mut Worker>, ended: Ended) {
        self.moving = None;
        if let Some(dek) = &ended.dek {
            self.dek = self.shared.settings.keep_deks.then(|| dek.clone());
        }
        if let Some(worker) = worker {
            self.behind = !forget_other_key(worker, ended.dek.as_deref()).await;
        }
        self.shared.settings.step(Step::RekeyForgotten);
        self.forget_job(true).await;
        self.entry.update(|info| info.rekey = None);
        tracing::info!("all data of the disk was moved");
    }

    /// What was wanted has ended, or was found to have: also what only waits for its
    /// turn, if it is that.
    async fn forget_job(&self, also_queued: bool) {
        let Some(volume) = self.held.as_ref().map(|held| held.spec.uuid) else {
            return;
        };
        let shared = self.shared.clone();
        let removed = blocking(move || match shared.jobs.get(volume) {
            Some(job) if job.begun || also_queued => shared.jobs.remove(volume),
            _ => Ok(()),
        });
        if let Err(failure) = removed.await.and_then(|removed| removed) {
            tracing::error!("{failure}");
        }
    }

    /// Sees whether what a next worker is to move has come to its end already: a
    /// worker may die before anybody here is told of that. What cannot be read now
    /// is the worker's to say.
    pub(super) async fn look_for_the_end(&mut self) -> Result<(), Trouble> {
        let (Some(under), Some(held)) = (self.moving.clone(), self.held.clone()) else {
            return Ok(());
        };
        let read = {
            let _alone = self.keep_header().await;
            blocking(move || held.volume()).await
        };
        let Ok(Ok(volume)) = read else {
            return Ok(());
        };
        let is_the_same = |facts: Facts| facts.id == under.facts.id;
        if volume.rekey_facts().is_some_and(is_the_same) {
            return Ok(());
        }
        self.moving = None;
        let known = self.dek.take().into_iter().chain(under.old);
        self.dek = known.into_iter().find(|dek| volume.verify_dek(dek).is_ok());
        if self.dek.is_none() {
            self.fresh = Some(volume);
            self.unwrap().await?;
        }
        Ok(())
    }

    /// Forgets what was wanted of an operation that has ended, if the manager that ended
    /// it did not live to do so, and neither did its worker.
    pub(super) async fn forget_what_has_ended(&self) {
        let (Some(held), None) = (self.held.clone(), &self.moving) else {
            return;
        };
        let job = self.shared.jobs.get(held.spec.uuid);
        if !self.may_be_moved() || job.is_none_or(|job| !job.begun) {
            return;
        }
        // Nobody begins another one meanwhile.
        let _alone = self.keep_header().await;
        let read = blocking(move || held.volume()).await;
        if let Ok(Ok(volume)) = read
            && volume.rekey_facts().is_none()
        {
            self.forget_job(false).await;
        }
    }

    /// Whether it has a header that may be under way.
    pub(super) fn may_be_moved(&self) -> bool {
        let writable = self.held.as_ref().is_some_and(|held| !held.spec.read_only);
        writable && self.record.ephemeral.is_none()
    }

    /// Brings a worker and its header to agree on what is under way: what an
    /// earlier manager began or ended, and did not live to tell.
    pub(super) async fn catch_up_moving(&mut self, worker: &mut Worker) {
        self.behind = false;
        if !self.may_be_moved() {
            return;
        }
        if let Err(failure) = self.try_catch_up_moving(worker).await {
            tracing::error!("the moving of its data waits: {failure}");
            self.show_moving_problem(&failure);
            self.behind = true;
        }
    }

    async fn try_catch_up_moving(&mut self, worker: &mut Worker) -> Result<(), Failure> {
        let Some(held) = self.held.clone() else {
            return Ok(());
        };
        let volume = {
            let _alone = self.keep_header().await;
            blocking(move || held.volume()).await??
        };
        let progress = match ask(worker, Orders::default()).await {
            Ok(progress) => progress,
            // It is of an earlier version, and moves nothing.
            Err(failure) if failure.kind() == ErrorKind::Unsupported => None,
            Err(failure) => return Err(failure),
        };
        let fits = |dek: &Arc<Dek>| volume.verify_dek(dek).is_ok();
        match (volume.rekey_facts(), progress) {
            (None, None) => {
                self.moving = None;
                self.forget_job(false).await;
                Ok(())
            }
            (None, Some(_)) => {
                let dek = self.dek.take().filter(fits);
                self.moved(Some(worker), Ended { dek: None }).await;
                self.dek = dek;
                Ok(())
            }
            (Some(facts), Some(progress)) if facts.id == progress.id => {
                self.hear_progress(&progress);
                self.dek = self.dek.take().filter(fits);
                self.moving = match &self.dek {
                    Some(main) => Under::of(&volume, main)?,
                    None => None,
                };
                let job = self.job(&Under::new(facts, 0..0, None));
                self.remind_orders(worker, &job, &progress).await
            }
            (Some(facts), Some(_)) => Err(Failure::new(
                ErrorKind::Internal,
                format!(
                    "its worker moves data for another operation than {}, which its header has",
                    facts.id
                ),
                Some("detach the disk, and attach it again".into()),
            )),
            (Some(_), None) => {
                if self.dek.as_ref().is_none_or(|dek| !fits(dek)) {
                    self.dek = None;
                    self.moving = None;
                    self.fresh = Some(volume);
                    self.unwrap().await.map_err(|trouble| trouble.failure)?;
                } else if let Some(main) = &self.dek {
                    self.moving = Under::of(&volume, main)?;
                }
                let (Some(under), Some(main)) = (self.moving.clone(), self.dek.clone()) else {
                    return Ok(());
                };
                self.tell_to_move(worker, &under, &main).await?;
                if !self.shared.settings.keep_deks {
                    self.dek = None;
                    self.moving = None;
                }
                tracing::info!("finished what another manager had begun: data is moved");
                Ok(())
            }
        }
    }

    /// Lets a worker know of orders that were put on record, and that it was
    /// perhaps not told of.
    async fn remind_orders(
        &mut self,
        worker: &mut Worker,
        job: &Job,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let orders = Orders {
            go: (job.go != progress.go).then_some(job.go),
            pace: (job.pace != progress.pace).then_some(job.pace),
            direction: job.direction.filter(|it| *it != progress.direction),
        };
        if orders == Orders::default() {
            return Ok(());
        }
        if let Some(progress) = ask(worker, orders).await? {
            self.hear_progress(&progress);
        }
        Ok(())
    }

    /// A disk whose data is all plain is being detached, and its worker has ended:
    /// nothing is left of its header, nor of its key. Whatever goes wrong with it
    /// can be done again: the header is as it was then.
    pub(super) async fn end_plain(&mut self) {
        let is_plain = self
            .entry
            .info()
            .rekey
            .is_some_and(|rekey| rekey.state == RekeyState::Plain);
        let (Some(held), true) = (self.held.clone(), is_plain) else {
            return;
        };
        if self.dek.is_none() || self.moving.is_none() {
            self.dek = None;
            self.fresh = None;
            if let Err(trouble) = self.unwrap().await {
                tracing::error!(
                    "its key is needed to see that all is plain: {}",
                    trouble.failure
                );
            }
        }
        let known = self.dek.clone().zip(self.moving.clone());
        let Some((main, under)) = known else {
            return tracing::warn!(
                "its data is plain, and its header is still there: attach the disk and detach it \
                 again to end that, or use `sealblk volume decrypt`"
            );
        };
        let header = self.entry.header.lock().await;
        let ledger = Ledger::below(&self.shared.settings.state_dir);
        let done = blocking(move || -> Result<(), Failure> {
            let mut volume = held.volume()?;
            let is = position(&volume, &under.facts, &main, under.old())?;
            let plain = match under.facts.kind {
                Kind::Decrypt => {
                    is.boundary == under.facts.size && is.direction == Direction::Forward
                }
                Kind::Encrypt => is.boundary == 0 && is.direction == Direction::Back,
                Kind::Rekey => false,
            };
            if !plain {
                return Err(Failure::new(
                    ErrorKind::Internal,
                    "the journal says that data is left to be moved",
                    Some("attach the disk again".into()),
                ));
            }
            volume.finish_decrypt()?;
            if let Some(since) = volume.token().keyless_since() {
                ledger.decrypted(volume.uuid(), since);
            }
            Ok(())
        });
        let done = done.await.and_then(|done| done);
        drop(header);
        match done {
            Ok(()) => {
                self.note_plain();
                self.forget_mark();
                self.moving = None;
                self.dek = None;
                self.forget_job(true).await;
            }
            Err(failure) => tracing::error!("its data is plain, and its header stays: {failure}"),
        }
    }

    /// Its header says that it is plain, and is not one of a volume any more.
    fn forget_mark(&self) {
        if let Some(held) = &self.held
            && let Err(error) = self.shared.marks.forget(held.spec.uuid)
        {
            tracing::warn!(%error, "what was seen of its header stays on record");
        }
    }

    fn note_plain(&self) {
        let info = self.entry.info();
        let (Some(volume), Some(rekey)) = (info.uuid, &info.rekey) else {
            return;
        };
        let decrypted = rekey.kind == Kind::Decrypt;
        tracing::warn!("all data of the disk is plain, and its key was destroyed");
        self.shared
            .record(crate::audit::Event::Rekey(crate::audit::RekeyEvent {
                severity: crate::audit::RekeyEvent::severity_of(rekey.kind),
                kind: rekey.kind,
                action: if decrypted { "finish" } else { "finish_back" },
                volume,
                operation: rekey.id.unwrap_or_default(),
                disk: &self.record.name,
                key_set: info.key_set.as_deref().unwrap_or_default(),
                path: &self.record.volume,
            }));
    }
}

/// Tells a worker how to go on, and asks how far it is.
async fn ask(worker: &mut Worker, orders: Orders) -> Result<Option<Box<Progress>>, Failure> {
    match worker
        .link
        .call(Request::Moving { orders }, Parcel::default())
        .await
    {
        Ok((Answer::Moving { progress }, _)) => Ok(progress),
        Ok((Answer::Failed { fault }, _)) => Err(fault.into()),
        Ok(_) => Err(earlier_worker()),
        Err(error) => Err(not_heard(&error)),
    }
}

/// Whether it has. The key of the disk goes with that, if it is another one.
async fn forget_other_key(worker: &mut Worker, dek: Option<&Dek>) -> bool {
    let mut parcel = Parcel::default();
    match dek.map(Dek::pass).transpose() {
        Ok(Some(dek)) => parcel.add(Role::Dek, dek),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "its worker does not get to keep its key"),
    }
    match worker.link.call(Request::Moved, parcel).await {
        Ok((Answer::Status { .. }, _)) => true,
        Ok((answer, _)) => {
            tracing::error!(?answer, "its worker does not forget the other key");
            false
        }
        Err(error) => {
            tracing::error!(%error, "its worker does not say that it forgets the other key");
            false
        }
    }
}

fn earlier_worker() -> Failure {
    Failure::new(
        ErrorKind::Unsupported,
        "the worker of the disk is of an earlier version, and cannot move its data",
        Some("end its process: the next worker of the disk can".into()),
    )
}

fn not_heard(error: &io::Error) -> Failure {
    Failure::new(
        io_kind(error),
        format!("the worker of the disk does not answer: {error}"),
        Some("it is told again by itself".into()),
    )
}
