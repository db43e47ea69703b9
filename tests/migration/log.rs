//! The log of dirty pages, as a front end has it that moves its guest.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::support::memory::GuestMemory;
use super::support::message::{self as m, Messages};
use super::support::raw_front_end::{DATA, RINGS, RINGS_LEN, RawFrontEnd, RawOptions};

pub const PAGE: usize = 4096;
/// `VHOST_F_LOG_ALL`.
pub const F_LOG_ALL: u64 = 1 << 26;
/// `VHOST_VRING_F_LOG`.
const VRING_F_LOG: u32 = 1;

/// One bit for each page of guest addresses.
pub struct Log {
    pub memory: Arc<GuestMemory>,
}

impl Log {
    /// Large enough for guests whose memory ends there.
    pub fn below(end: u64) -> Log {
        let bytes = (end as usize).div_ceil(PAGE * 64) * 8;
        Log {
            memory: GuestMemory::new(bytes),
        }
    }

    /// The pages that are marked, and no mark is left.
    pub fn take(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        for word in 0..self.memory.len() / 8 {
            let bits = self.memory.take_u64(word * 8);
            pages.extend(
                (0..64)
                    .filter(|bit| bits & (1 << bit) != 0)
                    .map(|bit| word as u64 * 64 + bit),
            );
        }
        pages
    }

    /// SET_LOG_BASE, to which there is an answer always.
    pub fn announce(&self, messages: &mut Messages) -> io::Result<()> {
        let told = [(self.memory.len() as u64).to_le_bytes(), [0; 8]].concat();
        messages.send(m::SET_LOG_BASE, 0, &told, &[self.memory.fd().as_fd()])?;
        let answer = messages.receive()?;
        assert_eq!((answer.request, &answer.payload), (m::SET_LOG_BASE, &told));
        Ok(())
    }
}

/// A front end that may move its guest, with its rings set up and enabled.
pub fn connect(socket: &Path, options: &RawOptions) -> io::Result<RawFrontEnd> {
    let mut front = negotiate(socket, options)?;
    front.set_memory()?;
    for index in 0..options.queues {
        front.start_queue(index, 0)?;
        front.enable(index, true)?;
    }
    Ok(front)
}

/// The same, before there is memory or a ring.
pub fn negotiate(socket: &Path, options: &RawOptions) -> io::Result<RawFrontEnd> {
    let wanted = RawOptions {
        features: options.features | F_LOG_ALL,
        ..*options
    };
    let mut front = RawFrontEnd::negotiate(socket, &wanted)?;
    assert_ne!(front.features & F_LOG_ALL, 0);
    front.features &= !F_LOG_ALL;
    let messages = &mut front.messages;
    let offered = messages.ask(m::GET_PROTOCOL_FEATURES, &[])?.number()?;
    assert_ne!(offered & m::PF_LOG_SHMFD, 0);
    let features = (front.protocol_features | m::PF_LOG_SHMFD).to_le_bytes();
    messages.tell(m::SET_PROTOCOL_FEATURES, &features, &[])?;
    messages.tell(m::SET_FEATURES, &front.features.to_le_bytes(), &[])?;
    Ok(front)
}

/// Has everything logged, or nothing, as QEMU does: features first, then the rings.
pub fn switch(
    messages: &mut Messages,
    features: u64,
    rings: &[(usize, usize, usize)],
    user: u64,
    on: bool,
) -> io::Result<()> {
    let features = match on {
        true => features | F_LOG_ALL,
        false => features & !F_LOG_ALL,
    };
    messages.tell(m::SET_FEATURES, &features.to_le_bytes(), &[])?;
    for (index, &(descriptors, available, used)) in rings.iter().enumerate() {
        let address = |offset: usize| user + offset as u64;
        let mut bytes = m::vring_addr(
            index as u32,
            address(descriptors),
            address(used),
            address(available),
        );
        bytes[4..8].copy_from_slice(&(u32::from(on) * VRING_F_LOG).to_le_bytes());
        bytes[32..40].copy_from_slice(&(RINGS + used as u64).to_le_bytes());
        messages.tell(m::SET_VRING_ADDR, &bytes, &[])?;
    }
    Ok(())
}

/// The same for all of a front end.
pub fn switch_all(front: &mut RawFrontEnd, on: bool) -> io::Result<()> {
    let rings: Vec<_> = front.queues.iter().map(|queue| queue.areas()).collect();
    let (user, features) = (front.rings_region().user, front.features);
    switch(&mut front.messages, features, &rings, user, on)
}

/// A copy of guest memory, by guest address.
pub struct Shadow {
    pub rings: Vec<u8>,
    pub data: Vec<u8>,
}

impl Shadow {
    pub fn of(rings: &GuestMemory, data: &GuestMemory) -> Shadow {
        Shadow {
            rings: rings.read(0, rings.len()),
            data: data.read(0, data.len()),
        }
    }

    /// Copies these pages once more.
    pub fn follow(&mut self, pages: &[u64], rings: &GuestMemory, data: &GuestMemory) {
        for page in pages {
            let address = page * PAGE as u64;
            let (copy, memory, offset) = match address.checked_sub(DATA) {
                Some(offset) => (&mut self.data, data, offset as usize),
                None => (&mut self.rings, rings, (address - RINGS) as usize),
            };
            copy[offset..offset + PAGE].copy_from_slice(&memory.read(offset, PAGE));
        }
    }

    /// The pages in which this differs from what is there now.
    pub fn changed(&self, rings: &GuestMemory, data: &GuestMemory) -> Vec<u64> {
        let mut pages = Vec::new();
        for (copy, memory, start) in [(&self.rings, rings, RINGS), (&self.data, data, DATA)] {
            let now = memory.read(0, memory.len());
            let both = copy.chunks(PAGE).zip(now.chunks(PAGE)).enumerate();
            let first = start / PAGE as u64;
            pages.extend(
                both.filter(|(_, (a, b))| a != b)
                    .map(|(page, _)| first + page as u64),
            );
        }
        pages
    }
}

/// Where the memory of a front end with so many bytes of data ends.
pub fn end_of(data: usize) -> u64 {
    const { assert!(RINGS + (RINGS_LEN as u64) < DATA) };
    DATA + data as u64
}
