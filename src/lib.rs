//! Transparent encryption at rest for QEMU guests.
//!
//! `docs/architecture.md` is the map: what each module is for, which way they
//! depend on each other, and the invariants with the test that holds each.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod crypt;
pub mod error;
pub mod secret;
pub mod segment;
pub mod units;
