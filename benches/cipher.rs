//! How fast the cipher engines are, and how close to what the CPU can do.
//!
//! `cargo bench --bench cipher` first times each engine with criterion, then
//! prints each as a share of the limit: the time that the AES instructions
//! alone would take, tweaks included, at the rate of a loop of nothing but
//! independent AES instructions, timed right before and after. Requests are
//! 128 KiB, as the data path has them: from the guest's memory to our buffer,
//! or back. `hot`: both stay in the caches. `cold`: the guest's is 256 MiB.
//! `pages`: the guest's memory is in segments of 4096 bytes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use sealblk::crypt::{Engine, Params, SectorCipher};
use sealblk::secret::Dek;
use sealblk::segment::{Segment, SegmentCursor};
use sealblk::units::{Sector, SectorSize};

const REQUEST: usize = 128 << 10;
const COLD: usize = 256 << 20;
const UNITS: [SectorSize; 2] = [SectorSize::B512, SectorSize::B4096];

/// Page-aligned memory that stays for the whole run, standing for the guest's.
struct Guest {
    start: NonNull<u8>,
    len: usize,
}

impl Guest {
    fn new(len: usize) -> Self {
        let memory = vec![1u8; len + 4096].leak();
        let offset = memory.as_ptr().align_offset(4096);
        let aligned = &mut memory[offset..];
        Guest {
            start: NonNull::from(aligned).cast(),
            len,
        }
    }

    /// The `index`th stretch of `len` bytes, around and around, in segments of
    /// `piece` bytes.
    fn segments(&self, index: usize, len: usize, piece: usize) -> Vec<Segment> {
        let base = index * len % self.len;
        (base..base + len)
            .step_by(piece)
            // SAFETY: `base + len` is at most the length of the memory.
            .map(|at| Segment::new(unsafe { self.start.add(at) }, piece))
            .collect()
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// A cipher, and a buffer for it of the size of a request.
struct Bench {
    cipher: SectorCipher,
    ours: Vec<u8>,
}

impl Bench {
    fn new(engine: Engine, sector_size: SectorSize, len: usize) -> Self {
        let params = Params {
            sector_size,
            iv_tweak: 0,
            zero_units: true,
        };
        Bench {
            cipher: SectorCipher::new(engine, &Dek::generate().unwrap(), params).unwrap(),
            ours: vec![1; len],
        }
    }

    fn run(&mut self, direction: Direction, segments: &[Segment]) {
        let mut cursor = SegmentCursor::new(black_box(segments));
        // SAFETY: the segments lie in a `Guest`, which is never freed.
        unsafe {
            match direction {
                Direction::Encrypt => self.cipher.encrypt(Sector(8), &mut cursor, &mut self.ours),
                Direction::Decrypt => self.cipher.decrypt(Sector(8), &mut self.ours, &mut cursor),
            }
        }
    }
}

const DIRECTIONS: [(&str, Direction); 2] = [
    ("encrypt", Direction::Encrypt),
    ("decrypt", Direction::Decrypt),
];

fn criterion(criterion: &mut Criterion) {
    let hot = Guest::new(REQUEST);
    let cold = Guest::new(COLD);
    for (shape, guest, piece) in [
        ("hot", &hot, REQUEST),
        ("pages", &hot, 4096),
        ("cold", &cold, REQUEST),
    ] {
        for (name, direction) in DIRECTIONS {
            let mut group = criterion.benchmark_group(format!("{shape}-{name}"));
            group.throughput(Throughput::Bytes(REQUEST as u64));
            let requests: Vec<_> = (0..guest.len / REQUEST)
                .map(|index| guest.segments(index, REQUEST, piece))
                .collect();
            for engine in Engine::available() {
                for unit in UNITS {
                    let mut bench = Bench::new(engine, unit, REQUEST);
                    let mut next = requests.iter().cycle();
                    group.bench_function(BenchmarkId::new(engine.name(), unit), |bencher| {
                        bencher.iter(|| bench.run(direction, next.next().unwrap()));
                    });
                }
            }
        }
    }
    let mut group = criterion.benchmark_group("one-unit");
    for engine in Engine::available() {
        for unit in UNITS {
            group.throughput(Throughput::Bytes(unit.bytes() as u64));
            let mut bench = Bench::new(engine, unit, unit.bytes());
            let segments = hot.segments(0, unit.bytes(), unit.bytes());
            group.bench_function(BenchmarkId::new(engine.name(), unit), |bencher| {
                bencher.iter(|| bench.run(Direction::Encrypt, &segments));
            });
        }
    }
}

/// Nanoseconds for one AES block, at the highest rate of the instruction that
/// the engine is built on.
#[cfg(target_arch = "x86_64")]
fn limit(engine: Engine) -> Option<f64> {
    use std::arch::asm;
    const LOOPS: u64 = 120;
    /// 14 rounds of 12 independent registers.
    macro_rules! saturate {
        ($op:literal, $blocks:literal) => {{
            let start = Instant::now();
            // SAFETY: `Engine::available` lists an engine only where the CPU
            // has its instructions; nothing but declared registers is touched.
            unsafe {
                asm!(
                    "2:",
                    ".rept 14",
                    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11",
                    $op,
                    ".endr",
                    ".endr",
                    "dec {loops}",
                    "jnz 2b",
                    "vzeroupper",
                    loops = inout(reg) LOOPS => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm15") _,
                    options(nomem, nostack),
                );
            }
            start.elapsed().as_secs_f64() * 1e9 / (LOOPS * 12 * $blocks) as f64
        }};
    }
    match engine {
        Engine::Vaes512 => Some(saturate!("vaesenc zmm\\r, zmm\\r, zmm15", 4)),
        Engine::Aesni => Some(saturate!("vaesenc xmm\\r, xmm\\r, xmm15", 1)),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn limit(_: Engine) -> Option<f64> {
    None
}

/// The share of the limit that is reached in the best twentieth of the runs, and in
/// the median run. Runs between whose limits the clock of the CPU changed are left out.
fn share(engine: Engine, blocks: usize, mut run: impl FnMut()) -> Option<(f64, f64)> {
    let mut shares = Vec::new();
    let mut before = limit(engine)?;
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline || shares.len() < 20 {
        let start = Instant::now();
        run();
        let took = start.elapsed().as_secs_f64() * 1e9;
        let after = limit(engine)?;
        if (before / after - 1.0).abs() < 0.003 {
            shares.push(before.min(after) * blocks as f64 / took);
        }
        before = after;
    }
    shares.sort_by(f64::total_cmp);
    Some((shares[shares.len() * 19 / 20], shares[shares.len() / 2]))
}

fn shares() {
    println!("\nshare of the limit by AES instructions: best twentieth, median");
    let hot = Guest::new(REQUEST);
    for engine in Engine::available() {
        for unit in UNITS {
            for (shape, piece) in [("hot", REQUEST), ("pages", 4096)] {
                for (name, direction) in DIRECTIONS {
                    let mut bench = Bench::new(engine, unit, REQUEST);
                    let segments = hot.segments(0, REQUEST, piece);
                    let blocks = REQUEST / 16 + REQUEST / unit.bytes();
                    let run = || bench.run(direction, &segments);
                    if let Some((best, median)) = share(engine, blocks, run) {
                        println!("{engine:10} {unit:>4} {shape:5} {name}: {best:.3} {median:.3}");
                    }
                }
            }
        }
    }
}

fn main() {
    let mut harness = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    criterion(&mut harness);
    harness.final_summary();
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|argument| argument == "--bench") {
        shares();
    }
}
