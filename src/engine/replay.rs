//! Chains that are taken once more, in an order that the guest's ring does not
//! have any more.
//!
//! A chain is read by the queue of the `virtio-queue` crate, which takes heads
//! from an available ring. Here that ring is memory of our own, beside the
//! guest's; the descriptors are in the guest's memory as ever.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestRegionMmap};

use crate::virtio::Memory;

/// Bytes of flags and index, which an available ring begins with.
const FRONT: usize = 4;

/// Where our ring lies: at a multiple of this, behind all of the guest's memory.
const ALIGNMENT: u64 = 4096;

/// Heads that are yet to be taken.
pub struct Replay {
    /// The guest's memory, and the ring of heads behind it. Nothing but heads and
    /// descriptors is read in it: what those refer to is looked up in the
    /// guest's memory alone.
    memory: Memory,
    queue: Queue,
}

impl Replay {
    /// The chains of `like` that begin at `heads`.
    ///
    /// # Errors
    /// When there is no room for the ring.
    pub fn new(like: &Queue, memory: &Memory, heads: &[u16]) -> Result<Self, Error> {
        let no_room = || Error::AddressOverflow;
        let end = memory.last_addr().0.checked_add(1).ok_or_else(no_room)?;
        let at = end
            .checked_next_multiple_of(ALIGNMENT)
            .map(GuestAddress)
            .ok_or_else(no_room)?;
        let bytes = FRONT + 2 * usize::from(like.size());
        let region = GuestRegionMmap::from_range(at, bytes, None).map_err(|_| no_room())?;
        let memory = memory.insert_region(Arc::new(region));
        let memory = memory.map_err(|_| no_room())?;
        let words = [0, heads.len() as u16];
        let words = words
            .iter()
            .chain(heads)
            .flat_map(|word| word.to_le_bytes());
        let words: Vec<u8> = words.collect();
        memory.write_slice(&words, at).map_err(Error::GuestMemory)?;

        let mut queue = Queue::new(like.max_size())?;
        queue.try_set_size(like.size())?;
        queue.try_set_desc_table_address(GuestAddress(like.desc_table()))?;
        queue.try_set_avail_ring_address(at)?;
        queue.set_ready(true);
        Ok(Replay { memory, queue })
    }

    /// The next one.
    ///
    /// # Errors
    /// When there were more than descriptors in the ring.
    pub fn next(&mut self) -> Result<Option<DescriptorChain<&Memory>>, Error> {
        Ok(self.queue.iter(&self.memory)?.next())
    }
}
