//! `sealblk verify`: proves of an encrypted disk that it is, finds each way in
//! which one is not, and signs what it found so that no byte can be changed.
//!
//! Needs mkfs.ext4, sfdisk, qemu-img, cryptsetup and openssl.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod disks;
mod lab;
mod manager;
mod plain;
mod signed;
#[path = "../support/mod.rs"]
mod support;
mod used;
#[path = "../volume_support/mod.rs"]
mod volume_support;
