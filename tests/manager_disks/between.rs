//! Between a worker and its managers: somebody who passes on what both say, or something
//! else, as a worker would that a guest has taken over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sealblk::worker::packet::{self, Packet};
use serde_json::Value;

use super::lab::Lab;

/// What becomes of what they say.
pub trait Trick: Send + 'static {
    /// The worker has said this.
    fn change(&mut self, said: &mut Packet);

    /// Says more to the manager.
    fn say_more(&mut self, _manager: &OwnedFd) {}
}

/// He who is between them.
pub struct Between {
    control: PathBuf,
    real: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn socket() -> OwnedFd {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap()
}

impl Between {
    /// Takes the place of the worker of that disk.
    pub fn before(lab: &Lab, name: &str, mut trick: impl Trick) -> Between {
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
                    pass_on(&manager, &worker, &until, &mut trick);
                }
            }
        });
        Between {
            control,
            real,
            stop,
            thread: Some(thread),
        }
    }

    /// Managers reach the worker itself from now on.
    pub fn leave(mut self) {
        std::fs::rename(&self.real, &self.control).unwrap();
        self.end().unwrap();
    }

    fn end(&mut self) -> std::thread::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Between {
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
        tv_nsec: 1_000_000,
    };
    poll(&mut polled, Some(&short)).unwrap();
    let ready = polled.iter().map(|polled| !polled.revents().is_empty());
    ready.collect()
}

/// Until one of them has gone.
fn pass_on(manager: &OwnedFd, worker: &Path, stop: &AtomicBool, trick: &mut impl Trick) {
    let own = socket();
    rustix::net::connect(&own, &SocketAddrUnix::new(worker).unwrap()).unwrap();
    while !stop.load(Ordering::SeqCst) {
        let ready = readable(&[manager.as_fd(), own.as_fd()]);
        for (ready, from, to, tricked) in [
            (ready[0], manager, &own, false),
            (ready[1], &own, manager, true),
        ] {
            if !ready {
                continue;
            }
            let Ok(Some(mut packet)) = packet::receive(from) else {
                return;
            };
            if tricked {
                trick.change(&mut packet);
            }
            let fds: Vec<BorrowedFd<'_>> = packet.fds.iter().map(AsFd::as_fd).collect();
            // There is no room while the other does not listen.
            while let Err(error) = packet::send(to, &packet.bytes, &fds) {
                if error.kind() != std::io::ErrorKind::WouldBlock || stop.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::yield_now();
            }
        }
        trick.say_more(manager);
    }
}
