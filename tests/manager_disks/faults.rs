//! Disks on what fails, of a manager: what it shows, what an operator can do, and
//! what becomes of requests that wait when a worker ends.

use std::time::{Duration, Instant};

use sealblk::error::Kind as Class;
use sealblk::manager::disks::Disks;
use sealblk::manager::model::{Attach, DiskInfo, DiskState};

use super::lab::{BY_FORCE, Lab, kill, run, until, until_running, us};
use super::support::faulty_disk::{Fault, FaultyDisk, Kind, Rule};
use super::support::history::{Load, seed};
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::{Request, S_IOERR, S_OK};
use super::support::server::DEADLINE;

/// Where the data of a volume begins.
pub const DATA: u64 = 16 << 20;

pub fn no_space() -> Rule {
    Rule::of(Kind::Write, Fault::Errno(libc::ENOSPC)).within(DATA..u64::MAX)
}

/// A volume on a disk that fails.
pub struct Site {
    pub lab: Lab,
    pub disk: FaultyDisk,
    pub name: String,
}

impl Site {
    pub fn new() -> Site {
        let lab = Lab::new();
        lab.home.create("below.img", &["--zero-units"]);
        let disk = FaultyDisk::mount(&lab.path("below.img"), &lab.path("faulty"), 1);
        let name = lab.name("disk.img");
        Site { lab, disk, name }
    }

    pub fn request(&self, options: &str) -> Attach {
        let mut request = self.lab.request("disk.img");
        request.volume = self.disk.file();
        request.options = toml::from_str(&format!("queues = 2\n{options}")).unwrap();
        request
    }

    pub async fn until_stopped(&self, disks: &Disks) -> DiskInfo {
        until(disks, &self.name, "it is stopped", |info| {
            info.state == DiskState::Stopped
        })
        .await
    }

    pub fn connect(&self) -> RawFrontEnd {
        let options = RawOptions {
            inflight: true,
            ..RawOptions::default()
        };
        RawFrontEnd::connect(&self.lab.path("disk.img.sock"), &options).unwrap()
    }
}

#[test]
fn a_full_disk_stops_over_workers_and_managers_and_goes_on_with_nothing_lost() {
    let site = Site::new();
    run(async {
        let mut disks = site.lab.open().await;
        disks
            .attach(&us(), site.request("on_error = \"enospc\""))
            .await
            .unwrap();
        let socket = site.lab.path("disk.img.sock");
        let mut load = tokio::task::block_in_place(|| Load::start(&socket, seed()));
        tokio::task::block_in_place(|| load.run(Duration::from_millis(200)));
        let nothing = disks.resume(&us(), &site.name, false).await.unwrap_err();
        assert_eq!(nothing.kind(), Class::Refused, "{nothing}");

        site.disk.fail(no_space());
        tokio::task::block_in_place(|| load.run(Duration::from_millis(200)));
        let info = site.until_stopped(&disks).await;
        let trouble = info.trouble.unwrap();
        assert!(trouble.stopped && trouble.waiting > 0);
        let said = &trouble.problem.message;
        assert!(
            said.contains("write of ") && said.contains("No space left"),
            "{said}"
        );
        assert!(trouble.problem.help.unwrap().contains("sealblk resume"));
        // It is tried at once, in vain, and that is told.
        let info = disks.resume(&us(), &site.name, false).await.unwrap();
        assert_eq!(info.state, DiskState::Stopped);
        assert!(info.trouble.unwrap().attempts > trouble.attempts);

        // A worker that is killed leaves it to the next one, which stops as well.
        kill(info.pid.unwrap());
        until(&disks, &site.name, "another worker serves", |info| {
            info.state == DiskState::Running && info.restarts == 1
        })
        .await;
        tokio::task::block_in_place(|| load.run(Duration::from_millis(300)));
        let info = site.until_stopped(&disks).await;
        assert_eq!(info.troubles.stops, 1, "those of this worker");
        // So does a manager.
        drop(disks);
        disks = site.lab.open().await;
        let info = site.until_stopped(&disks).await;
        assert!(info.trouble.unwrap().waiting > 0);
        site.disk.heal();
        until_running(&disks, &site.name).await;
        tokio::task::block_in_place(|| {
            load.until_answered();
            load.finish();
        });
        let info = disks.get(&site.name).unwrap();
        assert!(info.trouble.is_none(), "{info:?}");
        drop(load);
        disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
    });
}

