//! A front end that cuts short the memory that it shares ends its own worker, and
//! nothing else.

use std::os::fd::AsFd;

use sealblk::manager::model::DiskState;

use super::lab::{BY_FORCE, Lab, run, until, until_running, us};
use super::support::memory::GuestMemory;
use super::support::raw_front_end::{RawFrontEnd, RawOptions};
use super::support::raw_queue::{readable, writable};
use super::support::request::{S_UNTOUCHED, T_IN, header};

const DATA: [u8; 4096] = [0x6b; 4096];

/// Cuts the memory off after so many bytes, which the kernel lets anybody do who
/// has it open.
fn cut(memory: &GuestMemory, bytes: u64) {
    rustix::fs::ftruncate(memory.fd().as_fd(), bytes).unwrap();
}

/// Sets a disk up as any front end does, and asks for something where there is no
/// memory any more: its data, or its ring. Returns what it has.
fn cut_short(raw: &mut RawFrontEnd, ring: bool) {
    let head = raw.put(&header(T_IN, 0));
    let (data, status) = (raw.put(&DATA), raw.put(&[S_UNTOUCHED]));
    let chain = vec![
        readable(head, 16),
        writable(data, 4096),
        writable(status, 1),
    ];
    let head = raw.queues[0].put_chain(chain);
    match ring {
        true => cut(&raw.rings(), 0),
        false => {
            cut(&raw.arena.memory, 0);
            raw.queues[0].publish(head);
        }
    }
    raw.queues[0].kick();
}

#[test]
fn memory_that_is_cut_short_ends_its_own_worker_alone() {
    let lab = Lab::with_volume("a.img");
    lab.home.create("b.img", &[]);
    let (name, other) = (lab.name("a.img"), lab.name("b.img"));
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let beside = disks.attach(&us(), lab.request("b.img")).await.unwrap();
        let mut undisturbed = lab.connect("b.img").await;
        undisturbed.write(8, &DATA);
        let mut good = lab.connect("a.img").await;
        good.write(8, &DATA);
        good.flush();
        drop(good);
        let socket = lab.path("a.img.sock");
        for (restarts, ring) in [(1, false), (2, true), (3, false)] {
            let before = until_running(&disks, &name).await;
            let raw = tokio::task::block_in_place(|| {
                let mut raw = RawFrontEnd::connect(&socket, &RawOptions::default()).unwrap();
                cut_short(&mut raw, ring);
                raw
            });
            let info = until(&disks, &name, "another worker serves", |info| {
                info.state == DiskState::Running && info.restarts == restarts
            });
            let info = info.await;
            assert_ne!(info.pid, before.pid);
            let problem = info.last_error.unwrap();
            assert!(problem.message.contains("SIGBUS"), "{problem:?}");
            // It may come back with what it has left, and ends nothing any more.
            tokio::task::block_in_place(|| {
                let options = RawOptions::default();
                let mut again = RawFrontEnd::negotiate(&socket, &options).unwrap();
                let taken = again.set_memory_of(&raw);
                assert!(taken.is_err(), "memory that is not there was taken");
            });
            // Nor does the disk beside notice.
            assert!(undisturbed.read(8, DATA.len()) == DATA);
            let mut good = lab.connect("a.img").await;
            assert!(good.read(8, DATA.len()) == DATA);
            let now = disks.get(&name).unwrap();
            assert_eq!((now.restarts, now.pid), (restarts, info.pid));
        }
        let now = disks.get(&other).unwrap();
        assert_eq!((now.restarts, now.pid), (0, beside.pid));
        drop(undisturbed);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}
