//! A rekey whose disk fails: what becomes of it, and of requests to what it was moving.

use std::time::{Duration, Instant};

use sealblk::manager::disks::Disks;
use sealblk::manager::model::{DiskInfo, PaceChange, RekeyState, StartRekey};
use sealblk::plane::moving::Go;

use super::faults::{DATA, Site, no_space};
use super::lab::{BY_FORCE, kill, run, until, until_running, us};
use super::rekey::{go, start};
use super::support::faulty_disk::{Fault, Kind, Rule};
use super::support::history::seed;
use super::support::raw_front_end::{Form, RawFrontEnd};
use super::support::registers::Registers;
use super::support::request::{Request, S_IOERR, S_OK};
use super::support::server::{DEADLINE, eventually};

/// A sector that is not moved with the first ones.
const FAR: u64 = (2 << 20) / 512;

/// Attaches the disk and writes to both ends of it, and has a rekey find it full.
async fn begin_to_fail(site: &Site, disks: &Disks, options: &str) -> RawFrontEnd {
    disks.attach(&us(), site.request(options)).await.unwrap();
    let front_end = tokio::task::block_in_place(|| {
        let mut front_end = site.connect();
        front_end.succeed(0, Request::write(0, &[1; 4096]), Form::Direct);
        front_end.succeed(0, Request::write(FAR, &[2; 4096]), Form::Direct);
        front_end
    });
    site.disk.fail(no_space());
    let wanted = start(std::slice::from_ref(&site.name));
    disks.rekey(&us(), wanted).await.unwrap();
    front_end
}

/// So slow that it meets what is to fail.
fn a_mebibyte_a_second(site: &Site) -> StartRekey {
    StartRekey {
        pace: PaceChange {
            limit: Some(1 << 20),
            ..PaceChange::default()
        },
        ..start(std::slice::from_ref(&site.name))
    }
}

/// A rekey alone meets the full disk. Whoever has mended that says so once, and maybe
/// before the rekey has come to rest.
#[test]
fn a_rekey_that_has_failed_hears_at_once_that_it_shall_go_on() {
    let site = Site::new();
    run(async {
        let disks = site.lab.open().await;
        let front_end = begin_to_fail(&site, &disks, "").await;
        let why = until_failed(&disks, &site.name, "").await;
        assert!(why.contains("No space left"), "{why}");
        site.disk.heal();
        go_on(&disks, &site.name).await;
        drop(front_end);
        disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
    });
}

/// What it was about to move is in doubt as long as it cannot be written. Requests that
/// touch it fail then, and all others go on; and it is mended without anybody's doing.
#[test]
fn what_a_rekey_leaves_in_doubt_fails_until_the_disk_is_mended() {
    let site = Site::new();
    run(async {
        let disks = site.lab.open().await;
        let mut front_end = begin_to_fail(&site, &disks, "").await;
        until_failed(&disks, &site.name, "--on-error").await;
        let read = |at| Request::read(at, 4096);
        tokio::task::block_in_place(|| {
            assert_eq!(front_end.run(0, read(0), Form::Direct).status, S_IOERR);
            let far = front_end.succeed(0, read(FAR), Form::Direct);
            assert!(far.data == [2; 4096]);
            site.disk.heal();
            let near = eventually("it is mended", || {
                let near = front_end.run(0, read(0), Form::Direct);
                (near.status == S_OK).then_some(near)
            });
            assert!(near.data == [1; 4096]);
        });
        let why = until_failed(&disks, &site.name, "No space left").await;
        assert!(!why.contains("--on-error"), "{why}");
        go_on(&disks, &site.name).await;
        drop(front_end);
        disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
    });
}

/// What comes first where a rekey has left something in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Mended,
    Detached,
    Killed,
}

