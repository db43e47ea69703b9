//! A disk with a volatile cache: the one that all simulations of power losses have.
//!
//! Sectors of 512 bytes are written whole or not at all. What was written since
//! the last sync may have reached the disk or not, each sector by itself and in
//! any order: when the power fails, each has what was durable, or anything written
//! to it since. A disk that writes larger blocks whole can be had as well.

use std::collections::BTreeMap;

use super::random::Random;

pub const SECTOR: usize = 512;
pub type Bytes = [u8; SECTOR];

/// What a write has put into a sector.
#[derive(Clone)]
struct Written {
    write: u64,
    bytes: Bytes,
}

#[derive(Clone)]
pub struct Disk {
    durable: Vec<Bytes>,
    /// Everything written to a sector since the last sync, oldest first.
    pending: BTreeMap<usize, Vec<Written>>,
}

/// What is left of the cache after a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    Everything,
    /// Each sector, or block of sectors, by itself.
    Any,
}

#[allow(dead_code, reason = "each test uses a part of it")]
impl Disk {
    pub fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(SECTOR));
        Disk {
            durable: vec![[0; SECTOR]; bytes / SECTOR],
            pending: BTreeMap::new(),
        }
    }

    /// How many sectors there are.
    pub fn sectors(&self) -> usize {
        self.durable.len()
    }

    /// So many sectors, at least: the new ones are zeroes.
    pub fn grow(&mut self, sectors: usize) {
        let sectors = sectors.max(self.durable.len());
        self.durable.resize(sectors, [0; SECTOR]);
    }

    pub fn sector(&self, number: usize) -> &Bytes {
        match self.pending.get(&number).and_then(|all| all.last()) {
            Some(written) => &written.bytes,
            None => &self.durable[number],
        }
    }

    /// All that a sector may hold after a power loss: what is durable is first.
    pub fn may_hold(&self, number: usize) -> impl Iterator<Item = &Bytes> {
        let pending = self.pending.get(&number).into_iter().flatten();
        std::iter::once(&self.durable[number]).chain(pending.map(|written| &written.bytes))
    }

    pub fn put(&mut self, number: usize, bytes: &Bytes) {
        self.put_by(0, number, bytes);
    }

    /// The same by a write of that number: they grow.
    pub fn put_by(&mut self, write: u64, number: usize, bytes: &Bytes) {
        assert!(number < self.durable.len(), "written beyond the end");
        let bytes = *bytes;
        let written = Written { write, bytes };
        self.pending.entry(number).or_default().push(written);
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64) {
        let first = offset as usize / SECTOR;
        for (number, bytes) in (first..).zip(buffer.chunks_mut(SECTOR)) {
            bytes.copy_from_slice(&self.sector(number)[..bytes.len()]);
        }
    }

    pub fn write(&mut self, bytes: &[u8], offset: u64) {
        let (sectors, rest) = bytes.as_chunks::<SECTOR>();
        assert!(rest.is_empty() && offset.is_multiple_of(SECTOR as u64));
        for (number, bytes) in (offset as usize / SECTOR..).zip(sectors) {
            self.put(number, bytes);
        }
    }

    pub fn sync(&mut self) {
        self.sync_what(|_| true);
    }

    /// Makes durable what writes have put there of which `covered` says so, and
    /// with them what had been there before.
    pub fn sync_what(&mut self, covered: impl Fn(u64) -> bool) {
        self.pending.retain(|number, all| {
            if let Some(last) = all.iter().rposition(|written| covered(written.write)) {
                self.durable[*number] = all[last].bytes;
                all.drain(..=last);
            }
            !all.is_empty()
        });
    }

    /// Whether something in those sectors would be lost now.
    pub fn is_pending(&self, sectors: std::ops::Range<usize>) -> bool {
        self.pending.range(sectors).next().is_some()
    }

    /// The power fails: of each sector, what `kept` says of it is left.
    pub fn lose_power(&mut self, random: &mut Random, kept: impl Fn(usize) -> Kept) {
        for (number, all) in std::mem::take(&mut self.pending) {
            let choice = match kept(number) {
                Kept::Nothing => 0,
                Kept::Everything => all.len(),
                Kept::Any => random.below(all.len() as u64 + 1) as usize,
            };
            if let Some(last) = choice.checked_sub(1) {
                self.durable[number] = all[last].bytes;
            }
        }
    }

    /// The power of a disk fails that writes blocks of so many sectors whole: of
    /// each, what `kept` says is left.
    pub fn lose_power_of_blocks(&mut self, random: &mut Random, kept: Kept, sectors: usize) {
        let mut blocks: BTreeMap<usize, Vec<(usize, Written)>> = BTreeMap::new();
        for (number, all) in std::mem::take(&mut self.pending) {
            let block = blocks.entry(number / sectors).or_default();
            block.extend(all.into_iter().map(|written| (number, written)));
        }
        for mut all in blocks.into_values() {
            all.sort_by_key(|(_, written)| written.write);
            let mut writes: Vec<u64> = all.iter().map(|(_, written)| written.write).collect();
            writes.dedup();
            let count = match kept {
                Kept::Nothing => 0,
                Kept::Everything => writes.len(),
                Kept::Any => random.below(writes.len() as u64 + 1) as usize,
            };
            let kept = &writes[..count];
            for (number, written) in all {
                if kept.contains(&written.write) {
                    self.durable[number] = written.bytes;
                }
            }
        }
    }
}
