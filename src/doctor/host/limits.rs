//! The limits of this process, which a worker has as well.
#![forbid(unsafe_code)]

use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};

use crate::doctor::check::Check;
use crate::units::Bytes;

/// What a disk with 16 queues may lock, generously: an arena and a ring for
/// each, and the keys.
const MEMORY: u64 = 64 << 20;

/// Of which a disk takes about ten, and three for each of its queues.
const FILES: u64 = 1024;

pub(super) fn locked_memory() -> Check {
    const NAME: &str = "memlock";
    let bytes = |limit: Option<u64>| limit.map_or("no limit".into(), |n| Bytes(n).to_string());
    let limit = getrlimit(Resource::Memlock);
    let message = format!("locked memory: {}", bytes(limit.current));
    let privileged = rustix::process::geteuid().is_root();
    match limit.current {
        Some(current) if current < MEMORY && !privileged => Check::warn(
            NAME,
            format!("{message}: too little for buffers that the kernel need not look up each time"),
            format!(
                "LimitMEMLOCK={} in the systemd unit, or `ulimit -l`",
                MEMORY
            ),
        ),
        Some(_) if privileged => Check::ok(NAME, format!("{message}, to which root is not held")),
        _ => Check::ok(NAME, message),
    }
}

pub(super) fn open_files() -> Check {
    const NAME: &str = "nofile";
    let limit = getrlimit(Resource::Nofile);
    match limit.current {
        Some(most) if most < FILES => Check::warn(
            NAME,
            format!("at most {most} open files: enough for few disks"),
            "LimitNOFILE=65536 in the systemd unit, or `ulimit -n`",
        ),
        Some(most) => Check::ok(NAME, format!("at most {most} open files")),
        None => Check::ok(NAME, "any number of open files"),
    }
}

/// Each process of sealblk sees to it that there are none, this one too.
pub(super) fn core_dumps() -> Check {
    const NAME: &str = "core_dumps";
    match dumpable_behavior() {
        Ok(DumpableBehavior::NotDumpable) => Check::ok(NAME, "off"),
        _ => Check::warn(
            NAME,
            "on: keys are left out of them, and data that guests read or wrote is not",
            "find out what keeps prctl(2) PR_SET_DUMPABLE from working here, a seccomp filter perhaps",
        ),
    }
}
