//! What requests cost in system calls: entries into the kernel through the ring,
//! and signals to the guest. There are no others on the way of a request
//! (`strace -f -c` of a server shows as much).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sealblk::crypt::Params;

mod support;

use support::in_process::Served;
use support::request::{Request, S_OK};

/// Entries and signals for each of so many requests, with `depth` of them in
/// flight at a time.
fn cost(depth: usize, rounds: usize, request: impl Fn(u64) -> Request) -> (f64, f64) {
    let served = Served::new(Params::default(), false);
    let mut front = served.connect(1);
    front.write(0, &[7; 1 << 20]);
    let stats = served.stats();
    let before = stats.snapshot();
    for _ in 0..rounds {
        for number in 0..depth {
            front.submit(0, request(number as u64 * 8)).unwrap();
        }
        while front.in_flight(0) > 0 {
            assert_eq!(front.complete(0).unwrap().1.status, S_OK);
        }
    }
    let after = stats.snapshot();
    let requests = (after.total().requests - before.total().requests) as f64;
    assert_eq!(requests, (depth * rounds) as f64);
    let entries = (after.entries - before.entries) as f64;
    let signals = (after.notifications - before.notifications) as f64;
    println!(
        "depth {depth}: {} entries, {} signals",
        entries / requests,
        signals / requests
    );
    (entries / requests, signals / requests)
}

fn read(sector: u64) -> Request {
    Request::read(sector, 4096)
}

fn write(sector: u64) -> Request {
    Request::write(sector, &[1; 4096])
}

/// One that hands it over and waits for it, one that waits for the next; and
/// the guest is told.
#[test]
fn one_request_at_a_time_takes_three_calls() {
    for request in [read, write] {
        let (entries, signals) = cost(1, 500, request);
        assert!(entries <= 2.5, "{entries}");
        // That of the request before them may be counted late, when its answer was
        // seen already.
        assert!(signals < 1.0 + 2.0 / 500.0, "{signals}");
    }
}

/// The guest is told of a batch, and a batch is handed over at once: many
/// requests share what one alone has to pay.
#[test]
fn many_requests_at_a_time_share_their_calls() {
    for request in [read, write] {
        let (entries, signals) = cost(32, 50, request);
        assert!(entries <= 1.0, "{entries}");
        assert!(signals <= 1.0, "{signals}");
    }
}
