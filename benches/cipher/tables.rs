//! All subjects in turns, many short rounds, medians: in a table as
//! `docs/performance.md` has it.
//!
//! A sample of speed is a few milliseconds of one cell, half of it encryption
//! and half decryption, in CPU time: it does not matter who else uses the CPU.
//! A sample of the share of the limit is one request, with the limit timed
//! before and after: that takes some microseconds, so that few samples are
//! disturbed, and those around which the clock changed are left out.

use std::time::{Duration, Instant};

use sealblk::segment::Segment;
use sealblk::units::SectorSize;

use super::memory::Memory;
use super::subject::{Bench, DIRECTIONS, Direction, Subject};
use super::{COLD, REQUEST, UNITS, limit};

const ROUNDS: usize = 60;
const SAMPLE: Duration = Duration::from_millis(2);
const SHARES: usize = 24;

/// The CPU time that this thread has used.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is ours, and the clock is one that every thread has.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Where the guest's memory and ours are.
struct Shape {
    name: &'static str,
    /// The guest's memory, request by request.
    guest: Vec<Vec<Segment>>,
    /// Our buffers, one or many.
    ours: Memory,
    /// The request and the buffer whose turn it is: for all subjects in
    /// common, so that none finds what another has just fetched.
    turn: usize,
}

impl Shape {
    fn new(name: &'static str, guest: &Memory, piece: usize, ours: Memory) -> Self {
        Shape {
            name,
            guest: guest.requests(REQUEST, piece),
            ours,
            turn: 0,
        }
    }

    fn run(&mut self, bench: &mut Bench, direction: Direction) {
        self.turn += 1;
        let segments = &self.guest[self.turn % self.guest.len()];
        let mut buffers = self.ours.bytes().chunks_exact_mut(REQUEST);
        let ours = self.turn % buffers.len();
        if let Some(ours) = buffers.nth(ours) {
            // SAFETY: the memory stays, and our buffers are elsewhere.
            unsafe { bench.run(direction, segments, ours) };
        }
    }

    /// The share of the limit in one direction, unless the clock changed.
    fn share(
        &mut self,
        bench: &mut Bench,
        direction: Direction,
        row: (Subject, SectorSize),
    ) -> Option<f64> {
        let (subject, unit) = row;
        let blocks = (REQUEST / 16 + REQUEST / unit.bytes()) as f64;
        let before = limit::measure(subject.engine())?;
        let start = Instant::now();
        self.run(bench, direction);
        let took = start.elapsed().as_nanos() as f64;
        let after = limit::measure(subject.engine())?;
        let steady = (before / after - 1.0).abs() < 0.003;
        steady.then_some(before.min(after) * blocks / took)
    }

    /// GB/s in one direction.
    fn time(&mut self, bench: &mut Bench, direction: Direction) -> f64 {
        let (mut requests, start) = (0, cpu_time());
        loop {
            self.run(bench, direction);
            requests += 1;
            let took = cpu_time() - start;
            if took >= SAMPLE {
                return (requests * REQUEST) as f64 / took.as_nanos() as f64;
            }
        }
    }
}

/// What was measured of one subject with one unit size, sample by sample.
struct Row {
    subject: Subject,
    unit: SectorSize,
    bench: Bench,
    /// For each shape, GB/s.
    speed: Vec<Vec<f64>>,
    /// For each shape, shares of the limit.
    share: Vec<Vec<f64>>,
    /// Nanoseconds for a request of one unit.
    one: Vec<f64>,
}

impl Row {
    fn sample(&mut self, shapes: &mut [Shape]) {
        for (at, shape) in shapes.iter_mut().enumerate() {
            let both: f64 = DIRECTIONS
                .iter()
                .map(|&(_, direction)| 0.5 / shape.time(&mut self.bench, direction))
                .sum();
            self.speed[at].push(1.0 / both);
            for (_, direction) in DIRECTIONS {
                let row = (self.subject, self.unit);
                let shares = (0..SHARES).map(|_| shape.share(&mut self.bench, direction, row));
                // The first ones find the code of the others in the caches.
                self.share[at].extend(shares.skip(4).flatten());
            }
        }
        let bytes = self.unit.bytes();
        let hot = &mut shapes[0];
        let segment = [Segment::new(
            std::ptr::NonNull::new(hot.guest[0][0].as_ptr()).unwrap(),
            bytes,
        )];
        let (calls, start) = (2000, cpu_time());
        for _ in 0..calls {
            let ours = &mut hot.ours.bytes()[..bytes];
            // SAFETY: as above.
            unsafe { self.bench.run(Direction::Encrypt, &segment, ours) };
        }
        self.one
            .push((cpu_time() - start).as_nanos() as f64 / f64::from(calls));
    }
}

fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

pub fn print() {
    let (hot, small, huge) = (
        Memory::new(REQUEST, false),
        Memory::new(COLD, false),
        Memory::new(COLD, true),
    );
    let mut shapes = [
        Shape::new("hot", &hot, REQUEST, Memory::new(REQUEST, false)),
        Shape::new(
            "hot, 4 KiB segments",
            &hot,
            4096,
            Memory::new(REQUEST, false),
        ),
        Shape::new("cold", &small, REQUEST, Memory::new(REQUEST, false)),
        Shape::new(
            "cold, huge pages",
            &huge,
            REQUEST,
            Memory::new(REQUEST, false),
        ),
        Shape::new("both cold", &small, REQUEST, Memory::new(COLD, false)),
    ];
    let mut rows: Vec<Row> = Subject::all()
        .into_iter()
        .flat_map(|subject| UNITS.map(|unit| (subject, unit)))
        .map(|(subject, unit)| Row {
            subject,
            unit,
            bench: Bench::new(subject, unit),
            speed: vec![vec![]; shapes.len()],
            share: vec![vec![]; shapes.len()],
            one: vec![],
        })
        .collect();
    for _ in 0..ROUNDS {
        for row in &mut rows {
            row.sample(&mut shapes);
        }
    }

    println!("\nGB/s, guest's memory to our buffer and back, 512 / 4096-byte units; medians\n");
    let names: Vec<_> = shapes.iter().map(|shape| shape.name).collect();
    println!("| engine | {} | one unit, ns |", names.join(" | "));
    println!("|---|{}---|", "---|".repeat(names.len()));
    let pair = |rows: &[Row], of: &dyn Fn(&Row) -> Option<f64>, digits| {
        let cells: Vec<_> = rows.iter().map(|row| cell(of(row), digits)).collect();
        cells.join(" / ")
    };
    for rows in rows.chunks(UNITS.len()) {
        let speeds: Vec<_> = (0..names.len())
            .map(|at| pair(rows, &|row| median(&row.speed[at]), 1))
            .collect();
        let one = pair(rows, &|row| median(&row.one), 0);
        println!(
            "| {} | {} | {one} |",
            rows[0].subject.name(),
            speeds.join(" | ")
        );
    }
    println!("\nShare of the limit by AES instructions, timed before and after; medians\n");
    println!("| engine | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for rows in rows.chunks(UNITS.len()) {
        let shares: Vec<_> = (0..names.len())
            .map(|at| pair(rows, &|row| median(&row.share[at]), 3))
            .collect();
        println!("| {} | {} |", rows[0].subject.name(), shares.join(" | "));
    }
    for peer in Subject::all()
        .into_iter()
        .filter(|subject| subject.is_peer())
    {
        println!(
            "\nTimes the speed of {} in the same round; medians\n",
            peer.name()
        );
        println!("| engine | {} |", names.join(" | "));
        println!("|---|{}", "---|".repeat(names.len()));
        for ours in rows.chunks(UNITS.len()) {
            let peers = rows.iter().filter(|row| row.subject == peer);
            let pairs: Vec<_> = ours.iter().zip(peers).collect();
            let ratios: Vec<_> = (0..names.len())
                .map(|at| {
                    let cells = pairs.iter().map(|(ours, peer)| {
                        let both = ours.speed[at].iter().zip(&peer.speed[at]);
                        let ratios: Vec<_> = both.map(|(ours, peer)| ours / peer).collect();
                        cell(median(&ratios), 2)
                    });
                    cells.collect::<Vec<_>>().join(" / ")
                })
                .collect();
            println!("| {} | {} |", ours[0].subject.name(), ratios.join(" | "));
        }
    }
}
