//! The walls around a process: what it gives up before it touches anything that
//! a guest, a front end or the network sends, and for good.
//!
//! What enters: which kind of process it is, and what the
//! configuration says of its walls ([`Walls`]). What comes back is a [`Report`]:
//! which walls stand, and why the others do not. Nothing here knows disks, keys
//! or messages. `docs/sandbox.md` says what each wall is worth, and lists the
//! system calls of [`calls`]; a test compares the two.
//!
//! - [`calls`]: the system calls that a process may make, and why;
//!   `seccomp`: has the kernel see to that,
//! - `paths`: landlock,
//! - `identity`: user, groups, capabilities, limits,
//! - `namespaces`: no network, and no file system,
//! - `report`: what holds.
//!
//! Most walls are about a thread and those that it makes afterwards. So a
//! process puts them up while it has one thread alone.

pub mod calls;
mod identity;
mod namespaces;
pub mod paths;
mod report;
mod seccomp;
mod trial;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Failure;

pub use identity::{BadUids, Uids};
pub use paths::Reach;
pub use report::{Layer, Report, Standing};
pub use trial::examine;

/// What the configuration says of the walls of a process that serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Walls {
    /// The users that processes are made from that were started as root. None:
    /// they stay what they are.
    pub uids: Option<Uids>,
    /// Whether a process that a wall is missing of refuses to serve.
    pub required: bool,
}

/// A process that talks to key services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It serves, and asks key services when all data of a disk was moved.
    Keeper,
    /// It starts workers, and asks key services.
    Manager(Reach),
    /// It asks key services for other hosts, and starts nothing.
    Broker(Reach),
}

/// The walls of a worker that can stand before it knows what to serve. It has
/// one thread, and has opened nothing but its connection to the manager.
pub fn shut_worker(walls: &Walls) -> Report {
    let mut report = Report::default();
    look_once();
    identity::set_limits(&mut report);
    namespaces::leave(namespaces::Root::Empty, &mut report);
    identity::become_nobody(walls.uids.as_ref(), &mut report);
    identity::drop_capabilities(&mut report);
    identity::close_memory(&mut report);
    paths::shut(&mut report);
    seccomp::allow_only(calls::WORKER, &[], &mut report);
    report
}

/// What libraries find out about the process when they first need it, by files
/// and calls that are behind the walls afterwards.
fn look_once() {
    std::hint::black_box(rustix::param::page_size());
}

/// The last wall of a process that serves: what was needed to get ready, above all
/// rings. All its threads are behind it. `required`: it has to be there.
///
/// # Errors
/// When it is required, and the kernel does not take it.
pub fn shut_for_good(required: bool) -> Result<(), Failure> {
    let mut report = Report::default();
    seccomp::forbid(calls::ONLY_BEFORE, &mut report);
    report.settle(required)
}

/// The walls of `sealblk serve`, which has everything that it serves but rings.
pub fn shut_server(remove: &[PathBuf]) -> Report {
    let mut report = Report::default();
    look_once();
    report.check_threads();
    identity::set_limits(&mut report);
    namespaces::leave(namespaces::Root::Kept, &mut report);
    identity::keep_to_remove(remove, &mut report);
    identity::close_memory(&mut report);
    paths::reach(&Reach::removing(remove), &mut report);
    seccomp::allow_only(calls::WORKER, calls::SERVE, &mut report);
    report
}

/// The walls of a process that talks to key services: wider ones.
pub fn shut_keeper(kind: &Kind) -> Report {
    let mut report = Report::default();
    if *kind != Kind::Keeper {
        report.check_threads();
    }
    identity::close_memory(&mut report);
    match kind {
        Kind::Manager(reach) => {
            identity::be_manager(&mut report);
            paths::reach(reach, &mut report);
        }
        Kind::Broker(reach) => {
            identity::be_broker(&mut report);
            paths::reach(reach, &mut report);
        }
        Kind::Keeper => identity::keep_as_they_are(&mut report),
    }
    let mut forbidden = calls::NOBODY.to_vec();
    // What a manager may not do, its workers may not either, who make rings.
    if matches!(kind, Kind::Broker(_)) {
        forbidden.extend_from_slice(calls::NO_RINGS);
    }
    if !matches!(kind, Kind::Manager(_)) {
        forbidden.extend_from_slice(calls::NO_PROGRAMS);
    }
    seccomp::forbid(&forbidden, &mut report);
    report
}
