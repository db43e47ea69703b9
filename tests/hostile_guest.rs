//! Whatever a guest, or a front end in its name, puts into the ring or on the
//! socket, the server lives, stays small, touches nothing else, and serves the
//! next good request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "hostile_guest/bounds.rs"]
mod bounds;
#[path = "hostile_guest/burning.rs"]
mod burning;
#[path = "hostile_guest/chains.rs"]
mod chains;
#[path = "hostile_guest/framing.rs"]
mod framing;
#[path = "hostile_guest/indirect.rs"]
mod indirect;
#[path = "hostile_guest/inflight.rs"]
mod inflight;
#[path = "hostile_guest/limits.rs"]
mod limits;
#[path = "hostile_guest/messages.rs"]
mod messages;
#[path = "hostile_guest/races.rs"]
mod races;
#[path = "hostile_guest/rewriting.rs"]
mod rewriting;

mod support;

use std::time::{Duration, Instant};

use support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use support::raw_queue::{Descriptor, readable, writable};
use support::request::*;
use support::server::{Server, Volume, serve_with_qemu, serve_with_sealblk};

const CAPACITY: u64 = 4 << 20;
const SECTORS: u64 = CAPACITY / 512;

/// What may come of a hostile chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// Header and status byte are in order: this status, and the ring goes on.
    Status(u8),
    /// The ring goes on or the device is broken; but it never looks like a
    /// success.
    NoSuccess,
}

/// A hostile chain in the ring, not yet published.
struct Chain {
    head: u16,
    /// Where its status byte is, if it has one.
    status: Option<u64>,
}

struct Case {
    name: &'static str,
    expect: Expect,
    /// Whether QEMU's storage daemon does exactly that as well.
    qemu: bool,
    build: fn(&mut RawFrontEnd) -> Chain,
}

/// A server whose disk starts with known data, and its size before the attack.
struct Target {
    server: Server,
    strict: bool,
    contents: Vec<u8>,
    peak_kib: u64,
}

impl Target {
    fn sealblk() -> Target {
        let volume = Volume::new(CAPACITY, 512).serve_with(&["--queues", "2"]);
        Target::new(serve_with_sealblk(&volume), true)
    }

    fn qemu() -> Target {
        Target::new(
            serve_with_qemu(CAPACITY, ",writable=on,num-queues=2"),
            false,
        )
    }

    fn new(server: Server, strict: bool) -> Target {
        let contents: Vec<u8> = (0..1u32 << 20).map(|at| ((at * 31) >> 7) as u8).collect();
        let mut target = Target {
            server,
            strict,
            contents,
            peak_kib: 0,
        };
        let mut raw = target.connect();
        raw.succeed(0, Request::write(0, &target.contents), Form::Direct);
        raw.succeed(0, Request::flush(), Form::Direct);
        drop(raw);
        target.assert_unharmed("nothing yet");
        target.peak_kib = target.server.memory_kib("VmHWM");
        target
    }

    fn connect(&self) -> RawFrontEnd {
        RawFrontEnd::connect(self.server.socket(), &RawOptions::default()).unwrap()
    }

    /// Alive, serving a new front end, with the disk as it was.
    fn assert_unharmed(&mut self, after: &str) {
        self.server.assert_running(after);
        let mut raw = self.connect();
        let read = Request::read(0, self.contents.len());
        let found = raw.succeed(0, read, Form::Direct).data;
        assert!(found == self.contents, "the disk changed by {after}");
    }

    /// What a guest can make the server allocate has a bound.
    fn assert_small(&self) {
        let peak = self.server.memory_kib("VmHWM");
        let grown = peak.saturating_sub(self.peak_kib);
        assert!(grown < 64 << 10, "the server grew by {grown} KiB");
    }

