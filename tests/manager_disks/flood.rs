//! A worker that was taken over talks without end: its manager hears some of it, and
//! looks after the other disks as if nothing was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sealblk::manager::disks::{Settings, Step};
use sealblk::worker::packet;
use serde_json::{Value, json};

use super::lab::{BY_FORCE, Lab, run, until, until_running, us};
use super::support::server::DEADLINE;

/// How often a manager has written down who has a volume.
static SETTLED: AtomicU64 = AtomicU64::new(0);

/// Between a worker and its manager. Passes on what both say, and says as much more
/// to the manager as there is room for.
struct Flood {
    stop: Arc<AtomicBool>,
    said: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

fn socket() -> OwnedFd {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap()
}

/// What it says: who has the volume changes all the time, and texts are long.
fn flood() -> Vec<Vec<u8>> {
    let status = |standing: &str| {
        json!({"message": "changed", "fds": [], "status": {
            "front_end": false, "errors": 1, "sync_failed": false, "standing": standing}})
    };
    let fault = json!({"message": "x".repeat(100_000), "help": null, "kind": "io"});
    let said = [
        status("incoming"),
        json!({"message": "kept", "fault": fault, "fds": []}),
        status("held"),
        json!({"message": "of a later version", "fds": []}),
    ];
    said.map(|said| said.to_string().into_bytes()).into()
}

impl Flood {
    /// Takes the place of the worker of that disk.
    fn before(lab: &Lab, name: &str) -> Flood {
        let record = std::fs::read(lab.path(&format!("state/disks/{name}.json"))).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        let id = record["id"].as_str().unwrap();
        let control = lab.path(&format!("run/workers/{id}.sock"));
        let real = lab.path("real.sock");
        std::fs::rename(&control, &real).unwrap();
        let listener = socket();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&control).unwrap()).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        let (stop, said) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (until, count) = (stop.clone(), Arc::clone(&said));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                if readable(&[listener.as_fd()])[0] {
                    let flags = SocketFlags::CLOEXEC;
                    let manager = rustix::net::accept_with(&listener, flags).unwrap();
                    between(&manager, &real, &until, &count);
                }
            }
        });
        Flood {
            stop,
            said,
            thread: Some(thread),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn readable(sockets: &[BorrowedFd<'_>]) -> Vec<bool> {
    let mut polled: Vec<PollFd> = sockets
        .iter()
        .map(|socket| PollFd::new(socket, PollFlags::IN))
        .collect();
    let short = Timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    poll(&mut polled, Some(&short)).unwrap();
    let ready = polled.iter().map(|polled| !polled.revents().is_empty());
    ready.collect()
}

/// Until one of them has gone.
fn between(manager: &OwnedFd, worker: &Path, stop: &AtomicBool, count: &AtomicU64) {
    let own = socket();
    rustix::net::connect(&own, &SocketAddrUnix::new(worker).unwrap()).unwrap();
    let flood = flood();
    let mut adopted = false;
    while !stop.load(Ordering::SeqCst) {
        let ready = readable(&[manager.as_fd(), own.as_fd()]);
        for (ready, from, to) in [(ready[0], manager, &own), (ready[1], &own, manager)] {
            if !ready {
                continue;
            }
            let Ok(Some(packet)) = packet::receive(from) else {
                return;
            };
            adopted |= String::from_utf8_lossy(&packet.bytes).contains("\"adopted\"");
            let fds: Vec<BorrowedFd<'_>> = packet.fds.iter().map(AsFd::as_fd).collect();
            // There is no room while the manager does not listen.
            while let Err(error) = packet::send(to, &packet.bytes, &fds) {
                if error.kind() != std::io::ErrorKind::WouldBlock || stop.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::yield_now();
            }
        }
        // Only one that is known is heard by who looks after the disk.
        if !adopted {
            continue;
        }
        loop {
            let number = count.load(Ordering::SeqCst) as usize;
            match packet::send(manager, &flood[number % flood.len()], &[]) {
                Ok(()) => count.fetch_add(1, Ordering::SeqCst),
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

        let flood = Flood::before(&lab, &a);
        let begun = Instant::now();
        let disks = lab.open_with(settings(&lab)).await;
        until(&disks, &a, "it is heard", |info| info.last_error.is_some()).await;
        let before = flood.said.load(Ordering::SeqCst);

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
        while begun.elapsed() < Duration::from_secs(2)
            || flood.said.load(Ordering::SeqCst) <= before
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(begun.elapsed() < DEADLINE, "it is not heard any more");
        }
        // A burst, one in each 10 ms, and what the sockets keep.
        let (said, settled) = (
            flood.said.load(Ordering::SeqCst),
            SETTLED.load(Ordering::SeqCst),
        );
        let passed = begun.elapsed();
        let most = 512 + passed.as_millis() as u64 / 10 + 600;
        assert!(said <= most, "{said} messages in {passed:?}");
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
