//! What others say to a mover, and what it says of itself.

use std::num::NonZeroU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Direction, Position};

/// How fast data is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pace {
    /// No more than so many bytes in a second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// How long a guest's request may wait for a region: regions become
    /// smaller while one waits longer.
    pub latency: Option<Duration>,
}

/// What a mover is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing is closed, and nothing is under way: this is safe for ever.
    #[default]
    Resting,
    /// Data is being moved.
    Moving,
    /// It rests for a moment, so as not to be faster than it may.
    Waiting,
    /// It was stopped by a failure. What it was about to move is still closed.
    Failed,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Units below this byte are new, the others old; and which way it goes on.
    pub position: Position,
    /// How long the disk is, in bytes.
    pub size: u64,
    /// So many bytes were moved since the mover was made; holes count.
    pub moved: u64,
    /// Bytes in a second, lately; 0 when nothing is moved.
    pub rate: u64,
    /// How long regions are at the moment, in bytes.
    pub region: u64,
    /// What it is doing.
    pub phase: Phase,
    /// The number of the newest durable record.
    pub sequence: u64,
}

impl Progress {
    /// How much is left to be moved, in bytes.
    pub fn left(&self) -> u64 {
        match self.position.direction {
            Direction::Forward => self.size - self.position.boundary,
            Direction::Back => self.position.boundary,
        }
    }

    /// How long that takes at this rate.
    pub fn time_left(&self) -> Option<Duration> {
        (self.rate > 0).then(|| Duration::from_secs(self.left() / self.rate))
    }
}

/// What a mover is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orders {
    pub rest: bool,
    pub direction: Direction,
    pub pace: Pace,
}

/// The way to a mover, from any thread.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
    progress: Mutex<Progress>,
}

impl Handle {
    pub(super) fn new(progress: Progress, pace: Pace) -> Self {
        Handle(Arc::new(Shared {
            orders: Mutex::new(Orders {
                rest: false,
                direction: progress.position.direction,
                pace,
            }),
            changed: Condvar::new(),
            progress: Mutex::new(progress),
        }))
    }

    /// Lets the mover come to rest, which takes the time of a region; its `run`
    /// returns then, and so does every later one until [`Handle::go_on`].
    pub fn rest(&self) {
        self.change(|orders| orders.rest = true);
    }

    /// Takes back [`Handle::rest`]. Somebody has to `run` the mover.
    pub fn go_on(&self) {
        self.change(|orders| orders.rest = false);
    }

    /// Lets it go on in that direction. It rests in between.
    pub fn turn(&self, direction: Direction) {
        self.change(|orders| orders.direction = direction);
    }

    /// Sets how fast it is, from the next region on.
    pub fn set_pace(&self, pace: Pace) {
        self.change(|orders| orders.pace = pace);
    }

    /// How fast it is to be.
    pub fn pace(&self) -> Pace {
        self.lock_orders().pace
    }

    /// How far it is, as of the last region.
    pub fn progress(&self) -> Progress {
        *self.lock_progress()
    }

    pub(super) fn orders(&self) -> Orders {
        *self.lock_orders()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock_progress());
    }

    /// Waits until then, or until there are other orders than were `seen`.
    pub(super) fn wait_until(&self, due: Instant, seen: &Orders) {
        let left = due.saturating_duration_since(Instant::now());
        let orders = self.lock_orders();
        drop(
            self.0
                .changed
                .wait_timeout_while(orders, left, |orders| orders == seen),
        );
    }

    fn change(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.lock_orders());
        self.0.changed.notify_all();
    }

    fn lock_orders(&self) -> MutexGuard<'_, Orders> {
        self.0.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_progress(&self) -> MutexGuard<'_, Progress> {
        self.0
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
