//! Descriptor chains one by one, and what a device has to make of each: a model of
//! its own, which reads guest memory as VIRTIO says, and knows what is on the disk.
#![forbid(unsafe_code)]

use sealblk::units::SectorSize;
use sealblk::virtio::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::disk;
use crate::front_end::{DATA, DATA_BYTES, RINGS, RINGS_BYTES};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// One descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    fn read(memory: &Memory, at: u64) -> Option<Self> {
        let mut bytes = [0; 16];
        memory.read_slice(&mut bytes, GuestAddress(at)).ok()?;
        let half = |at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Some(Descriptor {
            address: u64::from_le_bytes(bytes[..8].try_into().ok()?),
            len: u32::from_le_bytes(bytes[8..12].try_into().ok()?),
            flags: half(12),
            next: half(14),
        })
    }
}

/// The chain at `head`, if it is one: it ends, within its table, and no part of it
/// is more than it may be.
pub fn walk(memory: &Memory, table: u64, size: u16, head: u16) -> Option<Vec<Descriptor>> {
    let first = Descriptor::read(memory, table + 16 * u64::from(head))?;
    let (table, size, mut at) = match first.flags & INDIRECT {
        0 => (table, u32::from(size), head),
        // That another one follows, as no driver may say (2.7.5.3.1), is not heard.
        _ if first.len == 0 || !first.len.is_multiple_of(16) => return None,
        _ => (first.address, first.len / 16, 0),
    };
    if size > u32::from(u16::MAX) {
        return None;
    }
    let mut chain = Vec::new();
    let mut total = 0u64;
    loop {
        if u32::from(at) >= size || chain.len() as u32 >= size {
            return None;
        }
        let descriptor = Descriptor::read(memory, table.checked_add(16 * u64::from(at))?)?;
        if descriptor.flags & INDIRECT != 0 {
            return None;
        }
        total += u64::from(descriptor.len);
        chain.push(descriptor);
        if total > u64::from(u32::MAX) {
            return None;
        }
        if descriptor.flags & NEXT == 0 {
            return Some(chain);
        }
        at = descriptor.next;
    }
}

/// Bytes of guest memory.
type Span = (u64, u64);

fn is_within(span: Span, (start, len): Span) -> bool {
    let end = span.0.checked_add(span.1);
    span.0 >= start && end.is_some_and(|end| end <= start + len)
}

fn touches(span: Span, (start, len): Span) -> bool {
    span.0 < start + len && span.0.saturating_add(span.1) > start
}

fn is_mapped(span: Span) -> bool {
    is_within(span, (DATA, DATA_BYTES)) || is_within(span, (RINGS, RINGS_BYTES))
}

/// Whether the device would be told to write over its own rings.
pub fn endangers_rings(chain: &[Descriptor]) -> bool {
    chain.iter().any(|descriptor| {
        touches(
            (descriptor.address, descriptor.len.into()),
            (RINGS, RINGS_BYTES),
        )
    })
}

/// What is known of disk and guest memory.
pub struct World {
    /// All data of the disk.
    pub disk: Vec<u8>,
    /// The guest's region for data.
    pub data: Vec<u8>,
    pub sector_size: SectorSize,
    pub read_only: bool,
}

/// What the device has to say.
#[derive(Debug, Default)]
pub struct Expected {
    /// The status, if that is certain, and there is a place for it.
    pub status: Option<u8>,
    /// The length in the used ring, at least and at most.
    pub len: (u32, u32),
    /// Where the guest's memory may be anything now.
    pub loose: Vec<Span>,
    /// The disk may be anything now where the request says so: it is read again.
    pub disk_is_open: bool,
}

impl World {
    fn slice(&mut self, (start, len): Span) -> Option<&mut [u8]> {
        if !is_within((start, len), (DATA, DATA_BYTES)) {
            return None;
        }
        let at = (start - DATA) as usize;
        self.data.get_mut(at..at + len as usize)
    }

    /// Carries a chain out here, and says how the device has to.
    pub fn carry_out(&mut self, chain: Option<&[Descriptor]>) -> Expected {
        let Some(chain) = chain else {
            // It is given back, with an error if there is room for one.
            return Expected {
                len: (0, 1),
                loose: vec![(DATA, DATA_BYTES)],
                ..Expected::default()
            };
        };
        let mut given = Vec::new();
        let mut taken: Vec<Span> = Vec::new();
        let mut header = Vec::new();
        let mut fault = false;
        let mut payload_len = 0u64;
        for descriptor in chain.iter().filter(|descriptor| descriptor.len > 0) {
            let mut span = (descriptor.address, u64::from(descriptor.len));
            if descriptor.flags & WRITE != 0 {
                taken.push(span);
                fault |= payload_len == 0 && !is_mapped(span);
                continue;
            }
            if !taken.is_empty() {
                fault = true;
                continue;
            }
            let count = (16 - header.len() as u64).min(span.1);
            if count > 0 {
                match self.slice((span.0, count)) {
                    Some(bytes) => header.extend_from_slice(bytes),
                    None => {
                        fault = true;
                        header.extend(vec![0; count as usize]);
                    }
                }
            }
            span = (span.0.wrapping_add(count), span.1 - count);
            payload_len += span.1;
            if span.1 > 0 {
                match self.slice(span) {
                    Some(bytes) => given.extend_from_slice(bytes),
                    None => fault = true,
                }
            }
        }
        let status = taken
            .last()
            .and_then(|(start, len)| start.checked_add(len - 1))
            .filter(|at| is_mapped((*at, 1)));
        let Some(status) = status else {
            return Expected::default();
        };
        if fault || header.len() < 16 {
            return self.end(status, IO_ERROR, 0);
        }
        if let Some(last) = taken.last_mut() {
            last.1 -= 1;
        }
        taken.retain(|(_, len)| *len > 0);
        let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        self.request(kind, sector, &given, &taken, status)
    }

