//! The data of a disk is moved from one key to another while front ends read and
//! write it: every sector that is read is what was written last, and the file is
//! right by the reference cipher in the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod hands;
mod load;
mod under_load;
