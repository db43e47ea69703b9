//! A disk with a volatile cache.
//!
//! Sectors of 512 bytes are written whole or not at all. What was written since
//! the last sync may have reached the disk or not, each sector by itself: when
//! the power fails, each has what was durable, or anything written to it since.

use std::collections::BTreeMap;

use super::random::Random;

pub const SECTOR: usize = 512;
pub type Bytes = [u8; SECTOR];

#[derive(Clone)]
pub struct Disk {
    durable: Vec<Bytes>,
    /// Everything written to a sector since the last sync, oldest first.
    pending: BTreeMap<usize, Vec<Bytes>>,
}

/// What is left of the cache after a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    Everything,
    /// Each sector by itself.
    Any,
}

impl Disk {
    pub fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(SECTOR));
        Disk {
            durable: vec![[0; SECTOR]; bytes / SECTOR],
            pending: BTreeMap::new(),
        }
    }

    pub fn sector(&self, number: usize) -> &Bytes {
        match self.pending.get(&number).and_then(|all| all.last()) {
            Some(bytes) => bytes,
            None => &self.durable[number],
        }
    }

    pub fn put(&mut self, number: usize, bytes: &Bytes) {
        assert!(number < self.durable.len(), "written beyond the end");
        self.pending.entry(number).or_default().push(*bytes);
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
        for (number, all) in std::mem::take(&mut self.pending) {
            if let Some(bytes) = all.last() {
                self.durable[number] = *bytes;
            }
        }
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
                self.durable[number] = all[last];
            }
        }
    }
}
