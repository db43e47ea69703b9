//! Managers come and go; the disks stay.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use sealblk::error::Kind;
use sealblk::manager::disks::Disks;
use sealblk::manager::model::DiskState;

use super::lab::{BY_FORCE, Lab, detach_unused, kill, run, until, until_running, us};
use super::process::ManagerProcess;
use super::support::front_end::{FrontEnd, Options};
use super::support::server::{eventually, key_file};

const DATA: [u8; 4096] = [0x77; 4096];

fn connect(lab: &Lab, file: &str) -> FrontEnd {
    let socket = lab.path(&format!("{file}.sock"));
    FrontEnd::connect(&socket, &Options::default()).unwrap()
}

fn attached_by_a_process(lab: &Lab) -> ManagerProcess {
    let mut manager = ManagerProcess::start(lab.home.directory());
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    manager
}

#[test]
fn disks_are_served_without_a_manager_and_taken_over_by_the_next() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    let manager = attached_by_a_process(&lab);
    let workers = lab.workers();
    let mut front_end = connect(&lab, "a.img");
    front_end.write(0, &DATA);
    manager.kill();
    // A guest goes on, and another one comes.
    assert!(front_end.read(0, DATA.len()) == DATA);
    front_end.write(8, &DATA);
    front_end.flush();
    drop(front_end);
    let mut front_end = connect(&lab, "a.img");
    assert!(front_end.read(8, DATA.len()) == DATA);
    assert_eq!(lab.workers(), workers);
    // Nobody else gets the volume meanwhile.
    let serve = ["serve", "a.img", "--socket", "x.sock"];
    assert_eq!(lab.home.refused(&serve).status, 5);

    lab.hide_key();
    run(async {
        let disks = lab.open().await;
        let info = disks.get(&name).unwrap();
        assert_eq!(info.state, DiskState::Running);
        assert_eq!(vec![info.pid.unwrap()], workers);
        assert!(info.front_end && info.uuid.is_some() && info.restarts == 0);
        assert_eq!(info.key_set.as_deref(), Some("default"));
        assert!(front_end.read(0, DATA.len()) == DATA);
        drop(front_end);
        // The key came along: no key service is needed for another worker.
        kill(workers[0]);
        until(&disks, &name, "another worker serves", |info| {
            info.state == DiskState::Running && info.restarts == 1
        })
        .await;
        assert!(lab.connect("a.img").await.read(0, DATA.len()) == DATA);
        detach_unused(&disks, &name).await;
        assert!(lab.workers().is_empty());
        assert!(!lab.path("a.img.sock").exists());
        assert_eq!(
            std::fs::read_dir(lab.path("run/workers")).unwrap().count(),
            0
        );
    });
}

/// Workers write to the log of the manager that started them, and outlive it
/// and whoever read its log.
#[test]
fn disks_are_served_though_nobody_reads_the_log() {
    let lab = Lab::with_volume("a.img");
    let mut manager = ManagerProcess::start_unheard(lab.home.directory());
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    let workers = lab.workers();
    for _ in 0..2 {
        connect(&lab, "a.img").write(0, &DATA);
    }
    manager.kill();
    assert!(connect(&lab, "a.img").read(0, DATA.len()) == DATA);
    assert_eq!(lab.workers(), workers);
}

#[test]
fn a_manager_that_is_closed_leaves_its_disks_to_the_next() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let mut pid = None;
        for _ in 0..5 {
            let disks = lab.open().await;
            let info = match disks.get(&name) {
                Some(info) => info,
                None => disks.attach(&us(), lab.request("a.img")).await.unwrap(),
            };
            assert_eq!(info.state, DiskState::Running);
            assert_eq!(info.pid, *pid.get_or_insert(info.pid));
            lab.connect("a.img").await.write(0, &DATA);
            // The directories are its own as long as it is there.
            let second = Disks::open(lab.settings(), lab.keys()).await;
            let Err(failure) = second else {
                panic!("there are two managers");
            };
            assert_eq!(failure.kind(), Kind::Busy);
            disks.close().await;
            drop(disks);
            lab.connect("a.img").await.read(0, DATA.len());
        }
    });
}

