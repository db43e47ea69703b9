//! A guest that writes, discards and flushes, and what it was told when: what it
//! must find after the power has failed at any time.
//!
//! A sector has what was written last before a flush began that has succeeded, or
//! any write to it that came later. Without a cache of its own, a disk has what
//! was answered last, or something later. No two requests that are in flight
//! touch the same sector.

use std::collections::HashMap;
use std::path::Path;

use crate::events::Log;
use crate::platter::SECTOR;
use crate::random::Random;
use crate::support::front_end::{FrontEnd, Options};
use crate::support::registers::stored;
use crate::support::request::{Range, Request, S_OK};
use crate::support::server::DEADLINE;

/// What a guest does, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub queues: usize,
    /// The smallest piece that it writes, in sectors.
    pub unit: u64,
    /// It discards, and zeroes so that space is given back.
    pub discards: bool,
    /// A flush among so many requests; 0 for none.
    pub flush: u64,
    /// The disk says a write when it is durable.
    pub write_through: bool,
    /// Features that the guest does not know.
    pub without: u64,
}

/// A write to a sector. The first of each is what was there before.
#[derive(Clone, Copy, Debug)]
struct Wrote {
    value: u64,
    /// When the guest had the answer: among what it did, and of the log.
    answered: Option<(u64, usize)>,
}

/// A flush that has succeeded.
#[derive(Clone, Copy, Debug)]
struct Flush {
    /// What was answered before is meant.
    sent: u64,
    answered_at: usize,
}

enum Doing {
    Write { first: u64, sectors: u64 },
    Read { first: u64, least: Vec<usize> },
    Flush { sent: u64 },
}

/// What was done, and when.
pub struct History {
    sectors: Vec<Vec<Wrote>>,
    flushes: Vec<Flush>,
    write_through: bool,
    /// All sectors were written and made durable by then.
    pub begun_at: usize,
    pub writes: u64,
}

pub struct Guest<'a> {
    log: &'a Log,
    habits: Habits,
    random: Random,
    front: FrontEnd,
    history: History,
    busy: Vec<bool>,
    doing: HashMap<u64, (usize, Doing)>,
    step: u64,
    value: u64,
}

const DEPTH: usize = 8;
const LONGEST: u64 = 96;

