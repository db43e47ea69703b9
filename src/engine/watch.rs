//! Operations that are in flight for too long: a disk below that is stuck.
//!
//! Each queue looks at its own operations, in the alarm that it sets before it
//! sleeps with something in flight: nothing is asked for per request. That a
//! thread does not come to that, since the kernel keeps it, others see by what
//! it counts: [`Lookout`] is for those who have a thread to spare.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::queue::QueueThread;
use super::stats::{Operation, QueueStats};
use super::trouble::{Work, now};

/// An operation that is in flight for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// What it does. [`Work::Unknown`] where only the thread of its queue could
    /// tell, which does not come back from the kernel.
    pub operation: Work,
    /// Where, in bytes of the disk.
    pub position: u64,
    /// How long it is.
    pub bytes: u64,
    /// Since when: seconds since 1970.
    pub since: u64,
    /// How many operations are.
    pub count: u64,
}

/// What the queues of a disk have found.
#[derive(Debug)]
pub struct Watch {
    after: Duration,
    found: Mutex<Vec<(usize, Stuck)>>,
}

impl Watch {
    /// Finds what is in flight for so long.
    pub fn new(after: Duration) -> Self {
        Watch {
            after,
            found: Mutex::default(),
        }
    }

    fn found(&self) -> MutexGuard<'_, Vec<(usize, Stuck)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long is too long.
    pub fn after(&self) -> Duration {
        self.after
    }

    /// How often to look.
    pub fn period(&self) -> Duration {
        (self.after / 4).max(Duration::from_millis(5))
    }

    /// The oldest of what is stuck, with the number of all.
    pub fn stuck(&self) -> Option<Stuck> {
        let found = self.found();
        let oldest = found.iter().map(|(_, stuck)| *stuck);
        let oldest = oldest.min_by_key(|stuck| stuck.since)?;
        Some(Stuck {
            count: found.iter().map(|(_, stuck)| stuck.count).sum(),
            ..oldest
        })
    }

    /// Notes what a queue has found. True when it is something else than before.
    fn note(&self, queue: usize, stuck: Option<Stuck>) -> bool {
        let mut found = self.found();
        let before = found.iter().position(|(number, _)| *number == queue);
        let was = before.map(|at| found.swap_remove(at).1);
        found.extend(stuck.map(|stuck| (queue, stuck)));
        was != stuck
    }
}

impl QueueThread {
    /// Looks for operations that are in flight for too long.
    #[cold]
    pub(super) fn look_for_stuck(&mut self) {
        let now_here = self.meter.read();
        let after = self.disk.watch().after();
        let late = self
            .ops
            .iter()
            .map(|op| (op.started.until(now_here), op))
            .filter(|(age, _)| *age >= after);
        let count = late.clone().count() as u64;
        let oldest = late.max_by_key(|(age, _)| *age);
        let stuck = oldest.map(|(age, op)| Stuck {
            operation: Work::from(op.kind),
            position: op.piece.start(),
            bytes: op.piece.len,
            since: now().saturating_sub(age.as_secs()),
            count,
        });
        let same = |a: &Stuck, b: &Stuck| {
            (a.operation, a.position, a.bytes, a.count)
                == (b.operation, b.position, b.bytes, b.count)
        };
        if let (Some(a), Some(b)) = (&self.stuck, &stuck)
            && same(a, b)
        {
            return;
        }
        let before = std::mem::replace(&mut self.stuck, stuck);
        self.disk.note_stuck(self.index, stuck, before);
    }

    /// The thread ends.
    pub(super) fn end_watch(&mut self) {
        if let Some(before) = self.stuck.take() {
            self.disk.note_stuck(self.index, None, Some(before));
        }
    }
}

