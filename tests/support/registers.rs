//! A load of which every sector has a history: what it may hold, whatever crashes.
//!
//! A sector is a register. What was acknowledged last is what it holds, until the
//! next write to it is under way; a write that was not answered may have come to
//! pass or not. What a read has shown once holds from then on. No two requests that
//! are in flight touch the same sector, so that this is all there is to it.

use std::collections::HashMap;
use std::path::Path;

use super::front_end::{FrontEnd, Options};
use super::request::{Range, Request, S_IOERR, S_OK, SECTOR};

/// Numbers that look as if by chance, from a seed that is printed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }
}

/// What a write puts there: 0 is zeroes.
type Value = u64;

#[derive(Debug)]
enum Sent {
    Write {
        first: u64,
        sectors: u64,
        value: Value,
    },
    Read {
        first: u64,
        sectors: u64,
    },
    Flush,
}

/// A guest, over all its connections.
pub struct Registers {
    /// What each sector may hold.
    may: Vec<Vec<Value>>,
    busy: Vec<bool>,
    last: Value,
    dice: Dice,
    front: Option<FrontEnd>,
    queues: usize,
    zeroes: bool,
    sent: HashMap<u64, (usize, Sent)>,
    /// Requests that were answered.
    pub done: u64,
    /// Requests may fail: then what they were to write may be there or not.
    pub tolerant: bool,
    /// Reads, writes and flushes that have failed.
    pub failed: [u64; 3],
    /// Flushes that succeeded.
    pub flushed: u64,
}

/// The most requests in flight on each queue.
const DEPTH: usize = 8;
/// The most sectors of a request.
const LONGEST: u64 = 96;

/// What a sector holds that was written with `value`: no two sectors, and no two
/// writes, look alike.
pub fn stored(sector: u64, value: Value) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if value != 0 {
        let mut dice = Dice::new(value ^ (sector << 40));
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&dice.next().to_le_bytes());
        }
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        bytes[8..16].copy_from_slice(&sector.to_le_bytes());
    }
    bytes
}

impl Registers {
    /// A disk of so many bytes, all zeroes, on which nothing was done yet.
    /// `zeroes`: it is also told to write zeroes.
    pub fn new(bytes: u64, queues: usize, zeroes: bool, seed: u64) -> Registers {
        let sectors = (bytes / SECTOR as u64) as usize;
        Registers {
            may: vec![vec![0]; sectors],
            busy: vec![false; sectors],
            last: 0,
            dice: Dice::new(seed),
            front: None,
            queues,
            zeroes,
            sent: HashMap::new(),
            done: 0,
            tolerant: false,
            failed: [0; 3],
            flushed: 0,
        }
    }

    /// What these sectors hold was never a matter of this load.
    pub fn assume(&mut self, first: u64, value: Value, sectors: u64) {
        for sector in first..first + sectors {
            self.may[sector as usize] = vec![value];
        }
        self.last = self.last.max(value);
    }

    /// Connects, or connects anew.
    pub fn connect(&mut self, socket: &Path) -> std::io::Result<()> {
        self.leave();
        let options = Options {
            queues: self.queues,
            ..Options::default()
        };
        self.front = Some(FrontEnd::connect(socket, &options)?);
        Ok(())
    }

    /// Goes away, or the server has: what was not answered may have happened.
    pub fn leave(&mut self) {
        self.front = None;
        for (_, (_, sent)) in std::mem::take(&mut self.sent) {
            if let Sent::Write {
                first,
                sectors,
                value,
            } = sent
            {
                for sector in first..first + sectors {
                    self.may[sector as usize].push(value);
                }
            }
        }
        self.busy.fill(false);
    }

    fn range(&mut self) -> Option<(u64, u64)> {
        let total = self.may.len() as u64;
        let sectors = match self.dice.below(4) {
            0 => 1 + self.dice.below(LONGEST),
            _ => 8 * (1 + self.dice.below(LONGEST / 8)),
        };
        let first = self.dice.below(total - sectors + 1);
        let first = if sectors % 8 == 0 { first & !7 } else { first };
        let range = first as usize..(first + sectors) as usize;
        let free = self.busy[range].iter().all(|busy| !busy);
        free.then_some((first, sectors))
    }

    /// One more request, if there is room.
    fn submit(&mut self, queue: usize) -> bool {
        let Some(front) = &self.front else {
            return false;
        };
        if front.in_flight(queue) >= DEPTH {
            return false;
        }
        let what = self.dice.below(20);
        if what == 0 {
            return self.send(queue, Request::flush(), Sent::Flush);
        }
        let Some((first, sectors)) = self.range() else {
            return false;
        };
        for sector in first..first + sectors {
            self.busy[sector as usize] = true;
        }
        let bytes = sectors as usize * SECTOR;
        if what < 8 {
            return self.send(
                queue,
                Request::read(first, bytes),
                Sent::Read { first, sectors },
            );
        }
        if what == 8 && self.zeroes {
            let mut range = Range::new(first, sectors as u32);
            if self.dice.below(2) == 0 {
                range = range.unmap();
            }
            let sent = Sent::Write {
                first,
                sectors,
                value: 0,
            };
            return self.send(queue, Request::write_zeroes(&[range]), sent);
        }
        self.last += 1;
        let value = self.last;
        let data: Vec<u8> = (first..first + sectors)
            .flat_map(|sector| stored(sector, value))
            .collect();
        let sent = Sent::Write {
            first,
            sectors,
            value,
        };
        self.send(queue, Request::write(first, &data), sent)
    }

