//! All data of a volume that nobody uses is re-encrypted, encrypted or decrypted
//! by commands, which may be killed at any instant; and disk images are copied
//! onto volumes. OpenSSL reads the data then, and cryptsetup proves the key.
//!
//! Needs cryptsetup and qemu-img (Debian: cryptsetup-bin, qemu-utils).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod devices;
mod images;
mod in_place;
#[path = "../support/judge.rs"]
mod judge;
mod kills;
mod lab;
mod shifting;
#[path = "../volume_support/mod.rs"]
mod volume_support;
