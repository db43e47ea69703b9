//! Transparent encryption at rest for QEMU guests.
//!
//! `docs/architecture.md` is the map: what each module is for, which way they
//! depend on each other, and the invariants with the test that holds each.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod attest;
pub mod audit;
#[cfg(feature = "broker")]
pub mod broker;
pub mod byte_lock;
pub mod cli;
pub mod clone;
pub mod config;
pub mod conversion;
pub mod crypt;
pub mod doctor;
pub mod durable;
pub mod engine;
pub mod erase;
pub mod error;
pub mod import;
pub mod key_store;
pub mod keys;
pub mod kms;
pub mod logging;
pub mod manager;
pub mod metrics;
pub mod migration;
pub mod one_line;
pub mod paths;
mod patience;
pub mod plane;
pub mod prepare;
pub mod printable;
pub mod quota;
pub mod rekey;
pub mod relocate;
pub mod rewrap;
pub mod rotation;
pub mod runtime;
pub mod sandbox;
pub mod secret;
pub mod segment;
pub mod serve;
pub mod shift;
pub mod store;
pub mod timestamp;
pub mod units;
pub mod verify;
pub mod version;
pub mod vhost;
pub mod virtio;
pub mod volume;
pub mod worker;

// What simulations of power losses stand on, which `tests/power` does as well.
#[cfg(test)]
#[path = "../tests/support/platter.rs"]
mod platter;
#[cfg(test)]
#[path = "../tests/support/random.rs"]
mod random;