    fn send(&mut self, queue: usize, request: Request, sent: Sent) -> bool {
        let front = self.front.as_mut().unwrap();
        let ticket = front.submit(queue, request).unwrap();
        self.sent.insert(ticket, (queue, sent));
        true
    }

    /// Takes the answers that are there.
    fn take(&mut self, queue: usize) -> bool {
        let mut any = false;
        while let Some((ticket, outcome)) = self
            .front
            .as_mut()
            .and_then(|front| front.try_complete(queue))
        {
            let (_, sent) = self.sent.remove(&ticket).unwrap();
            match outcome.status {
                S_IOERR if self.tolerant => self.has_failed(&sent),
                status => {
                    assert_eq!(status, S_OK, "{sent:?}");
                    self.answered(&sent, &outcome.data);
                }
            }
            self.done += 1;
            any = true;
        }
        any
    }

    fn has_failed(&mut self, sent: &Sent) {
        let (kind, range) = match *sent {
            Sent::Read { first, sectors } => (0, first..first + sectors),
            Sent::Write { first, sectors, .. } => (1, first..first + sectors),
            Sent::Flush => (2, 0..0),
        };
        self.failed[kind] += 1;
        for sector in range {
            self.busy[sector as usize] = false;
            if let Sent::Write { value, .. } = *sent {
                self.may[sector as usize].push(value);
            }
        }
    }

    fn answered(&mut self, sent: &Sent, data: &[u8]) {
        match *sent {
            Sent::Flush => self.flushed += 1,
            Sent::Write {
                first,
                sectors,
                value,
            } => {
                for sector in first..first + sectors {
                    self.may[sector as usize] = vec![value];
                    self.busy[sector as usize] = false;
                }
            }
            Sent::Read { first, sectors } => {
                assert_eq!(data.len(), sectors as usize * SECTOR);
                for (sector, bytes) in (first..first + sectors).zip(data.chunks(SECTOR)) {
                    self.judge(sector, bytes);
                    self.busy[sector as usize] = false;
                }
            }
        }
    }

    /// Panics unless the sector may hold that, which it does from now on.
    pub fn judge(&mut self, sector: u64, bytes: &[u8]) {
        let may = &self.may[sector as usize];
        let value = may.iter().find(|value| stored(sector, **value) == *bytes);
        let Some(value) = value.copied() else {
            let says = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            panic!(
                "sector {sector} holds {:#x} of sector {:#x} and may hold one of {may:x?}",
                says(0),
                says(8)
            );
        };
        self.may[sector as usize] = vec![value];
    }

    /// Goes on until so many more requests are answered. False: nothing was
    /// answered for that long.
    pub fn run(&mut self, requests: u64, patience: std::time::Duration) -> bool {
        let wanted = self.done + requests;
        let mut since = std::time::Instant::now();
        while self.done < wanted {
            let mut any = false;
            for queue in 0..self.queues {
                while self.submit(queue) {}
                any |= self.take(queue);
            }
            if any {
                since = std::time::Instant::now();
            } else if since.elapsed() > patience {
                return false;
            } else {
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        }
        true
    }

    /// Submits as much as there is room for, and takes no answer.
    pub fn fill(&mut self) {
        for queue in 0..self.queues {
            while self.submit(queue) {}
        }
    }

    /// Waits for all that is in flight.
    pub fn drain(&mut self) {
        let deadline = std::time::Instant::now() + super::server::DEADLINE;
        while !self.sent.is_empty() {
            assert!(
                std::time::Instant::now() < deadline,
                "not answered: {:?}",
                self.sent
            );
            for queue in 0..self.queues {
                self.take(queue);
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }

    /// Reads all of the disk, and judges it.
    pub fn check_all(&mut self) {
        self.drain();
        let total = self.may.len() as u64;
        for first in (0..total).step_by(LONGEST as usize) {
            let sectors = LONGEST.min(total - first);
            let front = self.front.as_mut().unwrap();
            let data = front.read(first, sectors as usize * SECTOR);
            for (sector, bytes) in (first..).zip(data.chunks(SECTOR)) {
                self.judge(sector, bytes);
            }
        }
    }

    /// Judges what `plain` says all of the disk holds.
    pub fn check_bytes(&mut self, plain: &[u8]) {
        assert_eq!(plain.len(), self.may.len() * SECTOR);
        for (sector, bytes) in (0..).zip(plain.chunks(SECTOR)) {
            self.judge(sector, bytes);
        }
    }
}
