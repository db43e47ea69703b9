//! Disks that grow while they are served.

use std::path::Path;

use sealblk::error::Kind;
use sealblk::manager::disks::Disks;
use sealblk::manager::model::{DiskInfo, NewSize};
use sealblk::volume::{Inspection, Location};

use super::lab::{BY_FORCE, Lab, detach_unused, kill, run, until, until_running, us};
use super::process::ManagerProcess;
use super::support::home::SIZE;
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::{Request, S_IOERR};

const SECTORS: u64 = SIZE / 512;
/// A size that no file system rounds.
const LARGER: u64 = SIZE + (3 << 20) + 512;

fn to(size: u64) -> NewSize {
    NewSize {
        size: Some(size),
        preallocate: false,
    }
}

/// What the header says.
fn in_header(location: &Location) -> u64 {
    let description = Inspection::of(location).unwrap().description().unwrap();
    description.layout.size
}

fn inline(lab: &Lab, file: &str) -> Location {
    Location {
        data: lab.path(file),
        header: None,
    }
}

/// One front end that can be told and one that cannot, of the same kind.
fn raw(socket: &Path, channel: bool) -> RawFrontEnd {
    let options = RawOptions {
        channel,
        ..RawOptions::default()
    };
    tokio::task::block_in_place(|| RawFrontEnd::connect(socket, &options).unwrap())
}

async fn until_read(disks: &Disks, name: &str, size: u64) -> DiskInfo {
    until(disks, name, "the front end has read the size", |info| {
        info.size_read == Some(size)
    })
    .await
}

#[test]
fn a_disk_grows_under_its_front_end_and_keeps_its_data() {
    for (detached, arguments) in [(false, &[][..]), (true, &["--zero-units"][..])] {
        let lab = Lab::new();
        let header = ["--header", "a.header"];
        let given = if detached { &header[..] } else { &[] };
        lab.home.create("a.img", &[arguments, given].concat());
        let name = lab.name("a.img");
        let location = Location {
            header: detached.then(|| lab.path("a.header")),
            ..inline(&lab, "a.img")
        };
        run(async {
            let disks = lab.open().await;
            let mut request = lab.request("a.img");
            request.header = location.header.clone();
            disks.attach(&us(), request.clone()).await.unwrap();
            let mut front = lab.connect("a.img").await;
            let old = [vec![0x11; 4096], vec![0x22; 4096]];
            let last = SECTORS - 8;
            tokio::task::block_in_place(|| {
                front.write(0, &old[0]);
                front.write(last, &old[1]);
                let beyond = front.run(0, Request::write(SECTORS, &[3; 512]));
                assert_eq!(beyond.status, S_IOERR);
            });
            let info = disks.resize(&us(), &name, to(LARGER)).await.unwrap();
            assert_eq!(info.size, Some(LARGER));
            assert_eq!(in_header(&location), LARGER);
            tokio::task::block_in_place(|| {
                // The same connection and the same queues.
                assert_eq!(front.config().unwrap().capacity, LARGER / 512);
                // Over the old end, and at the new one.
                front.write(SECTORS - 1, &[4; 1024]);
                front.write(LARGER / 512 - 1, &[5; 512]);
                front.flush();
                assert!(front.read(0, 4096) == old[0]);
                assert!(front.read(last, 3584) == old[1][..3584]);
                assert!(front.read(SECTORS - 1, 1024) == [4; 1024]);
                if detached {
                    assert!(front.read(SECTORS + 1, 4096) == [0; 4096], "new space");
                }
                let beyond = front.run(0, Request::write(LARGER / 512, &[6; 512]));
                assert_eq!(beyond.status, S_IOERR);
            });
            drop(front);

            // As it is for whoever opens it next.
            disks.detach(&us(), &name, BY_FORCE).await.unwrap();
            let info = disks.attach(&us(), request).await.unwrap();
            assert_eq!(info.size, Some(LARGER));
            let mut front = lab.connect("a.img").await;
            tokio::task::block_in_place(|| {
                assert!(front.read(0, 4096) == old[0]);
                assert!(front.read(SECTORS - 1, 1024) == [4; 1024]);
                assert!(front.read(LARGER / 512 - 1, 512) == [5; 512]);
            });
            drop(front);
            detach_unused(&disks, &name).await;
        });
    }
}

