//! The thread that moves the data of a disk.

use std::fs::File;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::control::{Control, Wanted};
use super::{Go, Phase, Priority};
use crate::engine::fence::Keeper;
use crate::engine::placement;
use crate::error::chain;
use crate::rekey::{self, Mover, Outcome};

/// How soon it looks whether what holds it is over. It is also told.
const LOOK: Duration = Duration::from_millis(200);

/// How soon it tries again to bring to rest what has failed.
const AGAIN: Duration = Duration::from_millis(500);

/// So many times it tries, before requests to what is closed fail.
const TRIES: u32 = 4;

/// What the thread has.
pub(super) struct Worker {
    control: Arc<Control>,
    mover: Option<Mover<File, File, Arc<Keeper>>>,
    keeper: Option<Arc<Keeper>>,
    priority: Priority,
    /// The orders there were when it failed: the next one to run is about that.
    heard: u64,
}

/// What is to be done next.
enum Next {
    Move,
    Wait,
    Stop,
}

impl Worker {
    pub fn new(
        control: Arc<Control>,
        mover: Mover<File, File, Arc<Keeper>>,
        keeper: Arc<Keeper>,
    ) -> Self {
        Worker {
            control,
            mover: Some(mover),
            keeper: Some(keeper),
            priority: Priority::Normal,
            heard: 0,
        }
    }

    /// Moves data until it is told to stop. It is at rest then, as far as the disk
    /// below lets it.
    pub fn run(mut self) {
        loop {
            match self.next() {
                Next::Stop => return self.rest_for_good(),
                Next::Wait => {}
                Next::Move => self.go(),
            }
        }
    }

    /// Waits for something to do.
    fn next(&mut self) -> Next {
        let wanted = self.control.lock();
        if wanted.stop {
            return Next::Stop;
        }
        if wanted.phase == Phase::Done || self.mover.is_none() {
            drop(
                self.control
                    .wait(wanted, Duration::MAX, |wanted| wanted.stop),
            );
            return Next::Wait;
        }
        match (wanted.phase, wanted.go) {
            (Phase::Failed, _) => {
                let wanted = self.wait_for_another_try(wanted, Duration::MAX);
                if !wanted.stop {
                    self.control.set_phase(wanted, Phase::Moving, None);
                }
                Next::Wait
            }
            (_, Go::Pause) => {
                self.control.set_phase(wanted, Phase::Paused, None);
                let wanted = self.control.lock();
                drop(self.control.wait(wanted, Duration::MAX, |wanted| {
                    wanted.stop || wanted.go == Go::Run
                }));
                Next::Wait
            }
            (_, Go::Run) => {
                let priority = wanted.pace.priority;
                // In one piece with looking: an order that comes later is seen.
                self.control.handle().go_on();
                drop(wanted);
                self.set_priority(priority);
                Next::Move
            }
        }
    }

    fn set_priority(&mut self, priority: Priority) {
        if priority == self.priority {
            return;
        }
        self.priority = priority;
        if let Err(error) = placement::set_io_priority(priority == Priority::Idle) {
            tracing::warn!(%error, "the I/O priority of moving data cannot be set");
        }
    }

    fn go(&mut self) {
        let Some(mover) = &mut self.mover else { return };
        let held = self
            .keeper
            .as_ref()
            .is_some_and(|keeper| !keeper.may_go_on());
        if !held {
            let wanted = self.control.lock();
            self.control.set_phase(wanted, Phase::Moving, None);
        }
        match mover.run() {
            Ok(Outcome::Done) => self.done(),
            Ok(Outcome::Rested) => {}
            Ok(Outcome::Held) => self.hold(),
            Err(error) => self.failed(&error),
        }
    }

    /// All was moved, unless it was turned just now.
    fn done(&mut self) {
        let wanted = self.control.lock();
        let position = self.mover.as_ref().map(Mover::position);
        if position.is_some_and(|position| position.direction == wanted.direction) {
            tracing::info!(direction = ?wanted.direction, "all data of the disk was moved");
            self.control.set_phase(wanted, Phase::Done, None);
        }
    }

    /// Waits until requests are carried out again, or somebody wants something.
    fn hold(&mut self) {
        let wanted = self.control.lock();
        let seen = wanted.orders;
        self.control.set_phase(wanted, Phase::Held, None);
        loop {
            let may = self
                .keeper
                .as_ref()
                .is_none_or(|keeper| keeper.wait_to_go_on(LOOK));
            let wanted = self.control.lock();
            if may || wanted.stop || wanted.orders != seen {
                return;
            }
        }
    }

    /// The disk below has failed. What was about to be moved is closed: it is
    /// opened as soon as the journal says what it is.
    fn failed(&mut self, error: &rekey::Error) {
        let mut why = chain(error);
        tracing::error!("moving data has failed: {why}");
        // It is said at once: whoever has mended the disk below says so once, and
        // maybe before this has come to rest.
        let wanted = self.control.lock();
        self.heard = wanted.orders;
        self.control
            .set_phase(wanted, Phase::Failed, Some(why.clone()));
        for attempt in 1..=TRIES {
            match self.come_to_rest() {
                Ok(()) => return,
                Err(error) if attempt < TRIES && !matches!(error, rekey::Error::NotDurable(_)) => {
                    drop(self.wait_for_another_try(self.control.lock(), AGAIN));
                }
                Err(error) => {
                    tracing::error!("it does not come to rest: {}", chain(&error));
                    why.push_str(
                        "; requests to the region that was being moved fail until the disk is \
                         detached and attached again",
                    );
                    // Nobody knows how that region is stored.
                    self.mover = None;
                    self.keeper = None;
                    break;
                }
            }
        }
        let wanted = self.control.lock();
        self.control.set_phase(wanted, Phase::Failed, Some(why));
    }

    /// Waits for so long, or until somebody wants what has failed to be tried again.
    fn wait_for_another_try<'w>(
        &'w self,
        wanted: MutexGuard<'w, Wanted>,
        time: Duration,
    ) -> MutexGuard<'w, Wanted> {
        self.control.wait(wanted, time, |wanted| {
            wanted.stop || (wanted.orders != self.heard && wanted.go == Go::Run)
        })
    }

    fn come_to_rest(&mut self) -> Result<(), rekey::Error> {
        let Some(mover) = &mut self.mover else {
            return Ok(());
        };
        self.control.handle().rest();
        mover.run().map(drop)
    }

    /// The process ends, or the operation has.
    fn rest_for_good(&mut self) {
        if let Err(error) = self.come_to_rest() {
            tracing::warn!(
                "the moving of data does not come to rest, and is recovered when the disk is \
                 served again: {}",
                chain(&error)
            );
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A panic must not be taken for something that goes on.
        if std::thread::panicking() {
            let wanted = self.control.lock();
            let why = "the thread that moves data has panicked; this is a defect of sealblk";
            self.control
                .set_phase(wanted, Phase::Failed, Some(why.into()));
        }
    }
}