impl Disk {
    /// A queue has found something else to be stuck than before.
    fn note_stuck(&self, queue: usize, stuck: Option<Stuck>, before: Option<Stuck>) {
        if !self.watch().note(queue, stuck) {
            return;
        }
        match (stuck, before) {
            (Some(stuck), None) => {
                tracing::error!(
                    operation = stuck.operation.as_str(),
                    position = stuck.position,
                    bytes = stuck.bytes,
                    operations = stuck.count,
                    queue,
                    "the disk below does not answer: an operation is in flight for longer than {:?}",
                    self.watch().after()
                );
                self.trouble().count_stuck();
            }
            (None, Some(before)) => {
                tracing::warn!(
                    operation = before.operation.as_str(),
                    position = before.position,
                    bytes = before.bytes,
                    seconds = now().saturating_sub(before.since),
                    queue,
                    "the disk below answers again"
                );
                self.trouble().stuck_changed();
            }
            _ => self.trouble().stuck_changed(),
        }
    }
}

/// Sees queue threads that do not come back from the kernel: whoever has a
/// thread that sleeps anyway [looks](Lookout::look) now and then.
pub struct Lookout {
    disk: Arc<Disk>,
    queues: Vec<Seen>,
    looked: Instant,
}

#[derive(Clone, Copy)]
struct Seen {
    marks: Marks,
    since: Instant,
    stuck: Option<Stuck>,
}

/// What moves when a thread does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Marks {
    entries: u64,
    sleeps: u64,
    operations: u64,
    in_flight: u64,
}

impl Marks {
    fn of(stats: &QueueStats) -> Self {
        let operations = Operation::ALL.iter().map(|it| stats.ended(*it));
        Marks {
            entries: stats.entries.get(),
            sleeps: stats.sleeps.get(),
            operations: operations.fold(0, u64::wrapping_add),
            in_flight: stats.in_flight(),
        }
    }
}

impl Lookout {
    /// For this disk.
    pub fn new(disk: Arc<Disk>) -> Self {
        let queues = (0..disk.shape().num_queues.into())
            .map(|queue| Seen {
                marks: Marks::of(disk.stats().queue(queue)),
                since: Instant::now(),
                stuck: None,
            })
            .collect();
        Lookout {
            disk,
            queues,
            looked: Instant::now(),
        }
    }

    /// How long whoever looks may sleep, while a front end is there.
    pub fn left(&self) -> Duration {
        let period = self.disk.watch().after();
        period.saturating_sub(self.looked.elapsed()) + Duration::from_millis(1)
    }

    /// Looks. A thread with requests that has counted nothing for too long is at
    /// the kernel: one that sleeps wakes more often than that.
    pub fn look(&mut self) {
        if self.looked.elapsed() < self.disk.watch().after() {
            return;
        }
        self.looked = Instant::now();
        let after = self.disk.watch().after();
        for (queue, seen) in self.queues.iter_mut().enumerate() {
            let marks = Marks::of(self.disk.stats().queue(queue));
            if marks != seen.marks || marks.in_flight == 0 {
                seen.marks = marks;
                seen.since = Instant::now();
                if let Some(before) = seen.stuck.take() {
                    // Its thread says from here on what it finds.
                    self.disk.note_stuck(queue, None, Some(before));
                }
                continue;
            }
            let age = seen.since.elapsed();
            if seen.stuck.is_none() && age >= after {
                let stuck = Stuck {
                    operation: Work::Unknown,
                    position: 0,
                    bytes: 0,
                    since: now().saturating_sub(age.as_secs()),
                    count: marks.in_flight,
                };
                seen.stuck = Some(stuck);
                self.disk.note_stuck(queue, Some(stuck), None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_told_with_the_number_of_all() {
        let watch = Watch::new(Duration::from_secs(30));
        assert_eq!(watch.stuck(), None);
        let stuck = |since, count| Stuck {
            operation: Work::Read,
            position: since,
            bytes: 512,
            since,
            count,
        };
        assert!(watch.note(1, Some(stuck(50, 2))));
        assert!(watch.note(0, Some(stuck(40, 3))));
        assert!(!watch.note(0, Some(stuck(40, 3))));
        let found = watch.stuck().unwrap();
        assert_eq!((found.since, found.count), (40, 5));
        assert!(watch.note(0, None));
        assert_eq!(watch.stuck(), Some(stuck(50, 2)));
        assert!(watch.note(1, None));
        assert_eq!(watch.stuck(), None);
    }
}
