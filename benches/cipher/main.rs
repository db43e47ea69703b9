//! How fast the cipher engines are, how close to what the CPU can do, and how
//! far ahead of others.
//!
//! `cargo bench --bench cipher` times each engine with criterion, and then
//! prints tables of all of them, measured in turns. `-- tables` prints the
//! tables alone; any other word is criterion's filter.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod limit;
mod memory;
mod subject;
mod tables;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use sealblk::crypt::Engine;
use sealblk::units::SectorSize;

use memory::Memory;
use subject::{Bench, DIRECTIONS, Direction, Subject};

/// The size of a request, which is as the data path has them.
const REQUEST: usize = 128 << 10;
const COLD: usize = 256 << 20;
const UNITS: [SectorSize; 2] = [SectorSize::B512, SectorSize::B4096];

fn criterion(criterion: &mut Criterion) {
    let mut ours = vec![1; REQUEST];
    let (hot, cold) = (Memory::new(REQUEST, false), Memory::new(COLD, false));
    for (shape, guest, piece) in [
        ("hot", &hot, REQUEST),
        ("pages", &hot, 4096),
        ("cold", &cold, REQUEST),
    ] {
        let requests = guest.requests(REQUEST, piece);
        for (name, direction) in DIRECTIONS {
            let mut group = criterion.benchmark_group(format!("{shape}-{name}"));
            group.throughput(Throughput::Bytes(REQUEST as u64));
            for engine in Engine::available() {
                for unit in UNITS {
                    let mut bench = Bench::new(Subject::Ours(engine), unit);
                    let mut next = requests.iter().cycle();
                    group.bench_function(BenchmarkId::new(engine.name(), unit), |bencher| {
                        // SAFETY: the memory stays, and our buffer is elsewhere.
                        bencher.iter(|| unsafe {
                            bench.run(direction, next.next().unwrap(), &mut ours);
                        });
                    });
                }
            }
        }
    }
    let mut group = criterion.benchmark_group("one-unit");
    for engine in Engine::available() {
        for unit in UNITS {
            let bytes = unit.bytes();
            group.throughput(Throughput::Bytes(bytes as u64));
            let mut bench = Bench::new(Subject::Ours(engine), unit);
            let segments = &hot.requests(bytes, bytes)[0];
            group.bench_function(BenchmarkId::new(engine.name(), unit), |bencher| {
                // SAFETY: as above.
                bencher.iter(|| unsafe {
                    bench.run(Direction::Encrypt, segments, &mut ours[..bytes]);
                });
            });
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words = |word: &str| arguments.iter().any(|argument| argument == word);
    if !words("tables") {
        let mut harness = Criterion::default()
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1))
            .sample_size(20)
            .configure_from_args();
        criterion(&mut harness);
        harness.final_summary();
    }
    // `cargo test --benches` only wants to know that it runs.
    let filtered = arguments.iter().any(|argument| !argument.starts_with('-'));
    if words("tables") || words("--bench") && !filtered {
        tables::print();
    }
}
