//! A guest's driver: lays requests out in guest memory and makes them
//! available, mostly as a driver should.
#![forbid(unsafe_code)]

use sealblk::virtio::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::source::Source;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Request types: IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, and two that
/// do not exist here.
const KINDS: [u32; 8] = [0, 1, 4, 8, 11, 13, 14, 2];

/// Lengths of data segments.
const LENGTHS: [u32; 8] = [512, 4096, 1024, 65536, 511, 513, 0, 1];

/// Where things are in guest memory.
#[derive(Clone, Copy)]
pub struct Places {
    /// The ring's parts.
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// Entries of the ring.
    pub size: u16,
    /// Room for indirect tables.
    pub tables: (u64, u64),
    /// Room for headers, data and status bytes.
    pub data: (u64, u64),
    /// Size of the disk in sectors.
    pub capacity: u64,
}

impl Places {
    /// Bytes of a ring of `size` entries and its tables, laid out from `start`.
    pub const fn ring_bytes(size: u16) -> u64 {
        // 16 + 2 + 8 a descriptor, some fixed fields, and as much for tables.
        (64 * size as u64 + 4096).next_multiple_of(4096)
    }

    /// A ring with everything in the places that belong to it.
    pub fn new(start: u64, size: u16, data: (u64, u64), capacity: u64) -> Self {
        let entries = u64::from(size);
        let available = start + 16 * entries;
        let used = (available + 6 + 2 * entries).next_multiple_of(4);
        let tables = (used + 6 + 8 * entries).next_multiple_of(16);
        Places {
            descriptors: start,
            available,
            used,
            size,
            tables: (tables, start + Self::ring_bytes(size)),
            data,
            capacity,
        }
    }
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// The driver of one ring.
pub struct Driver {
    pub places: Places,
    /// Where the next chain goes in the descriptor table.
    descriptor: u16,
    /// The available index.
    available: u16,
    /// Where the next indirect table and the next data go.
    table: u64,
    data: u64,
}

impl Driver {
    pub fn new(places: Places) -> Self {
        Driver {
            descriptor: 0,
            available: 0,
            table: places.tables.0,
            data: places.data.0,
            places,
        }
    }

    /// The available index that was last stored.
    pub fn available(&self) -> u16 {
        self.available
    }

    /// Stores another available index, right or wrong.
    pub fn set_available(&mut self, memory: &Memory, index: u16) {
        self.available = index;
        put(memory, self.places.available + 2, &index.to_le_bytes());
    }

    /// Lays out the next request, and makes it available.
    pub fn submit(&mut self, memory: &Memory, source: &mut Source<'_>) {
        let mut chain = self.chain(memory, source);
        let indirect = source.byte() & 1 == 1;
        let table = match indirect {
            true => self.table(16 * chain.len() as u64),
            false => self.places.descriptors,
        };
        if !indirect && self.descriptor as usize + chain.len() > self.places.size.into() {
            self.descriptor = 0;
        }
        let first = if indirect { 0 } else { self.descriptor };
        link(&mut chain, first);
        if source.rarely() {
            for _ in 0..=source.below(4) {
                distort(&mut chain, source);
            }
        }
        for (index, descriptor) in chain.iter().enumerate() {
            let index = u64::from(first) + index as u64;
            put(memory, table + 16 * index, &descriptor.bytes());
        }
        let mut head = first;
        if indirect {
            head = self.descriptor % self.places.size;
            let mut outer = [Descriptor {
                address: table,
                len: 16 * chain.len() as u32,
                flags: INDIRECT,
                next: 0,
            }];
            if source.rarely() {
                distort(&mut outer, source);
            }
            let at = self.places.descriptors + 16 * u64::from(head);
            put(memory, at, &outer[0].bytes());
        }
        self.descriptor = head + if indirect { 1 } else { chain.len() as u16 };
        let head = source.mostly(head, Source::u16);
        let slot = u64::from(self.available % self.places.size);
        put(
            memory,
            self.places.available + 4 + 2 * slot,
            &head.to_le_bytes(),
        );
        let index = self.available.wrapping_add(1);
        self.set_available(memory, source.mostly(index, Source::u16));
    }

