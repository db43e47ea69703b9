//! Limits of a disk: set while it is served, and kept by whatever serves it next.

use std::os::fd::AsFd;

use sealblk::config::Limits;
use sealblk::engine::stats::Reader;
use sealblk::engine::throttle::Lane;
use sealblk::error::Kind;
use sealblk::manager::disks::Disks;
use sealblk::manager::model::DiskState;

use super::lab::{BY_FORCE, Lab, detach_unused, kill, run, until, until_running, us};
use super::process::ManagerProcess;
use super::support::front_end::FrontEnd;
use super::support::request::{Request, S_OK};

fn limits(text: &str) -> Limits {
    toml::from_str(text).unwrap()
}

fn shown(disks: &Disks, name: &str) -> String {
    disks.get(name).unwrap().limits.to_string()
}

/// Whether some of ten writes have to wait, at five a second.
async fn is_limited(disks: &Disks, name: &str, front: &mut FrontEnd) -> bool {
    let memory = disks.statistics(name).unwrap();
    let stats = Reader::open(memory.as_fd()).unwrap();
    let waited = || stats.snapshot().throttled(Lane::Write).requests;
    let before = waited();
    tokio::task::block_in_place(|| {
        for _ in 0..10 {
            front.submit(0, Request::write(0, &[1; 512])).unwrap();
        }
        while front.in_flight(0) > 0 {
            assert_eq!(front.complete(0).unwrap().1.status, S_OK);
        }
    });
    waited() > before
}

#[test]
fn limits_hold_at_once_and_for_every_later_worker_and_manager() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let mut request = lab.request("a.img");
        request.options.limits = limits("bps_total = \"1G\"");
        disks.attach(&us(), request).await.unwrap();
        assert_eq!(shown(&disks, &name), "bps_total=1073741824");
        let mut front = lab.connect("a.img").await;
        assert!(!is_limited(&disks, &name, &mut front).await);

        let slow = limits("iops_write = 5");
        let info = disks.limit(&us(), &name, slow).await.unwrap();
        let both = "iops_write=5 bps_total=1073741824";
        assert_eq!(info.limits.to_string(), both);
        assert!(is_limited(&disks, &name, &mut front).await);

        // What cannot be changes nothing.
        for (wrong, cause) in [
            ("iops_total = 5\niops_read = 5", "exclude each other"),
            ("bps_total_max = 5", "no limit"),
        ] {
            let refused = disks.limit(&us(), &name, limits(wrong)).await;
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{error}");
            assert!(error.to_string().contains(cause), "{error}");
        }
        assert_eq!(shown(&disks, &name), both);
        let nobody = disks.limit(&us(), "none", limits("")).await;
        assert_eq!(nobody.unwrap_err().kind(), Kind::NotFound);

        // Another worker.
        drop(front);
        kill(lab.workers()[0]);
        until(&disks, &name, "another worker serves", |info| {
            info.state == DiskState::Running && info.restarts == 1
        })
        .await;
        assert_eq!(shown(&disks, &name), both);
        let mut front = lab.connect("a.img").await;
        assert!(is_limited(&disks, &name, &mut front).await);

        // Another manager, with the same worker; and lifted while requests wait.
        disks.close().await;
        drop(disks);
        let disks = lab.open().await;
        until_running(&disks, &name).await;
        assert_eq!(shown(&disks, &name), both);
        let crawl = limits("iops_write = 1");
        disks.limit(&us(), &name, crawl).await.unwrap();
        tokio::task::block_in_place(|| {
            for _ in 0..40 {
                front.submit(0, Request::write(0, &[1; 512])).unwrap();
            }
        });
        disks.limit(&us(), &name, Limits::none()).await.unwrap();
        finish(&mut front).await;
        assert!(!is_limited(&disks, &name, &mut front).await);
        drop(front);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// With requests that would wait for most of a minute, longer than a front end
/// waits here, and a worker that would be killed is waited for.
#[test]
fn a_limited_disk_is_detached_without_waiting_for_its_limits() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let mut request = lab.request("a.img");
        request.options.limits = limits("iops_write = 1");
        disks.attach(&us(), request).await.unwrap();
        let mut front = lab.connect("a.img").await;
        tokio::task::block_in_place(|| {
            for _ in 0..40 {
                front.submit(0, Request::write(0, &[1; 512])).unwrap();
            }
            // A read is not limited: when it is answered, all before it were taken.
            let read = front.submit(0, Request::read(0, 512)).unwrap();
            while front.complete(0).unwrap().0 != read {}
        });
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        finish(&mut front).await;
    });
}

#[test]
fn a_disk_that_waits_for_its_key_can_be_limited() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    let mut manager = ManagerProcess::start(lab.home.directory());
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    let worker = lab.workers()[0];
    manager.kill();
    kill(worker);
    lab.hide_key();
    run(async {
        let disks = lab.open().await;
        until(&disks, &name, "it cannot be served", |info| {
            info.last_error.is_some()
        })
        .await;
        let slow = limits("iops_write = 5");
        let info = disks.limit(&us(), &name, slow).await.unwrap();
        assert_eq!(info.limits.to_string(), "iops_write=5");
        lab.show_key();
        until_running(&disks, &name).await;
        assert_eq!(shown(&disks, &name), "iops_write=5");
        let mut front = lab.connect("a.img").await;
        assert!(is_limited(&disks, &name, &mut front).await);
        drop(front);
        detach_unused(&disks, &name).await;
    });
}

async fn finish(front: &mut FrontEnd) {
    tokio::task::block_in_place(|| {
        while front.in_flight(0) > 0 {
            assert_eq!(front.complete(0).unwrap().1.status, S_OK);
        }
    });
}
