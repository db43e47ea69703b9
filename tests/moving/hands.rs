//! A region that is closed and opened by hand: what waits meanwhile, and what
//! does not.

use std::time::Duration;

use sealblk::crypt::{Engine, Params, SectorCipher, Transform};
use sealblk::engine::fence::Keeper;
use sealblk::engine::hold::Mode;
use sealblk::engine::throttle::Lane;
use sealblk::rekey::{Direction, Fence as _, Position};
use sealblk::units::Sector;

use crate::support::front_end::FrontEnd;
use crate::support::in_process::{BYTES, OFFSET, Served};
use crate::support::request::{Range, Request, S_IOERR, S_OK};
use crate::support::server::eventually;

const FORWARD: Direction = Direction::Forward;

/// Both ways are the same, so that nothing has to be moved.
fn moving(served: &Served, params: Params) -> Keeper {
    let same = SectorCipher::new(Engine::Portable, served.dek(), params).unwrap();
    let position = Position {
        direction: FORWARD,
        boundary: 0,
    };
    let same = Transform::Cipher(same);
    served.disk.begin_move(same, position).unwrap();
    served.disk.fence().keeper().unwrap()
}

fn params() -> Params {
    Params {
        zero_units: true,
        ..Params::default()
    }
}

/// The next answers are to these requests, in any order, and good ones.
fn answered(front: &mut FrontEnd, queue: usize, mut tickets: Vec<u64>) {
    while !tickets.is_empty() {
        let (ticket, outcome) = front.complete(queue).unwrap();
        assert_eq!(outcome.status, S_OK);
        let place = tickets.iter().position(|it| *it == ticket);
        tickets.remove(place.expect("it was to wait"));
    }
}

#[test]
fn what_is_closed_waits_and_nothing_else_does() {
    let served = Served::new(params(), true);
    let mut front = served.connect(2);
    front.write(0, &[1; 1 << 20]);
    let keeper = moving(&served, params());
    assert!(keeper.close_for_writing(FORWARD, 128 << 10));
    assert!(keeper.close_for_reading(FORWARD, 64 << 10));
    let mut submit = |queue, request| front.submit(queue, request).unwrap();
    let read = submit(0, Request::read(64, 4096));
    let write = submit(0, Request::write(200, &[2; 4096]));
    // Across both edges, and into each in several ranges.
    let across = submit(1, Request::write(100, &[3; 96 << 10]));
    let large = submit(1, Request::read(100, 512 << 10));
    // Far more than what is closed: all but that is given back at once.
    let everything = submit(
        0,
        Request::discard(&[Range::new(256, 32768 - 256), Range::new(210, 8)]),
    );
    let open = [
        submit(0, Request::read(128, 4096)),
        submit(0, Request::write(1024, &[4; 4096])),
        submit(0, Request::flush()),
        submit(0, Request::get_id()),
    ];
    let also = submit(1, Request::read(256, 4096));
    answered(&mut front, 0, open.to_vec());
    answered(&mut front, 1, vec![also]);
    let raw = || std::fs::read(served.path("disk")).unwrap();
    eventually("space is given back", || {
        raw()[(OFFSET + (2 << 20)) as usize..]
            .iter()
            .all(|byte| *byte == 0)
            .then_some(())
    });
    // In the order in which they came: what is closed for reading is open first.
    keeper.advance(FORWARD, 64 << 10);
    answered(&mut front, 0, vec![read]);
    answered(&mut front, 1, vec![large]);
    assert!(front.try_complete(0).is_none() && front.try_complete(1).is_none());
    keeper.open();
    answered(&mut front, 0, vec![write, everything]);
    answered(&mut front, 1, vec![across]);
    assert!(keeper.longest_wait() > 0);
    assert_eq!(keeper.longest_wait(), 0, "it was asked for");
    let seen = served.stats().snapshot();
    let parked = |lane| seen.parked(lane).requests;
    assert_eq!((parked(Lane::Read), parked(Lane::Write)), (2, 3));
    assert!(seen.parked(Lane::Write).time > Duration::ZERO);
    let data = front.read(0, 1 << 20);
    assert!(data[..100 * 512].iter().all(|byte| *byte == 1));
    assert!(data[100 * 512..][..96 << 10].contains(&3));
    drop(keeper);
    let mut expected = served.plaintext();
    expected.truncate(1 << 20);
    assert!(data == expected);
}

