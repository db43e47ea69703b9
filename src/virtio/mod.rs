//! virtio-blk as the device sees it: configuration space, features, and the
//! parser that turns a hostile descriptor chain into a checked [`Request`].
//!
//! What enters: descriptor chains and configuration writes of a guest, which
//! may hold anything. What leaves: requests whose direction, sector, length
//! and memory have been checked once, so that nothing after has to.
//! Nothing here does I/O, encrypts, or knows vhost-user.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.3, section 5.2 (block
//! device) and 2.7 (split virtqueues).

pub mod config;
mod payload;
pub mod request;

pub use config::Shape;
pub use request::{Completion, Extent, Extents, Limits, Parsed, Reject, Request, parse};

/// The memory that a front end shares with us.
pub type Memory = vm_memory::GuestMemoryMmap;
