//! A split virtqueue (VIRTIO 1.2, section 2.7) that a test fills as it likes:
//! every descriptor, index and flag is the test's own.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use super::memory::GuestMemory;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// One descriptor, taken literally.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A descriptor that the server may only read.
pub fn readable(address: u64, len: usize) -> Descriptor {
    Descriptor {
        address,
        len: len as u32,
        ..Descriptor::default()
    }
}

/// A descriptor that the server may write.
pub fn writable(address: u64, len: usize) -> Descriptor {
    Descriptor {
        flags: WRITE,
        ..readable(address, len)
    }
}

/// A descriptor that stands for a table of others.
pub fn indirect(address: u64, len: usize) -> Descriptor {
    Descriptor {
        flags: INDIRECT,
        ..readable(address, len)
    }
}

/// Links descriptors that will stand at `first`, `first + 1`, … of a table.
pub fn link(first: u16, descriptors: &mut [Descriptor]) {
    let last = descriptors.len() - 1;
    for (at, descriptor) in descriptors[..last].iter_mut().enumerate() {
        descriptor.flags |= NEXT;
        descriptor.next = first + at as u16 + 1;
    }
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub id: u32,
    pub len: u32,
}

/// A ring in guest memory and its two eventfds.
pub struct RawQueue {
    memory: Arc<GuestMemory>,
    size: u16,
    descriptors: usize,
    available: usize,
    used: usize,
    /// Where the next chain goes in the descriptor table.
    next_descriptor: u16,
    /// The available index, as last stored.
    pub available_idx: u16,
    /// How many used entries were taken, modulo 2^16.
    pub taken: u16,
    pub kick: OwnedFd,
    pub call: OwnedFd,
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

impl RawQueue {
    /// Bytes of guest memory that a queue takes at most.
    pub const fn bytes(size: u16) -> usize {
        // Room up to the next page, so that queues lie in pages of their own.
        (16 * size as usize + 2 * size as usize + 8 * size as usize + 64).next_multiple_of(4096)
    }

    /// A fresh ring at that offset of the memory.
    pub fn new(memory: Arc<GuestMemory>, offset: usize, size: u16) -> RawQueue {
        let entries = usize::from(size);
        memory.fill(offset, Self::bytes(size), 0);
        let available = offset + 16 * entries;
        RawQueue {
            memory,
            size,
            descriptors: offset,
            available,
            used: (available + 6 + 2 * entries).next_multiple_of(4),
            next_descriptor: 0,
            available_idx: 0,
            taken: 0,
            kick: event(),
            call: event(),
        }
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    /// Offsets of descriptor table, available ring and used ring.
    pub fn areas(&self) -> (usize, usize, usize) {
        (self.descriptors, self.available, self.used)
    }

    /// Writes one descriptor at an index of the table.
    pub fn put(&self, index: u16, descriptor: Descriptor) {
        let at = self.descriptors + 16 * usize::from(index);
        self.memory.write(at, &descriptor.bytes());
    }

    /// Writes descriptors one after the other, linked, and returns the index
    /// of the first. Older chains at those places must be done by then.
    pub fn put_chain(&mut self, mut descriptors: Vec<Descriptor>) -> u16 {
        let len = descriptors.len() as u16;
        if self.next_descriptor + len > self.size {
            self.next_descriptor = 0;
        }
        let head = self.next_descriptor;
        self.next_descriptor += len;
        link(head, &mut descriptors);
        self.put_literally(head, &descriptors);
        head
    }

    /// Writes descriptors one after the other, just as they are.
    pub fn put_literally(&self, first: u16, descriptors: &[Descriptor]) {
        for (at, descriptor) in descriptors.iter().enumerate() {
            self.put(first + at as u16, *descriptor);
        }
    }

    /// Makes a chain available, without a notification.
    pub fn publish(&mut self, head: u16) {
        let slot = usize::from(self.available_idx % self.size);
        self.memory.store_u16(self.available + 4 + 2 * slot, head);
        self.set_available_idx(self.available_idx.wrapping_add(1));
    }

    /// Stores the available index, whatever it is.
    pub fn set_available_idx(&mut self, index: u16) {
        self.available_idx = index;
        self.memory.store_u16(self.available + 2, index);
    }

    /// The available ring's flags: 1 asks for no calls (without EVENT_IDX).
    pub fn set_available_flags(&self, flags: u16) {
        self.memory.store_u16(self.available, flags);
    }

    /// With EVENT_IDX: the used index at which to be called.
    pub fn set_used_event(&self, index: u16) {
        let at = self.available + 4 + 2 * usize::from(self.size);
        self.memory.store_u16(at, index);
    }

    /// With EVENT_IDX: the available index at which the server wants a kick.
    pub fn available_event(&self) -> u16 {
        let at = self.used + 4 + 8 * usize::from(self.size);
        self.memory.load_u16(at)
    }

    /// The used ring's flags: 1 means that the server wants no kicks.
    pub fn used_flags(&self) -> u16 {
        self.memory.load_u16(self.used)
    }

    pub fn used_idx(&self) -> u16 {
        self.memory.load_u16(self.used + 2)
    }

    /// The entry of the used ring that belongs to a used index.
    pub fn used_entry(&self, index: u16) -> Used {
        let at = self.used + 4 + 8 * usize::from(index % self.size);
        let bytes = self.memory.read(at, 8);
        Used {
            id: u32::from_le_bytes(bytes[..4].try_into().unwrap()),
            len: u32::from_le_bytes(bytes[4..].try_into().unwrap()),
        }
    }

    /// The next used entry that was not taken yet.
    pub fn take_used(&mut self) -> Option<Used> {
        if self.used_idx() == self.taken {
            return None;
        }
        let used = self.used_entry(self.taken);
        self.taken = self.taken.wrapping_add(1);
        Some(used)
    }

    /// Notifies the server, whether it asked for that or not.
    pub fn kick(&self) {
        rustix::io::write(self.kick.as_fd(), &1u64.to_ne_bytes()).unwrap();
    }

    /// How often the server called since the last look.
    pub fn calls(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(self.call.as_fd(), &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }
}
