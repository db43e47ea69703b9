//! Who a process is, what it may do by that, and what it may use.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};
use serde::{Deserialize, Serialize};

use super::report::{Layer, Report, Standing};

/// Users that nobody else is, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uids {
    first: u32,
    last: u32,
}

/// What is no range of users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no range of users: write the first and the last number, such as \
     1900000000-1904194303, or \"none\""
)]
pub struct BadUids(String);

impl Uids {
    /// A number for each process id that Linux has, where no distribution has
    /// users and systemd has none either: so that no two processes have the same.
    pub const DEFAULT: Uids = Uids {
        first: 1_900_000_000,
        last: 1_904_194_303,
    };

    /// The user of the process with this number. No other process has it at the
    /// same time, if there are as many users as process ids.
    pub fn of_process(&self, pid: u32) -> u32 {
        let count = u64::from(self.last - self.first) + 1;
        let offset = u64::from(pid) % count;
        // Less than the distance of both.
        self.first + u32::try_from(offset).unwrap_or_default()
    }
}

impl FromStr for Uids {
    type Err = BadUids;

    fn from_str(text: &str) -> Result<Self, BadUids> {
        let bad = || BadUids(text.into());
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| bad());
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let (first, last) = (number(first)?, number(last)?);
        // Root is no choice, and the highest number stands for nobody at all.
        match first > 0 && first <= last && last < u32::MAX {
            true => Ok(Uids { first, last }),
            false => Err(bad()),
        }
    }
}

impl fmt::Display for Uids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Raises what would bite and is bounded otherwise, while that is permitted.
///
/// Locked memory: keys and buffers are, and root, who is not held to the limit,
/// is about to be somebody else. What a guest can have locked is bounded by the
/// number of its queues. File sizes: the size of the disk bounds what is written.
pub fn set_limits(_report: &mut Report) {
    for resource in [Resource::Memlock, Resource::Fsize] {
        let none = Rlimit {
            current: None,
            maximum: None,
        };
        if rustix::process::setrlimit(resource, none).is_err() {
            let limit = rustix::process::getrlimit(resource);
            let most = Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            };
            // Up to there everybody may.
            let _ = rustix::process::setrlimit(resource, most);
        }
    }
}

/// Becomes a user that nobody else is, in no group but its own, if it is root.
pub fn become_nobody(uids: Option<&Uids>, report: &mut Report) {
    let own = rustix::process::geteuid();
    if !own.is_root() {
        let why = format!("it was started as user {}", own.as_raw());
        return report.note(Layer::Identity, Standing::None(why));
    }
    let Some(uids) = uids else {
        return report.note(
            Layer::Identity,
            Standing::None("worker_uids says none".into()),
        );
    };
    let number = uids.of_process(std::process::id());
    let (uid, gid) = (Uid::from_raw(number), Gid::from_raw(number));
    // While it may.
    drop_bounding_set(CapabilitySet::empty());
    let changed = rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid));
    match changed {
        Ok(()) => report.holds(
            Layer::Identity,
            format!("user {number}, which is nobody else"),
        ),
        Err(error) => report.missing(
            Layer::Identity,
            format!("it cannot become user {number} ({error}), and stays root"),
        ),
    }
}

