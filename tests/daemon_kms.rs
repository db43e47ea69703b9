//! Disks of a running `sealblk daemon` whose keys are at a real OpenBao: no
//! attach fails while one endpoint works, served disks need none, what waits
//! comes by itself; a thousand volumes cost one call; each use of a key is on
//! record, and no secret is shown anywhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "daemon_kms/audit.rs"]
mod audit;
#[path = "daemon_kms/break_glass.rs"]
mod break_glass;
#[path = "daemon_kms/denied/mod.rs"]
mod denied;
#[cfg(feature = "pkcs11")]
#[path = "daemon_kms/expiry.rs"]
mod expiry;
#[path = "daemon_kms/key_store.rs"]
mod key_store;
#[path = "daemon_kms/kills.rs"]
mod kills;
#[path = "daemon_kms/lab.rs"]
mod lab;
#[path = "daemon_kms/many.rs"]
mod many;
#[path = "daemon_kms/outage.rs"]
mod outage;
#[path = "daemon_kms/rotation.rs"]
mod rotation;
#[path = "daemon_kms/secrets.rs"]
mod secrets;
#[path = "daemon_kms/switch.rs"]
mod switch;

#[path = "support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "support/faulty_proxy.rs"]
#[allow(dead_code)]
mod faulty_proxy;
#[path = "support/needles.rs"]
mod needles;
#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
#[path = "support/process_memory.rs"]
#[allow(dead_code)]
mod process_memory;
#[path = "support/pykmip.rs"]
#[allow(dead_code)]
mod pykmip;
#[cfg(feature = "pkcs11")]
#[path = "support/softhsm.rs"]
#[allow(dead_code)]
mod softhsm;
mod support;