/// Where the guest shall see no error, it sees none of that either: not when the disk is
/// mended, nor when it is detached before that, or its worker dies.
#[test]
fn what_a_rekey_leaves_in_doubt_stops_a_disk_that_shall_stop() {
    for end in [End::Mended, End::Detached, End::Killed] {
        let site = Site::new();
        run(async {
            let disks = site.lab.open().await;
            let options = "on_error = \"enospc\"";
            let mut front_end = begin_to_fail(&site, &disks, options).await;
            until_failed(&disks, &site.name, "--on-error").await;
            let read = front_end.submit(0, Request::read(0, 4096), Form::Direct);
            let write = front_end.submit(0, Request::write(8, &[3; 4096]), Form::Direct);
            let info = site.until_stopped(&disks).await;
            let trouble = info.trouble.unwrap();
            let said = &trouble.problem.message;
            assert!(said.contains("No space left"), "{said}");
            let socket = site.lab.path("disk.img.sock");
            match end {
                End::Mended => {
                    site.disk.heal();
                    until_running(&disks, &site.name).await;
                    until_failed(&disks, &site.name, "No space left").await;
                }
                End::Detached => {
                    let start = Instant::now();
                    disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
                    assert!(start.elapsed() < DEADLINE);
                    site.disk.heal();
                    disks.attach(&us(), site.request(options)).await.unwrap();
                }
                End::Killed => {
                    kill(info.pid.unwrap());
                    // The next one cannot know how the region is stored either.
                    until(&disks, &site.name, "it does not serve", |info| {
                        let why = info.last_error.as_ref();
                        why.is_some_and(|why| why.message.contains("No space left"))
                    })
                    .await;
                    site.disk.heal();
                    until_running(&disks, &site.name).await;
                }
            }
            if end != End::Mended {
                tokio::task::block_in_place(|| front_end.reconnect(&socket).unwrap());
            }
            let outcomes = tokio::task::block_in_place(|| {
                let mut used = [front_end.used(0), front_end.used(0)];
                used.sort_by_key(|used| used.id != u32::from(read.head));
                let [first, second] = used;
                (
                    front_end.outcome(read, first),
                    front_end.outcome(write, second),
                )
            });
            assert_eq!((outcomes.0.status, outcomes.1.status), (S_OK, S_OK));
            assert!(outcomes.0.data == [1; 4096]);
            go_on(&disks, &site.name).await;
            tokio::task::block_in_place(|| {
                let data = front_end
                    .succeed(0, Request::read(0, 8192), Form::Direct)
                    .data;
                assert!(data[..4096] == [1; 4096] && data[4096..] == [3; 4096]);
            });
            drop(front_end);
            disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
        });
    }
}

/// A guest and a rekey meet a disk that fails for longer than requests wait for what is
/// being moved, and then one that fails now and then.
fn a_rekey_where_much_fails_mixes_nothing_up(on_error: &str) {
    let site = Site::new();
    run(async {
        let disks = site.lab.open().await;
        let options = format!("on_error = {on_error:?}");
        disks.attach(&us(), site.request(&options)).await.unwrap();
        let mut load = Registers::new(super::support::home::SIZE, 2, true, seed());
        load.tolerant = on_error == "report";
        let socket = site.lab.path("disk.img.sock");
        tokio::task::block_in_place(|| {
            load.connect(&socket).unwrap();
            assert!(load.run(200, DEADLINE));
            load.drain();
        });
        let fail = |kind, chance| {
            let rule = Rule::of(kind, Fault::Errno(libc::EIO)).within(DATA..u64::MAX);
            site.disk.fail(rule.chance(chance));
        };
        fail(Kind::Write, 1000);
        disks
            .rekey(&us(), a_mebibyte_a_second(&site))
            .await
            .unwrap();
        until_failed(&disks, &site.name, "--on-error").await;
        for _ in 0..3 {
            tokio::task::block_in_place(|| {
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(500) {
                    load.run(10, Duration::from_millis(20));
                }
            });
            site.disk.heal();
            let _ = disks.resume(&us(), &site.name, false).await;
            until_running(&disks, &site.name).await;
            tokio::task::block_in_place(|| assert!(load.run(50, DEADLINE)));
            fail(Kind::Read, 100);
            fail(Kind::Write, 100);
        }
        site.disk.heal();
        let _ = disks.resume(&us(), &site.name, false).await;
        let over = |info: &DiskInfo| {
            let rekey = info.rekey.as_ref();
            rekey.is_none_or(|it| it.state == RekeyState::Failed)
        };
        let info = until(&disks, &site.name, "it rests, or is over", over).await;
        if info.rekey.is_some() {
            go_on(&disks, &site.name).await;
        }
        tokio::task::block_in_place(|| {
            assert!(load.run(300, DEADLINE));
            load.check_all();
        });
        load.leave();
        disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
    });
}

