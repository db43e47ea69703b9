//! The disk below fails, in every way, under the real path to it: a file system of
//! the test's own (FUSE), by io_uring. What the guest sees is judged by a history of
//! each sector: a read returns the last acknowledged write, or a newer one that was
//! not acknowledged; no short transfer passes for a whole one; who is to wait, waits,
//! and nothing is lost of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod devices;
mod lab;
mod matrix;
mod serve;
mod stop;
mod stuck;
