//! A worker that was taken over talks without end: its manager hears some of it, and
//! looks after the other disks as if nothing was.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sealblk::manager::disks::{Settings, Step};
use sealblk::worker::packet::{self, Packet};
use serde_json::{Value, json};

use super::between::{Between, Trick};
use super::lab::{BY_FORCE, Lab, run, until, until_running, us};
use super::support::server::DEADLINE;

/// How often a manager has written down who has a volume.
static SETTLED: AtomicU64 = AtomicU64::new(0);

/// Says as much more to the manager as there is room for.
struct Flood {
    texts: Vec<Vec<u8>>,
    said: Arc<AtomicU64>,
    /// Only a worker that is known is heard by who looks after the disk.
    adopted: bool,
}

impl Flood {
    fn of(texts: Vec<Value>) -> (Flood, Arc<AtomicU64>) {
        let said = Arc::new(AtomicU64::new(0));
        let texts = texts.into_iter().map(|said| said.to_string().into_bytes());
        let flood = Flood {
            texts: texts.collect(),
            said: said.clone(),
            adopted: false,
        };
        (flood, said)
    }
}

fn status(standing: &str) -> Value {
    json!({"message": "changed", "fds": [], "status": {
        "front_end": false, "errors": 1, "sync_failed": false, "standing": standing}})
}

/// Who has the volume changes all the time, and texts are long.
fn changes() -> Vec<Value> {
    let fault = json!({"message": "x".repeat(100_000), "help": null, "kind": "io"});
    vec![
        status("incoming"),
        json!({"message": "kept", "fault": fault, "fds": []}),
        status("held"),
        json!({"message": "of a later version", "fds": []}),
    ]
}

/// The most that is heard in that time: a burst, one in each 10 ms, and what the
/// sockets keep.
fn most_heard(time: Duration) -> u64 {
    512 + time.as_millis() as u64 / 10 + 600
}

impl Trick for Flood {
    fn change(&mut self, said: &mut Packet) {
        self.adopted |= String::from_utf8_lossy(&said.bytes).contains("\"adopted\"");
    }

    fn say_more(&mut self, manager: &OwnedFd) {
        if !self.adopted {
            return;
        }
        loop {
            let number = self.said.load(Ordering::SeqCst) as usize;
            match packet::send(manager, &self.texts[number % self.texts.len()], &[]) {
                Ok(()) => self.said.fetch_add(1, Ordering::SeqCst),
                Err(_) => break,
            };
        }
    }
}

fn settings(lab: &Lab) -> Settings {
    Settings {
        on_step: Some(|step| {
            if matches!(step, Step::StandingSettled) {
                SETTLED.fetch_add(1, Ordering::SeqCst);
            }
        }),
        ..lab.settings()
    }
}

#[test]
fn a_worker_that_talks_without_end_is_heard_now_and_then() {
    let lab = Lab::with_volume("a.img");
    lab.home.create("b.img", &[]);
    lab.home.create("c.img", &[]);
    let (a, b, c) = (lab.name("a.img"), lab.name("b.img"), lab.name("c.img"));
    run(async {
        let disks = lab.open().await;
        for file in ["a.img", "b.img"] {
            disks.attach(&us(), lab.request(file)).await.unwrap();
        }
        disks.close().await;
        drop(disks);

        let (flood, said) = Flood::of(changes());
        let _flood = Between::before(&lab, &a, flood);
        let begun = Instant::now();
        let disks = lab.open_with(settings(&lab)).await;
        until(&disks, &a, "it is heard", |info| info.last_error.is_some()).await;
        let before = said.load(Ordering::SeqCst);

        // The others are served, listed, attached and detached meanwhile.
        let in_time = tokio::time::timeout(DEADLINE, async {
            until_running(&disks, &b).await;
            let mut served = lab.connect("b.img").await;
            served.write(0, &[7; 4096]);
            disks.attach(&us(), lab.request("c.img")).await.unwrap();
            until_running(&disks, &c).await;
            assert_eq!(disks.list().len(), 3);
            assert_eq!(served.read(0, 4096), [7; 4096]);
            drop(served);
            disks.detach(&us(), &c, BY_FORCE).await.unwrap();
        });
        in_time.await.expect("the other disks are looked after");

        // It goes on, and no faster than it is to.
        while begun.elapsed() < Duration::from_secs(2) || said.load(Ordering::SeqCst) <= before {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(begun.elapsed() < DEADLINE, "it is not heard any more");
        }
        let said = said.load(Ordering::SeqCst);
        let settled = SETTLED.load(Ordering::SeqCst);
        let passed = begun.elapsed();
        assert!(said <= most_heard(passed), "{said} messages in {passed:?}");
        let most = 8 + passed.as_secs() + 1;
        assert!(settled <= most, "{settled} records in {passed:?}");
        let info = disks.get(&a).unwrap();
        let message = info.last_error.map(|problem| problem.message);
        assert!(message.is_none_or(|message| message.len() < 10_000));

        // And its own disk can be taken away.
        let who = us();
        let away = tokio::time::timeout(DEADLINE, disks.detach(&who, &a, BY_FORCE));
        away.await.expect("it is detached in time").unwrap();
        assert!(disks.get(&a).is_none());
    });
}

/// Nor is one that says the same again and again, of which nothing is written down.
#[test]
fn a_worker_that_says_nothing_new_is_heard_no_more_often() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        disks.close().await;
        drop(disks);

        let (flood, said) = Flood::of(vec![status("held")]);
        let _flood = Between::before(&lab, &name, flood);
        let begun = Instant::now();
        let disks = lab.open().await;
        until_running(&disks, &name).await;
        while begun.elapsed() < Duration::from_secs(2) || said.load(Ordering::SeqCst) <= 512 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(begun.elapsed() < DEADLINE, "it is not heard");
        }
        let (said, passed) = (said.load(Ordering::SeqCst), begun.elapsed());
        assert!(said <= most_heard(passed), "{said} messages in {passed:?}");
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}
