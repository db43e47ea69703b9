//! Disks that are frozen for a snapshot, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sealblk::error::Kind;
use sealblk::manager::disks::Disks;
use sealblk::manager::model::{DiskState, NewSize};

use super::lab::{BY_FORCE, Lab, kill, run, until, until_running, us};
use super::support::front_end::{FrontEnd, Options};
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::{Request, S_OK};
use super::support::server::{DEADLINE, eventually};

const MINUTE: Duration = Duration::from_secs(60);
const BLOCK: usize = 16 << 10;
/// Writes in flight on each queue, each to a place of its own.
const DEPTH: usize = 16;
const QUEUES: usize = 2;
/// Far more than are in flight, so that no two writes overlap.
const PLACES: usize = 112;

/// A guest that writes on two queues all the time; its writes get larger
/// numbers, each is flushed now and then, and none fails.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: Option<JoinHandle<FrontEnd>>,
}

impl Load {
    fn start(lab: &Lab, file: &str) -> Load {
        let options = Options {
            queues: QUEUES,
            ..Options::default()
        };
        let socket = lab.path(&format!("{file}.sock"));
        let front = FrontEnd::connect(&socket, &options).unwrap();
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let thread = {
            let (stop, done) = (stop.clone(), done.clone());
            std::thread::spawn(move || work(front, &stop, &done))
        };
        Load {
            stop,
            done,
            thread: Some(thread),
        }
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    fn wait_for(&self, more: usize) {
        let wanted = self.done() + more;
        tokio::task::block_in_place(|| {
            eventually("requests complete", || {
                (self.done() >= wanted).then_some(())
            })
        });
    }

    fn finish(mut self) -> FrontEnd {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().unwrap();
        tokio::task::block_in_place(|| thread.join().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn work(mut front: FrontEnd, stop: &AtomicBool, done: &AtomicUsize) -> FrontEnd {
    let mut numbers = [0usize; QUEUES];
    loop {
        let mut busy = false;
        for (queue, last) in numbers.iter_mut().enumerate() {
            while !stop.load(Ordering::SeqCst) && front.in_flight(queue) < DEPTH {
                *last += 1;
                let number = *last;
                let request = match number % 16 {
                    0 => Request::flush(),
                    _ => {
                        let place = (number % PLACES * QUEUES + queue) * BLOCK / 512;
                        Request::write(place as u64, &[number as u8; BLOCK])
                    }
                };
                front.submit(queue, request).unwrap();
            }
            while let Some((_, outcome)) = front.try_complete(queue) {
                assert_eq!(outcome.status, S_OK);
                done.fetch_add(1, Ordering::SeqCst);
                busy = true;
            }
        }
        if stop.load(Ordering::SeqCst) && (0..QUEUES).all(|queue| front.in_flight(queue) == 0) {
            return front;
        }
        if !busy {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

async fn lab_with_two_queues(disks: &Disks, lab: &Lab) {
    let mut request = lab.request("a.img");
    request.options = toml::from_str("queues = 2").unwrap();
    disks.attach(&us(), request).await.unwrap();
}

#[test]
fn a_frozen_disk_is_quiet_under_load_and_its_copy_opens() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        lab_with_two_queues(&disks, &lab).await;
        let load = Load::start(&lab, "a.img");
        for round in 0..3 {
            load.wait_for(200);
            let info = disks.freeze(&us(), &name, MINUTE).await.unwrap();
            assert_eq!(info.state, DiskState::Frozen);
            assert!(info.frozen.is_some_and(|frozen| frozen.complete));
            let first = std::fs::read(lab.path("a.img")).unwrap();
            // The guest goes on asking meanwhile.
            std::fs::write(lab.path("copy.img"), &first).unwrap();
            let done = load.done();
            let again = disks.freeze(&us(), &name, MINUTE).await.unwrap_err();
            assert_eq!(again.kind(), Kind::Busy, "{again}");
            let last = std::fs::read(lab.path("a.img")).unwrap();
            assert!(first == last, "round {round}: something was written");
            assert!(
                load.done() - done <= 2 * QUEUES * DEPTH,
                "answers that were under way"
            );
            let info = disks.thaw(&us(), &name).await.unwrap();
            assert_eq!(info.state, DiskState::Running);
            assert_eq!(info.frozen, None);
            load.wait_for(200);
            let now = std::fs::read(lab.path("a.img")).unwrap();
            assert!(now != last, "it goes on");
        }
        let late = disks.thaw(&us(), &name).await.unwrap_err();
        assert_eq!(late.kind(), Kind::Refused, "{late}");
        load.finish();
        // The copy is a volume that opens, of the same key.
        let request = lab.request("copy.img");
        disks.attach(&us(), request).await.unwrap();
        let mut front = lab.connect("copy.img").await;
        for queue in 0..QUEUES {
            let first = (QUEUES + queue) * BLOCK / 512;
            let block = front.read(first as u64, BLOCK);
            assert!(block.iter().all(|byte| *byte == block[0]), "a torn write");
        }
        drop(front);
        for file in ["a.img", "copy.img"] {
            disks
                .detach(&us(), &lab.name(file), BY_FORCE)
                .await
                .unwrap();
        }
    });
}

/// The worker keeps the time, with no manager there.
#[test]
fn a_forgotten_freeze_ends_by_itself_without_a_manager() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        lab_with_two_queues(&disks, &lab).await;
        let load = Load::start(&lab, "a.img");
        load.wait_for(50);
        let start = Instant::now();
        // In which what is under way has to be durable, on a busy machine too.
        let time = Duration::from_secs(4);
        disks.freeze(&us(), &name, time).await.unwrap();
        disks.close().await;
        drop(disks);
        load.wait_for(50 + 2 * QUEUES * DEPTH);
        assert!(start.elapsed() >= time, "{:?}", start.elapsed());
        let disks = lab.open().await;
        assert_eq!(disks.get(&name).unwrap().state, DiskState::Running);

        // And with one, which says so to whoever thaws it too late.
        disks.freeze(&us(), &name, time).await.unwrap();
        until(&disks, &name, "it goes on", |info| {
            info.state == DiskState::Running && info.frozen.is_none()
        })
        .await;
        let late = disks.thaw(&us(), &name).await.unwrap_err();
        assert_eq!(late.kind(), Kind::Refused);
        assert!(late.help().unwrap().contains("freeze it again"), "{late}");
        load.wait_for(50);
        load.finish();
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// It stays frozen for the next manager, and for the next worker.
#[test]
fn a_freeze_outlives_manager_and_worker() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let socket = lab.path("a.img.sock");
        let connect = || RawFrontEnd::connect(&socket, &RawOptions::default()).unwrap();
        let mut front = tokio::task::block_in_place(connect);
        disks.freeze(&us(), &name, MINUTE).await.unwrap();
        let before = std::fs::read(lab.path("a.img")).unwrap();
        let waiting = front.submit(0, Request::write(0, &[9; 4096]), Form::Direct);
        disks.close().await;
        drop(disks);
        let disks = lab.open().await;
        let info = disks.get(&name).unwrap();
        assert_eq!(info.state, DiskState::Frozen, "{info:?}");

        kill(info.pid.unwrap());
        until(&disks, &name, "another worker has it frozen", |info| {
            info.state == DiskState::Frozen && info.restarts == 1
        })
        .await;
        tokio::task::block_in_place(|| front.reconnect(&socket).unwrap());
        // Nobody rewrites the header either.
        let renaming = {
            let (disks, name) = (disks.clone(), name.clone());
            tokio::spawn(async move {
                let rewritten = disks.with_volume(&name, |volume| {
                    let mut token = volume.token().clone();
                    token.key_set = "another".into();
                    volume.set_token(token)
                });
                rewritten.await.unwrap().unwrap();
            })
        };
        let again = disks.freeze(&us(), &name, MINUTE).await.unwrap_err();
        assert_eq!(again.kind(), Kind::Busy);
        assert!(!renaming.is_finished());
        assert!(front.queues[0].take_used().is_none());
        assert!(std::fs::read(lab.path("a.img")).unwrap() == before);

        disks.thaw(&us(), &name).await.unwrap();
        let outcome = tokio::task::block_in_place(|| {
            let used = front.used(0);
            front.outcome(waiting, used)
        });
        assert_eq!(outcome.status, S_OK);
        renaming.await.unwrap();
        assert_eq!(
            disks.get(&name).unwrap().key_set.as_deref(),
            Some("another")
        );
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

#[test]
fn a_frozen_disk_is_detached_and_one_that_is_not_served_cannot_be_frozen() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let nobody = disks.freeze(&us(), &name, MINUTE).await.unwrap_err();
        assert_eq!(nobody.kind(), Kind::NotFound);
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut front = lab.connect("a.img").await;
        front.write(0, &[1; 4096]);
        disks.freeze(&us(), &name, MINUTE).await.unwrap();
        for _ in 0..10 {
            front.submit(0, Request::write(0, &[2; 4096])).unwrap();
        }
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        assert!(front.try_complete(0).is_none(), "it was not carried out");
        assert!(lab.workers().is_empty());
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        assert_eq!(lab.connect("a.img").await.read(0, 4096), [1; 4096]);

        disks.close().await;
        drop(disks);
        lab.workers().into_iter().for_each(kill);
        lab.hide_key();
        let disks = lab.open().await;
        until(&disks, &name, "it has no key", |info| {
            info.last_error.is_some()
        })
        .await;
        for refused in [
            disks.freeze(&us(), &name, MINUTE).await.unwrap_err(),
            disks.thaw(&us(), &name).await.unwrap_err(),
        ] {
            assert_eq!(refused.kind(), Kind::Busy, "{refused}");
            assert!(refused.to_string().contains("not served"), "{refused}");
        }
        lab.show_key();
        until_running(&disks, &name).await;
        disks.freeze(&us(), &name, MINUTE).await.unwrap();
        disks.thaw(&us(), &name).await.unwrap();
    });
}

/// The task of a disk keeps its header as it is for as long as it is frozen,
/// and must not wait for that itself.
#[test]
fn a_frozen_disk_is_not_resized_and_can_still_be_thawed() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let size = disks.get(&name).unwrap().size;
        disks.freeze(&us(), &name, MINUTE).await.unwrap();
        let before = std::fs::read(lab.path("a.img")).unwrap();
        let us = us();
        let resized = disks.resize(&us, &name, larger());
        let resized = tokio::time::timeout(DEADLINE, resized).await.unwrap();
        let refused = resized.unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy, "{refused}");
        assert!(refused.to_string().contains("frozen"), "{refused}");
        assert!(std::fs::read(lab.path("a.img")).unwrap() == before);
        let thawed = disks.thaw(&us, &name);
        let info = tokio::time::timeout(DEADLINE, thawed).await.unwrap();
        assert_eq!(info.unwrap().size, size);
        let info = disks.resize(&us, &name, larger()).await.unwrap();
        assert_eq!(info.size, larger().size);
        disks.detach(&us, &name, BY_FORCE).await.unwrap();
    });
}

/// Its header is read again to have its key, which nobody keeps.
#[test]
fn a_frozen_disk_whose_key_nobody_keeps_gets_another_worker() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let mut settings = lab.settings();
        settings.keep_deks = false;
        let disks = lab.open_with(settings).await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        disks.freeze(&us(), &name, MINUTE).await.unwrap();
        kill(disks.get(&name).unwrap().pid.unwrap());
        until(&disks, &name, "another worker has it frozen", |info| {
            info.state == DiskState::Frozen && info.restarts == 1
        })
        .await;
        disks.thaw(&us(), &name).await.unwrap();
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

fn larger() -> NewSize {
    NewSize {
        size: Some(32 << 20),
        ..NewSize::default()
    }
}
