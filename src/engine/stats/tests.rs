//! Sharing statistics: what stays, what is refused, what survives.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};

use super::*;

fn write(stats: &Stats, queue: usize, requests: u64) {
    for _ in 0..requests {
        stats.queue(queue).taken();
        stats.queue(queue).succeeded(Kind::Write, 4096, 10_000);
    }
}

#[test]
fn a_reader_sees_what_is_counted_also_by_the_next_writer() {
    let memory = create(2).unwrap();
    let reader = Reader::open(memory.as_fd()).unwrap();
    assert_eq!(reader.snapshot(), Snapshot::default());
    let first = Stats::attach(memory.as_fd(), 2).unwrap();
    write(&first, 0, 3);
    write(&first, 1, 2);
    // Taken, and never answered: the worker dies.
    first.queue(1).taken();
    assert_eq!(reader.snapshot().in_flight, 1);
    drop(first);

    let second = Stats::attach(memory.as_fd(), 2).unwrap();
    second.queue(0).begin();
    second.queue(1).begin();
    assert_eq!(reader.snapshot().in_flight, 0);
    write(&second, 1, 1);
    let seen = reader.snapshot();
    assert_eq!(seen, second.snapshot());
    let writes = seen.requests(Kind::Write);
    assert_eq!(
        (writes.requests, writes.errors, writes.bytes),
        (6, 0, 6 * 4096)
    );
    assert_eq!(writes.latency.count(), 6);
    assert_eq!(writes.latency.sum, Duration::from_micros(60));
    assert_eq!(*seen.requests(Kind::Read), Requests::default());
}

#[test]
fn quantiles_come_from_the_buckets() {
    let stats = Stats::private(1).unwrap();
    for microseconds in 1..=1000 {
        stats.queue(0).failed(Kind::Read, microseconds * 1000);
    }
    let snapshot = stats.snapshot();
    let latency = &snapshot.requests(Kind::Read).latency;
    for (share, exact) in [(0.01, 10.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
        let found = latency.quantile(share).unwrap().as_secs_f64() * 1e6;
        assert!((exact..exact * 1.3).contains(&found), "{share}: {found} µs");
    }
    let octaves: Vec<_> = latency.octaves().collect();
    assert_eq!(octaves.len(), 25);
    assert_eq!(octaves[0], (Duration::from_nanos(1024), 1));
    assert_eq!(octaves[4], (Duration::from_nanos(16384), 16));
    assert_eq!(octaves[24].1, 1000);
    assert_eq!(Latency::default().quantile(0.5), None);
}

/// A memfd with those contents and seals.
fn memfd(bytes: &[u8], seals: SealFlags) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("test", flags).unwrap());
    file.write_all(bytes).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file
}

#[test]
fn memory_of_a_stranger_is_refused() {
    let good = File::from(create(1).unwrap());
    let mut bytes = vec![0; good.metadata().unwrap().len() as usize];
    good.read_exact_at(&mut bytes, 0).unwrap();
    let sealed = SealFlags::SHRINK;
    assert!(Reader::open(memfd(&bytes, sealed).as_fd()).is_ok());

    let unsealed = Reader::open(memfd(&bytes, SealFlags::GROW).as_fd());
    assert!(matches!(unsealed, Err(Error::Unsafe(_))), "{unsealed:?}");
    let plain = tempfile::tempfile().unwrap();
    plain.write_all_at(&bytes, 0).unwrap();
    for file in [plain, File::open("/dev/null").unwrap()] {
        let refused = Reader::open(file.as_fd());
        assert!(matches!(refused, Err(Error::Unsafe(_))), "{refused:?}");
    }

    // The words of the header: none may be anything else, nor the size.
    for word in 0..4 {
        for value in [0, 5, 1 << 40, u64::MAX] {
            let mut bytes = bytes.clone();
            bytes[8 * word..][..8].copy_from_slice(&value.to_ne_bytes());
            let refused = Reader::open(memfd(&bytes, sealed).as_fd());
            assert!(matches!(refused, Err(Error::Layout(_))), "{word} {value}");
        }
    }
    let page = rustix::param::page_size();
    for len in [0, 31, bytes.len() - page, bytes.len() + page] {
        let mut bytes = bytes.clone();
        bytes.resize(len, 0);
        let refused = Reader::open(memfd(&bytes, sealed).as_fd());
        assert!(matches!(refused, Err(Error::Layout(_))), "{len}");
    }
    let other = Stats::attach(good.as_fd(), 2);
    assert!(matches!(other, Err(Error::Layout(_))), "{other:?}");
}

#[test]
fn a_hostile_writer_can_only_lie() {
    let memory = File::from(create(1).unwrap());
    let reader = Reader::open(memory.as_fd()).unwrap();
    let len = memory.metadata().unwrap().len();
    memory.set_len(0).unwrap_err();
    memory.set_len(len * 2).unwrap_err();
    // The header, too, after it was looked at.
    let nonsense = vec![0xff; len as usize];
    memory.write_all_at(&nonsense, 0).unwrap();
    let seen = reader.snapshot();
    assert_eq!(seen.requests(Kind::Read).requests, u64::MAX);
    let latency = &seen.requests(Kind::Read).latency;
    assert!(latency.octaves().count() == 25 && latency.quantile(0.5).is_some());
    // Holes come back as zeroes.
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&memory, hole, 0, len).unwrap();
    assert_eq!(reader.snapshot(), Snapshot::default());
}
