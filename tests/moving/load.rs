//! Requests of all kinds on several queues, and a model of what the disk holds.
//! No two in flight touch the same sector if one of them writes, so that there is
//! one right answer to each.

use std::collections::HashMap;
use std::ops::Range;

use crate::support::front_end::FrontEnd;
use crate::support::in_process::BYTES;
use crate::support::request::{self, Outcome, Request, S_IOERR, S_OK};

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit.max(1)
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len / 8)
            .flat_map(|_| self.word().to_ne_bytes())
            .collect();
        bytes.resize(len, 7);
        bytes
    }
}

/// What is in flight.
enum Asked {
    /// It must give this.
    Read(Range<usize>),
    /// Parts of the disk, with what was there before.
    Change(Vec<(Range<usize>, Vec<u8>)>),
    Flush,
}

pub struct Load {
    pub random: Random,
    pub model: Vec<u8>,
    unit: usize,
    discard: bool,
    /// Readers of each unit; a writer is `WRITER`.
    busy: Vec<u16>,
    /// With the bytes of memory that each has.
    asked: [HashMap<u64, (Asked, u64)>; 2],
    in_flight: u64,
    /// Parts that hold what was there before, or what was written.
    unsure: Vec<(Range<usize>, Vec<u8>)>,
    pub answered: u64,
    pub failed: u64,
}

const WRITER: u16 = u16::MAX;

/// Bytes of data in flight at most.
const MOST: u64 = 8 << 20;

impl Load {
    pub fn new(seed: u64, unit: usize, discard: bool) -> Load {
        Load {
            random: Random(seed),
            model: vec![0; BYTES as usize],
            unit,
            discard,
            busy: vec![0; BYTES as usize / unit],
            asked: Default::default(),
            in_flight: 0,
            unsure: vec![],
            answered: 0,
            failed: 0,
        }
    }

    /// A part of the disk, near that byte or anywhere.
    fn place(&mut self, near: u64, most: u64) -> Range<usize> {
        let unit = self.unit as u64;
        let units = BYTES / unit;
        let len = 1 + self.random.below(most / unit);
        let reach = (1 << 20) / unit;
        let first = match self.random.below(3) {
            0 => self.random.below(units),
            _ => (near / unit + self.random.below(reach)).saturating_sub(reach / 3),
        };
        let first = first.min(units - 1);
        let end = (first + len).min(units);
        first as usize * self.unit..end as usize * self.unit
    }

    fn units(&mut self, range: &Range<usize>) -> &mut [u16] {
        let unit = self.unit;
        &mut self.busy[range.start / unit..range.end / unit]
    }

    fn change(&mut self, range: &Range<usize>, data: Option<&[u8]>) -> (Range<usize>, Vec<u8>) {
        self.units(range).fill(WRITER);
        let part = &mut self.model[range.clone()];
        let before = part.to_vec();
        match data {
            Some(data) => part.copy_from_slice(data),
            None => part.fill(0),
        }
        (range.clone(), before)
    }

    fn range(range: &Range<usize>) -> request::Range {
        request::Range::new(range.start as u64 / 512, (range.len() / 512) as u32)
    }

    /// Some request, if what it would touch is free.
    fn request(&mut self, near: u64) -> Option<(Request, Asked, u64)> {
        let most = match self.random.below(40) {
            0 => 1 << 20,
            1..6 => 128 << 10,
            _ => 16 << 10,
        };
        let kind = self.random.below(100);
        if kind < 3 {
            return Some((Request::flush(), Asked::Flush, 0));
        }
        if kind < 12 {
            // Several ranges, of which one may be a large part of the disk.
            let count = 1 + self.random.below(4);
            let mut changes = vec![];
            let mut ranges = vec![];
            let unmap = self.discard && self.random.below(2) == 0;
            for _ in 0..count {
                let most = if unmap && self.random.below(4) == 0 {
                    6 << 20
                } else {
                    most
                };
                let range = self.place(near, most);
                if self.units(&range).iter().all(|users| *users == 0) {
                    changes.push(self.change(&range, None));
                    ranges.push(Self::range(&range));
                }
            }
            if ranges.is_empty() {
                return None;
            }
            let request = match (unmap, self.random.below(2)) {
                (false, _) => Request::write_zeroes(&ranges),
                (true, 0) => Request::discard(&ranges),
                (true, _) => {
                    let ranges: Vec<_> = ranges.into_iter().map(|range| range.unmap()).collect();
                    Request::write_zeroes(&ranges)
                }
            };
            return Some((request, Asked::Change(changes), 0));
        }
        let range = self.place(near, most);
        let (sector, len) = (range.start as u64 / 512, range.len());
        let cuts: Vec<usize> = (0..self.random.below(4))
            .map(|_| 1 + self.random.below(len as u64 / 2) as usize)
            .scan(len, |left, cut| {
                *left = left.checked_sub(cut)?;
                (*left > 0).then_some(cut)
            })
            .collect();
        if kind < 55 {
            if self.units(&range).contains(&WRITER) {
                return None;
            }
            self.units(&range).iter_mut().for_each(|users| *users += 1);
            let request = Request::read(sector, len).cut(&cuts);
            return Some((request, Asked::Read(range), len as u64));
        }
        if self.units(&range).iter().any(|users| *users != 0) {
            return None;
        }
        let data = self.random.bytes(len);
        let change = self.change(&range, Some(&data));
        let request = Request::write(sector, &data).cut(&cuts);
        Some((request, Asked::Change(vec![change]), len as u64))
    }

