//! A worker that was taken over says that it is another process: its manager, which may
//! be root, would end that one day.

use std::os::fd::OwnedFd;

use rustix::process::{PidfdFlags, getpid, pidfd_open};
use sealblk::worker::packet::Packet;

use super::between::{Between, Trick};
use super::lab::{BY_FORCE, Lab, run, until, until_running, us};

/// Sends this, in place of the process that greets.
struct Another(fn() -> OwnedFd);

impl Trick for Another {
    fn change(&mut self, said: &mut Packet) {
        if String::from_utf8_lossy(&said.bytes).contains("\"hello\"") {
            assert_eq!(said.fds.len(), 1);
            said.fds[0] = (self.0)();
        }
    }
}

fn manager() -> OwnedFd {
    pidfd_open(getpid(), PidfdFlags::empty()).unwrap()
}

fn no_process() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

#[test]
fn a_worker_is_no_other_process() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let pid = until_running(&disks, &name).await.pid;
        disks.close().await;
        drop(disks);
        for (other, cause) in [
            (manager as fn() -> OwnedFd, "is another one"),
            (no_process, "it sent no process"),
        ] {
            let between = Between::before(&lab, &name, Another(other));
            let disks = lab.open().await;
            let info = until(&disks, &name, "it is looked at", |info| {
                info.last_error.is_some()
            });
            let message = info.await.last_error.unwrap().message;
            assert!(message.contains(cause), "{message}");

            between.leave();
            let found = until_running(&disks, &name).await;
            assert_eq!((found.pid, found.restarts), (pid, 0), "it serves on");
            disks.close().await;
        }
        let disks = lab.open().await;
        until_running(&disks, &name).await;
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}
