//! Disks of a manager: each in a worker process of its own, which outlives the
//! manager and is replaced when it dies; none is lost or served twice by a
//! crash at any step.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "manager_disks/another_process.rs"]
mod another_process;
#[path = "manager_disks/attach.rs"]
mod attach;
#[path = "manager_disks/between.rs"]
mod between;
#[path = "manager_disks/crash.rs"]
mod crash;
#[path = "manager_disks/cut_short.rs"]
mod cut_short;
#[path = "manager_disks/ephemeral.rs"]
mod ephemeral;
#[path = "manager_disks/faults.rs"]
mod faults;
#[path = "manager_disks/flood.rs"]
mod flood;
#[path = "manager_disks/freeze.rs"]
mod freeze;
#[path = "manager_disks/impostor.rs"]
mod impostor;
#[path = "manager_disks/inflight.rs"]
mod inflight;
#[path = "manager_disks/lab.rs"]
mod lab;
#[path = "manager_disks/liar.rs"]
mod liar;
#[path = "manager_disks/limits.rs"]
mod limits;
#[path = "manager_disks/managers.rs"]
mod managers;
#[path = "manager_disks/memory_search.rs"]
mod memory_search;
#[path = "manager_disks/moved.rs"]
mod moved;
#[path = "manager_disks/process.rs"]
mod process;
#[path = "manager_disks/rekey.rs"]
mod rekey;
#[path = "manager_disks/rekey_faults.rs"]
mod rekey_faults;
#[path = "manager_disks/rekey_kills.rs"]
mod rekey_kills;
#[path = "manager_disks/rekey_plain.rs"]
mod rekey_plain;
#[path = "manager_disks/resize.rs"]
mod resize;
#[path = "manager_disks/rewrap.rs"]
mod rewrap;
#[path = "manager_disks/secrets.rs"]
mod secrets;
#[path = "manager_disks/upgrade.rs"]
mod upgrade;
#[path = "manager_disks/waiting.rs"]
mod waiting;
#[path = "manager_disks/walls.rs"]
mod walls;
#[path = "manager_disks/workers.rs"]
mod workers;

#[path = "support/inject.rs"]
mod inject;
#[path = "support/intruder.rs"]
mod intruder;

#[path = "support/faulty_proxy.rs"]
#[allow(dead_code)]
mod faulty_proxy;
#[path = "support/judge.rs"]
mod judge;
#[path = "migration/log.rs"]
#[allow(dead_code)]
mod log;
#[path = "support/needles.rs"]
mod needles;
#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
mod support;
