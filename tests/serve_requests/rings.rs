//! Virtqueues: layouts, notifications, stopping, wrapping, and the memory map.

use std::sync::Arc;

use super::support::memory::{Arena, GuestMemory};
use super::support::message::{self as m, Region};
use super::support::raw_front_end::{DATA, Form, RawFrontEnd, RawOptions};
use super::support::raw_queue::{readable, writable};
use super::support::request::*;
use super::support::server::eventually;
use super::{Disk, Numbers, QUEUES};

/// VIRTIO 1.2, section 2.7.4: a device makes no assumption about framing.
pub fn every_descriptor_layout_is_served(disk: &Disk) {
    let mut raw = disk.connect_raw();
    let mut numbers = Numbers::new(31);
    let forms = [Form::Direct, Form::Indirect, Form::Merged];
    for form in forms {
        let data = numbers.bytes(5 * disk.unit);
        let written = raw.run(0, Request::write(0, &data), form);
        assert_eq!(written.status, S_OK, "{form:?}");
        for other in forms {
            let found = raw.succeed(0, Request::read(0, data.len()), other);
            assert!(found.data == data, "{form:?}, then {other:?}");
        }
        raw.succeed(0, Request::flush(), form);
        raw.succeed(0, Request::get_id(), form);
    }

    // A header over three descriptors, data in one with its end.
    let data = numbers.bytes(disk.unit);
    let mut head = header(T_OUT, 0).to_vec();
    head.extend(&data);
    let at = raw.put(&head);
    let status = raw.put(&[S_UNTOUCHED]);
    let chain = vec![
        readable(at, 3),
        readable(at + 3, 9),
        readable(at + 12, 4 + data.len()),
        writable(status, 1),
    ];
    let first = raw.queues[0].put_chain(chain);
    raw.queues[0].publish(first);
    raw.queues[0].kick();
    raw.used(0);
    assert_eq!(raw.get(status, 1), [S_OK]);
    let found = raw.succeed(0, Request::read(0, data.len()), Form::Direct);
    assert!(found.data == data);
}

pub fn used_length_counts_what_was_written(disk: &Disk) {
    let mut raw = disk.connect_raw();
    let len = 4 * disk.unit;
    for form in [Form::Direct, Form::Indirect] {
        let write = raw.succeed(0, Request::write(0, &vec![5; len]), form);
        assert_eq!(write.used_len, 1, "a status byte");
        let read = raw.succeed(0, Request::read(0, len), form);
        assert_eq!(read.used_len as usize, len + 1);
        let flush = raw.succeed(0, Request::flush(), form);
        assert_eq!(flush.used_len, 1);
        let id = raw.succeed(0, Request::get_id(), form);
        assert_eq!(id.used_len, 21);
        let error = raw.run(0, Request::read(u64::MAX, len), form);
        assert!((1..=len + 1).contains(&(error.used_len as usize)));
    }
}

fn flush(raw: &mut RawFrontEnd) {
    let submitted = raw.submit(0, Request::flush(), Form::Direct);
    let used = raw.used(0);
    assert_eq!(raw.outcome(submitted, used).status, S_OK);
}

pub fn calls_come_when_the_event_index_asks_for_them(disk: &Disk) {
    let mut raw = disk.connect_raw();
    assert!(raw.features & F_EVENT_IDX != 0);
    // The first completion is announced: index 0 is what a ring starts with.
    flush(&mut raw);
    eventually("a call for used index 1", || {
        Some(()).filter(|()| raw.queues[0].calls() > 0)
    });
    // The next call is wanted when the used index leaves 20 behind.
    raw.queues[0].set_used_event(20);
    for _ in 0..20 {
        flush(&mut raw);
    }
    let calls = eventually("a call for used index 21", || {
        Some(raw.queues[0].calls()).filter(|calls| *calls > 0)
    });
    assert_eq!(calls, 1, "calls before the index that was asked for");
}

pub fn calls_can_be_switched_off_without_event_index(disk: &Disk) {
    let mut raw = disk.connect_raw_with(RawOptions::without(F_EVENT_IDX));
    assert!(raw.features & F_EVENT_IDX == 0);
    raw.queues[0].calls();
    raw.queues[0].set_available_flags(1);
    for _ in 0..10 {
        flush(&mut raw);
    }
    assert_eq!(
        raw.queues[0].calls(),
        0,
        "calls while they were switched off"
    );
    raw.queues[0].set_available_flags(0);
    flush(&mut raw);
    let calls = eventually("a call after calls were switched on again", || {
        Some(raw.queues[0].calls()).filter(|calls| *calls > 0)
    });
    // The server may look for the tenth when it may call again.
    assert!(
        (1..=2).contains(&calls),
        "{calls} calls while they were switched off"
    );
}

/// A driver kicks only when the server asks for it. A server that asks too
/// late loses the request: here it is waited for with no further kick.
pub fn kicks_are_wanted_whenever_the_server_sleeps(disk: &Disk) {
    for features in [ALL_FEATURES, ALL_FEATURES & !F_EVENT_IDX] {
        let mut raw = disk.connect_raw_with(RawOptions {
            features,
            ..RawOptions::default()
        });
        let mut kicks = 0;
        for round in 0..3000u32 {
            let before = raw.queues[0].available_idx;
            let submitted = raw.publish(0, Request::get_id(), Form::Direct);
            let wanted = if raw.features & F_EVENT_IDX != 0 {
                raw.queues[0].available_event() == before
            } else {
                raw.queues[0].used_flags() == 0
            };
            if wanted {
                kicks += 1;
                raw.queues[0].kick();
            }
            // Sometimes at once, sometimes when the server may be asleep.
            for _ in 0..(round % 7) * 200 {
                std::hint::spin_loop();
            }
            let used = raw.used(0);
            assert_eq!(raw.outcome(submitted, used).status, S_OK);
        }
        assert!(kicks > 0);
    }
}

