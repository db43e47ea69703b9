//! A driver that rewrites everything while its requests run: descriptors, indirect
//! tables, the available ring, the used ring, headers, ranges, data and status bytes,
//! for all kinds of requests and under each cipher engine.
//!
//! What becomes of its own disk is its own matter. The server lives and stays small,
//! the disk beside it in the same process is served and unchanged, and so is what is
//! in front of the data of its own.
//!
//! `SEALBLK_REWRITES` is how many times the driver starts anew per engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sealblk::crypt::Engine;

use super::Form;
use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::memory::GuestMemory;
use super::support::raw_front_end::{DATA, RINGS, RawFrontEnd, RawOptions};
use super::support::raw_queue::{Descriptor, INDIRECT, NEXT, WRITE};
use super::support::request::*;
use super::support::server::eventually;
#[path = "../support/random.rs"]
mod random;
use random::Random;

const ENTRIES: u16 = 64;
/// Where in the data region the parts are that are rewritten.
const HEADERS: usize = 0;
const TABLES: usize = 0x1000;
const TABLE_BYTES: usize = 0x200;
const WINDOW: usize = 0x1_0000;
const WINDOW_BYTES: usize = 0x2_0000;

/// All kinds that there are, and one that is none.
const KINDS: [u32; 7] = [
    T_IN,
    T_OUT,
    T_FLUSH,
    T_GET_ID,
    T_DISCARD,
    T_WRITE_ZEROES,
    99,
];

/// What is rewritten, and by what.
struct Mutator {
    random: Random,
    rings: Arc<GuestMemory>,
    data: Arc<GuestMemory>,
    /// Descriptors, available ring, used ring.
    areas: (usize, usize, usize),
}

impl Mutator {
    fn sector(&mut self) -> u64 {
        match self.random.below(8) {
            0 => self.random.next(),
            1 => super::SECTORS - self.random.below(4),
            2 => u64::MAX - self.random.below(16),
            _ => self.random.below(super::SECTORS),
        }
    }

    fn header(&mut self) -> [u8; 16] {
        let kind = KINDS[self.random.below(KINDS.len() as u64) as usize];
        header(kind, self.sector())
    }

    fn address(&mut self) -> u64 {
        let within = |memory: &GuestMemory, at: u64| at % memory.len() as u64;
        let any = self.random.next();
        match self.random.below(12) {
            0 => any,
            1 => u64::MAX - any % 5000,
            // Rings, headers and tables, also as data and for status bytes.
            2 => RINGS + within(&self.rings, any),
            3 => DATA + any % WINDOW as u64,
            // Across the end of the region.
            4 => DATA + self.data.len() as u64 - any % 600,
            _ => DATA + WINDOW as u64 + 16 * (any % (WINDOW_BYTES as u64 / 16)),
        }
    }

    fn descriptor(&mut self, entries: u16) -> Descriptor {
        let len = match self.random.below(8) {
            0 => self.random.next() as u32,
            1 => 0,
            2 => 1,
            3 => 16,
            4 => 4096,
            5 => TABLE_BYTES as u32,
            _ => 512,
        };
        let flags = match self.random.below(6) {
            0 => INDIRECT,
            1 => self.random.next() as u16,
            2 => WRITE,
            3 => NEXT | WRITE,
            _ => NEXT,
        };
        let next = match self.random.once_in(8) {
            true => self.random.next() as u16,
            false => self.random.below(entries.into()) as u16,
        };
        Descriptor {
            address: self.address(),
            len,
            flags,
            next,
        }
    }

    /// A chain as drivers make them: header, data, status. Kind and direction need
    /// not agree.
    fn chain(&mut self, first: u16) -> Vec<Descriptor> {
        let at = HEADERS + 16 * self.random.below(64) as usize;
        let header = self.header();
        self.data.write(at, &header);
        let parts = 1 + self.random.below(4) as u16;
        let flags = if self.random.once_in(2) { WRITE } else { 0 };
        let part = |address, len, flags, place: u16| Descriptor {
            address,
            len,
            flags: flags | NEXT,
            next: first + place + 1,
        };
        let mut chain = vec![part(DATA + at as u64, 16, 0, 0)];
        for place in 1..=parts {
            let address = self.address();
            let len = 512 * (1 + self.random.below(8) as u32);
            chain.push(part(address, len, flags, place));
        }
        let window = DATA + (WINDOW + self.random.below(WINDOW_BYTES as u64) as usize) as u64;
        chain.push(Descriptor {
            flags: WRITE,
            next: 0,
            ..part(window, 1, 0, 0)
        });
        chain
    }

