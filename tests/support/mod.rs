//! What integration tests share: a server process to test, and two front ends
//! to test it with.
//!
//! - [`server`] starts a server (sealblk, or QEMU's storage daemon as an
//!   independent reference) in a temporary directory and ends it.
//! - [`front_end`] is the well-behaved front end, on the `virtio-driver` crate:
//!   code that knows nothing of sealblk.
//! - [`raw_front_end`] speaks vhost-user by itself and leaves the ring and the
//!   messages to the test, so that it can do what no sane driver does.
//! - [`daemon`] is a manager, and an HTTP client that knows nothing of it.
//! - [`home`] is a directory with a key and volumes, and what a refused command
//!   says there.
//! - [`history`] is a load that knows for each sector what may be read there.
//! - [`fuse`] is a file system with one file below a disk, of which a test decides
//!   what becomes of each read, write, fsync and fallocate.
//! - [`slow_disk`] is one that keeps writes for a while, [`faulty_disk`] one that fails
//!   by rules.
//! - [`request`] and [`memory`] are the requests and the guest memory of both.
//!
//! - [`registers`] is a load of which every sector has a history.
//! - [`tree`] is what is below a directory.
//! - [`in_process`] serves a disk from the library's parts.
//!
//! But for the last, nothing here knows sealblk's modules: only its command
//! line and its socket.

#![allow(dead_code, reason = "each test crate uses a part of it")]

pub mod daemon;
pub mod faulty_disk;
pub mod front_end;
pub mod fuse;
pub mod history;
pub mod home;
pub mod in_process;
pub mod memory;
pub mod message;
pub mod raw_front_end;
pub mod raw_queue;
pub mod registers;
pub mod request;
pub mod server;
pub mod slow_disk;
pub mod tree;