    fn check(&mut self, case: &Case) {
        let expect = if self.strict || case.qemu {
            Some(case.expect)
        } else {
            None
        };
        let mut raw = self.connect();
        let chain = (case.build)(&mut raw);
        raw.queues[0].publish(chain.head);
        let good = raw.submit(0, Request::read(8, 4096), Form::Direct);

        let mut returned = None;
        let mut good_used = None;
        let start = Instant::now();
        while good_used.is_none() || returned.is_none() {
            match raw.queues[0].take_used() {
                Some(used) if used.id == u32::from(good.head) => good_used = Some(used),
                Some(used) => returned = Some(used),
                None => std::thread::yield_now(),
            }
            // A device may break without a word, so this case alone is waited
            // for by the clock; a promised status has the usual deadline.
            let patience = match expect {
                Some(Expect::Status(_)) => support::server::DEADLINE,
                _ => Duration::from_millis(150),
            };
            if start.elapsed() > patience {
                break;
            }
        }
        let name = case.name;
        let status = chain.status.map(|at| raw.get(at, 1)[0]);
        if let Some(used) = good_used {
            let outcome = raw.outcome(good, used);
            assert_eq!(outcome.status, S_OK, "the good request after {name}");
            assert!(outcome.data == self.contents[4096..8192], "{name}");
        }
        match expect {
            Some(Expect::Status(wanted)) => {
                assert_eq!(status, Some(wanted), "{name}");
                assert!(good_used.is_some(), "the ring stopped at {name}");
                let used = returned.unwrap_or_else(|| panic!("{name} never came back"));
                assert_eq!(used.id, u32::from(chain.head), "{name}");
                assert!(used.len >= 1, "{name}: the status byte counts");
            }
            Some(Expect::NoSuccess) => assert_ne!(status, Some(S_OK), "{name}"),
            None => {}
        }
        drop(raw);
        self.assert_unharmed(name);
    }

    fn check_all(mut self, cases: &[Case]) {
        for case in cases {
            self.check(case);
        }
        self.assert_small();
    }
}

/// Pieces that chains are made of.
impl RawFrontEnd {
    fn head(&mut self, kind: u32, sector: u64) -> Descriptor {
        readable(self.put(&header(kind, sector)), 16)
    }

    fn source(&mut self, len: usize) -> Descriptor {
        readable(self.put(&vec![0x5a; len]), len)
    }

    fn target(&mut self, len: usize) -> Descriptor {
        writable(self.put(&vec![0; len]), len)
    }

    fn status(&mut self) -> Descriptor {
        writable(self.put(&[S_UNTOUCHED]), 1)
    }

    /// A chain of linked descriptors that ends in a good status byte.
    fn with_status(&mut self, mut descriptors: Vec<Descriptor>) -> Chain {
        let status = self.status();
        descriptors.push(status);
        Chain {
            head: self.queues[0].put_chain(descriptors),
            status: Some(status.address),
        }
    }

    /// A chain of linked descriptors with no status byte to be found.
    fn without_status(&mut self, descriptors: Vec<Descriptor>) -> Chain {
        Chain {
            head: self.queues[0].put_chain(descriptors),
            status: None,
        }
    }
}

macro_rules! on_both {
    ($($room:ident::$cases:ident as $name:ident),* $(,)?) => {
        mod sealblk {
            $(#[test]
            fn $name() {
                super::Target::sealblk().check_all(super::$room::$cases);
            })*
        }
        mod qemu {
            $(#[test]
            fn $name() {
                super::Target::qemu().check_all(super::$room::$cases);
            })*
        }
    };
}

on_both!(
    chains::DIRECTIONS_AND_LENGTHS as directions_and_lengths,
    chains::ADDRESSES as addresses,
    chains::SECTORS_OUT_OF_RANGE as sectors_out_of_range,
    chains::RANGES as ranges,
    framing::LINKS as links,
    framing::HEADERS_AND_STATUS_BYTES as headers_and_status_bytes,
    indirect::INDIRECT_TABLES as indirect_tables,
);
