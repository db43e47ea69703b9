//! The threads of a disk's queues, and their rings, which outlive front ends.
//!
//! A ring belongs to the thread that has enabled it, and can do what system calls can:
//! a process that serves makes its rings first, and none afterwards (`sandbox`). So
//! each queue has a thread with a ring from then on, which rests while no front end has
//! started the queue. Where nobody has [mustered](Crew::muster) them (tests,
//! benchmarks), a thread comes when its queue is started first.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::placement;
use super::queue::{Job, OPERATIONS, run};
use crate::store::Ring;

/// The buffers of one queue. Sixteen requests of 128 KiB, or 512 of 4 KiB.
const ARENA_BYTES: usize = 2 << 20;

/// A thread with a ring. It ends when nobody can give it jobs any more, or when its
/// ring is lost.
type Hand = Sender<Job>;

/// The threads of the queues of one disk.
#[derive(Default)]
pub struct Crew {
    hands: Mutex<Vec<Option<Hand>>>,
    /// All that there will ever be are there.
    complete: AtomicBool,
    /// One of those is of no use any more.
    lost: AtomicBool,
}

impl Crew {
    /// Makes the threads of so many queues, on these CPUs in turns. No others are made
    /// afterwards.
    ///
    /// # Errors
    /// When there is no thread, or no io_uring.
    pub fn muster(&self, queues: u16, cpus: &[u16]) -> io::Result<()> {
        let mut hands = self.hands();
        for index in hands.len()..queues.into() {
            let cpu = cpus.iter().copied().cycle().nth(index);
            hands.push(Some(hire(index, cpu)?));
        }
        self.complete.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a queue has lost its ring, so that it is never served again by this
    /// process.
    pub fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn hands(&self) -> MutexGuard<'_, Vec<Option<Hand>>> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread of the queue `index`, which runs on this CPU, do that.
    pub(super) fn begin(&self, index: usize, cpu: Option<u16>, job: Job) -> io::Result<()> {
        let mut hands = self.hands();
        if hands.len() <= index {
            hands.resize_with(index + 1, || None);
        }
        let refused = match &hands[index] {
            Some(hand) => hand.send(job).err().map(|error| error.0),
            None => Some(job),
        };
        let Some(job) = refused else {
            return Ok(());
        };
        if self.complete.load(Ordering::Relaxed) {
            self.lost.store(true, Ordering::Relaxed);
            let what = format!("the io_uring of queue {index} is lost, and no other is made");
            return Err(io::Error::other(what));
        }
        let hand = hire(index, cpu)?;
        let gone = || io::Error::other("the queue thread ended early");
        hand.send(job).map_err(|_| gone())?;
        hands[index] = Some(hand);
        Ok(())
    }
}

fn hire(index: usize, cpu: Option<u16>) -> io::Result<Hand> {
    let (hand, jobs) = mpsc::channel();
    let (made, is_made) = mpsc::sync_channel(1);
    // So that what the thread logs before it has a job says which disk it is about.
    let span = tracing::Span::current();
    std::thread::Builder::new()
        .name(resting(index))
        .spawn(move || {
            let ring = span.in_scope(|| make_ring(index, cpu));
            drop(span);
            work(index, ring, &made, &jobs);
        })?;
    let gone = |_| io::Error::other("the queue thread ended early");
    is_made.recv().map_err(gone)??;
    Ok(hand)
}

fn make_ring(index: usize, cpu: Option<u16>) -> io::Result<Ring> {
    // First of all: what follows is allocated where the thread runs.
    if let Some(cpu) = cpu
        && let Err(error) = placement::settle(cpu)
    {
        // It was there when the disk was opened. To serve is more important.
        tracing::warn!(%error, cpu, queue = index, "the queue cannot run on its CPU: it runs on any");
    }
    Ring::without_file(OPERATIONS.into(), ARENA_BYTES)
}

fn work(
    index: usize,
    ring: io::Result<Ring>,
    made: &SyncSender<io::Result<()>>,
    jobs: &Receiver<Job>,
) {
    let (mut ring, told) = match ring {
        Ok(ring) => (Some(ring), Ok(())),
        Err(error) => (None, Err(error)),
    };
    let _ = made.send(told);
    while let Some(own) = ring.take()
        && let Ok(job) = jobs.recv()
    {
        name(&format!("vq{index}"));
        ring = run(job, own);
        name(&resting(index));
    }
}

/// What the thread of a queue is called that nobody has started.
fn resting(index: usize) -> String {
    format!("rest{index}")
}

fn name(name: &str) {
    // For people who look at the process.
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}
