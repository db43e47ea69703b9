//! A worker that a guest has taken over says that all data was moved: its manager
//! looks into the journal before it believes that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sealblk::manager::disks::Disks;
use sealblk::manager::model::{Attach, PaceChange, RekeyChange, RekeyState, StartRekey};
use sealblk::plane::moving::Go;
use sealblk::rekey::{Direction, Kind};
use sealblk::worker::packet;
use serde_json::Value;

use super::lab::{GENTLY, Lab, run, until, us};
use super::rekey::{load, proven, slow, under_way, until_ended, until_state, work};
use super::support::registers::Registers;

/// Between a worker and its managers: what the worker says of the moving of its
/// data is not true.
struct Liar {
    control: PathBuf,
    real: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn socket() -> OwnedFd {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap()
}

impl Liar {
    /// Takes the place of the worker of that disk.
    fn before(lab: &Lab, name: &str) -> Liar {
        let record = std::fs::read(lab.path(&format!("state/disks/{name}.json"))).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        let id = record["id"].as_str().unwrap();
        let control = lab.path(&format!("run/workers/{id}.sock"));
        let real = lab.path("real.sock");
        std::fs::rename(&control, &real).unwrap();
        let listener = socket();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&control).unwrap()).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (until, worker) = (stop.clone(), real.clone());
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                if readable(&[listener.as_fd()])[0] {
                    let flags = SocketFlags::CLOEXEC;
                    let manager = rustix::net::accept_with(&listener, flags).unwrap();
                    between(&manager, &worker, &until);
                }
            }
        });
        Liar {
            control,
            real,
            stop,
            thread: Some(thread),
        }
    }

    /// Managers reach the worker itself from now on.
    fn leave(mut self) {
        std::fs::rename(&self.real, &self.control).unwrap();
        self.end().unwrap();
    }

    fn end(&mut self) -> std::thread::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        // What it has to say is told by the test.
        let _ = self.end();
    }
}

