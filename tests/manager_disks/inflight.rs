//! What is in flight when a worker is killed is done by the next one: once, in
//! order, and not before the last write of the dead one has landed.

use std::time::{Duration, Instant};

use sealblk::manager::disks::Pace;
use sealblk::manager::model::DiskState;

use super::lab::{BY_FORCE, Lab, kill, run, until, until_running, us};
use super::support::history::{Dice, Load, kills, seed, spread};
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::{Request, S_OK};
use super::support::slow_disk::SlowDisk;

/// How long a worker is down at least: what it is outside of tests, the first time.
const DOWN: Duration = Duration::from_millis(100);

#[test]
fn a_guest_does_not_notice_that_its_worker_is_killed_again_and_again() {
    let lab = Lab::new();
    lab.home.create("a.img", &[]);
    let name = lab.name("a.img");
    let (kills, seed) = (kills(8), seed());
    run(async {
        let mut settings = lab.settings();
        settings.restart = Pace {
            first: DOWN,
            most: DOWN,
        };
        let disks = lab.open_with(settings).await;
        let mut request = lab.request("a.img");
        request.options = toml::from_str("queues = 2").unwrap();
        disks.attach(&us(), request).await.unwrap();
        let socket = lab.path("a.img.sock");
        let (mut dice, mut pauses) = (Dice(seed), vec![]);
        let start = Instant::now();
        let mut load = tokio::task::block_in_place(|| Load::start(&socket, seed));
        let mut restarts = 0;
        // On a busy host it may take some more until one comes at the right time.
        while restarts < kills || load.taken_over == 0 && restarts < kills * 10 {
            restarts += 1;
            tokio::task::block_in_place(|| {
                load.until_answered();
                load.run(Duration::from_micros(dice.below(30_000)));
            });
            let pid = disks.get(&name).unwrap().pid.unwrap();
            let killed = Instant::now();
            kill(pid);
            until(&disks, &name, "another worker serves", |info| {
                info.state == DiskState::Running && info.restarts == restarts
            })
            .await;
            tokio::task::block_in_place(|| load.until_answered());
            pauses.push(killed.elapsed());
        }
        tokio::task::block_in_place(|| load.finish());
        let (least, median, worst) = spread(pauses);
        println!(
            "{restarts} kills in {:.1?}, {} requests, {} taken over; pauses {least:.1?}, \
             {median:.1?}, {worst:.1?} (least, median, worst)",
            start.elapsed(),
            load.answered,
            load.taken_over,
        );
        assert!(load.taken_over > 0, "no kill came at the right time");
        drop(load);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

fn connect(lab: &Lab) -> RawFrontEnd {
    let options = RawOptions {
        inflight: true,
        ..RawOptions::default()
    };
    RawFrontEnd::connect(&lab.path("disk.img.sock"), &options).unwrap()
}

const OLD: [u8; 4096] = [1; 4096];
const NEW: [u8; 4096] = [2; 4096];

/// The write of the killed worker is at the disk, which answers when we say so.
#[test]
fn the_last_write_of_a_killed_worker_is_waited_for() {
    let lab = Lab::new();
    lab.home.create("below.img", &[]);
    let slow = SlowDisk::mount(&lab.path("below.img"), &lab.path("slow"));
    let name = lab.name("disk.img");
    run(async {
        let disks = lab.open().await;
        let mut request = lab.request("disk.img");
        request.volume = slow.file();
        let first = disks.attach(&us(), request).await.unwrap();
        let mut front_end = tokio::task::block_in_place(|| connect(&lab));
        let submitted = tokio::task::block_in_place(|| {
            front_end.succeed(0, Request::write(8, &OLD), Form::Direct);
            slow.keep_writes();
            let submitted = front_end.submit(0, Request::write(8, &NEW), Form::Indirect);
            slow.await_writes(1);
            submitted
        });
        kill(first.pid.unwrap());
        let waiting = until(&disks, &name, "nobody serves", |info| {
            let said = info.last_error.as_ref().map(|it| it.message.as_str());
            said.is_some_and(|said| said.contains("still on its way"))
        });
        assert_eq!(waiting.await.pid, None);
        assert!(lab.workers().is_empty(), "the process has ended");
        // Nobody but the dead has been there.
        let seen = slow.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].write, "{seen:?}");
        slow.release();
        until_running(&disks, &name).await;
        tokio::task::block_in_place(|| {
            front_end.reconnect(&lab.path("disk.img.sock")).unwrap();
            let used = front_end.used(0);
            assert_eq!(front_end.outcome(submitted, used).status, S_OK);
            let read = front_end.succeed(0, Request::read(8, NEW.len()), Form::Direct);
            assert!(read.data == NEW);
        });
        drop(front_end);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}
