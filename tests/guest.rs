//! Real guests, with a stock kernel in QEMU, live on disks that sealblk serves:
//! they keep their data through whatever may happen to a disk, and this host
//! stores nothing of it in clear.
//!
//! Each test runs jobs of `qemu/jobs` with `qemu/run-guest`, one guest at a time.
//! What is missing on this host fails the tests, with a message that names it;
//! `scripts/install-deps test` installs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "guest/connections.rs"]
mod connections;
#[path = "guest/dm_crypt.rs"]
mod dm_crypt;
#[path = "guest/firmware.rs"]
mod firmware;
#[path = "guest/integrity.rs"]
mod integrity;
#[path = "guest/machine.rs"]
mod machine;
#[path = "guest/negotiation.rs"]
mod negotiation;
#[path = "guest/rescue.rs"]
mod rescue;
#[path = "guest/secrecy.rs"]
mod secrecy;
// Front ends of the test's own are for other tests.
#[path = "support/server.rs"]
#[allow(dead_code)]
mod server;

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;