/// No program that it runs has others than `kept`. Whoever may not do that has
/// `no_new_privs` for it.
fn drop_bounding_set(kept: CapabilitySet) {
    for number in 0..=63 {
        if let Some(capability) = CapabilitySet::from_bits(1 << number)
            && !kept.contains(capability)
            && rustix::thread::capability_is_in_bounding_set(capability) == Ok(true)
        {
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
}

/// Gives up all capabilities.
pub fn drop_capabilities(report: &mut Report) {
    keep(CapabilitySet::empty(), "none are left", report);
}

fn keep(kept: CapabilitySet, what: &str, report: &mut Report) {
    drop_bounding_set(kept);
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    let dropped = rustix::thread::clear_ambient_capability_set()
        .and_then(|()| rustix::thread::set_capabilities(None, sets));
    match dropped {
        Ok(()) => report.holds(Layer::Capabilities, what),
        Err(error) => report.missing(Layer::Capabilities, error),
    }
}

/// Gives up all capabilities but that of removing these files, if their
/// directories are not its own.
pub fn keep_to_remove(paths: &[PathBuf], report: &mut Report) {
    report.note(
        Layer::Identity,
        Standing::None("it stays the user that it was started as".into()),
    );
    let own = match rustix::thread::capabilities(None) {
        Ok(own) => own,
        Err(error) => return report.missing(Layer::Capabilities, error),
    };
    // While it may: it runs no program.
    drop_bounding_set(CapabilitySet::empty());
    let bare = CapabilitySets {
        effective: CapabilitySet::empty(),
        ..own
    };
    let may = rustix::thread::set_capabilities(None, bare)
        .is_ok_and(|()| paths.iter().all(|path| may_remove(path)));
    match may || !own.permitted.contains(CapabilitySet::DAC_OVERRIDE) {
        true => drop_capabilities(report),
        false => keep(
            CapabilitySet::DAC_OVERRIDE,
            "CAP_DAC_OVERRIDE is left, to remove sockets from directories of others",
            report,
        ),
    }
}

fn may_remove(path: &Path) -> bool {
    let directory = path.parent().unwrap_or(Path::new("/"));
    rustix::fs::accessat(CWD, directory, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// What a manager needs if it is root: volumes, sockets and key files of any
/// owner, and what its workers give up.
const MANAGER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_RESOURCE);

/// What a broker needs if it is root: files of any owner, locked memory, and a
/// low port.
const BROKER: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Gives up the capabilities that a manager never needs.
pub fn be_manager(report: &mut Report) {
    report.note(
        Layer::Identity,
        Standing::None("it stays the user that it was started as".into()),
    );
    keep_of(MANAGER, "those alone that it needs", report);
}

/// Gives up the capabilities that a broker never needs.
pub fn be_broker(report: &mut Report) {
    report.note(
        Layer::Identity,
        Standing::None("it stays the user that it was started as".into()),
    );
    keep_of(BROKER, "those alone that it needs", report);
}

fn keep_of(needed: CapabilitySet, what: &str, report: &mut Report) {
    match rustix::thread::capabilities(None) {
        Ok(own) => keep(own.permitted & needed, what, report),
        Err(error) => report.missing(Layer::Capabilities, error),
    }
}

/// Says that user and capabilities are those that somebody gave it.
pub fn keep_as_they_are(report: &mut Report) {
    let why = "headers and key services are needed when all data was moved";
    for layer in [Layer::Identity, Layer::Capabilities, Layer::Landlock] {
        report.note(layer, Standing::None(why.into()));
    }
}

/// Makes sure of what `main` has done, which a change of user undoes.
pub fn close_memory(report: &mut Report) {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let closed = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .and_then(|()| rustix::process::setrlimit(Resource::Core, none));
    match closed {
        Ok(()) => report.holds(Layer::Memory, "no dumps, and no tracing by the same user"),
        Err(error) => report.missing(Layer::Memory, error),
    }
    match rustix::thread::set_no_new_privs(true) {
        Ok(()) => report.holds(Layer::Privileges, "no program gives any back"),
        Err(error) => report.missing(Layer::Privileges, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_has_a_user_of_its_own() {
        // The most process ids that Linux has.
        const MOST: u32 = 1 << 22;
        let uids = Uids::DEFAULT;
        assert_eq!(uids.of_process(0), uids.first);
        assert_eq!(uids.of_process(MOST - 1), uids.last);
        assert_eq!(uids.last - uids.first, MOST - 1);
        let few: Uids = "1000-1002".parse().unwrap();
        assert_eq!(
            [3, 4, 5, 6].map(|pid| few.of_process(pid)),
            [1000, 1001, 1002, 1000]
        );
        let one: Uids = "7-7".parse().unwrap();
        assert_eq!(one.of_process(12345), 7);
    }

    #[test]
    fn ranges_are_read_and_root_is_in_none() {
        assert_eq!(Uids::DEFAULT.to_string().parse(), Ok(Uids::DEFAULT));
        for bad in ["", "0-5", "5", "9-8", "1-4294967295", "a-b", "-", "1-2-3"] {
            assert!(bad.parse::<Uids>().is_err(), "{bad}");
        }
    }
}