    /// Header, data and status of a request.
    fn chain(&mut self, memory: &Memory, source: &mut Source<'_>) -> Vec<Descriptor> {
        let kind = source.pick(&KINDS);
        let kind = source.mostly(kind, Source::u32);
        let sector = match source.below(4) {
            0 | 1 => u64::from(source.u16()) * 8 % self.places.capacity.max(1),
            2 => u64::from(source.u16()) % self.places.capacity.max(1),
            _ => source.mostly(self.places.capacity, Source::odd_number),
        };
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let mut chain = self.given(memory, source, &header);
        let takes = matches!(kind, 0 | 8);
        let shape = source.byte();
        match kind {
            0 | 1 => {
                for _ in 0..1 + shape % 8 {
                    let len = source.pick(&LENGTHS);
                    let len = source.mostly(len, Source::u32);
                    chain.push(self.piece(source, len, takes));
                }
            }
            8 => chain.push(self.piece(source, 20, true)),
            11 | 13 => {
                let ranges = self.ranges(source, 1 + usize::from(shape % 3));
                let data = self.given(memory, source, &ranges);
                chain.extend(data);
            }
            4 => {}
            _ => chain.push(self.piece(source, 512, shape & 1 == 1)),
        }
        match (takes && shape & 0x80 != 0, chain.last_mut()) {
            // The status byte ends the last piece of data.
            (true, Some(last)) => last.len = last.len.wrapping_add(1),
            _ => chain.push(self.piece(source, 1, true)),
        }
        chain
    }

    /// Ranges of DISCARD and WRITE_ZEROES.
    fn ranges(&self, source: &mut Source<'_>, count: usize) -> Vec<u8> {
        let count = source.mostly(count, |source| source.below(20));
        let mut bytes = Vec::with_capacity(16 * count);
        for _ in 0..count {
            let sector = u64::from(source.byte()) * 8 % self.places.capacity.max(1);
            let sector = source.mostly(sector, Source::odd_number);
            let sectors = 8 * u32::from(source.byte() % 64);
            let sectors = source.mostly(sectors, Source::u32);
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(u32::from(source.byte() & 3).to_le_bytes());
        }
        bytes
    }

    /// Bytes that the device reads, rarely cut into several descriptors.
    fn given(&mut self, memory: &Memory, source: &mut Source<'_>, bytes: &[u8]) -> Vec<Descriptor> {
        let cut = source.mostly(bytes.len(), |source| source.below(16));
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let mut chain = Vec::new();
        for part in [first, second] {
            if !part.is_empty() {
                let descriptor = self.piece(source, part.len() as u32, false);
                put(memory, descriptor.address, part);
                chain.push(descriptor);
            }
        }
        chain
    }

    /// A descriptor for memory that nothing else uses, or rarely anything.
    fn piece(&mut self, source: &mut Source<'_>, len: u32, writable: bool) -> Descriptor {
        let (start, end) = self.places.data;
        let room = u64::from(len).next_multiple_of(64);
        if self.data + room > end {
            self.data = start;
        }
        let address = self.data;
        self.data += room.min(end - start);
        let address = source.mostly(address, |source| match source.below(5) {
            0 => end.wrapping_sub(source.u16().into()),
            1 => start + (end - start) / 2 - u64::from(source.byte()),
            2 => self.places.descriptors + u64::from(source.u16()),
            3 => start + u64::from(source.u16()),
            _ => source.odd_number(),
        });
        Descriptor {
            address,
            len,
            flags: if writable { WRITE } else { 0 },
            next: 0,
        }
    }

    fn table(&mut self, bytes: u64) -> u64 {
        let (start, end) = self.places.tables;
        if self.table + bytes > end {
            self.table = start;
        }
        let table = self.table;
        self.table += bytes;
        table
    }
}

fn link(chain: &mut [Descriptor], first: u16) {
    let last = chain.len().saturating_sub(1);
    for (index, descriptor) in chain[..last].iter_mut().enumerate() {
        descriptor.flags |= NEXT;
        descriptor.next = first + index as u16 + 1;
    }
}

/// Changes one field of one descriptor.
fn distort(chain: &mut [Descriptor], source: &mut Source<'_>) {
    let at = source.below(chain.len());
    let descriptor = &mut chain[at];
    match source.below(6) {
        0 => descriptor.flags ^= WRITE,
        1 => descriptor.flags ^= NEXT,
        2 => descriptor.flags = source.u16(),
        3 => descriptor.next = source.u16() % 512,
        4 => descriptor.len = source.odd_number() as u32,
        _ => descriptor.address = source.odd_number(),
    }
}

/// Writes bytes where there is memory.
pub fn put(memory: &Memory, address: u64, bytes: &[u8]) {
    let _ = memory.write_slice(bytes, GuestAddress(address));
}