#[test]
fn a_rekey_where_much_fails_and_is_reported_mixes_nothing_up() {
    a_rekey_where_much_fails_mixes_nothing_up("report");
}

#[test]
fn a_rekey_where_much_fails_and_is_tried_again_mixes_nothing_up() {
    a_rekey_where_much_fails_mixes_nothing_up("retry");
}

#[test]
fn a_rekey_where_much_fails_and_stops_the_disk_mixes_nothing_up() {
    a_rekey_where_much_fails_mixes_nothing_up("stop");
}

/// Waits until a rekey has failed, and says so with these words.
async fn until_failed(disks: &Disks, name: &str, words: &str) -> String {
    let said = |info: &DiskInfo| {
        let rekey = info.rekey.clone()?;
        let why = rekey
            .problem
            .filter(|_| rekey.state == RekeyState::Failed)?;
        why.message.contains(words).then_some(why.message)
    };
    let info = until(disks, name, "it has failed", |info| said(info).is_some()).await;
    said(&info).unwrap()
}

/// Says that a rekey shall go on, once, and waits until all is moved.
async fn go_on(disks: &Disks, name: &str) {
    disks.change_rekey(&us(), name, go(Go::Run)).await.unwrap();
    until(disks, name, "all is moved", |info| info.rekey.is_none()).await;
}

/// A rekey meets the full disk as well: it rests while the disk is stopped, and goes
/// on with it.
#[test]
fn a_rekey_goes_on_when_the_disk_does() {
    let site = Site::new();
    run(async {
        let disks = site.lab.open().await;
        disks
            .attach(&us(), site.request("on_error = \"stop\""))
            .await
            .unwrap();
        let size = super::support::home::SIZE;
        let mut load = Registers::new(size, 2, true, seed());
        let socket = site.lab.path("disk.img.sock");
        tokio::task::block_in_place(|| {
            load.connect(&socket).unwrap();
            assert!(load.run(200, DEADLINE));
        });
        disks
            .rekey(&us(), a_mebibyte_a_second(&site))
            .await
            .unwrap();
        for _ in 0..3 {
            site.disk.fail(no_space());
            tokio::task::block_in_place(|| load.run(1 << 40, Duration::from_millis(200)));
            site.until_stopped(&disks).await;
            // It has failed as well, or has seen that the disk is stopped.
            until(&disks, &site.name, "nothing is moved", |info| {
                use RekeyState::{Failed, Held};
                let rekey = info.rekey.as_ref();
                rekey.is_none_or(|it| matches!(it.state, Failed | Held))
            })
            .await;
            site.disk.heal();
            let _ = disks.resume(&us(), &site.name, false).await;
            until_running(&disks, &site.name).await;
            tokio::task::block_in_place(|| assert!(load.run(50, DEADLINE)));
        }
        let done = until(&disks, &site.name, "all is moved", |info| {
            info.rekey.is_none()
        });
        tokio::join!(done, async {
            tokio::task::block_in_place(|| load.run(300, DEADLINE));
        });
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        disks.detach(&us(), &site.name, BY_FORCE).await.unwrap();
    });
}
