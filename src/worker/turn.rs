//! Who of several processes serves a disk: the one that has the turn, a lock that no
//! two can have and that goes with its process, however that ends.
//!
//! With it go the marks on the descriptors that data is written through: at any time
//! those of the one process are marked that may have something in flight, so that
//! nobody writes before a dead one has been waited for (`volume::lock`).
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::byte_lock::{self, FIRST_QUEUE, MOVER, SERVER};

/// The turn of this process, had or not.
pub struct Turn(File);

impl Turn {
    /// Over the descriptor that no other process has.
    pub fn new(fd: OwnedFd) -> Self {
        Turn(fd.into())
    }

    /// Another handle on it.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Turn)
    }

    /// Takes it within that time. False: another process has it.
    ///
    /// # Errors
    /// When there are no locks.
    pub fn take(&self, time: Duration) -> io::Result<bool> {
        byte_lock::take_within(&self.0, SERVER, time)
    }

    /// Lets another process have it.
    ///
    /// # Errors
    /// When there are no locks.
    pub fn release(&self) -> io::Result<()> {
        byte_lock::release(&self.0, SERVER)
    }
}

/// Marks the descriptors of the queues, and of who moves data, within that time.
/// False: those of another process still are. For who has the turn.
///
/// # Errors
/// When there are no locks.
pub fn mark<F: AsFd>(
    queues: impl IntoIterator<Item = F>,
    mover: Option<impl AsFd>,
    time: Duration,
) -> io::Result<bool> {
    let deadline = Instant::now() + time;
    let left = || deadline.saturating_duration_since(Instant::now());
    for (queue, number) in queues.into_iter().zip(0..) {
        if !byte_lock::take_within(queue.as_fd(), FIRST_QUEUE + number, left())? {
            return Ok(false);
        }
    }
    match mover {
        Some(mover) => byte_lock::take_within(mover, MOVER, left()),
        None => Ok(true),
    }
}

/// Takes the marks away: nothing is in flight, and nothing will be.
///
/// # Errors
/// When there are no locks.
pub fn unmark<F: AsFd>(
    queues: impl IntoIterator<Item = F>,
    mover: Option<impl AsFd>,
) -> io::Result<()> {
    for (queue, number) in queues.into_iter().zip(0..) {
        byte_lock::release(queue, FIRST_QUEUE + number)?;
    }
    mover.map_or(Ok(()), |mover| byte_lock::release(mover, MOVER))
}