/// Requests that need more buffers than there are find another view when they go
/// on, and perhaps the last one.
#[test]
fn a_request_that_waits_for_a_buffer_follows_what_happens_meanwhile() {
    let served = Served::new(params(), true);
    let mut front = FrontEnd::connect(
        &served.path("socket"),
        &crate::support::front_end::Options {
            memory: 64 << 20,
            ..Default::default()
        },
    )
    .unwrap();
    let keeper = moving(&served, params());
    for round in 0..3u8 {
        for number in 0..24 {
            let request = Request::write(number % 8 * 2048, &vec![round; 1 << 20]);
            front.submit(0, request).unwrap();
        }
        // What is closed changes as long as they are begun.
        let mut boundary = 0;
        while front.in_flight(0) > 12 || boundary == 0 {
            if keeper.close_for_writing(FORWARD, 256 << 10)
                && keeper.close_for_reading(FORWARD, 64 << 10)
            {
                keeper.advance(FORWARD, 64 << 10);
                boundary += 1;
            }
            while let Some((_, outcome)) = front.try_complete(0) {
                assert_eq!(outcome.status, S_OK);
            }
        }
        keeper.open();
        while front.in_flight(0) > 0 {
            assert_eq!(front.complete(0).unwrap().1.status, S_OK);
        }
        assert!(keeper.close_for_reading(Direction::Back, BYTES));
        keeper.advance(Direction::Back, BYTES);
        keeper.open();
    }
    assert!(front.read(0, 1 << 20).iter().all(|byte| *byte == 2));
}

/// Whoever ends a session, or the server, waits for what is parked; and the next
/// session is served.
#[test]
fn what_is_parked_is_completed_though_its_session_ends() {
    let mut served = Served::in_memory(params(), true);
    let mut front = served.connect(2);
    let keeper = moving(&served, params());
    assert!(keeper.close_for_writing(FORWARD, 64 << 10));
    let submit = |front: &mut FrontEnd| {
        for queue in [0, 1] {
            front
                .submit(queue, Request::write(8 * queue as u64, &[7; 4096]))
                .unwrap();
        }
    };
    submit(&mut front);
    eventually("they are taken", || {
        (served.stats().snapshot().in_flight == 2).then_some(())
    });
    drop(front);
    // Its queues end once it is open.
    assert_eq!(served.stats().snapshot().in_flight, 2);
    keeper.open();
    let mut front = served.connect(2);
    assert!(front.read(0, 8192).iter().all(|byte| *byte == 7));
    assert!(keeper.close_for_writing(FORWARD, 64 << 10));
    submit(&mut front);
    eventually("they are taken", || {
        (served.stats().snapshot().in_flight == 2).then_some(())
    });
    let disk = served.disk.clone();
    disk.fence().halt();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| served.stop());
        // As the mover does when it is told not to go on.
        assert!(!keeper.close_for_writing(FORWARD, 128 << 10));
        assert!(!stop.is_finished());
        keeper.open();
    });
    for queue in [0, 1] {
        assert_eq!(front.complete(queue).unwrap().1.status, S_OK);
    }
}

