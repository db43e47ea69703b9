//! A manager that ends between any two steps of attaching and detaching.

use sealblk::manager::model::DiskState;

use super::lab::{Lab, detach_unused, run, until_running, us};
use super::process::ManagerProcess;

/// In their order, and whether a next manager finds the disk.
const ATTACHING: [(&str, bool); 8] = [
    ("Opened", false),
    ("Unwrapped", false),
    ("Recorded", true),
    ("Bound", true),
    ("ControlBound", true),
    ("Spawned", true),
    ("Told", true),
    ("Serving", true),
];

const DETACHING: [(&str, bool); 4] = [
    ("Stopping", true),
    ("Stopped", true),
    ("Unbound", true),
    ("Forgotten", false),
];

/// A next manager finds the disk, or not; it works in either case, by one
/// worker, and can be detached and attached.
fn assert_consistent(lab: &Lab, expected: bool, step: &str) {
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        assert_eq!(disks.get(&name).is_some(), expected, "after {step}");
        if !expected {
            assert!(lab.workers().is_empty(), "after {step}");
            disks.attach(&us(), lab.request("a.img")).await.unwrap();
        }
        let info = until_running(&disks, &name).await;
        let mut front_end = lab.connect("a.img").await;
        front_end.write(0, &[3; 4096]);
        front_end.flush();
        drop(front_end);
        // One that was told to stop has ended by now, if it was not found.
        let workers = lab.workers();
        assert!(workers.contains(&info.pid.unwrap()), "after {step}");
        detach_unused(&disks, &name).await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        assert_eq!(info.state, DiskState::Running);
        assert_eq!(lab.workers(), [info.pid.unwrap()], "after {step}");
        let read = lab.connect("a.img").await.read(0, 4096);
        assert!(read == [3; 4096], "after {step}");
        detach_unused(&disks, &name).await;
        let left = |directory: &str| std::fs::read_dir(lab.path(directory)).unwrap().count();
        assert_eq!((left("state/disks"), left("run/workers")), (0, 0));
    });
}

#[test]
fn a_crash_while_attaching_loses_nothing() {
    for (step, expected) in ATTACHING {
        let lab = Lab::with_volume("a.img");
        let mut manager = ManagerProcess::start(lab.home.directory());
        manager.ask(&format!("die {step}"));
        assert_eq!(manager.ask("attach a.img"), None, "it goes on after {step}");
        manager.was_killed();
        assert_consistent(&lab, expected, step);
    }
}

#[test]
fn a_crash_while_detaching_loses_nothing() {
    for (step, expected) in DETACHING {
        let lab = Lab::with_volume("a.img");
        let mut manager = ManagerProcess::start(lab.home.directory());
        assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
        manager.ask(&format!("die {step}"));
        assert_eq!(manager.ask("detach a.img"), None, "it goes on after {step}");
        manager.was_killed();
        assert_consistent(&lab, expected, step);
    }
}
