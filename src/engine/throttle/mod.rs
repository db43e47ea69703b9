//! Limits on what the guest of one disk may do: requests and bytes per second,
//! with bursts.
//!
//! [`Limits`] say what is permitted. All queues of the disk draw on the same
//! buckets (`bucket`), through a [`Throttle`]; each queue thread has a [`Gate`],
//! behind which requests wait for their turn, reads apart from writes. Nothing
//! fails because of a limit, and FLUSH never waits.
//!
//! A queue is given a turn in advance: what has to wait is charged at once and
//! told when it may begin. So queues take turns, whichever thread is faster,
//! and each thread wakes up when it may go on, and not before.
//!
//! Where no limit is set, all this is one look at a flag.
#![forbid(unsafe_code)]

mod bucket;
mod gate;
mod limits;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bucket::Buckets;
pub use bucket::Turn;
pub use gate::Gate;
pub use limits::{Burst, Cost, Lane, Limits, Rate, Rates};

use super::wakers::Wakers;

/// A moment, in nanoseconds since the throttle was made: the same for all
/// queues of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

/// What the queues of one disk share to keep its limits.
pub struct Throttle {
    /// Whether there is any limit.
    on: AtomicBool,
    /// Counts the times that the limits were changed.
    generation: AtomicU64,
    buckets: Mutex<Buckets>,
    /// What wakes the threads of the queues that run.
    wakers: Arc<Wakers>,
    epoch: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Throttle {
    /// A throttle that keeps to these limits.
    pub fn new(limits: &Limits) -> Self {
        Throttle {
            on: AtomicBool::new(!limits.is_none()),
            generation: AtomicU64::new(0),
            buckets: Mutex::new(Buckets::new(limits)),
            wakers: Arc::default(),
            epoch: Instant::now(),
        }
    }

    /// Whether there is any limit.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// The time.
    pub fn now(&self) -> Tick {
        Tick(self.epoch.elapsed().as_nanos() as u64)
    }

    /// Keeps to other limits from now on, also for requests that wait already.
    pub fn set(&self, limits: &Limits) {
        let mut buckets = lock(&self.buckets);
        *buckets = Buckets::new(limits);
        self.on.store(!limits.is_none(), Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        drop(buckets);
        self.wakers.wake_all();
    }

    /// What it wakes when the limits change.
    pub fn wakers(&self) -> &Arc<Wakers> {
        &self.wakers
    }

    /// How often the limits were changed. Turns that were given before count no
    /// more.
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The next turn for requests of these costs, the first of which waits
    /// longest: see [`Buckets::turn`].
    fn turn(&self, lane: Lane, costs: impl Iterator<Item = Cost>, now: Tick) -> Turn {
        lock(&self.buckets).turn(lane, costs, now)
    }

    /// Charges what goes at once, whatever the limits say.
    fn charge(&self, lane: Lane, cost: Cost) {
        lock(&self.buckets).charge(lane, cost);
    }
}

/// An eventfd to wake a thread with.
///
/// # Errors
/// When there are no more descriptors.
pub fn wake() -> io::Result<Arc<OwnedFd>> {
    use rustix::event::{EventfdFlags, eventfd};
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    Ok(Arc::new(wake))
}