    fn end(&mut self, at: u64, status: u8, data: u32) -> Expected {
        if let Some(byte) = self.slice((at, 1)) {
            byte[0] = status;
        }
        let len = data + 1;
        Expected {
            status: Some(status),
            len: (len, len),
            ..Expected::default()
        }
    }

    fn request(
        &mut self,
        kind: u32,
        sector: u64,
        given: &[u8],
        taken: &[Span],
        status: u64,
    ) -> Expected {
        let room: u64 = taken.iter().map(|(_, len)| len).sum();
        match kind {
            0 => {
                let Some(at) = self.extent(sector, room).filter(|_| given.is_empty()) else {
                    return self.end(status, IO_ERROR, 0);
                };
                let data = self.disk[at..at + room as usize].to_vec();
                let mut from = &data[..];
                for span in taken {
                    let (now, rest) = from.split_at(span.1 as usize);
                    from = rest;
                    if let Some(bytes) = self.slice(*span) {
                        bytes.copy_from_slice(now);
                    }
                }
                let mut expected = self.end(status, OK, room as u32);
                let mut spans = taken.to_vec();
                spans.push((status, 1));
                spans.sort_unstable();
                if spans.windows(2).any(|two| two[0].0 + two[0].1 > two[1].0) {
                    // Nobody says in which order they are written.
                    expected.loose = spans;
                    expected.status = None;
                }
                expected
            }
            1 => {
                let at = self.extent(sector, given.len() as u64);
                match at.filter(|_| room == 0 && !self.read_only) {
                    Some(at) => {
                        self.disk[at..at + given.len()].copy_from_slice(given);
                        self.end(status, OK, 0)
                    }
                    None => self.end(status, IO_ERROR, 0),
                }
            }
            4 => {
                let mut expected = self.end(status, OK, 0);
                expected.len.1 = room as u32 + 1;
                expected
            }
            8 if given.is_empty() && room > 0 => {
                let mut expected = self.end(status, OK, 0);
                expected.len.1 = room as u32 + 1;
                expected.loose = taken.to_vec();
                expected
            }
            8 => self.end(status, IO_ERROR, 0),
            11 | 13 if self.read_only || room > 0 => self.refused_range(kind, status),
            11 | 13 => self.ranges(kind, given, status),
            _ => self.end(status, UNSUPPORTED, 0),
        }
    }

    /// A disk that is only read offers no discards at all.
    fn refused_range(&mut self, kind: u32, status: u64) -> Expected {
        let code = match self.read_only && kind == 11 {
            true => UNSUPPORTED,
            false => IO_ERROR,
        };
        self.end(status, code, 0)
    }

    fn ranges(&mut self, kind: u32, given: &[u8], status: u64) -> Expected {
        let mut extents = Vec::new();
        let mut usual = given.len().is_multiple_of(16) && (1..=16).contains(&(given.len() / 16));
        for range in given.chunks_exact(16) {
            let sector = u64::from_le_bytes(range[..8].try_into().expect("eight bytes"));
            let sectors = u32::from_le_bytes(range[8..12].try_into().expect("four bytes"));
            let flags = u32::from_le_bytes(range[12..].try_into().expect("four bytes"));
            match self.extent(sector, u64::from(sectors) * 512) {
                Some(at) if flags == 0 || (kind == 13 && flags == 1) => {
                    extents.push(at..at + sectors as usize * 512);
                }
                _ => usual = false,
            }
        }
        if !usual {
            // Refused in one way or another, or nothing: that is `request`'s to say.
            let loose = vec![(status, 1)];
            return Expected {
                len: (1, 1),
                loose,
                disk_is_open: true,
                ..Expected::default()
            };
        }
        for extent in extents {
            self.disk[extent].fill(0);
        }
        self.end(status, OK, 0)
    }

    /// Where on the disk that is, if it may be.
    fn extent(&self, sector: u64, bytes: u64) -> Option<usize> {
        let unit = self.sector_size.bytes() as u64;
        let start = sector.checked_mul(512)?;
        let end = start.checked_add(bytes)?;
        let fits = bytes > 0 && end <= disk::BYTES;
        (fits && start.is_multiple_of(unit) && bytes.is_multiple_of(unit)).then_some(start as usize)
    }

    /// Compares the guest's memory with what it has to be, but for what is loose,
    /// and takes that over.
    ///
    /// # Panics
    /// When something else has changed.
    pub fn compare(&mut self, memory: &Memory, loose: &[Span]) {
        let mut is = vec![0; DATA_BYTES as usize];
        memory
            .read_slice(&mut is, GuestAddress(DATA))
            .expect("there is memory");
        for span in loose {
            if is_within(*span, (DATA, DATA_BYTES)) {
                let at = (span.0 - DATA) as usize;
                let range = at..at + span.1 as usize;
                self.data[range.clone()].copy_from_slice(&is[range]);
            }
        }
        if is != self.data {
            let at = is.iter().zip(&self.data).position(|(a, b)| a != b);
            panic!("the guest's memory differs at {at:#x?} of its data");
        }
    }
}
