//! vhost-user messages that make no sense, in every state of a connection. The
//! server may refuse them, ignore them or hang up; the next front end must not
//! notice.

use std::os::fd::AsFd;
use std::time::Duration;

use super::support::message::{self as m, Region};
use super::support::raw_front_end::{RawFrontEnd, RawOptions};
use super::support::request::Request;
use super::support::server::eventually;
use super::{Form, Target};

/// A name and what is sent, on a connection in some state. What the server
/// answers does not matter, so errors are dropped.
type Attack = (&'static str, fn(&mut RawFrontEnd));

fn raw_header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

const ATTACKS: &[Attack] = &[
    ("half a header", |raw| {
        let _ = raw.messages.send_bytes(&[1, 0, 0, 0, 1, 0], &[]);
    }),
    ("a size of 4 GiB", |raw| {
        let header = raw_header(m::SET_CONFIG, 1, u32::MAX);
        let _ = raw.messages.send_bytes(&header, &[]);
    }),
    ("a size of 64 KiB, and the bytes", |raw| {
        let mut bytes = raw_header(m::SET_MEM_TABLE, 1, 65_536);
        bytes.resize(12 + 65_536, 0xff);
        let _ = raw.messages.send_bytes(&bytes, &[]);
    }),
    ("another protocol version", |raw| {
        let header = raw_header(m::GET_FEATURES, 2, 0);
        let _ = raw.messages.send_bytes(&header, &[]);
    }),
    ("a reply that nobody asked for", |raw| {
        let header = raw_header(m::GET_FEATURES, 1 | m::FLAG_REPLY, 0);
        let _ = raw.messages.send_bytes(&header, &[]);
    }),
    ("request numbers that do not exist", |raw| {
        for request in [0, 45, 99, 1000, u32::MAX] {
            let _ = raw.messages.send(request, 0, &[0; 8], &[]);
        }
    }),
    ("every request without its payload", |raw| {
        for request in 1..44 {
            let _ = raw.messages.send(request, 0, &[], &[]);
        }
    }),
    ("every request with a payload of 5 bytes", |raw| {
        for request in 1..44 {
            let _ = raw.messages.send(request, 0, &[0xff; 5], &[]);
        }
    }),
    ("ring sizes that no ring has", |raw| {
        for size in [0, 3, 1 << 15, (1 << 16) + 1, u32::MAX] {
            let state = m::vring_state(0, size);
            let _ = raw.messages.send(m::SET_VRING_NUM, 0, &state, &[]);
        }
    }),
    ("rings that do not exist", |raw| {
        for index in [2, 200, 255, 256, 65_536, u32::MAX] {
            for request in [
                m::SET_VRING_NUM,
                m::SET_VRING_BASE,
                m::SET_VRING_ENABLE,
                m::GET_VRING_BASE,
            ] {
                let state = m::vring_state(index, 8);
                let _ = raw.messages.send(request, 0, &state, &[]);
            }
            let addresses = m::vring_addr(index, 0, 0, 0);
            let _ = raw.messages.send(m::SET_VRING_ADDR, 0, &addresses, &[]);
            let number = u64::from(index).to_le_bytes();
            let kick = raw.queues[0].kick.as_fd();
            let _ = raw.messages.send(m::SET_VRING_KICK, 0, &number, &[kick]);
        }
    }),
    ("ring addresses in no region, and a kick", |raw| {
        for address in [0, 8, 0x7000_0000_0000, u64::MAX, u64::MAX - 4096] {
            let addresses = m::vring_addr(0, address, address, address);
            let _ = raw.messages.send(m::SET_VRING_ADDR, 0, &addresses, &[]);
            raw.queues[0].kick();
        }
    }),
    ("ring addresses at the end of a region, and a kick", |raw| {
        let end = raw.rings_region().user + raw.rings_region().len;
        for distance in [16, 32, 64, 256] {
            let at = end - distance;
            let addresses = m::vring_addr(0, at, at, at);
            let _ = raw.messages.send(m::SET_VRING_ADDR, 0, &addresses, &[]);
            raw.queues[0].set_available_idx(7);
            raw.queues[0].kick();
        }
    }),
    ("ring addresses that are not aligned", |raw| {
        let at = raw.rings_region().user;
        let addresses = m::vring_addr(0, at + 1, at + 2049, at + 4097);
        let _ = raw.messages.send(m::SET_VRING_ADDR, 0, &addresses, &[]);
        raw.queues[0].kick();
    }),
    ("a kick that is no eventfd", |raw| {
        let number = 0u64.to_le_bytes();
        let memory = raw.rings();
        let _ = raw
            .messages
            .send(m::SET_VRING_KICK, 0, &number, &[memory.fd()]);
        let _ = raw
            .messages
            .send(m::SET_VRING_CALL, 0, &number, &[memory.fd()]);
    }),
    ("a kick without its file", |raw| {
        for number in [0u64, m::NO_FD, u64::MAX] {
            for request in [m::SET_VRING_KICK, m::SET_VRING_CALL, m::SET_VRING_ERR] {
                let _ = raw.messages.send(request, 0, &number.to_le_bytes(), &[]);
            }
        }
    }),
    ("files with messages that take none", |raw| {
        let memory = raw.rings();
        for request in [m::GET_FEATURES, m::SET_VRING_NUM, m::GET_CONFIG] {
            let fds = [memory.fd(); 8];
            let _ = raw.messages.send(request, 0, &[0; 8], &fds);
        }
    }),
    ("more files than any message takes", |raw| {
        let memory = raw.rings();
        let table = Region::table(&[raw.rings_region(); 8]);
        let fds = [memory.fd(); 64];
        let _ = raw.messages.send(m::SET_MEM_TABLE, 0, &table, &fds);
    }),
    ("a memory table without files", |raw| {
        let table = Region::table(&[raw.rings_region()]);
        let _ = raw.messages.send(m::SET_MEM_TABLE, 0, &table, &[]);
    }),
    ("a memory table of more regions than it holds", |raw| {
        let memory = raw.rings();
        let mut table = Region::table(&[raw.rings_region()]);
        table[0] = 200;
        let _ = raw
            .messages
            .send(m::SET_MEM_TABLE, 0, &table, &[memory.fd()]);
    }),
    ("regions of impossible sizes and places", |raw| {
        let memory = raw.rings();
        let good = raw.rings_region();
        for region in [
            Region { len: 0, ..good },
            Region {
                len: u64::MAX,
                ..good
            },
            Region {
                len: 1 << 50,
                ..good
            },
            Region {
                guest: u64::MAX - 4096,
                ..good
            },
            Region {
                user: u64::MAX - 4096,
                ..good
            },
            Region {
                file_offset: u64::MAX - 4096,
                ..good
            },
            Region {
                file_offset: 1 << 40,
                ..good
            },
            Region {
                file_offset: 5,
                ..good
            },
        ] {
            let table = Region::table(&[region]);
            let fd = memory.fd();
            let _ = raw.messages.send(m::SET_MEM_TABLE, 0, &table, &[fd]);
            let _ = raw
                .messages
                .send(m::ADD_MEM_REG, 0, &region.single(), &[fd]);
        }
    }),
    ("the same region twice", |raw| {
        let memory = raw.rings();
        let region = raw.rings_region();
        let table = Region::table(&[region, region]);
        let fds = [memory.fd(), memory.fd()];
        let _ = raw.messages.send(m::SET_MEM_TABLE, 0, &table, &fds);
        for _ in 0..3 {
            let single = region.single();
            let _ = raw.messages.send(m::ADD_MEM_REG, 0, &single, &fds[..1]);
        }
    }),
    ("a region removed that was never there", |raw| {
        let region = Region {
            guest: 1 << 40,
            ..raw.rings_region()
        };
        let _ = raw.messages.send(m::REM_MEM_REG, 0, &region.single(), &[]);
    }),
    ("the memory taken away under a running ring", |raw| {
        let region = raw.rings_region().single();
        let _ = raw.messages.send(m::REM_MEM_REG, 0, &region, &[]);
        let head = raw.queues[0].put_chain(vec![Default::default()]);
        raw.queues[0].publish(head);
        raw.queues[0].kick();
    }),
    ("configuration out of bounds", |raw| {
        for (offset, len) in [(0, 256), (60, 60), (u32::MAX, 8), (u32::MAX - 3, 4)] {
            let payload = m::config_space(offset, 0, &vec![0xff; len]);
            let _ = raw.messages.send(m::GET_CONFIG, 0, &payload, &[]);
            let _ = raw.messages.send(m::SET_CONFIG, 0, &payload, &[]);
        }
        let mut lying = m::config_space(0, 0, &[0; 8]);
        lying[4..8].copy_from_slice(&4096u32.to_le_bytes());
        let _ = raw.messages.send(m::GET_CONFIG, 0, &lying, &[]);
    }),
    ("the capacity set to something else", |raw| {
        let payload = m::config_space(0, 0, &u64::MAX.to_le_bytes());
        let _ = raw.messages.send(m::SET_CONFIG, 0, &payload, &[]);
    }),
    ("features that were never offered", |raw| {
        for features in [u64::MAX, 0, 1 << 63] {
            let bytes = features.to_le_bytes();
            let _ = raw.messages.send(m::SET_FEATURES, 0, &bytes, &[]);
            let _ = raw.messages.send(m::SET_PROTOCOL_FEATURES, 0, &bytes, &[]);
        }
    }),
    ("an in-flight region of impossible size", |raw| {
        let memory = raw.rings();
        for size in [0u64, u64::MAX] {
            let mut payload = Vec::new();
            payload.extend(size.to_le_bytes());
            payload.extend(u64::MAX.to_le_bytes());
            payload.extend([0xff; 8]);
            let fd = memory.fd();
            let _ = raw.messages.send(m::SET_INFLIGHT_FD, 0, &payload, &[fd]);
            let _ = raw.messages.send(m::GET_INFLIGHT_FD, 0, &payload, &[]);
        }
    }),
    ("a dirty log of impossible size", |raw| {
        let memory = raw.rings();
        let payload = [0xff; 16];
        let _ = raw
            .messages
            .send(m::SET_LOG_BASE, 0, &payload, &[memory.fd()]);
    }),
    ("the owner set and reset all the time", |raw| {
        for _ in 0..50 {
            let _ = raw.messages.send(m::SET_OWNER, 0, &[], &[]);
            let _ = raw.messages.send(m::RESET_OWNER, 0, &[], &[]);
        }
    }),
    ("a ring started and stopped all the time", |raw| {
        for _ in 0..50 {
            if raw.stop_queue(0).is_err() || raw.start_queue(0, 0).is_err() {
                break;
            }
            let _ = raw.enable(0, true);
        }
    }),
    ("a ring that starts at an index nobody stored", |raw| {
        if raw.stop_queue(0).is_ok() {
            let _ = raw.start_queue(0, 0x1234);
            let _ = raw.enable(0, true);
            raw.queues[0].kick();
        }
    }),
];

/// How long an attack waits for an answer that may never come.
const PATIENCE: Duration = Duration::from_millis(100);

/// The states that every attack is tried in.
fn in_every_state(mut target: Target, attacks: &[Attack]) {
    let options = RawOptions::default();
    let socket = target.server.socket().to_owned();
    let files = target.server.open_files();
    for (name, attack) in attacks {
        // Before anything was said.
        let mut raw = RawFrontEnd::silent(&socket, &options).unwrap();
        raw.messages.set_patience(PATIENCE);
        attack(&mut raw);
        drop(raw);
        target.assert_unharmed(name);
        // With features, but no memory or rings.
        let mut raw = RawFrontEnd::negotiate(&socket, &options).unwrap();
        raw.messages.set_patience(PATIENCE);
        attack(&mut raw);
        drop(raw);
        target.assert_unharmed(name);
        // In the midst of things.
        let mut raw = target.connect();
        raw.succeed(0, Request::read(0, 512), Form::Direct);
        raw.messages.set_patience(PATIENCE);
        attack(&mut raw);
        drop(raw);
        target.assert_unharmed(name);
    }
    target.assert_small();
    eventually("files of front ends that left are closed", || {
        (target.server.open_files() <= files + 2).then_some(())
    });
}

#[test]
fn sealblk() {
    in_every_state(Target::sealblk(), ATTACKS);
}

/// What QEMU 10.0's storage daemon, which trusts its front end, ends by or
/// leaks files in.
const TOO_MUCH_FOR_QEMU: [&str; 6] = [
    "every request with a payload of 5 bytes",
    "files with messages that take none",
    "more files than any message takes",
    "a memory table of more regions than it holds",
    "ring addresses at the end of a region, and a kick",
    "the memory taken away under a running ring",
];

#[test]
fn qemu() {
    let bearable: Vec<Attack> = ATTACKS
        .iter()
        .filter(|(name, _)| !TOO_MUCH_FOR_QEMU.contains(name))
        .copied()
        .collect();
    assert_eq!(bearable.len() + TOO_MUCH_FOR_QEMU.len(), ATTACKS.len());
    in_every_state(Target::qemu(), &bearable);
}
