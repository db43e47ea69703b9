//! The data plane: one thread per virtqueue, which owns the queue, its
//! io_uring, its request slots and its buffers.
//!
//! What enters: a ready cipher (or two), an opened store, and rings that the vhost
//! session has set up. Nothing here opens files, knows keys or formats, or
//! talks to a front end.
//!
//! ```text
//! kick ─▶ pop chain ─▶ parse ─▶ slot ─▶ WRITE: encrypt guest memory ─▶ block ─▶ write
//!                                    ─▶ READ:  read ─▶ block ─▶ decrypt ─▶ guest memory
//! completion ─▶ check count ─▶ status byte ─▶ used ring ─▶ one notification a batch
//! ```
//!
//! A request is cut into operations of at most [`MAX_BLOCK`] bytes, so that
//! what a queue can have in flight is bounded by its arena, whatever the
//! guest asks for. No lock is taken and nothing is allocated per request.
//! What was done is written down in [`stats`], where others may read it; what
//! the guest may do per second is kept by [`throttle`], whether it may do
//! anything now by [`hold`], and what it may not touch while the data of the
//! disk is moved from one key to another by [`fence`]. What the disk below fails
//! waits or is answered, as [`trouble`] says.
//!
//! [`MAX_BLOCK`]: crate::store::arena::MAX_BLOCK

mod crew;
pub mod dirty;
mod disk;
mod execute;
pub mod fence;
pub mod hold;
pub mod inflight;
#[cfg(test)]
mod inflight_tests;
#[cfg(test)]
mod interleavings;
mod meter;
mod park;
pub mod placement;
mod poll;
mod queue;
mod replay;
mod retry;
mod slots;
pub mod stats;
pub mod throttle;
pub mod trouble;
mod vring;
mod wakers;
mod watch;

pub use crew::Crew;
pub use disk::{Disk, DiskParams, SERIAL_BYTES};
pub use queue::{QueueStart, RunningQueue, start_queue};
pub use wakers::{Wakers, Watch};
pub use watch::{Lookout, Stuck, Watch as StuckWatch};
/// For benchmarks: the parts of a queue thread, without the thread.
#[doc(hidden)]
pub use {
    meter::{Account, Meter},
    slots::{Slots, Table, Work},
};
