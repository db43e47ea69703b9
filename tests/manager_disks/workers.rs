//! Workers that die are replaced, at the same socket.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sealblk::error::Kind;
use sealblk::manager::model::DiskState;

use super::lab::{BY_FORCE, GENTLY, Lab, kill, run, until, until_running, us};
use super::support::request::{Request, S_IOERR};

const DATA: [u8; 4096] = [0x5a; 4096];

#[test]
fn a_killed_worker_is_replaced_without_the_key_service() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let first = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut front_end = lab.connect("a.img").await;
        front_end.write(16, &DATA);
        front_end.flush();
        lab.hide_key();
        for restarts in 1..4 {
            let before = disks.get(&name).unwrap().pid.unwrap();
            kill(before);
            let again = until(&disks, &name, "another worker serves", |info| {
                info.state == DiskState::Running && info.restarts == restarts
            });
            let info = again.await;
            assert_ne!(info.pid, Some(before));
            let problem = info.last_error.unwrap();
            assert!(problem.message.contains("signal 9"), "{problem:?}");
            let mut front_end = lab.connect("a.img").await;
            assert!(front_end.read(16, DATA.len()) == DATA);
            front_end.write(64, &[restarts as u8; 512]);
        }
        assert_ne!(disks.get(&name).unwrap().pid, first.pid);
        assert_eq!(lab.workers().len(), 1);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        assert!(lab.workers().is_empty());
    });
}

/// Who connects while there is no worker waits, and is served by the next.
#[test]
fn the_socket_stays_while_a_worker_is_replaced() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let mut settings = lab.settings();
        settings.restart.first = Duration::from_secs(1);
        let disks = lab.open_with(settings).await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        kill(info.pid.unwrap());
        until(&disks, &name, "its worker is gone", |info| {
            info.pid.is_none()
        })
        .await;
        assert!(lab.workers().is_empty());
        // Asks for features and waits for the answer of a process to come.
        let mut front_end = lab.connect("a.img").await;
        front_end.write(0, &DATA);
        assert_eq!(until_running(&disks, &name).await.restarts, 1);
    });
}

#[test]
fn a_worker_that_somebody_else_ends_is_replaced_too() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        lab.connect("a.img").await.write(0, &DATA);
        let pid = Pid::from_raw(info.pid.unwrap() as i32).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let again = until(&disks, &name, "another worker serves", |info| {
            info.state == DiskState::Running && info.restarts == 1
        });
        let problem = again.await.last_error.unwrap();
        assert!(problem.message.contains("status 0"), "{problem:?}");
        // It ended in good order, with everything written.
        assert!(lab.connect("a.img").await.read(0, DATA.len()) == DATA);
    });
}

#[test]
fn without_kept_keys_the_key_service_is_asked_again() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let mut settings = lab.settings();
        settings.keep_deks = false;
        let disks = lab.open_with(settings).await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        lab.hide_key();
        kill(info.pid.unwrap());
        let stays_away = until(&disks, &name, "there is no key", |info| {
            let problem = info.last_error.as_ref();
            problem.is_some_and(|problem| problem.message.contains("platform.key"))
        });
        let info = stays_away.await;
        assert!(
            matches!(info.state, DiskState::Waiting | DiskState::Failed),
            "{info:?}"
        );
        assert!(lab.workers().is_empty());
        lab.show_key();
        until_running(&disks, &name).await;
        lab.connect("a.img").await.write(0, &DATA);
    });
}

/// What one worker learned of the disk below, the next one knows.
#[test]
fn a_failed_fdatasync_is_remembered_across_workers() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        lab.connect("a.img").await.flush();
        // A worker notes it there. Only root may look into its descriptors.
        let pid = info.pid.unwrap();
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("tests run as root");
        let memo = fds
            .flatten()
            .find(|fd| {
                let target = std::fs::read_link(fd.path()).unwrap();
                target.to_string_lossy().contains("sealblk-memo")
            })
            .expect("a worker has a memo");
        std::fs::write(memo.path(), [1]).unwrap();
        kill(pid);
        let again = until(&disks, &name, "another worker serves", |info| {
            info.state == DiskState::Running && info.restarts == 1
        });
        let problem = again.await.last_error.unwrap();
        assert_eq!(problem.kind, Kind::Io);
        assert!(problem.message.contains("fdatasync"), "{problem:?}");
        let mut front_end = lab.connect("a.img").await;
        front_end.read(0, 4096);
        assert_eq!(front_end.run(0, Request::flush()).status, S_IOERR);
        drop(front_end);
        // Whoever detaches it is told, and finds it detached.
        let failure = disks.detach(&us(), &name, GENTLY).await.unwrap_err();
        assert_eq!(failure.kind(), Kind::Io);
        assert!(failure.to_string().contains("may be lost"), "{failure}");
        assert!(disks.list().is_empty());
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        lab.connect("a.img").await.flush();
    });
}

/// Stopping waits for requests; force does not wait for ever.
#[test]
fn a_worker_that_does_not_end_is_killed_by_force_alone() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let mut settings = lab.settings();
        settings.stop_timeout = Duration::from_millis(200);
        let disks = lab.open_with(settings).await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let pid = Pid::from_raw(info.pid.unwrap() as i32).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        let gently = {
            let (disks, name) = (disks.clone(), name.clone());
            tokio::spawn(async move { disks.detach(&us(), &name, GENTLY).await })
        };
        until(&disks, &name, "it is stopping", |info| {
            info.state == DiskState::Stopping
        })
        .await;
        let by_force = disks.detach(&us(), &name, BY_FORCE).await;
        assert!(gently.await.unwrap().is_err() == by_force.is_err());
        assert!(lab.workers().is_empty() && disks.list().is_empty());
    });
}

/// A header that is rewritten while the disk is served, under its lock.
#[test]
fn the_header_of_a_served_disk_can_be_rewritten() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut front_end = lab.connect("a.img").await;
        front_end.write(0, &DATA);
        let renamed = disks.with_volume(&name, |volume| {
            let mut token = volume.token().clone();
            token.key_set = "another".into();
            volume.set_token(token)
        });
        renamed.await.unwrap().unwrap();
        let info = disks.get(&name).unwrap();
        assert_eq!(info.key_set.as_deref(), Some("another"));
        assert!(front_end.read(0, DATA.len()) == DATA);
        // It is still locked.
        assert_eq!(lab.home.serve_refused(&["--read-only"]).status, 3);
        let serve = ["serve", "a.img", "--read-only", "--socket", "x.sock"];
        assert_eq!(lab.home.refused(&serve).status, 5);
    });
}
