//! What the queues of a disk have done, in memory that others may read at any
//! time: counters, latencies, and the time that the cipher and the disk took.
//!
//! Each queue has a block of counters of its own. Its thread alone writes
//! there, with plain loads and stores: no lock, no locked instruction, no
//! allocation and no system call. Readers take no part in that; what they see
//! of one counter is a value that it has had, and of several, values of about
//! the same moment.
//!
//! The block lies in a sealed memfd. The manager [makes](create) it, hands it
//! to the disk's worker, which [counts](Stats::attach) there, and
//! [reads](Reader) it whenever somebody asks. It keeps the descriptor: a worker
//! that is started again goes on counting where the one before stopped, so that
//! counters never go backwards. Where nobody reads, the block lies in ordinary
//! [private](Stats::private) memory.
//!
//! The worker may be taken over by its guest, so that a reader believes nothing:
//! it takes only memory that cannot shrink under its hands, of exactly the size
//! that the header demands, reads the header once, and treats each counter as
//! any number.

mod error;
mod histogram;
mod layout;
mod pages;
mod snapshot;

use std::os::fd::{BorrowedFd, OwnedFd};

pub use error::Error;
pub use histogram::{BUCKETS, bounds};
pub use layout::{Direction, Kind, Operation, QueueStats};
pub use snapshot::{CipherWork, DeviceWork, HeldBack, Latency, Requests, Snapshot};

use pages::Pages;

/// The memory that the queues of one disk count in.
#[derive(Debug)]
pub struct Stats(Pages);

impl Stats {
    /// Memory for so many queues (at least one) that this process alone sees.
    ///
    /// # Errors
    /// When no memory can be mapped.
    pub fn private(queues: u16) -> Result<Self, Error> {
        Pages::anonymous(queues.max(1)).map(Stats)
    }

    /// Counts in what [`create`] made, going on from what stands there. There
    /// must be no other process that does so at the same time.
    ///
    /// # Errors
    /// When it is not such memory, or not for so many queues.
    pub fn attach(memory: BorrowedFd<'_>, queues: u16) -> Result<Self, Error> {
        let pages = Pages::shared(memory, true)?;
        match pages.queues().len() == usize::from(queues.max(1)) {
            true => Ok(Stats(pages)),
            false => Err(Error::Layout("it is for another number of queues")),
        }
    }

    /// The block of a queue, for its thread. A disk that has more queues than
    /// there are blocks has the last ones share one, and loses some counts.
    pub fn queue(&self, index: usize) -> &QueueStats {
        let queues = self.0.queues();
        &queues[index.min(queues.len() - 1)]
    }

    /// What all queues have done until now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of_queues(self.0.queues())
    }
}

/// A look at the statistics of a disk that another process serves.
#[derive(Debug)]
pub struct Reader(Pages);

impl Reader {
    /// Maps the memory for reading.
    ///
    /// # Errors
    /// When it is not what [`create`] makes, or is of another version.
    pub fn open(memory: BorrowedFd<'_>) -> Result<Self, Error> {
        Pages::shared(memory, false).map(Reader)
    }

    /// What all queues have done until now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of_queues(self.0.queues())
    }
}

/// Memory for the statistics of a disk with so many queues, to be shared with
/// the process that serves it. Its size is fixed for good.
///
/// # Errors
/// When the kernel gives none, or no disk has so many queues.
pub fn create(queues: u16) -> Result<OwnedFd, Error> {
    pages::create(queues.max(1))
}

#[cfg(test)]
mod tests;
