//! What load a job is: its name says it all.

use std::str::FromStr;

/// A kind of load.
#[derive(Clone, Debug)]
pub struct Job {
    pub name: String,
    /// Bytes of each request.
    pub block: usize,
    /// Requests in flight on each queue.
    pub depth: usize,
    pub read_percent: u64,
    pub order: Order,
}

/// Which block comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Random,
    /// Around and around.
    Sequential,
    /// From the first to the last, and no further.
    Once,
}

impl Job {
    /// Writes all of the disk.
    pub fn fill() -> Job {
        Job {
            name: "fill".into(),
            block: 1 << 20,
            depth: 8,
            read_percent: 0,
            order: Order::Once,
        }
    }

    /// The places of one of several queues: sequential ones get a part of the
    /// disk each.
    pub fn places(&self, queue: usize, queues: usize, disk_bytes: u64) -> Places {
        let blocks = disk_bytes / self.block as u64;
        let share = blocks / queues as u64;
        let (first, blocks) = match self.order {
            Order::Random => (0, blocks),
            _ => (share * queue as u64, share),
        };
        Places {
            first,
            blocks,
            next: 0,
            block: self.block as u64,
            read_percent: self.read_percent,
            order: self.order,
            // Any odd number: another one for each queue.
            random: 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * queue as u64 + 1),
        }
    }
}

impl FromStr for Job {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let bad = || format!("{name:?} is no job: write it like randread-4k-32");
        let mut parts = name.split('-');
        let mut part = || parts.next().ok_or_else(bad);
        let (read_percent, order) = match part()? {
            "randread" => (100, Order::Random),
            "randwrite" => (0, Order::Random),
            "mix" => (70, Order::Random),
            "seqread" => (100, Order::Sequential),
            "seqwrite" => (0, Order::Sequential),
            _ => return Err(bad()),
        };
        let kib = part()?.strip_suffix('k').ok_or_else(bad)?;
        let kib: usize = kib.parse().map_err(|_| bad())?;
        let depth: usize = part()?.parse().map_err(|_| bad())?;
        if !(1..=4096).contains(&kib) || !(1..=256).contains(&depth) || parts.next().is_some() {
            return Err(bad());
        }
        Ok(Job {
            name: name.into(),
            block: kib << 10,
            depth,
            read_percent,
            order,
        })
    }
}

/// Where the requests of one queue go.
pub struct Places {
    first: u64,
    blocks: u64,
    next: u64,
    block: u64,
    read_percent: u64,
    order: Order,
    random: u64,
}

impl Places {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

impl Iterator for Places {
    /// Whether it is a read, and the byte offset.
    type Item = (bool, u64);

    fn next(&mut self) -> Option<(bool, u64)> {
        let read = match self.read_percent {
            0 => false,
            100 => true,
            percent => self.random() % 100 < percent,
        };
        let block = match self.order {
            Order::Random => self.random() % self.blocks,
            Order::Sequential => self.next % self.blocks,
            Order::Once if self.next == self.blocks => return None,
            Order::Once => self.next,
        };
        self.next += 1;
        Some((read, (self.first + block) * self.block))
    }
}
