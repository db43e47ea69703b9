//! What a disk counts of its work, as another process sees it: every request
//! of every kind, once, with its bytes, its outcome and the time it took.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::time::Instant;

use sealblk::crypt::Params;
use sealblk::engine::stats::{Direction, Kind, Operation, Snapshot};

mod support;

use support::in_process::{BYTES, OFFSET, Served};
use support::request::{Range, Request, S_IOERR, S_UNSUPP};

fn served() -> Served {
    let params = Params {
        zero_units: true,
        ..Params::default()
    };
    Served::new(params, true)
}

/// Requests, errors and bytes of a kind.
fn counts(seen: &Snapshot, kind: Kind) -> (u64, u64, u64) {
    let requests = seen.requests(kind);
    assert_eq!(requests.latency.count(), requests.requests, "{kind:?}");
    (requests.requests, requests.errors, requests.bytes)
}

#[test]
fn requests_of_every_kind_are_counted_once() {
    let start = Instant::now();
    let served = served();
    let stats = served.stats();
    assert_eq!(stats.snapshot(), Snapshot::default());
    let mut front = served.connect(2);
    front.write(0, &vec![7; 1 << 20]);
    front.write(4096, &[8; 512]);
    assert_eq!(front.read(0, 4096).len(), 4096);
    front.read(8, 768 << 10);
    front.succeed(1, Request::read(16, 512));
    front.flush();
    front.discard(&[Range::new(16, 16), Range::new(100, 300)]);
    front.write_zeroes(&[Range::new(1000, 8)]);
    front.succeed(0, Request::get_id());
    assert_eq!(
        front.run(0, Request::read(BYTES / 512, 512)).status,
        S_IOERR
    );
    assert_eq!(front.run(1, Request::of_type(99, &[], 0)).status, S_UNSUPP);

    let seen = stats.snapshot();
    let data = 4096 + (768 << 10) + 512;
    assert_eq!(counts(&seen, Kind::Read), (3, 0, data));
    assert_eq!(counts(&seen, Kind::Write), (2, 0, (1 << 20) + 512));
    assert_eq!(counts(&seen, Kind::Flush), (1, 0, 0));
    assert_eq!(counts(&seen, Kind::Discard), (1, 0, 316 * 512));
    assert_eq!(counts(&seen, Kind::WriteZeroes), (1, 0, 8 * 512));
    assert_eq!(counts(&seen, Kind::GetId), (1, 0, 20));
    assert_eq!(counts(&seen, Kind::Invalid), (2, 2, 0));
    assert_eq!(seen.in_flight, 0);
    let total = seen.total();
    assert_eq!((total.requests, total.errors), (11, 2));
    assert_eq!(total.latency.count(), 11);

    // A request of 768 KiB takes three operations, one of 1 MiB four.
    let operations = |operation| seen.operations(operation).operations;
    assert_eq!(operations(Operation::Read), 5);
    assert_eq!(operations(Operation::Write), 4 + 1 + 1);
    assert_eq!(operations(Operation::Sync), 1);
    assert_eq!(operations(Operation::Punch), 2);
    let encrypted = seen.cipher(Direction::Encrypt);
    let decrypted = seen.cipher(Direction::Decrypt);
    assert_eq!(encrypted.bytes, (1 << 20) + 512 + 8 * 512);
    assert_eq!(decrypted.bytes, data);

    // Nothing took longer than the test, and what is inside of something else
    // took less than that.
    let all = start.elapsed();
    for (kind, operation) in [
        (Kind::Read, Operation::Read),
        (Kind::Write, Operation::Write),
        (Kind::Flush, Operation::Sync),
    ] {
        let (request, device) = (&seen.requests(kind).latency, seen.operations(operation));
        assert!(!device.time.is_zero() && !request.sum.is_zero());
        assert!(request.sum < all, "{kind:?} {request:?}");
        // Several operations of one request overlap.
        assert!(device.time < 6 * all, "{operation:?} {device:?}");
        assert_eq!(device.errors, 0);
    }
    assert!(!encrypted.time.is_zero() && encrypted.time < all);
    assert!(!decrypted.time.is_zero() && decrypted.time < all);
    assert!(seen.kicks > 0 && seen.notifications > 0 && seen.sleeps > 0);
    assert!(seen.polled < 2 * all);
}

#[test]
fn counting_goes_on_over_connections() {
    let served = served();
    let stats = served.stats();
    for connection in 1..=3 {
        let mut front = served.connect(1);
        for _ in 0..10 {
            front.write(0, &[1; 4096]);
        }
        drop(front);
        let seen = stats.snapshot();
        assert_eq!(
            counts(&seen, Kind::Write),
            (10 * connection, 0, 40960 * connection)
        );
        assert_eq!(seen.in_flight, 0);
    }
}

#[test]
fn what_the_disk_below_fails_is_told_from_what_the_guest_does_wrong() {
    let served = Served::new(Params::default(), false);
    let stats = served.stats();
    let mut front = served.connect(1);
    let file = File::options().write(true).open(served.path("disk"));
    file.unwrap().set_len(OFFSET + 4096).unwrap();
    assert_eq!(front.run(0, Request::read(8, 4096)).status, S_IOERR);
    assert_eq!(front.run(0, Request::read(u64::MAX, 512)).status, S_IOERR);
    let seen = stats.snapshot();
    assert_eq!(counts(&seen, Kind::Read), (1, 1, 0));
    assert_eq!(counts(&seen, Kind::Invalid), (1, 1, 0));
    let reads = seen.operations(Operation::Read);
    assert_eq!((reads.operations, reads.errors), (1, 1));
    assert_eq!(seen.cipher(Direction::Decrypt).bytes, 0);
}
