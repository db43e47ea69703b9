//! The limits of this process, which a worker has as well.
#![forbid(unsafe_code)]

use std::fs;

use rustix::process::{Resource, getrlimit};

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

pub(super) fn core_dumps() -> Check {
    const NAME: &str = "core_dumps";
    let limit = getrlimit(Resource::Core);
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    // To a program of the host, whatever the limit is (core(5)); not for 1.
    let piped = pattern.trim_start().starts_with('|') && limit.current != Some(1);
    match limit.current {
        Some(0) if !piped => Check::ok(NAME, "off"),
        _ => Check::warn(
            NAME,
            "on: keys are left out of them, and data that guests read or wrote is not",
            "LimitCORE=0 in the systemd unit, and Storage=none in coredump.conf(5) where systemd-coredump takes them",
        ),
    }
}