pub fn a_ring_stops_and_goes_on_where_it_was(disk: &Disk) {
    let mut raw = disk.connect_raw_with(RawOptions {
        queues: QUEUES as u32,
        ..RawOptions::default()
    });
    let mut done = 0u16;
    for round in 0..4 {
        for _ in 0..5 + round {
            raw.succeed(1, Request::get_id(), Form::Direct);
            done += 1;
        }
        assert_eq!(raw.stop_queue(1).unwrap(), done, "the next index");
        // The other queues are not stopped by it.
        raw.succeed(0, Request::get_id(), Form::Direct);
        raw.start_queue(1, done).unwrap();
        raw.enable(1, true).unwrap();
    }
    // What was published while the ring stood still is served afterwards.
    assert_eq!(raw.stop_queue(1).unwrap(), done);
    let submitted = raw.publish(1, Request::get_id(), Form::Direct);
    raw.start_queue(1, done).unwrap();
    raw.enable(1, true).unwrap();
    raw.queues[1].kick();
    let used = raw.used(1);
    assert_eq!(raw.outcome(submitted, used).status, S_OK);
}

pub fn indices_wrap_around(disk: &Disk) {
    let mut raw = RawFrontEnd::negotiate(
        disk.server.socket(),
        &RawOptions {
            queue_size: 4,
            ..RawOptions::default()
        },
    )
    .unwrap();
    raw.set_memory().unwrap();
    // Just below 2^16, as a disk is after weeks; both indices agree.
    let base = 0xfff9;
    let (_, available, used) = raw.queues[0].areas();
    let rings = raw.rings();
    rings.store_u16(available + 2, base);
    rings.store_u16(used + 2, base);
    raw.queues[0].available_idx = base;
    raw.queues[0].taken = base;
    raw.start_queue(0, base).unwrap();
    raw.enable(0, true).unwrap();
    for _ in 0..20 {
        raw.succeed(0, Request::get_id(), Form::Direct);
    }
    assert_eq!(raw.stop_queue(0).unwrap(), base.wrapping_add(20));
}

pub fn memory_regions_come_and_go(disk: &Disk) {
    let mut raw = RawFrontEnd::negotiate(disk.server.socket(), &RawOptions::default()).unwrap();
    assert!(raw.protocol_features & m::PF_CONFIGURE_MEM_SLOTS != 0);
    let slots = raw.messages.ask(m::GET_MAX_MEM_SLOTS, &[]).unwrap();
    assert!(slots.number().unwrap() >= 8, "QEMU uses at least 8");
    let (rings, data) = (raw.rings_region(), raw.data_region());
    let rings_memory = raw.rings();
    let data_memory = Arc::clone(&raw.arena.memory);
    raw.messages
        .tell(m::ADD_MEM_REG, &rings.single(), &[rings_memory.fd()])
        .unwrap();
    raw.messages
        .tell(m::ADD_MEM_REG, &data.single(), &[data_memory.fd()])
        .unwrap();
    raw.start_queue(0, 0).unwrap();
    raw.enable(0, true).unwrap();
    let expected = Numbers::new(32).bytes(disk.unit);
    raw.succeed(0, Request::write(0, &expected), Form::Direct);

    // Plugged memory right behind the data region: first used by itself, then
    // by a buffer that begins in one region and ends in the other.
    let extra = Arena::new(GuestMemory::new(1 << 20));
    let region = Region {
        guest: DATA + data.len,
        len: 1 << 20,
        user: data.user + data.len,
        file_offset: 0,
    };
    raw.messages
        .tell(m::ADD_MEM_REG, &region.single(), &[extra.memory.fd()])
        .unwrap();
    assert_eq!(read_to(&mut raw, disk.unit, region.guest), S_OK);
    assert!(extra.memory.read(0, disk.unit) == expected);

    let half = disk.unit / 2;
    extra.memory.fill(0, disk.unit, 0);
    assert_eq!(
        read_to(&mut raw, disk.unit, region.guest - half as u64),
        S_OK
    );
    assert!(extra.memory.read(0, half) == expected[half..]);
    assert!(data_memory.read(data_memory.len() - half, half) == expected[..half]);

    // Unplugged, it is out of reach, and the rest still works.
    raw.messages
        .tell(m::REM_MEM_REG, &region.single(), &[extra.memory.fd()])
        .unwrap();
    extra.memory.fill(0, disk.unit, 0x77);
    raw.succeed(0, Request::read(0, disk.unit), Form::Direct);
    assert!(extra.memory.read(0, disk.unit) == vec![0x77; disk.unit]);
}

/// Reads the first block to a guest address; returns the status.
fn read_to(raw: &mut RawFrontEnd, len: usize, address: u64) -> u8 {
    let status = raw.put(&[S_UNTOUCHED]);
    let chain = vec![
        readable(raw.put(&header(T_IN, 0)), 16),
        writable(address, len),
        writable(status, 1),
    ];
    let head = raw.queues[0].put_chain(chain);
    raw.queues[0].publish(head);
    raw.queues[0].kick();
    raw.used(0);
    raw.get(status, 1)[0]
}
