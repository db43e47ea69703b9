//! What a guest and its front end can make a server take at most: memory, threads and
//! descriptors. `docs/limits.md` has the formulas that are tried here.

use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::support::message::{self as m, Region};
use super::support::raw_front_end::{RawFrontEnd, RawOptions};
use super::support::raw_queue::{Descriptor, indirect, link, readable, writable};
use super::support::request::*;
use super::support::server::{Server, Volume, eventually, serve_with_sealblk};

const QUEUES: u32 = 8;
const ENTRIES: u16 = 1024;

/// What is resident of a process and nobody else's, in KiB. The guest's memory is
/// the front end's too.
fn private_kib(server: &Server) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", server.pid());
    let text = std::fs::read_to_string(path).unwrap();
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let numbers = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    numbers.sum()
}

/// Its threads, and how many of them are queues'. The kernel's own come and go.
fn threads(server: &Server) -> (usize, usize) {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let names: Vec<String> = names.filter(|name| !name.starts_with("iou-")).collect();
    let queues = names.iter().filter(|name| name.starts_with("vq"));
    (names.len(), queues.count())
}

/// A table of as many segments as a request may have, of hardly any data: 255, and the
/// status byte.
fn table(raw: &mut RawFrontEnd) -> Descriptor {
    let mut chain = vec![readable(raw.put(&header(T_IN, 0)), 16)];
    let data = raw.put(&[0; 512]);
    chain.extend((0..254).map(|at| writable(data + 2 * at, 2)));
    chain.push(writable(data + 508, 4));
    chain.push(writable(raw.put(&[S_UNTOUCHED]), 1));
    link(0, &mut chain);
    let bytes: Vec<u8> = chain.iter().flat_map(Descriptor::bytes).collect();
    indirect(raw.put(&bytes), bytes.len())
}

/// As many requests at once as there are descriptors in all queues, each with as many
/// segments as there may be, none of which is answered.
#[test]
fn the_worst_of_all_queues_has_a_bound() {
    // What is limited keeps its slot.
    let volume = Volume::new(4 << 20, 512).serve_with(&["--queues", "8", "--iops-total", "1"]);
    let mut server = serve_with_sealblk(&volume);
    let options = RawOptions {
        queues: QUEUES,
        queue_size: ENTRIES,
        memory: 16 << 20,
        ..RawOptions::default()
    };
    eventually("it serves", || {
        server.messages().contains("ready disks").then_some(())
    });
    let (private, files) = (private_kib(&server), server.open_files());
    let mut raw = RawFrontEnd::connect(server.socket(), &options).unwrap();
    let table = table(&mut raw);
    for queue in &mut raw.queues {
        for head in 0..ENTRIES {
            queue.put(head, table);
            queue.publish(head);
        }
        queue.kick();
    }
    // All have been taken when the server wants to be kicked for none of them.
    let mut last = (0, 0);
    let grown = eventually("it takes no more", || {
        let now = private_kib(&server).saturating_sub(private);
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        (last.1 > 50).then_some(now)
    });
    // For each queue 2 MiB of buffers, for each entry 256 segments and the slot, and
    // the rings, the stack and the tables.
    let slots = u64::from(ENTRIES) * (4096 + 1024) / 1024;
    let most = u64::from(QUEUES) * ((2 << 10) + slots + 512) + (4 << 10);
    assert!(grown < most, "{grown} KiB, of at most {most}");
    // They are there: nearly all segment lists were filled.
    let least = u64::from(QUEUES) * u64::from(ENTRIES) * 3;
    assert!(grown > least, "{grown} KiB, of at least {least}");
    let queues = QUEUES as usize;
    // Those of the queues were there before, and rested; beside them the main one, and
    // those of disks, session and signals.
    let (all, of_queues) = threads(&server);
    assert_eq!(of_queues, queues);
    assert!(all <= queues + 4, "{all} threads");
    // Kick, call, wake-up, ring and data for each queue; connection, memory.
    let most = files + 5 * queues + 8;
    assert!(server.open_files() <= most, "{}", server.open_files());
    server.assert_running("the worst of all queues");
}

/// What is said again takes the place of what was said.
#[test]
fn repeated_messages_leave_nothing_behind() {
    let volume = Volume::new(4 << 20, 512).serve_with(&["--queues", "2"]);
    let mut server = serve_with_sealblk(&volume);
    let options = RawOptions {
        channel: true,
        inflight: true,
        ..RawOptions::default()
    };
    let mut raw = RawFrontEnd::connect(server.socket(), &options).unwrap();
    let number = 0u64.to_le_bytes();
    let once = |raw: &mut RawFrontEnd| {
        let (call, kick) = (&raw.queues[0].call, &raw.queues[0].kick);
        let messages = &mut raw.messages;
        for message in [m::SET_VRING_CALL, m::SET_VRING_ERR] {
            messages.tell(message, &number, &[call.as_fd()]).unwrap();
        }
        messages
            .tell(m::SET_VRING_KICK, &number, &[kick.as_fd()])
            .unwrap();
        let (told, memory) = raw.inflight.as_ref().unwrap();
        messages
            .tell(m::SET_INFLIGHT_FD, told, &[memory.as_fd()])
            .unwrap();
        let asked = m::inflight(0, 0, 2, 1024);
        messages.ask(m::GET_INFLIGHT_FD, &asked).unwrap();
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        messages
            .tell(m::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])
            .unwrap();
        raw.set_memory().unwrap();
    };
    for _ in 0..20 {
        once(&mut raw);
    }
    let (files, running, private) = (server.open_files(), threads(&server), private_kib(&server));
    for _ in 0..200 {
        once(&mut raw);
    }
    assert!(server.open_files() <= files, "{files} files and more");
    assert_eq!(threads(&server), running);
    let grown = private_kib(&server).saturating_sub(private);
    assert!(grown < 4 << 10, "it grew by {grown} KiB");
    raw.succeed(0, Request::read(0, 4096), super::Form::Direct);
    server.assert_running("messages that were repeated");
}

/// 64 GiB for each region, of which nothing is there: as many as there may be.
#[test]
fn regions_are_counted_and_cost_nothing_until_they_are_used() {
    let mut server = serve_with_sealblk(&Volume::new(4 << 20, 512));
    let mut raw = RawFrontEnd::connect(server.socket(), &RawOptions::default()).unwrap();
    let private = private_kib(&server);
    let bytes = 1 << 36;
    let file = memfd_create("huge", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes).unwrap();
    let region = |number: u64| Region {
        guest: (number + 8) << 37,
        len: bytes,
        user: (number + 8) << 37,
        file_offset: 0,
    };
    let mut given = 2;
    let refused = loop {
        let payload = region(given).single();
        if raw
            .messages
            .tell(m::ADD_MEM_REG, &payload, &[file.as_fd()])
            .is_err()
        {
            break given;
        }
        given += 1;
        assert!(given < 1000, "regions without end");
    };
    assert_eq!(refused, 128);
    drop(raw);
    eventually("it is let go", || {
        (private_kib(&server) < private + (4 << 10)).then_some(())
    });
    let mut raw = RawFrontEnd::connect(server.socket(), &RawOptions::default()).unwrap();
    raw.succeed(0, Request::read(0, 4096), super::Form::Direct);
    server.assert_running("128 regions");
}