#[test]
fn a_front_end_that_wants_to_be_told_is_told_once_and_another_is_said_not_to_be() {
    let lab = Lab::with_volume("a.img");
    let (name, socket) = (lab.name("a.img"), lab.path("a.img.sock"));
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut front = raw(&socket, true);
        tokio::task::block_in_place(|| {
            // It has not read the size by now, and may know an old one.
            front.config_changed();
            assert_eq!(front.config().unwrap().capacity, SECTORS);
        });
        let info = until_read(&disks, &name, SIZE).await;
        assert!(info.takes_notices && info.front_end);
        for size in [SIZE + 512, LARGER] {
            let info = disks.resize(&us(), &name, to(size)).await.unwrap();
            assert_ne!(info.size_read, Some(size), "nobody has read it yet");
            tokio::task::block_in_place(|| {
                front.config_changed();
                assert_eq!(front.config().unwrap().capacity, size / 512);
            });
            until_read(&disks, &name, size).await;
        }
        // It connects anew, to another worker: it has read nothing there.
        kill(lab.workers()[0]);
        until(&disks, &name, "another worker serves", |info| {
            info.restarts == 1 && info.pid.is_some()
        })
        .await;
        let info = disks.get(&name).unwrap();
        assert_eq!((info.size, info.size_read), (Some(LARGER), None));
        tokio::task::block_in_place(|| {
            front.reconnect(&socket).unwrap();
            front.config_changed();
            assert_eq!(front.config().unwrap().capacity, LARGER / 512);
            let last = Request::write(LARGER / 512 - 1, &[7; 512]);
            front.succeed(0, last, Form::Direct);
            assert!(!front.heard_something(), "it was told once more");
        });
        drop(front);
        until(&disks, &name, "the front end has gone", |info| {
            !info.front_end && info.size_read.is_none() && !info.takes_notices
        })
        .await;

        // One without a channel.
        let mut mute = raw(&socket, false);
        tokio::task::block_in_place(|| assert_eq!(mute.config().unwrap().capacity, LARGER / 512));
        until_read(&disks, &name, LARGER).await;
        let info = disks.resize(&us(), &name, to(LARGER + 512)).await.unwrap();
        assert!(!info.takes_notices && info.front_end);
        assert_eq!(
            (info.size, info.size_read),
            (Some(LARGER + 512), Some(LARGER))
        );
        // It may use it all the same.
        tokio::task::block_in_place(|| {
            let last = Request::write(LARGER / 512, &[7; 512]);
            mute.succeed(0, last, Form::Direct);
        });
        drop(mute);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

#[test]
fn what_cannot_be_changes_nothing() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    let location = inline(&lab, "a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        for (size, kind, cause) in [
            (SIZE - 512, Kind::Refused, "can only grow"),
            (0, Kind::Refused, "can only grow"),
            (SIZE + 100, Kind::Usage, "not a number of sectors"),
            (
                u64::MAX / 512 * 512,
                Kind::Usage,
                "no file can be that large",
            ),
        ] {
            let failure = disks.resize(&us(), &name, to(size)).await.unwrap_err();
            assert_eq!(failure.kind(), kind, "{failure}");
            assert!(failure.to_string().contains(cause), "{failure}");
        }
        assert_eq!(in_header(&location), SIZE);
        // As large as there is room for: that is what it has.
        let all = NewSize::default();
        let info = disks.resize(&us(), &name, all).await.unwrap();
        assert_eq!(info.size, Some(SIZE));
        let file = std::fs::File::options().write(true).open(&location.data);
        file.unwrap().set_len((16 << 20) + LARGER + 511).unwrap();
        let info = disks.resize(&us(), &name, all).await.unwrap();
        assert_eq!(info.size, Some(LARGER));
        let nobody = disks.resize(&us(), "none", to(LARGER)).await;
        assert_eq!(nobody.unwrap_err().kind(), Kind::NotFound);
        detach_unused(&disks, &name).await;

        let mut request = lab.request("a.img");
        request.options.read_only = Some(true);
        disks.attach(&us(), request).await.unwrap();
        let failure = disks.resize(&us(), &name, to(2 * LARGER)).await;
        let failure = failure.unwrap_err();
        assert!(failure.to_string().contains("read-only"), "{failure}");
        detach_unused(&disks, &name).await;
    });
}