#[test]
fn what_no_time_mends_can_be_failed_and_a_stopped_disk_can_be_detached() {
    let site = Site::new();
    run(async {
        let disks = site.lab.open().await;
        let attach = async || {
            disks
                .attach(&us(), site.request("on_error = \"stop\""))
                .await
        };
        attach().await.unwrap();
        let mut front_end = tokio::task::block_in_place(|| {
            let mut front_end = site.connect();
            front_end.succeed(0, Request::write(0, &[1; 4096]), Form::Direct);
            front_end
        });
        site.disk
            .fail(Rule::of(Kind::Read, Fault::Errno(libc::EIO)).within(DATA..u64::MAX));
        let read = front_end.submit(0, Request::read(0, 4096), Form::Direct);
        site.until_stopped(&disks).await;
        let info = disks.resume(&us(), &site.name, true).await.unwrap();
        assert_eq!((info.state, info.trouble), (DiskState::Running, None));
        tokio::task::block_in_place(|| {
            let used = front_end.used(0);
            assert_eq!(front_end.outcome(read, used).status, S_IOERR);
            front_end.succeed(0, Request::write(0, &[2; 4096]), Form::Direct);
        });
        // Whoever detaches it waits for nothing, and the request stays with the
        // front end: it is done when the disk is back.
        let read = front_end.submit(0, Request::read(0, 4096), Form::Direct);
        site.until_stopped(&disks).await;
        let start = Instant::now();
        disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
        assert!(start.elapsed() < DEADLINE);
        site.disk.heal();
        attach().await.unwrap();
        tokio::task::block_in_place(|| {
            front_end
                .reconnect(&site.lab.path("disk.img.sock"))
                .unwrap();
            let used = front_end.used(0);
            let outcome = front_end.outcome(read, used);
            assert_eq!(outcome.status, S_OK);
            assert!(outcome.data == [2; 4096]);
        });
        drop(front_end);
        disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
    });
}

#[test]
fn what_is_stuck_is_shown_and_that_it_is_over() {
    let site = Site::new();
    run(async {
        let disks = site.lab.open().await;
        let options = "stuck_after = \"200ms\"\non_error = \"retry\"";
        disks.attach(&us(), site.request(options)).await.unwrap();
        let mut front_end = tokio::task::block_in_place(|| site.connect());
        site.disk
            .fail(Rule::of(Kind::Write, Fault::Stuck).within(DATA..u64::MAX));
        let write = front_end.submit(0, Request::write(8, &[2; 8192]), Form::Direct);
        let info = until(&disks, &site.name, "it is stuck", |info| {
            info.stuck.is_some()
        })
        .await;
        let stuck = info.stuck.unwrap();
        assert_eq!(
            (stuck.operation.as_str(), stuck.position, stuck.bytes),
            ("write", 4096, 8192)
        );
        assert_eq!((info.state, info.troubles.stuck), (DiskState::Running, 1));
        site.disk.heal();
        until(&disks, &site.name, "it is over", |info| {
            info.stuck.is_none()
        })
        .await;
        tokio::task::block_in_place(|| {
            let used = front_end.used(0);
            assert_eq!(front_end.outcome(write, used).status, S_OK);
        });
        // One request waits, and the others go on.
        site.disk.fail(no_space());
        let write = front_end.submit(0, Request::write(16, &[3; 4096]), Form::Direct);
        let info = until(&disks, &site.name, "it waits", |info| {
            info.trouble.is_some()
        })
        .await;
        assert_eq!(info.state, DiskState::Running);
        site.disk.heal();
        tokio::task::block_in_place(|| {
            let used = front_end.used(0);
            assert_eq!(front_end.outcome(write, used).status, S_OK);
        });
        drop(front_end);
        disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
    });
}