    /// Fills the queues up to a depth, with requests near that byte of the disk,
    /// and checks all answers that have come.
    pub fn turn(&mut self, front: &mut FrontEnd, near: u64, depth: usize) {
        for queue in 0..self.asked.len() {
            for _ in 0..8 {
                if front.in_flight(queue) >= depth || self.in_flight > MOST {
                    break;
                }
                if let Some((request, asked, bytes)) = self.request(near) {
                    self.in_flight += bytes;
                    let ticket = front.submit(queue, request).unwrap();
                    self.asked[queue].insert(ticket, (asked, bytes));
                }
            }
        }
        self.look(front);
        std::thread::yield_now();
    }

    fn look(&mut self, front: &mut FrontEnd) {
        for queue in 0..self.asked.len() {
            while let Some((ticket, outcome)) = front.try_complete(queue) {
                self.answer(queue, ticket, outcome);
            }
        }
    }

    fn answer(&mut self, queue: usize, ticket: u64, outcome: Outcome) {
        let (asked, bytes) = self.asked[queue].remove(&ticket).unwrap();
        self.answered += 1;
        self.in_flight -= bytes;
        let good = outcome.status == S_OK;
        assert!(good || outcome.status == S_IOERR);
        self.failed += u64::from(!good);
        match asked {
            Asked::Read(range) => {
                self.units(&range).iter_mut().for_each(|users| *users -= 1);
                if good {
                    self.compare(&range, &outcome.data);
                }
            }
            Asked::Change(changes) => {
                for (range, before) in changes {
                    if !good {
                        self.unsure.push((range, before));
                    } else {
                        self.units(&range).fill(0);
                    }
                }
            }
            Asked::Flush => {}
        }
    }

    fn compare(&self, range: &Range<usize>, data: &[u8]) {
        let expected = &self.model[range.clone()];
        if expected != data {
            let sectors = expected.chunks(512).zip(data.chunks(512));
            let wrong: Vec<usize> = sectors
                .enumerate()
                .filter(|(_, (one, other))| one != other)
                .map(|(at, _)| range.start / 512 + at)
                .collect();
            panic!("sectors {wrong:?} of {range:?} are wrong");
        }
    }

    /// Waits for all answers.
    pub fn drain(&mut self, front: &mut FrontEnd) {
        for queue in 0..self.asked.len() {
            while front.in_flight(queue) > 0 {
                let (ticket, outcome) = front.complete(queue).unwrap();
                self.answer(queue, ticket, outcome);
            }
        }
    }

    /// The front end is gone, and nobody will be told what came of its requests.
    pub fn abandon(&mut self) {
        for asked in self
            .asked
            .iter_mut()
            .flat_map(HashMap::drain)
            .map(|(_, (asked, _))| asked)
        {
            if let Asked::Change(changes) = asked {
                self.unsure.extend(changes);
            }
        }
        self.busy.fill(0);
        self.in_flight = 0;
    }

    /// Finds out what became of changes that failed, or were abandoned: each
    /// sector is what was there before, or what was written.
    pub fn settle(&mut self, front: &mut FrontEnd) {
        self.drain(front);
        for (range, before) in std::mem::take(&mut self.unsure) {
            for at in range.clone().step_by(1 << 20) {
                let end = range.end.min(at + (1 << 20));
                let data = front.read(at as u64 / 512, end - at);
                for (sector, data) in (at..end).step_by(512).zip(data.chunks(512)) {
                    let old = &before[sector - range.start..][..512];
                    let new = &mut self.model[sector..sector + 512];
                    assert!(data == old || data == new, "sector {}", sector / 512);
                    new.copy_from_slice(data);
                }
            }
            self.units(&range).fill(0);
        }
    }

    /// Writes everything: there are no holes then.
    pub fn fill(&mut self, front: &mut FrontEnd) {
        for at in (0..BYTES as usize).step_by(1 << 20) {
            let data = self.random.bytes(1 << 20);
            front.write(at as u64 / 512, &data);
            self.model[at..at + (1 << 20)].copy_from_slice(&data);
        }
    }

    /// Reads everything.
    pub fn read_all(&mut self, front: &mut FrontEnd) {
        for at in (0..BYTES as usize).step_by(1 << 20) {
            let data = front.read(at as u64 / 512, 1 << 20);
            self.compare(&(at..at + (1 << 20)), &data);
        }
    }
}
