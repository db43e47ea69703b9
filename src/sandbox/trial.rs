//! Which walls a worker would have, tried by a thread that ends behind them.
#![forbid(unsafe_code)]

use std::thread;

use super::report::{Layer, Report};
use super::{Walls, calls, identity, namespaces, paths, seccomp};

/// Tries the walls of a worker on this host, as this user.
pub fn examine(walls: &Walls) -> Report {
    let uids = walls.uids;
    let trial = thread::Builder::new().name("trial".into()).spawn(move || {
        let mut report = Report::default();
        namespaces::leave(namespaces::Root::Empty, &mut report);
        identity::become_nobody(uids.as_ref(), &mut report);
        identity::drop_capabilities(&mut report);
        identity::close_memory(&mut report);
        paths::shut(&mut report);
        seccomp::try_on_this_thread(calls::WORKER, &mut report);
        // What all this is for.
        match std::fs::File::open("/") {
            Err(_) => {}
            Ok(_) => report.missing(Layer::Seccomp, "a directory can be opened all the same"),
        }
        report
    });
    let ended = trial.ok().and_then(|trial| trial.join().ok());
    ended.unwrap_or_else(|| {
        let mut report = Report::default();
        report.missing(
            Layer::Threads,
            "the walls could not be tried: there is no thread",
        );
        report
    })
}