#[test]
fn what_nobody_will_open_fails_and_so_does_what_is_to_fail() {
    let served = Served::new(params(), true);
    let mut front = served.connect(1);
    front.write(0, &[1; 256 << 10]);
    let keeper = moving(&served, params());
    assert!(keeper.close_for_writing(FORWARD, 128 << 10));
    assert!(keeper.close_for_reading(FORWARD, 64 << 10));
    // Some of it is done, and some is parked.
    let parked = [
        front
            .submit(0, Request::write(64, &[2; 128 << 10]))
            .unwrap(),
        front.submit(0, Request::read(0, 4096)).unwrap(),
    ];
    eventually("they are taken", || {
        (served.stats().snapshot().in_flight == 2).then_some(())
    });
    served.disk.hold().set(Mode::Fail);
    for _ in parked {
        assert_eq!(front.complete(0).unwrap().1.status, S_IOERR);
    }
    served.disk.hold().set(Mode::Run);
    front.submit(0, Request::write(64, &[2; 4096])).unwrap();
    eventually("it is taken", || {
        (served.stats().snapshot().in_flight == 1).then_some(())
    });
    drop(keeper);
    assert_eq!(front.complete(0).unwrap().1.status, S_IOERR);
    for request in [
        Request::read(0, 4096),
        Request::write(192, &[2; 4096]),
        Request::write(0, &[2; 256 << 10]),
        Request::discard(&[Range::new(0, 1024)]),
    ] {
        assert_eq!(front.run(0, request).status, S_IOERR);
    }
    // What is closed for writing alone is read, as it is stored.
    assert!(front.read(192, 4096).iter().all(|byte| *byte == 1));
    front.write(256, &[3; 4096]);
    // Recovery has found out how all of it is stored.
    let keeper = served.disk.fence().keeper().unwrap();
    assert!(keeper.close_for_reading(FORWARD, 128 << 10));
    keeper.advance(FORWARD, 128 << 10);
    keeper.open();
    front.write(0, &[5; 4096]);
    assert!(front.read(0, 4096).iter().all(|byte| *byte == 5));
}

/// A disk has one size while it is moved; and a read-only one is never moved.
#[test]
fn a_plain_disk_is_read_and_written_on_both_sides_of_the_boundary() {
    let served = Served::new(params(), true);
    let mut front = served.connect(1);
    front.write(0, &[9; 64 << 10]);
    // All data goes to plain, by hand: 4096 bytes of it.
    let position = Position {
        direction: FORWARD,
        boundary: 0,
    };
    let plain = Transform::Plain(params().sector_size);
    served.disk.begin_move(plain, position).unwrap();
    let keeper = served.disk.fence().keeper().unwrap();
    assert!(keeper.close_for_reading(FORWARD, 4096));
    let file = std::fs::File::options()
        .write(true)
        .open(served.path("disk"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[8; 4096], OFFSET).unwrap();
    keeper.advance(FORWARD, 4096);
    keeper.open();
    let ciphered = served.stats().snapshot();
    let data = front.read(0, 8192);
    assert!(data[..4096].iter().all(|byte| *byte == 8));
    assert!(data[4096..].iter().all(|byte| *byte == 9));
    front.write(4, &[6; 8192]);
    front.write_zeroes(&[Range::new(0, 1)]);
    front.flush();
    let raw = std::fs::read(served.path("disk")).unwrap();
    let stored = &raw[OFFSET as usize..][..16384];
    assert!(stored[..512].iter().all(|byte| *byte == 0));
    assert!(stored[512..2048].iter().all(|byte| *byte == 8));
    assert!(stored[2048..4096].iter().all(|byte| *byte == 6));
    let mut rest = stored[4096..10240].to_vec();
    let oracle = SectorCipher::new(Engine::Portable, served.dek(), params()).unwrap();
    oracle.decrypt_in_place(Sector(8), &mut rest);
    assert!(rest.iter().all(|byte| *byte == 6));
    // Only what the cipher did is counted as its work.
    let seen = served.stats().snapshot();
    use sealblk::engine::stats::Direction::{Decrypt, Encrypt};
    let work = |direction| seen.cipher(direction).bytes - ciphered.cipher(direction).bytes;
    assert_eq!((work(Decrypt), work(Encrypt)), (4096, 6144));
    let refused = served.disk.grow(BYTES + 4096).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ResourceBusy);
    assert!(served.disk.end_move().is_err(), "it is in between");
}
