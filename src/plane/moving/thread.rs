//! The thread that moves the data of a disk.

use std::fs::File;
use std::io;
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

/// How soon it tries again to bring to rest what has failed, at first and at most: it
/// doubles once requests do not wait for it any more.
const AGAIN: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(5);

/// So many times it tries, before requests to what is closed fail as well.
const TRIES: u32 = 4;

/// What is said then.
const IN_DOUBT: &str = "requests to the region that was being moved fail as well, or wait, as \
     --on-error says, until it can be read and written again";
/// What is said when it does not try any more.
const LOST: &str = "requests to the region that was being moved fail until the disk is detached \
     and attached again";

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
                let wanted = self.wait_for_another_try(wanted, self.heard, Duration::MAX);
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
        let why = chain(error);
        tracing::error!("moving data has failed: {why}");
        // It is said at once: whoever has mended the disk below says so once, and
        // maybe before this has come to rest.
        let wanted = self.control.lock();
        self.heard = wanted.orders;
        self.control
            .set_phase(wanted, Phase::Failed, Some(why.clone()));
        let mut seen = self.heard;
        let (mut tries, mut pause) = (0, AGAIN);
        loop {
            if self.may_touch() {
                let Err(error) = self.come_to_rest() else {
                    return self.say(why);
                };
                tries += 1;
                match &error {
                    _ if tries < TRIES && !matches!(error, rekey::Error::NotDurable(_)) => {}
                    rekey::Error::Io { source, .. } => {
                        if self.leave_in_doubt(source) {
                            self.say(format!("{why}; {IN_DOUBT}"));
                        }
                        pause = LONGEST.min(pause * 2);
                    }
                    _ => return self.give_up(&why, &error),
                }
            }
            let wanted = self.wait_for_another_try(self.control.lock(), seen, pause);
            if wanted.stop {
                return;
            }
            if std::mem::replace(&mut seen, wanted.orders) != wanted.orders {
                pause = AGAIN;
            }
        }
    }

    /// Waits for so long, or until somebody wants what has failed to be tried again,
    /// which was not wanted yet when there were so many orders.
    fn wait_for_another_try<'w>(
        &'w self,
        wanted: MutexGuard<'w, Wanted>,
        seen: u64,
        time: Duration,
    ) -> MutexGuard<'w, Wanted> {
        self.control.wait(wanted, time, |wanted| {
            wanted.stop || (wanted.orders != seen && wanted.go == Go::Run)
        })
    }

    /// Says of what has failed how it is.
    fn say(&self, why: String) {
        let wanted = self.control.lock();
        self.control.set_phase(wanted, Phase::Failed, Some(why));
    }

    /// Requests do not wait any more until it comes to rest. False when there are none
    /// that would.
    fn leave_in_doubt(&self, error: &io::Error) -> bool {
        let errno = error.raw_os_error().unwrap_or(match error.kind() {
            io::ErrorKind::UnexpectedEof => 0,
            _ => libc::EIO,
        });
        let keeper = self.keeper.as_ref();
        keeper.is_some_and(|keeper| keeper.fail(errno))
    }

    /// Nobody here learns how the region is stored.
    fn give_up(&mut self, why: &str, error: &rekey::Error) {
        tracing::error!("it does not come to rest: {}", chain(error));
        self.mover = None;
        if let Some(keeper) = self.keeper.take() {
            keeper.give_up();
        }
        self.say(format!("{why}; {LOST}"));
    }

    /// Whether anything may be done with the disk below.
    fn may_touch(&self) -> bool {
        self.keeper.as_ref().is_none_or(|keeper| keeper.may_mend())
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
        if !self.may_touch() {
            return;
        }
        if let Err(error) = self.come_to_rest() {
            tracing::warn!(
                "the moving of data does not come to rest, and is recovered when the disk is \
                 served again: {}",
                chain(&error)
            );
            if let rekey::Error::Io { source, .. } = &error {
                self.leave_in_doubt(source);
            }
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