#[test]
fn after_the_end_of_the_host_all_disks_are_attached_again() {
    let lab = Lab::with_volume("a.img");
    lab.home.create("b.img", &[]);
    lab.home.create("c.img", &[]);
    let mut manager = attached_by_a_process(&lab);
    for file in ["b.img", "c.img"] {
        assert_eq!(
            manager.ask(&format!("attach {file}")).as_deref(),
            Some("ok")
        );
    }
    assert_eq!(manager.ask("detach b.img").as_deref(), Some("ok"));
    let mut front_end = connect(&lab, "a.img");
    front_end.write(0, &DATA);
    front_end.flush();
    manager.kill();
    lab.workers().into_iter().for_each(kill);
    eventually("the workers are gone", || {
        lab.workers().is_empty().then_some(())
    });
    drop(front_end);
    // Sockets do not survive: they are in memory.
    std::fs::remove_dir_all(lab.path("run")).unwrap();
    std::fs::remove_file(lab.path("c.img")).unwrap();

    run(async {
        lab.hide_key();
        let disks = lab.open().await;
        let names: Vec<_> = disks.list().into_iter().map(|info| info.name).collect();
        assert_eq!(names, [lab.name("a.img"), lab.name("c.img")]);
        // What is away is told, kept and tried again.
        let name = lab.name("a.img");
        until(&disks, &name, "there is no key", |info| {
            info.last_error.is_some()
        })
        .await;
        let gone = lab.name("c.img");
        let info = until(&disks, &gone, "there is no volume", |info| {
            info.state == DiskState::Failed
        });
        assert_eq!(info.await.last_error.unwrap().kind, Kind::NotFound);
        lab.show_key();
        until_running(&disks, &name).await;
        assert!(lab.connect("a.img").await.read(0, DATA.len()) == DATA);
        until(&disks, &gone, "there is none still", |info| {
            info.state == DiskState::Failed
        })
        .await;
        detach_unused(&disks, &gone).await;
        assert_eq!(disks.list().len(), 1);
    });
}

/// Denied is no outage: said at once, and kept only for disks that are wanted.
#[test]
fn a_key_that_is_denied_is_told_and_tried_again() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    let key = key_file(lab.home.directory());
    let mode = |mode| std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
    run(async {
        let disks = lab.open().await;
        mode(0o644);
        let mut patient = lab.request("a.img");
        patient.wait = true;
        for request in [lab.request("a.img"), patient.clone()] {
            let failure = disks.attach(&us(), request).await.unwrap_err();
            assert!(failure.to_string().contains("platform.key"), "{failure}");
            assert!(disks.list().is_empty());
        }
        mode(0o600);
        disks.attach(&us(), patient).await.unwrap();
        disks.close().await;
        drop(disks);
        lab.workers().into_iter().for_each(kill);
        mode(0o644);
        let disks = lab.open().await;
        let info = until(&disks, &name, "it is denied", |info| {
            info.state == DiskState::Denied
        });
        assert!(info.await.last_error.is_some());
        mode(0o600);
        until_running(&disks, &name).await;
    });
}

#[test]
fn what_a_crash_left_behind_is_cleared_away() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    let manager = attached_by_a_process(&lab);
    let workers = lab.workers();
    manager.kill();
    // The state is lost, the worker is not; and there is the socket of one
    // that is gone.
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    let stale = lab.path("run/workers/0b87c6a9-15ba-4a66-9d0c-2a5cb0a0ed24.sock");
    drop(UnixListener::bind(&stale).unwrap());
    run(async {
        let disks = lab.open().await;
        assert!(!stale.exists());
        let info = disks.get(&name).unwrap();
        assert_eq!(vec![info.pid.unwrap()], workers);
        assert_eq!(info.volume, lab.path("a.img"));
        // A process is no authority for what shall be served.
        let problem = info.last_error.unwrap();
        assert!(problem.message.contains("desired state"), "{problem:?}");
        kill(workers[0]);
        until(&disks, &name, "another worker serves", |info| {
            info.state == DiskState::Running && info.restarts == 1
        })
        .await;
        assert_eq!(
            std::fs::read_dir(lab.path("state/disks")).unwrap().count(),
            0
        );
        detach_unused(&disks, &name).await;
        assert!(!lab.path("a.img.sock").exists());
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        disks.close().await;
        drop(disks);

        // A record that says nothing hides no other disk.
        let record = lab.path("state/disks/odd.json");
        std::fs::write(&record, "{").unwrap();
        std::fs::write(lab.path("state/disks/even.json"), "}").unwrap();
        let disks = lab.open().await;
        assert_eq!(disks.get(&name).unwrap().state, DiskState::Running);
        assert_eq!(disks.get("even").unwrap().state, DiskState::Failed);
        let odd = disks.get("odd").unwrap();
        assert_eq!(odd.state, DiskState::Failed);
        assert_eq!(odd.last_error.unwrap().kind, Kind::Corrupt);
        detach_unused(&disks, "odd").await;
        assert!(!record.exists());
    });
}

/// A worker that hangs is no worker that is gone: it is not served twice.
#[test]
fn a_worker_that_does_not_answer_is_not_replaced() {
    use rustix::process::{Pid, Signal, kill_process};
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    let manager = attached_by_a_process(&lab);
    let pid = Pid::from_raw(lab.workers()[0] as i32).unwrap();
    manager.kill();
    kill_process(pid, Signal::STOP).unwrap();
    run(async {
        let disks = lab.open().await;
        let info = disks.get(&name).unwrap();
        let waits = matches!(info.state, DiskState::Waiting | DiskState::Attaching);
        assert!(waits, "{info:?}");
        let failure = disks.detach(&us(), &name, BY_FORCE).await.unwrap_err();
        assert_eq!(failure.kind(), Kind::Busy);
        assert_eq!(lab.workers().len(), 1);
        kill_process(pid, Signal::CONT).unwrap();
        let info = until_running(&disks, &name).await;
        assert_eq!(info.pid, Some(pid.as_raw_nonzero().get() as u32));
    });
}