    /// One change.
    fn rewrite(&mut self) {
        let (descriptors, available, used) = self.areas;
        let any = self.random.next() as usize;
        match self.random.below(10) {
            0 | 1 => {
                let bytes = self.descriptor(ENTRIES).bytes();
                let at = descriptors + 16 * (any % usize::from(ENTRIES));
                self.rings.write(at, &bytes);
            }
            2 => {
                let first = (any % usize::from(ENTRIES - 8)) as u16;
                let chain = self.chain(first);
                let bytes: Vec<u8> = chain.iter().flat_map(Descriptor::bytes).collect();
                self.rings
                    .write(descriptors + 16 * usize::from(first), &bytes);
            }
            3 | 4 => {
                let bytes = self.descriptor(32).bytes();
                let at = TABLES + 16 * (any % (8 * TABLE_BYTES / 16));
                self.data.write(at, &bytes);
            }
            5 => {
                let chain = self.chain(0);
                let bytes: Vec<u8> = chain.iter().flat_map(Descriptor::bytes).collect();
                self.data.write(TABLES + TABLE_BYTES * (any % 8), &bytes);
            }
            6 => {
                let header = self.header();
                self.data.write(HEADERS + 16 * (any % 64), &header);
            }
            7 => {
                // A range to be discarded or zeroed, anywhere in the data.
                let mut range = self.sector().to_le_bytes().to_vec();
                range.extend((self.random.below(40) as u32).to_le_bytes());
                range.extend((self.random.below(3) as u32).to_le_bytes());
                let at = WINDOW + 16 * (any % (WINDOW_BYTES / 16));
                self.data.write(at, &range);
            }
            8 => {
                // Which chains are there, and what the server says it has used.
                let head = self.random.below(u64::from(ENTRIES) + 2) as u16;
                let entry = available + 4 + 2 * (any % usize::from(ENTRIES));
                self.rings.store_u16(entry, head);
                let entry = used + 4 + 8 * (any % usize::from(ENTRIES));
                self.rings.write(entry, &[any as u8; 8]);
            }
            _ => {
                let len = 1 + any % 4096;
                self.data.fill(WINDOW + any % WINDOW_BYTES, len, any as u8);
            }
        }
    }
}

/// What came of so many starts of a driver that rewrites.
#[derive(Debug, Default)]
struct Tally {
    answered: u64,
    rewritten: u64,
}

fn attack(raw: &mut RawFrontEnd, seed: u64, tally: &mut Tally) {
    let mut mutator = Mutator {
        random: Random(seed),
        rings: raw.rings(),
        data: Arc::clone(&raw.arena.memory),
        areas: raw.queues[0].areas(),
    };
    for _ in 0..300 {
        mutator.rewrite();
    }
    // Direct chains, and tables.
    for table in 0..8u16 {
        let address = DATA + (TABLES + TABLE_BYTES * usize::from(table)) as u64;
        raw.queues[0].put(
            table * 8,
            Descriptor {
                address,
                len: TABLE_BYTES as u32,
                flags: INDIRECT,
                next: 0,
            },
        );
    }
    let stop = AtomicBool::new(false);
    let rewritten = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                mutator.rewrite();
                rewritten.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut random = Random(!seed);
        let mut in_flight = 0;
        let mut last = Instant::now();
        // A ring may break, or a chain be lost to it: then it is given up.
        for _ in 0..400 {
            while raw.queues[0].take_used().is_some() {
                in_flight -= 1;
                tally.answered += 1;
                last = Instant::now();
            }
            if in_flight < 48 {
                let head = random.below(ENTRIES.into()) as u16;
                raw.queues[0].publish(head);
                raw.queues[0].kick();
                in_flight += 1;
            } else if last.elapsed() > Duration::from_millis(100) {
                break;
            } else {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    tally.rewritten += rewritten.into_inner();
}

#[test]
fn everything_is_rewritten_under_each_engine() {
    let rounds: u64 = std::env::var("SEALBLK_REWRITES")
        .ok()
        .map_or(6, |text| text.parse().unwrap());
    let home = Home::new();
    let image = home.create("disk.img", &["--zero-units"]);
    home.create("other.img", &["--zero-units"]);
    let volumes = ["--socket", "other.sock", "disk.img", "other.img"];
    let header = |bytes: usize| std::fs::read(&image).unwrap()[..bytes].to_vec();
    let data = std::fs::metadata(&image).unwrap().len() - super::CAPACITY;
    let (before, length) = (header(data as usize), data + super::CAPACITY);
    for engine in Engine::available() {
        let arguments = ["--engine", engine.name(), "--discard", "pass"];
        let command = home.serve_command(&[&arguments[..], &volumes].concat());
        let mut server = home.start("disk.sock", command);
        // Its socket is made after that of the first.
        let mut other = eventually("the other disk is served", || {
            FrontEnd::connect(&home.path("other.sock"), &Options::default()).ok()
        });
        let noted: Vec<u8> = (0..1u32 << 16).map(|at| (at >> 5) as u8).collect();
        other.write(64, &noted);
        let peak = server.memory_kib("VmHWM");
        let mut tally = Tally::default();
        for round in 0..rounds {
            let options = RawOptions {
                inflight: round % 2 == 1,
                ..RawOptions::default()
            };
            let mut raw = RawFrontEnd::connect(server.socket(), &options).unwrap();
            attack(&mut raw, 0x5ea1 + round, &mut tally);
            // The other disk is served while this one is attacked.
            assert!(other.read(64, noted.len()) == noted, "{engine} {round}");
            drop(raw);
            server.assert_running("a driver that rewrites");
        }
        assert!(tally.rewritten > 0 && tally.answered > 0, "{tally:?}");
        // Its own disk works, for a driver that does what it should.
        let mut raw = RawFrontEnd::connect(server.socket(), &RawOptions::default()).unwrap();
        raw.succeed(0, Request::write(8, &[9; 4096]), Form::Indirect);
        let read = raw.succeed(0, Request::read(8, 4096), Form::Direct);
        assert!(read.data == [9; 4096], "{engine}");
        drop(raw);
        let grown = server.memory_kib("VmHWM").saturating_sub(peak);
        assert!(grown < 64 << 10, "{engine}: it grew by {grown} KiB");
        drop(other);
        assert!(server.terminate().success(), "{}", server.messages());
        assert_eq!(std::fs::metadata(&image).unwrap().len(), length);
        assert!(header(data as usize) == before, "{engine}: the header");
    }
}
