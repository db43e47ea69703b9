//! Requests that are too much: the server says no, or serves them within its
//! own bounds, but never grows by what a guest asks for.

use super::support::raw_front_end::{DATA, RawFrontEnd, RawOptions};
use super::support::raw_queue::{readable, writable};
use super::support::request::*;
use super::support::server::{Volume, eventually, serve_with_qemu, serve_with_sealblk};
use super::{Form, Server, Target};

/// 1 GiB in one request, by descriptors that all mean the same memory.
fn gigabyte_requests_leave_it_small(server: &Server) {
    let options = RawOptions {
        queue_size: 128,
        ..RawOptions::default()
    };
    let mut raw = RawFrontEnd::connect(server.socket(), &options).unwrap();
    for _ in 0..10 {
        raw.succeed(0, Request::read(0, 1 << 20), Form::Direct);
    }
    let before = server.memory_kib("VmHWM");
    let window = 4 << 20;
    for kind in [T_IN, 0x1000] {
        for segments in [64, 125] {
            let status = raw.put(&[S_UNTOUCHED]);
            let mut chain = vec![readable(raw.put(&header(kind, 0)), 16)];
            chain.extend(vec![writable(DATA + window, 4 << 20); segments]);
            chain.push(writable(status, 1));
            let head = raw.queues[0].put_chain(chain);
            raw.queues[0].publish(head);
            raw.queues[0].kick();
            raw.used(0);
            let status = raw.get(status, 1)[0];
            assert!([S_OK, S_IOERR, S_UNSUPP].contains(&status), "{status}");
        }
    }
    let grown = server.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 64 << 10, "the server grew by {grown} KiB");
    raw.succeed(0, Request::read(0, 4096), Form::Direct);
}

/// The available index says that more chains are there than the ring holds.
fn jumping_indices_break_only_that_ring(mut target: Target) {
    for jump in [65, 1000, 0x8000, 0xffff] {
        let mut raw = target.connect();
        raw.succeed(0, Request::read(0, 512), Form::Direct);
        let index = raw.queues[0].available_idx.wrapping_add(jump);
        raw.queues[0].set_available_idx(index);
        raw.queues[0].kick();
        // The other ring is another matter, or the whole device is broken: so
        // the front end that did nothing wrong is the next one.
        drop(raw);
        target.assert_unharmed(&format!("an index {jump} ahead"));
    }
    // The same chain three times over.
    let mut raw = target.connect();
    let submitted = raw.publish(0, Request::read(0, 512), Form::Direct);
    raw.queues[0].publish(submitted.head);
    raw.queues[0].publish(submitted.head);
    raw.queues[0].kick();
    for _ in 0..3 {
        assert_eq!(raw.used(0).id, u32::from(submitted.head));
    }
    drop(raw);
    target.assert_unharmed("a chain that is available three times");
    target.assert_small();
}

/// Kicks for which there is nothing to do.
fn empty_kicks_are_ignored(mut target: Target) {
    let mut raw = target.connect();
    for _ in 0..20_000 {
        raw.queues[0].kick();
    }
    raw.succeed(0, Request::read(0, 512), Form::Direct);
    assert_eq!(raw.queues[0].used_idx(), 1);
    drop(raw);
    target.assert_unharmed("20,000 kicks");
    target.assert_small();
}

/// 200 connections, most of which leave in the middle of something.
fn connections_leave_nothing_behind(mut target: Target) {
    let settled = |target: &Target| {
        let mut last = (usize::MAX, 0);
        eventually("the number of open files settles", || {
            let now = target.server.open_files();
            last = if last.0 == now {
                (now, last.1 + 1)
            } else {
                (now, 0)
            };
            (last.1 > 20).then_some(now)
        })
    };
    let before = settled(&target);
    for round in 0..200 {
        let mut raw = target.connect();
        match round % 4 {
            // QEMU 10.0's storage daemon sometimes aborts in an assertion then.
            1 if target.strict => drop(raw.submit(0, Request::flush(), Form::Direct)),
            0 | 1 => {}
            2 => drop(raw.stop_queue(0)),
            _ => drop(raw.messages.send_bytes(&[1, 0, 0, 0, 1], &[])),
        }
    }
    target.assert_unharmed("200 connections");
    // The last ones end soon.
    eventually(&format!("hardly more files are open than {before}"), || {
        (target.server.open_files() <= before + 2).then_some(())
    });
    target.assert_small();
}

mod sealblk {
    use super::*;

    #[test]
    fn gigabyte_requests_leave_it_small() {
        let volume = Volume::new(2 << 30, 512);
        super::gigabyte_requests_leave_it_small(&serve_with_sealblk(&volume));
    }

    #[test]
    fn jumping_indices_break_only_that_ring() {
        super::jumping_indices_break_only_that_ring(Target::sealblk());
    }

    #[test]
    fn empty_kicks_are_ignored() {
        super::empty_kicks_are_ignored(Target::sealblk());
    }

    #[test]
    fn connections_leave_nothing_behind() {
        super::connections_leave_nothing_behind(Target::sealblk());
    }
}

mod qemu {
    use super::*;

    #[test]
    fn gigabyte_requests_leave_it_small() {
        super::gigabyte_requests_leave_it_small(&serve_with_qemu(2 << 30, ""));
    }

    #[test]
    fn jumping_indices_break_only_that_ring() {
        super::jumping_indices_break_only_that_ring(Target::qemu());
    }

    #[test]
    fn empty_kicks_are_ignored() {
        super::empty_kicks_are_ignored(Target::qemu());
    }

    #[test]
    fn connections_leave_nothing_behind() {
        super::connections_leave_nothing_behind(Target::qemu());
    }
}
