//! Requests cost no heap allocation: all that a queue needs is allocated when
//! it starts. Alone in its file, since it watches this process's allocator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use sealblk::crypt::{Engine, Params, SectorCipher, Transform};
use sealblk::engine::throttle::{Lane, Limits};
use sealblk::rekey::{Direction, Fence as _, Position};

mod support;

use support::front_end::FrontEnd;
use support::history::Load;
use support::in_process::Served;
use support::request::{Range, Request};
use support::server::eventually;

/// Counts the allocations of one thread.
struct Counting;

static WATCHED: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is handed to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let watched = WATCHED.load(Ordering::Relaxed);
        // SAFETY: takes no argument.
        if watched != 0 && unsafe { libc::gettid() } == watched {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn requests_cost_no_heap_allocation() {
    let served = Served::new(Params::default(), false);
    let mut front = served.connect(1);
    let work = |front: &mut FrontEnd, rounds: u64| {
        for round in 0..rounds {
            for (sector, len) in [(round * 8, 4096), (round * 16, 512), (4096, 768 << 10)] {
                front
                    .submit(0, Request::write(sector, &vec![round as u8; len]))
                    .unwrap();
                front
                    .submit(0, Request::read(8192 + sector, len).cut(&[512]))
                    .unwrap();
            }
            front.submit(0, Request::flush()).unwrap();
            front
                .submit(0, Request::write_zeroes(&[Range::new(0, 2048)]))
                .unwrap();
            front.submit(0, Request::read(u64::MAX, 512)).unwrap();
            while front.in_flight(0) > 0 {
                front.complete(0).unwrap();
            }
        }
    };
    work(&mut front, 50);
    WATCHED.store(queue_thread(), Ordering::SeqCst);
    work(&mut front, 50);
    // And with limits, behind which many have to wait.
    let limits: sealblk::config::Limits = toml::from_str("iops_total = 5000").unwrap();
    let limits = limits.resolve().unwrap();
    served.disk.throttle().set(&limits);
    work(&mut front, 50);
    served.disk.throttle().set(&Limits::default());
    // And while regions are closed before them and opened again. The keys are the
    // same, so that nothing has to be moved.
    let same = SectorCipher::new(Engine::Portable, served.dek(), Params::default()).unwrap();
    let position = Position {
        direction: Direction::Forward,
        boundary: 0,
    };
    let same = Transform::Cipher(same);
    served.disk.begin_move(same, position).unwrap();
    let done = AtomicBool::new(false);
    let mut met = false;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let keeper = served.disk.fence().keeper().unwrap();
            for direction in [Direction::Forward, Direction::Back].into_iter().cycle() {
                while !done.load(Ordering::SeqCst) {
                    let closed = keeper.close_for_writing(direction, 512 << 10)
                        && keeper.close_for_reading(direction, 256 << 10);
                    assert!(closed);
                    let before = served.disk.fence().position().unwrap().boundary;
                    keeper.advance(direction, 256 << 10);
                    if served.disk.fence().position().unwrap().boundary == before {
                        break;
                    }
                }
                keeper.open();
                if done.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        // Until something had to wait for it: which that is, is left to chance.
        met = (0..100).any(|_| {
            work(&mut front, 3);
            let parked = |lane| served.stats().snapshot().parked(lane).requests;
            parked(Lane::Read) > 0 && parked(Lane::Write) > 0
        });
        done.store(true, Ordering::SeqCst);
    });
    WATCHED.store(0, Ordering::SeqCst);
    assert!(met, "no request has met a closed region");
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), 0);
    drop(front);
    // And where it is written down what is in flight.
    let mut load = Load::start(&served.path("socket"), 1);
    WATCHED.store(queue_thread(), Ordering::SeqCst);
    let before = load.answered;
    // However slow this host is.
    while load.answered <= before + 100 {
        load.run(Duration::from_millis(200));
    }
    load.finish();
    WATCHED.store(0, Ordering::SeqCst);
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), 0);
}

/// The thread of the first queue.
fn queue_thread() -> i32 {
    eventually("the queue thread", || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .find_map(|task| {
                let path = task.unwrap().path();
                let name = std::fs::read_to_string(path.join("comm")).ok()?;
                let id = path.file_name()?.to_str()?.parse().ok()?;
                (name.trim() == "vq0").then_some(id)
            })
    })
}