/// Which of them have something to read, after a short time at most.
fn readable(sockets: &[BorrowedFd<'_>]) -> Vec<bool> {
    let mut polled: Vec<PollFd> = sockets
        .iter()
        .map(|socket| PollFd::new(socket, PollFlags::IN))
        .collect();
    let short = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    poll(&mut polled, Some(&short)).unwrap();
    let ready = polled.iter().map(|polled| !polled.revents().is_empty());
    ready.collect()
}

/// Passes on what both say until one of them has gone.
fn between(manager: &OwnedFd, worker: &Path, stop: &AtomicBool) {
    let own = socket();
    rustix::net::connect(&own, &SocketAddrUnix::new(worker).unwrap()).unwrap();
    while !stop.load(Ordering::SeqCst) {
        let ready = readable(&[manager.as_fd(), own.as_fd()]);
        for (ready, from, to, lies) in [
            (ready[0], manager, &own, false),
            (ready[1], &own, manager, true),
        ] {
            if !ready {
                continue;
            }
            let Ok(Some(packet)) = packet::receive(from) else {
                return;
            };
            let mut bytes = packet.bytes;
            if lies {
                let mut said = serde_json::from_slice(&bytes).unwrap();
                lie(&mut said);
                bytes = said.to_string().into_bytes();
            }
            let fds: Vec<BorrowedFd<'_>> = packet.fds.iter().map(AsFd::as_fd).collect();
            if packet::send(to, &bytes, &fds).is_err() {
                return;
            }
        }
    }
}

/// Says that all was moved.
fn lie(said: &mut Value) {
    match said {
        Value::Object(object) if object.contains_key("phase") => {
            object["phase"] = "done".into();
            object["boundary"] = match object["direction"].as_str() {
                Some("back") => 0.into(),
                _ => object["size"].clone(),
            };
        }
        Value::Object(object) => object.values_mut().for_each(lie),
        _ => {}
    }
}

fn request(lab: &Lab) -> Attach {
    Attach {
        header: Some(lab.path("a.header")),
        ..lab.request("a.img")
    }
}

fn go(go: Go, limit: Option<u64>) -> RekeyChange {
    let pace = PaceChange {
        limit,
        ..PaceChange::default()
    };
    RekeyChange { go: Some(go), pace }
}

/// A disk whose data is being moved, and rests in the middle.
async fn half_moved(disks: &Disks, lab: &Lab, name: &str, kind: Kind) -> Registers {
    disks.attach(&us(), request(lab)).await.unwrap();
    let mut load = load(lab, 21);
    work(&mut load, 300);
    let wanted = StartRekey {
        kind,
        confirm: (kind == Kind::Decrypt).then(|| name.to_owned()),
        pace: PaceChange {
            limit: Some(512 << 10),
            ..PaceChange::default()
        },
        ..slow(&[name.to_owned()])
    };
    disks.rekey(&us(), wanted).await.unwrap();
    until(disks, name, "something was moved", |info| {
        let rekey = info.rekey.as_ref();
        rekey.is_some_and(|rekey| rekey.boundary > rekey.size / 4)
    })
    .await;
    let pause = go(Go::Pause, None);
    disks.change_rekey(&us(), name, pause).await.unwrap();
    let paused = until_state(disks, name, RekeyState::Paused).await;
    let rekey = paused.rekey.unwrap();
    assert!(rekey.boundary < rekey.size, "it rests before its end");
    load.leave();
    load
}

fn connect(load: &mut Registers, lab: &Lab) {
    tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
}

fn lab() -> Lab {
    let lab = Lab::new();
    let header = [
        "--header",
        "a.header",
        "--header-area",
        "64K",
        "--zero-units",
    ];
    lab.home.create("a.img", &header);
    lab
}

#[test]
fn a_rekey_does_not_end_because_a_worker_says_so() {
    for direction in [Direction::Forward, Direction::Back] {
        let lab = lab();
        let name = lab.name("a.img");
        run(async {
            let disks = lab.open().await;
            let mut load = half_moved(&disks, &lab, &name, Kind::Rekey).await;
            if direction == Direction::Back {
                disks.turn_rekey(&us(), &name, direction).await.unwrap();
                // Until the journal has it, too.
                let boundary = || disks.get(&name).unwrap().rekey.unwrap().boundary;
                let before = boundary();
                let resume = go(Go::Run, None);
                disks.change_rekey(&us(), &name, resume).await.unwrap();
                until(&disks, &name, "something was moved back", |info| {
                    let rekey = info.rekey.as_ref();
                    rekey.is_some_and(|rekey| rekey.boundary < before)
                })
                .await;
                let pause = go(Go::Pause, None);
                disks.change_rekey(&us(), &name, pause).await.unwrap();
                until_state(&disks, &name, RekeyState::Paused).await;
                assert!(boundary() > 0, "it rests before its end");
            }
            disks.close().await;
            drop(disks);
            let liar = Liar::before(&lab, &name);
            let disks = lab.open().await;
            let info = until(&disks, &name, "the manager has looked", |info| {
                let rekey = info.rekey.as_ref();
                rekey.is_some_and(|rekey| rekey.problem.is_some())
            });
            let rekey = info.await.rekey.unwrap();
            let message = rekey.problem.unwrap().message;
            assert!(message.contains("left to be moved"), "{message}");
            assert_eq!(rekey.state, RekeyState::Finishing);
            assert_eq!(under_way(&lab), Some(Kind::Rekey));

            liar.leave();
            until_state(&disks, &name, RekeyState::Paused).await;
            connect(&mut load, &lab);
            work(&mut load, 50);
            let resume = go(Go::Run, Some(0));
            disks.change_rekey(&us(), &name, resume).await.unwrap();
            until_ended(&disks, &name).await;
            tokio::task::block_in_place(|| load.check_all());
            proven(&lab, &mut load).await;
        });
    }
}

#[test]
fn a_disk_is_not_plain_because_a_worker_says_so() {
    let lab = lab();
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let mut load = half_moved(&disks, &lab, &name, Kind::Decrypt).await;
        disks.close().await;
        drop(disks);
        let _liar = Liar::before(&lab, &name);
        let disks = lab.open().await;
        until_state(&disks, &name, RekeyState::Plain).await;
        disks.detach(&us(), &name, GENTLY).await.unwrap();
        // Its key would be gone with the header.
        assert_eq!(under_way(&lab), Some(Kind::Decrypt));

        disks.attach(&us(), request(&lab)).await.unwrap();
        until_state(&disks, &name, RekeyState::Paused).await;
        disks
            .turn_rekey(&us(), &name, Direction::Back)
            .await
            .unwrap();
        connect(&mut load, &lab);
        work(&mut load, 50);
        let resume = go(Go::Run, Some(0));
        disks.change_rekey(&us(), &name, resume).await.unwrap();
        until_ended(&disks, &name).await;
        tokio::task::block_in_place(|| load.check_all());
        proven(&lab, &mut load).await;
    });
}
