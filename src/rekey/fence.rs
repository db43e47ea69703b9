//! What keeps guests away from what is being moved.

use std::sync::Arc;

use super::Direction;

/// Keeps guests out of the region that is being moved, and knows which state a
/// unit is in. Positions are bytes of the disk; a region is next to the
/// boundary, above it when going forward and below it when going back.
///
/// The engine has one for disks that are served; nobody is there to be kept out
/// when a volume is moved offline.
pub trait Fence: Sync {
    /// Lets requests wait that would write to the `bytes` next to the boundary,
    /// and returns when none is in flight that does. What is closed already
    /// stays so: `bytes` counts from the boundary. False: this is not to go on
    /// now (the disk is frozen, held or being stopped), and nothing has changed.
    fn close_for_writing(&self, direction: Direction, bytes: u64) -> bool;

    /// The same for requests that would read from there.
    fn close_for_reading(&self, direction: Direction, bytes: u64) -> bool;

    /// The `bytes` next to the boundary were moved: the boundary is on their
    /// other side from now on, and they are open. What was closed beyond them
    /// stays closed for writing.
    fn advance(&self, direction: Direction, bytes: u64);

    /// Opens everything; the boundary stays where it is.
    fn open(&self);

    /// The longest time that a request had to wait since this was asked last,
    /// in microseconds.
    fn longest_wait(&self) -> u64;
}

/// Nobody is kept out of a disk that nobody uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Fence for Alone {
    fn close_for_writing(&self, _: Direction, _: u64) -> bool {
        true
    }

    fn close_for_reading(&self, _: Direction, _: u64) -> bool {
        true
    }

    fn advance(&self, _: Direction, _: u64) {}

    fn open(&self) {}

    fn longest_wait(&self) -> u64 {
        0
    }
}

/// What is shared is used as what it is.
macro_rules! shared {
    ($($shared:ty),*) => {$(
        impl<F: Fence + ?Sized + Send> Fence for $shared {
            fn close_for_writing(&self, direction: Direction, bytes: u64) -> bool {
                (**self).close_for_writing(direction, bytes)
            }

            fn close_for_reading(&self, direction: Direction, bytes: u64) -> bool {
                (**self).close_for_reading(direction, bytes)
            }

            fn advance(&self, direction: Direction, bytes: u64) {
                (**self).advance(direction, bytes);
            }

            fn open(&self) {
                (**self).open();
            }

            fn longest_wait(&self) -> u64 {
                (**self).longest_wait()
            }
        }
    )*};
}

shared!(&F, Arc<F>);
