//! Real guests, with a stock kernel in QEMU, live on disks that sealblk serves:
//! they keep their data through whatever may happen to a disk, and this host
//! stores nothing of it in clear.
//!
//! Each test runs jobs of `qemu/jobs` with `qemu/run-guest`, one guest at a time.
//! What is missing on this host fails the tests, with a message that names it;
//! `scripts/install-deps test` installs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "broker")]
#[path = "guest/broker.rs"]
mod broker;
#[cfg(feature = "broker")]
#[path = "support/broker_site.rs"]
#[allow(dead_code)]
mod broker_site;
#[path = "support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "guest/connections.rs"]
mod connections;
#[path = "guest/daemon.rs"]
mod daemon;
#[path = "guest/denied.rs"]
mod denied;
#[path = "guest/dm_crypt.rs"]
mod dm_crypt;
#[path = "guest/firmware.rs"]
mod firmware;
#[path = "support/home.rs"]
#[allow(dead_code)]
mod home;
#[path = "support/inject.rs"]
#[allow(dead_code)]
mod inject;
#[path = "guest/integrity.rs"]
mod integrity;
#[path = "support/intruder.rs"]
#[allow(dead_code)]
mod intruder;
#[path = "guest/killed.rs"]
mod killed;
#[path = "guest/machine.rs"]
mod machine;
#[path = "guest/manager.rs"]
mod manager;
#[path = "guest/migration.rs"]
mod migration;
#[path = "guest/negotiation.rs"]
mod negotiation;
#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
#[path = "support/pykmip.rs"]
#[allow(dead_code)]
mod pykmip;
#[path = "guest/qmp.rs"]
mod qmp;
#[path = "guest/rekey.rs"]
mod rekey;
#[path = "guest/rescue.rs"]
mod rescue;
#[path = "guest/resize.rs"]
mod resize;
#[path = "guest/secrecy.rs"]
mod secrecy;
// Front ends of the test's own are for other tests.
#[path = "support/server.rs"]
#[allow(dead_code)]
mod server;
#[path = "support/softhsm.rs"]
#[allow(dead_code)]
mod softhsm;
#[path = "guest/trouble.rs"]
mod trouble;

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;