#[test]
fn a_disk_that_waits_for_its_key_grows_too() {
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
        let info = disks.resize(&us(), &name, to(LARGER)).await.unwrap();
        assert_eq!(info.size, Some(LARGER));
        lab.show_key();
        until_running(&disks, &name).await;
        let mut front = lab.connect("a.img").await;
        tokio::task::block_in_place(|| {
            assert_eq!(front.config().unwrap().capacity, LARGER / 512);
            front.write(LARGER / 512 - 1, &[9; 512]);
        });
        drop(front);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// A manager that ends after each step, with a front end that goes on; and one
/// whose worker is killed at that moment as well.
#[test]
fn a_crash_while_growing_loses_nothing() {
    for (step, grown) in [
        ("Extended", false),
        ("HeaderResized", true),
        ("Resized", true),
    ] {
        for kill_worker in [false, true] {
            let lab = Lab::with_volume("a.img");
            let (name, location) = (lab.name("a.img"), inline(&lab, "a.img"));
            let mut manager = ManagerProcess::start(lab.home.directory());
            assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
            let worker = lab.workers()[0];
            run(async {
                let mut front = lab.connect("a.img").await;
                tokio::task::block_in_place(|| {
                    front.write(SECTORS - 8, &[1; 4096]);
                    front.flush();
                    manager.ask(&format!("die {step}"));
                    assert_eq!(manager.ask(&format!("grow a.img {LARGER}")), None, "{step}");
                    manager.was_killed();
                    // It is served on, as the worker knows it.
                    assert!(front.read(SECTORS - 8, 4096) == [1; 4096]);
                });
                let expected = if grown { LARGER } else { SIZE };
                assert_eq!(in_header(&location), expected, "after {step}");
                if kill_worker {
                    drop(front);
                    kill(worker);
                    front = take_over(&lab, &name, expected).await;
                } else {
                    let disks = lab.open().await;
                    let info = until_running(&disks, &name).await;
                    assert_eq!((info.pid, info.size), (Some(worker), Some(expected)));
                    disks.close().await;
                }
                let disks = lab.open().await;
                until_running(&disks, &name).await;
                tokio::task::block_in_place(|| {
                    assert_eq!(front.config().unwrap().capacity, expected / 512);
                });
                // The same request finishes it, or finds it done.
                let info = disks.resize(&us(), &name, to(LARGER)).await.unwrap();
                assert_eq!(info.size, Some(LARGER), "after {step}");
                tokio::task::block_in_place(|| {
                    assert!(front.read(SECTORS - 8, 4096) == [1; 4096]);
                    front.write(LARGER / 512 - 1, &[2; 512]);
                    assert!(front.read(LARGER / 512 - 1, 512) == [2; 512]);
                });
                drop(front);
                assert_eq!(in_header(&location), LARGER);
                disks.detach(&us(), &name, BY_FORCE).await.unwrap();
            });
        }
    }
}

/// A next manager starts another worker; returns a front end of that.
async fn take_over(lab: &Lab, name: &str, expected: u64) -> super::support::front_end::FrontEnd {
    let disks = lab.open().await;
    let info = until_running(&disks, name).await;
    assert_eq!(info.size, Some(expected));
    disks.close().await;
    lab.connect("a.img").await
}
