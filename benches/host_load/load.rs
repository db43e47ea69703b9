//! The loop that keeps requests in flight and takes the time of each.

use std::time::{Duration, Instant};

use crate::Result;
use crate::histogram::Histogram;
use crate::job::{Job, Places};

/// Something that requests can be sent to.
pub trait Disk {
    /// Prepares the request of a slot; its buffer is the slot's.
    fn queue(&mut self, slot: usize, read: bool, offset: u64) -> Result<()>;

    /// Sends what was prepared, waits for one completion at least, and adds
    /// the slots of all that completed. Failed requests are errors.
    fn exchange(&mut self, completed: &mut Vec<usize>) -> Result<()>;
}

/// The time in which completions count.
#[derive(Clone, Copy)]
pub struct Window {
    pub start: Instant,
    pub end: Instant,
}

impl Window {
    /// From now on, for as long as there is something to do.
    pub fn all() -> Window {
        let start = Instant::now();
        let end = start + Duration::from_secs(3600);
        Window { start, end }
    }
}

/// What one queue did in the window.
pub struct Tally {
    pub requests: u64,
    pub bytes: u64,
    pub latency: Histogram,
}

impl Tally {
    pub fn sum(tallies: Vec<Tally>) -> Tally {
        let mut sum = Tally {
            requests: 0,
            bytes: 0,
            latency: Histogram::new(),
        };
        for tally in tallies {
            sum.requests += tally.requests;
            sum.bytes += tally.bytes;
            sum.latency.merge(&tally.latency);
        }
        sum
    }
}

/// Keeps `job.depth` requests in flight until the window ends or there are no
/// places left, then lets the last ones finish.
pub fn run(disk: &mut impl Disk, job: &Job, mut places: Places, window: Window) -> Result<Tally> {
    let mut tally = Tally::sum(Vec::new());
    let mut begun = vec![Instant::now(); job.depth];
    let mut completed: Vec<usize> = (0..job.depth).collect();
    let mut in_flight = 0;
    let mut first = true;
    loop {
        let now = Instant::now();
        let counts = !first && now >= window.start && now < window.end;
        first = false;
        for slot in completed.drain(..) {
            if counts {
                let latency = now.duration_since(begun[slot]);
                tally.latency.add(latency.as_nanos() as u64);
                tally.requests += 1;
                tally.bytes += job.block as u64;
            }
            if now >= window.end {
                continue;
            }
            if let Some((read, offset)) = places.next() {
                disk.queue(slot, read, offset)?;
                begun[slot] = now;
                in_flight += 1;
            }
        }
        if in_flight == 0 {
            return Ok(tally);
        }
        disk.exchange(&mut completed)?;
        in_flight -= completed.len();
    }
}
