//! What a front end keeps of the requests in flight, changed behind the server's
//! back: it is found out, or leads to nothing but what the ring could say as well.

use super::support::message as m;
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::*;
use super::support::server::eventually;
use super::{CAPACITY, Target};

/// Where the parts of a header are; then come entries of 16 bytes.
const FEATURES: u64 = 0;
const VERSION: u64 = 8;
const ENTRIES: u64 = 10;
const LAST: u64 = 12;
const USED: u64 = 14;
const FIRST: u64 = 16;

type Change = (u64, &'static [u8]);

/// After two requests that were answered.
const REFUSED: &[(&str, &[Change])] = &[
    ("features that nobody knows", &[(FEATURES, &[0, 0, 0, 1])]),
    ("a version that nobody knows", &[(VERSION, &[2, 0])]),
    ("fewer entries", &[(ENTRIES, &[63, 0])]),
    ("a state that is none", &[(FIRST + 16 * 7, &[9])]),
    (
        "an index that the ring cannot follow",
        &[(USED, &[0xe8, 3]), (FIRST, &[1])],
    ),
    (
        "an answer to a descriptor that is none",
        &[(USED, &[1, 0]), (LAST, &[64, 0])],
    ),
    (
        "a list that leads out of the entries",
        &[
            (USED, &[0, 0]),
            (LAST, &[1, 0]),
            (FIRST + 16 + 6, &[0xff, 0xff]),
        ],
    ),
];

/// What may be, though it is not so.
const BELIEVED: &[(&str, &[Change])] = &[
    ("requests that were never sent", &[(FIRST + 16 * 40, &[1])]),
    (
        "memory that was never used",
        &[(VERSION, &[0, 0]), (FIRST, &[1])],
    ),
    (
        "a list that goes round",
        &[(USED, &[0, 0]), (FIRST + 6, &[0, 0]), (LAST, &[0, 0])],
    ),
    (
        "an order that ends",
        &[(
            FIRST,
            &[
                1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255,
            ],
        )],
    ),
];

fn options() -> RawOptions {
    RawOptions {
        inflight: true,
        ..RawOptions::default()
    }
}

fn connect(target: &Target) -> RawFrontEnd {
    let mut raw = RawFrontEnd::connect(target.server.socket(), &options()).unwrap();
    assert!(raw.protocol_features & m::PF_INFLIGHT_SHMFD != 0);
    for _ in 0..2 {
        raw.succeed(0, Request::read(0, 512), Form::Indirect);
    }
    raw
}

fn change(raw: &RawFrontEnd, at: u64, bytes: &[u8]) {
    let (_, memory) = raw.inflight.as_ref().unwrap();
    assert_eq!(rustix::io::pwrite(memory, bytes, at), Ok(bytes.len()));
}

/// Ends the connection, changes what is kept, and connects again.
fn come_back(target: &Target, changes: &[Change]) -> std::io::Result<RawFrontEnd> {
    let mut raw = connect(target);
    // In order, so that all that was sent is answered and written down.
    raw.stop_queue(0).unwrap();
    for (at, bytes) in changes {
        change(&raw, *at, bytes);
    }
    raw.reconnect(target.server.socket())?;
    Ok(raw)
}

#[test]
fn what_cannot_have_been_kept_is_refused() {
    let mut target = Target::sealblk();
    for (what, changes) in REFUSED {
        assert!(come_back(&target, changes).is_err(), "{what}");
        eventually(what, || {
            let said = target.server.messages();
            said.contains("the guest has to reset its disk")
                .then_some(())
        });
        target.assert_unharmed(what);
    }
    target.assert_small();
}

#[test]
fn what_may_have_been_kept_harms_nobody() {
    let mut target = Target::sealblk();
    come_back(&target, &[])
        .unwrap()
        .succeed(0, Request::read(0, 512), Form::Direct);
    for (what, changes) in BELIEVED {
        let raw = come_back(&target, changes);
        assert!(raw.is_ok(), "{what}: {}", target.server.messages());
        drop(raw);
        target.assert_unharmed(what);
    }
    // Everything at once: as many requests as there are entries.
    let all: Vec<(u64, &'static [u8])> = (0..64)
        .map(|head| (FIRST + 16 * head, &[1u8][..]))
        .collect();
    let raw = come_back(&target, &all);
    assert!(raw.is_ok(), "{}", target.server.messages());
    drop(raw);
    target.assert_unharmed("everything in flight");
    target.assert_small();
}

/// While a queue runs, nothing there is read.
#[test]
fn what_is_kept_may_change_under_a_running_queue() {
    let mut target = Target::sealblk();
    let mut raw = connect(&target);
    for noise in [0x00, 0xff, 0x01, 0xa5] {
        change(&raw, 0, &[noise; 16 + 64 * 16]);
        for sector in 0..100 {
            let expected = &target.contents[sector as usize * 512..][..512];
            let read = raw.succeed(0, Request::read(sector, 512), Form::Direct);
            assert!(read.data == expected);
        }
    }
    drop(raw);
    target.assert_unharmed("noise in what is kept");
}

#[test]
fn memory_that_does_not_fit_is_refused() {
    let mut target = Target::sealblk();
    let asked = [(0, 64), (3, 64), (2, 0), (1, 32769), (u16::MAX, u16::MAX)];
    for (queues, entries) in asked {
        let payload = m::inflight(0, 0, queues, entries);
        let mut raw = RawFrontEnd::negotiate(target.server.socket(), &options()).unwrap();
        let reply = raw.messages.ask(m::GET_INFLIGHT_FD, &payload);
        assert!(reply.is_err(), "{queues} queues of {entries}");
        target.assert_unharmed("too much was asked for");
    }
    // A file that could be cut short, and one that is too short.
    let mut raw = RawFrontEnd::negotiate(target.server.socket(), &options()).unwrap();
    let rings = raw.rings();
    let told = m::inflight(1 << 20, 0, 1, 64);
    let given = raw.messages.tell(m::SET_INFLIGHT_FD, &told, &[rings.fd()]);
    assert!(given.is_err());
    let mut raw = RawFrontEnd::negotiate(target.server.socket(), &options()).unwrap();
    let (_, memory) = raw.inflight.take().unwrap();
    assert!(
        rustix::fs::ftruncate(&memory, CAPACITY).is_err(),
        "it is sealed"
    );
    let told = m::inflight(1 << 20, 0, 2, 16384);
    let given = raw.messages.tell(
        m::SET_INFLIGHT_FD,
        &told,
        &[std::os::fd::AsFd::as_fd(&memory)],
    );
    assert!(given.is_err());
    target.assert_unharmed("memory that does not fit");
}
