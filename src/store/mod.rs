//! The backing file or block device, and the io_uring through which a queue
//! thread reads and writes it.
//!
//! What enters: an opened file and where the data lies in it. What leaves:
//! ciphertext in our own aligned buffers, and the kernel's results. Nothing
//! here knows guests, keys or formats.

pub mod arena;
pub mod file;
mod mapping;
pub mod ring;

pub use arena::{Arena, Block};
pub use file::{DirectMode, Error, Store};
pub use ring::{Event, Ring};