impl<'a> Guest<'a> {
    /// Connects to a disk of so many sectors, and writes all of it.
    pub fn start(
        socket: &Path,
        sectors: u64,
        habits: Habits,
        log: &'a Log,
        random: Random,
    ) -> Guest<'a> {
        let options = Options {
            queues: habits.queues,
            ..Options::without(habits.without)
        };
        let mut guest = Guest {
            log,
            habits,
            random,
            front: FrontEnd::connect(socket, &options).unwrap(),
            history: History {
                sectors: vec![Vec::new(); sectors as usize],
                flushes: Vec::new(),
                write_through: habits.write_through,
                begun_at: 0,
                writes: 0,
            },
            busy: vec![false; sectors as usize],
            doing: HashMap::new(),
            step: 0,
            value: 0,
        };
        for first in (0..sectors).step_by(LONGEST as usize) {
            guest.write(0, first, LONGEST.min(sectors - first));
            guest.settle();
        }
        if habits.flush != 0 {
            guest.flush(0);
            guest.settle();
        }
        guest.history.begun_at = log.now();
        guest
    }

    /// Does so many things, and leaves without a farewell.
    pub fn run(mut self, requests: u64) -> History {
        let mut sent = 0;
        let mut since = std::time::Instant::now();
        while sent < requests {
            let before = (sent, self.doing.len());
            for queue in 0..self.habits.queues {
                while self.front.in_flight(queue) < DEPTH && sent < requests {
                    if !self.act(queue) {
                        break;
                    }
                    sent += 1;
                }
                self.take(queue);
            }
            if before == (sent, self.doing.len()) {
                assert!(since.elapsed() < DEADLINE, "nothing is answered");
                std::thread::sleep(std::time::Duration::from_micros(50));
            } else {
                since = std::time::Instant::now();
            }
        }
        // Half of the time, some are in flight in the end.
        if self.random.once_in(2) {
            self.settle();
        }
        self.history
    }

    fn settle(&mut self) {
        let since = std::time::Instant::now();
        while !self.doing.is_empty() {
            (0..self.habits.queues).for_each(|queue| self.take(queue));
            assert!(since.elapsed() < DEADLINE, "requests are not answered");
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    }

    /// One more request. False: there was no room for it.
    fn act(&mut self, queue: usize) -> bool {
        if self.habits.flush != 0 && self.random.once_in(self.habits.flush) {
            self.flush(queue);
            return true;
        }
        let Habits { unit, discards, .. } = self.habits;
        let total = self.busy.len() as u64;
        // Mostly where others have been, so that writes stand on writes.
        let reach = if self.random.once_in(3) {
            total
        } else {
            total.min(512)
        };
        let sectors = unit * (1 + self.random.below(LONGEST / unit));
        let first = self.random.below((reach - sectors) / unit + 1) * unit;
        let range = first as usize..(first + sectors) as usize;
        if self.busy[range].iter().any(|busy| *busy) {
            return false;
        }
        match self.random.below(10) {
            0 | 1 => self.read(queue, first, sectors),
            2 if discards => {
                let range = Range::new(first, sectors as u32);
                let request = match self.random.below(3) {
                    0 => Request::discard(&[range]),
                    1 => Request::write_zeroes(&[range.unmap()]),
                    _ => Request::write_zeroes(&[range]),
                };
                self.note_write(first, sectors, 0);
                self.submit(queue, request, Doing::Write { first, sectors });
            }
            _ => self.write(queue, first, sectors),
        }
        true
    }

    fn note_write(&mut self, first: u64, sectors: u64, value: u64) {
        self.history.writes += 1;
        for sector in first..first + sectors {
            let wrote = Wrote {
                value,
                answered: None,
            };
            self.history.sectors[sector as usize].push(wrote);
            self.busy[sector as usize] = true;
        }
    }

    fn write(&mut self, queue: usize, first: u64, sectors: u64) {
        self.value += 1;
        let value = self.value;
        let data: Vec<u8> = (first..first + sectors)
            .flat_map(|sector| stored(sector, value))
            .collect();
        self.note_write(first, sectors, value);
        let request = Request::write(first, &data);
        self.submit(queue, request, Doing::Write { first, sectors });
    }

    fn read(&mut self, queue: usize, first: u64, sectors: u64) {
        let range = first as usize..(first + sectors) as usize;
        let last = |wrote: &Vec<Wrote>| wrote.len() - 1;
        let least = self.history.sectors[range.clone()].iter().map(last);
        let least = least.collect();
        self.busy[range].fill(true);
        let request = Request::read(first, sectors as usize * SECTOR);
        self.submit(queue, request, Doing::Read { first, least });
    }

    fn flush(&mut self, queue: usize) {
        let sent = self.step;
        self.submit(queue, Request::flush(), Doing::Flush { sent });
    }

    fn submit(&mut self, queue: usize, request: Request, doing: Doing) {
        self.step += 1;
        let ticket = self.front.submit(queue, request).unwrap();
        self.doing.insert(ticket, (queue, doing));
    }

    fn take(&mut self, queue: usize) {
        while let Some((ticket, outcome)) = self.front.try_complete(queue) {
            assert_eq!(outcome.status, S_OK);
            // Not before the answer is here.
            let (step, now) = (self.step, self.log.now());
            self.step += 1;
            match self.doing.remove(&ticket).unwrap().1 {
                Doing::Flush { sent } => self.history.flushes.push(Flush {
                    sent,
                    answered_at: now,
                }),
                Doing::Write { first, sectors } => {
                    for sector in first as usize..(first + sectors) as usize {
                        let last = self.history.sectors[sector].last_mut().unwrap();
                        last.answered = Some((step, now));
                        self.busy[sector] = false;
                    }
                }
                Doing::Read { first, least } => {
                    let sectors = outcome.data.chunks(SECTOR).zip(least);
                    for (sector, (bytes, least)) in (first as usize..).zip(sectors) {
                        let wrote = self.history.sectors[sector][least];
                        assert!(bytes == stored(sector as u64, wrote.value), "{sector}");
                        self.busy[sector] = false;
                    }
                }
            }
        }
    }
}

impl History {
    /// The oldest write that each sector may have when the power fails at `at`.
    pub fn floors(&self, at: usize) -> Vec<usize> {
        let told = self.flushes.iter().filter(|flush| flush.answered_at <= at);
        let meant = told.map(|flush| flush.sent).max();
        let floor = |wrote: &Vec<Wrote>| {
            let is_durable = |wrote: &Wrote| {
                wrote.answered.is_some_and(|(step, answered_at)| {
                    meant.is_some_and(|meant| step < meant)
                        || self.write_through && answered_at <= at
                })
            };
            wrote.iter().rposition(is_durable).unwrap_or(0)
        };
        self.sectors.iter().map(floor).collect()
    }

    /// When what must be there changes.
    pub fn times(&self) -> Vec<usize> {
        let mut times: Vec<usize> = self.flushes.iter().map(|flush| flush.answered_at).collect();
        if self.write_through {
            let answered = |wrote: &Wrote| wrote.answered.map(|(_, at)| at);
            times.extend(self.sectors.iter().flatten().filter_map(answered));
        }
        times.sort_unstable();
        times.dedup();
        times
    }

    pub fn sectors(&self) -> usize {
        self.sectors.len()
    }

    /// Whether a sector may have these contents, when the oldest write that it may
    /// have is `floor`.
    pub fn judge(&self, sector: usize, plain: &[u8], floor: usize) -> Result<(), String> {
        let all = &self.sectors[sector];
        let is = |wrote: &Wrote| stored(sector as u64, wrote.value) == plain;
        if all[floor..].iter().any(is) {
            return Ok(());
        }
        Err(match all[..floor].iter().rposition(is) {
            Some(older) => format!(
                "sector {sector} has write {older}, {:?}, and must have {floor}, {:?}, or a later one",
                all[older], all[floor]
            ),
            None => format!(
                "sector {sector} has nothing that was ever written: {:x?}",
                &plain[..16]
            ),
        })
    }
}
