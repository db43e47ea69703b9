//! The fence with queues that are threads of a test, and a disk that is an
//! array: each unit says in which way it is stored, and who is at it.

#[path = "exhaustive_tests.rs"]
mod exhaustive;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};

use super::*;
use crate::engine::hold::{Member, Mode};
use crate::engine::throttle::wake;
use crate::rekey::{Direction, Fence as _};
use crate::units::SectorSize;

const UNIT: u64 = 512;
const UNITS: u64 = 256;

fn plain() -> Transform {
    Transform::Plain(SectorSize::B512)
}

fn forward(boundary: u64) -> Position {
    Position {
        direction: Direction::Forward,
        boundary,
    }
}

fn fence() -> Arc<Fence> {
    Arc::new(Fence::new(Arc::new(Hold::new(Arc::default())), plain()))
}

fn moving() -> Arc<Fence> {
    let fence = fence();
    begin(&fence, 0).unwrap();
    fence
}

fn begin(fence: &Fence, boundary: u64) -> Result<(), Error> {
    fence.begin(Arc::new(plain()), forward(boundary), (UNITS * UNIT, false))
}

/// A queue, with what it has in flight.
struct Queue {
    member: Member,
    local: Local,
    in_flight: Vec<(Access, u64, u64)>,
}

impl Queue {
    fn new(fence: &Arc<Fence>) -> Queue {
        let member = fence.hold.join();
        Queue {
            local: Local::new(fence.clone(), &member, wake().unwrap()),
            member,
            in_flight: vec![],
        }
    }

    fn follow(&mut self) {
        if !self.local.is_settled() {
            let in_flight = self.in_flight.iter().copied();
            self.local.follow(&self.member, in_flight);
        }
    }

    /// Sleeps, for as long as nothing else is to be done.
    fn sleep(&mut self, nothing_to_do: impl Fn() -> bool) {
        assert!(self.in_flight.is_empty());
        self.local.doze(&self.member);
        while nothing_to_do() {
            std::thread::yield_now();
        }
        self.local.follow(&self.member, std::iter::empty());
    }

    fn cut(&self, access: Access, first: u64, units: u64) -> Cut {
        self.local.view().cut(access, first * UNIT, units * UNIT)
    }
}

/// Ends the other threads of a test, also when it fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Something that a thread has said, once it has.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !so() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_region_is_the_keepers_when_all_queues_are_clear_of_it() {
    let fence = moving();
    let mut queues = [Queue::new(&fence), Queue::new(&fence)];
    let keeper = fence.keeper().unwrap();
    assert!(fence.keeper().is_none(), "there is one already");
    // One writes to it, one reads.
    queues[0].in_flight = vec![
        (Access::Write, 7 * UNIT, UNIT),
        (Access::Write, 8 * UNIT, UNIT),
    ];
    queues[1].in_flight = vec![(Access::Read, 0, UNIT), (Access::Read, 9 * UNIT, UNIT)];
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| keeper.close_for_writing(Direction::Forward, 8 * UNIT));
        eventually("it is closed", || !fence.is_at_rest());
        for _ in 0..10 {
            queues.iter_mut().for_each(Queue::follow);
            std::thread::yield_now();
            assert!(!closing.is_finished(), "a write to it is in flight");
        }
        assert_eq!(queues[1].cut(Access::Write, 0, 9), Cut::Closed(8 * UNIT));
        assert_eq!(queues[1].cut(Access::Write, 8, 9), Cut::Open(9 * UNIT));
        assert_eq!(queues[1].cut(Access::Read, 0, 9), Cut::Open(9 * UNIT));
        queues[0].in_flight.remove(0);
        queues[0].follow();
        assert!(closing.join().unwrap());

        let closing = scope.spawn(|| keeper.close_for_reading(Direction::Forward, 4 * UNIT));
        eventually("that is closed", || {
            queues.iter_mut().for_each(Queue::follow);
            queues[0].cut(Access::Read, 0, 9) == Cut::Closed(4 * UNIT)
        });
        assert!(!closing.is_finished(), "a read from it is in flight");
        queues[1].in_flight.remove(0);
        queues[1].follow();
        assert!(closing.join().unwrap());
    });
    keeper.advance(Direction::Forward, 4 * UNIT);
    // What a queue does not know yet, it holds to be closed.
    assert_eq!(queues[0].cut(Access::Read, 0, 9), Cut::Closed(4 * UNIT));
    queues.iter_mut().for_each(Queue::follow);
    assert_eq!(queues[0].cut(Access::Read, 0, 9), Cut::Open(4 * UNIT));
    assert_eq!(queues[0].cut(Access::Write, 2, 9), Cut::Open(2 * UNIT));
    assert_eq!(queues[0].cut(Access::Write, 4, 9), Cut::Closed(4 * UNIT));
    assert_eq!(fence.position(), Some(forward(4 * UNIT)));
    keeper.open();
    queues.iter_mut().for_each(Queue::follow);
    assert_eq!(queues[0].cut(Access::Write, 4, 9), Cut::Open(9 * UNIT));
    assert!(fence.is_at_rest());
}

#[test]
fn who_may_not_go_on_has_changed_nothing() {
    let fence = moving();
    let mut queue = Queue::new(&fence);
    let keeper = fence.keeper().unwrap();
    assert!(fence.hold.freeze().is_some());
    assert!(!keeper.close_for_writing(Direction::Forward, UNIT));
    assert!(fence.hold.thaw());
    fence.hold.set(Mode::Fail);
    assert!(!keeper.close_for_writing(Direction::Forward, UNIT));
    fence.hold.set(Mode::Run);
    fence.halt();
    assert!(!keeper.close_for_writing(Direction::Forward, UNIT));
    assert!(!keeper.pause(std::time::Duration::from_secs(100)));
    fence.go_on();
    queue.in_flight = vec![(Access::Write, 0, UNIT)];
    // The same when it waits already.
    type Stop = fn(&Fence);
    let stops: [(Stop, Stop); 3] = [
        (
            |fence| assert!(fence.hold.freeze().is_some()),
            |fence| assert!(fence.hold.thaw()),
        ),
        (
            |fence| fence.hold.set(Mode::Pause),
            |fence| fence.hold.set(Mode::Run),
        ),
        (Fence::halt, Fence::go_on),
    ];
    for (stop, go_on) in stops {
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| keeper.close_for_writing(Direction::Forward, UNIT));
            eventually("it waits", || {
                queue.follow();
                queue.cut(Access::Write, 0, 1) == Cut::Closed(UNIT)
            });
            stop(&fence);
            assert!(!closing.join().unwrap());
        });
        assert!(fence.is_at_rest());
        queue.follow();
        assert_eq!(queue.cut(Access::Write, 0, 1), Cut::Open(UNIT));
        go_on(&fence);
        assert!(keeper.wait_to_go_on(std::time::Duration::from_secs(100)));
    }
}

#[test]
fn a_freeze_waits_until_the_keeper_is_at_rest() {
    let fence = moving();
    let keeper = fence.keeper().unwrap();
    assert!(keeper.close_for_writing(Direction::Forward, 2 * UNIT));
    assert!(keeper.close_for_reading(Direction::Forward, UNIT));
    let freeze = fence.hold.freeze().unwrap();
    std::thread::scope(|scope| {
        let frozen = scope.spawn(|| fence.hold.wait_until_quiet(freeze));
        assert!(!keeper.pause(std::time::Duration::from_secs(100)));
        keeper.advance(Direction::Forward, UNIT);
        assert!(!keeper.close_for_writing(Direction::Forward, 2 * UNIT));
        assert!(!frozen.is_finished());
        keeper.open();
        assert!(frozen.join().unwrap());
    });
}

/// The disk below fails what is closed. Nobody waits for that, so that it must not be
/// touched while a snapshot is taken; but what is being tried already is waited for.
#[test]
fn what_is_in_doubt_is_not_touched_in_a_freeze_that_did_not_wait_for_it() {
    let fence = moving();
    let mut queue = Queue::new(&fence);
    let keeper = fence.keeper().unwrap();
    assert!(!keeper.fail(libc::EIO), "nothing is closed");
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| keeper.close_for_reading(Direction::Forward, UNIT));
        eventually("it is closed", || {
            queue.follow();
            closing.is_finished()
        });
        assert!(closing.join().unwrap());
    });
    assert!(keeper.may_mend(), "requests wait, and so does a freeze");
    assert!(keeper.fail(libc::EIO));
    queue.follow();
    let failing = Cut::Failing(Failing::Below(libc::EIO));
    assert_eq!(queue.cut(Access::Read, 0, 9), failing);
    assert_eq!(queue.cut(Access::Write, 1, 9), Cut::Open(9 * UNIT));

    queue.member.quiet();
    let freeze = fence.hold.freeze().unwrap();
    queue.member.quiet();
    assert!(fence.hold.wait_until_quiet(freeze));
    assert!(!keeper.may_mend());
    assert!(fence.hold.thaw());
    for mode in [Mode::Pause, Mode::Fail] {
        fence.hold.set(mode);
        assert!(!keeper.may_mend());
    }
    fence.hold.set(Mode::Run);
    fence.hold.set_stopped(true);
    assert!(
        keeper.may_mend(),
        "that is what a disk that is stopped waits for"
    );
    fence.hold.set_stopped(false);

    // It has begun: once in vain, and then it is mended.
    for mended in [false, true] {
        assert!(keeper.may_mend());
        let freeze = fence.hold.freeze().unwrap();
        queue.member.quiet();
        let waits = |time| {
            let deadline = std::time::Instant::now() + time;
            !fence.hold.wait_until_quiet_by(freeze, deadline)
        };
        assert!(waits(std::time::Duration::ZERO));
        assert!(keeper.may_mend(), "it goes on with what it has begun");
        match mended {
            false => assert!(keeper.fail(libc::EIO)),
            true => {
                keeper.advance(Direction::Forward, UNIT);
                keeper.open();
            }
        }
        assert!(!waits(std::time::Duration::ZERO));
        assert!(fence.hold.thaw());
    }
    assert!(!fence.has_failed());
    queue.follow();
    assert_eq!(queue.cut(Access::Read, 0, 9), Cut::Open(UNIT));
}

/// Who ends has others find out how it is stored; who gives up has nobody do so.
#[test]
fn what_is_in_doubt_stays_so_without_a_keeper_unless_it_is_given_up() {
    for (given_up, wanted) in [
        (false, Failing::Below(libc::ENOSPC)),
        (true, Failing::ForGood),
    ] {
        let fence = moving();
        let keeper = fence.keeper().unwrap();
        assert!(keeper.close_for_writing(Direction::Forward, UNIT));
        assert!(keeper.fail(libc::ENOSPC) && keeper.may_mend());
        if given_up {
            keeper.give_up();
        }
        drop(keeper);
        let queue = Queue::new(&fence);
        assert_eq!(queue.cut(Access::Write, 0, 9), Cut::Failing(wanted));
        let freeze = fence.hold.freeze().unwrap();
        drop(queue);
        assert!(fence.hold.wait_until_quiet(freeze));
    }
}

#[test]
fn queues_that_end_or_begin_are_not_waited_for() {
    let fence = moving();
    let mut gone = Queue::new(&fence);
    gone.in_flight = vec![(Access::Write, 0, UNIT)];
    let keeper = fence.keeper().unwrap();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| keeper.close_for_writing(Direction::Forward, UNIT));
        eventually("it is closed", || !fence.is_at_rest());
        let fresh = Queue::new(&fence);
        assert_eq!(fresh.cut(Access::Write, 0, 1), Cut::Closed(UNIT));
        assert!(!closing.is_finished());
        drop(gone);
        assert!(closing.join().unwrap());
    });
}

#[test]
fn a_queue_that_sleeps_is_not_waited_for_and_knows_all_when_it_wakes() {
    let fence = moving();
    let mut queue = Queue::new(&fence);
    let keeper = fence.keeper().unwrap();
    let awake = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            queue.sleep(|| !awake.load(Ordering::SeqCst));
            assert_eq!(queue.cut(Access::Read, 0, 9), Cut::Open(2 * UNIT));
            assert_eq!(queue.cut(Access::Read, 2, 9), Cut::Closed(2 * UNIT));
        });
        let _end = End(&awake);
        for _ in 0..2 {
            assert!(keeper.close_for_reading(Direction::Forward, 2 * UNIT));
            if fence.position().unwrap().boundary == 0 {
                keeper.advance(Direction::Forward, 2 * UNIT);
            }
        }
    });
}

/// The kernel may still write for it.
#[test]
fn a_queue_that_is_lost_ends_all_moving() {
    let fence = moving();
    let queue = Queue::new(&fence);
    let keeper = fence.keeper().unwrap();
    queue.member.lose();
    drop(queue);
    assert!(!keeper.close_for_writing(Direction::Forward, UNIT));
    drop(keeper);
    assert!(!fence.keeper().unwrap().may_go_on());
}

#[test]
fn what_a_keeper_leaves_closed_fails_until_it_is_recovered() {
    let fence = moving();
    let mut queue = Queue::new(&fence);
    let follow = |queue: &mut Queue, keeper: &Keeper, read: bool| {
        std::thread::scope(|scope| {
            let close = scope.spawn(|| match read {
                true => keeper.close_for_reading(Direction::Forward, 4 * UNIT),
                false => keeper.close_for_writing(Direction::Forward, 8 * UNIT),
            });
            eventually("it follows", || {
                queue.follow();
                close.is_finished()
            });
            assert!(close.join().unwrap());
        });
    };
    let keeper = fence.keeper().unwrap();
    follow(&mut queue, &keeper, false);
    follow(&mut queue, &keeper, true);
    drop(keeper);
    assert!(fence.has_failed());
    queue.follow();
    assert_eq!(
        queue.cut(Access::Read, 1, 1),
        Cut::Failing(Failing::ForGood)
    );
    assert_eq!(
        queue.cut(Access::Write, 5, 1),
        Cut::Failing(Failing::ForGood)
    );
    assert_eq!(queue.cut(Access::Read, 5, 1), Cut::Open(UNIT));
    assert_eq!(queue.cut(Access::Write, 8, 1), Cut::Open(UNIT));
    // Nobody can wait for it.
    let freeze = fence.hold.freeze().unwrap();
    queue.member.quiet();
    assert!(fence.hold.wait_until_quiet(freeze));
    assert!(fence.hold.thaw());
    assert_eq!(fence.end(), Err(Error::NotAtRest));
    let keeper = fence.keeper().unwrap();
    follow(&mut queue, &keeper, true);
    keeper.advance(Direction::Forward, 4 * UNIT);
    keeper.open();
    queue.follow();
    assert_eq!(queue.cut(Access::Write, 1, 1), Cut::Open(UNIT));
    assert!(!fence.has_failed());
}

#[test]
#[should_panic(expected = "a region is closed for reading before it is moved")]
fn nothing_is_moved_that_was_not_closed_for_reading() {
    let fence = moving();
    let keeper = fence.keeper().unwrap();
    assert!(keeper.close_for_writing(Direction::Forward, 2 * UNIT));
    keeper.advance(Direction::Forward, UNIT);
}

#[test]
fn a_second_way_comes_and_goes_and_the_first_key_is_forgotten() {
    let fence = fence();
    let old = Arc::downgrade(&fence.transforms()[0]);
    assert!(fence.keeper().is_none() && fence.position().is_none());
    assert_eq!(fence.end(), Err(Error::NothingMoves));
    assert_eq!(
        begin(&fence, UNIT + 1),
        Err(Error::Boundary {
            boundary: UNIT + 1,
            size: UNITS * UNIT
        })
    );
    assert!(begin(&fence, UNITS * UNIT + UNIT).is_err());
    let large = Transform::Plain(SectorSize::B4096);
    let refused = fence.begin(Arc::new(large), forward(0), (UNITS * UNIT, false));
    assert!(
        matches!(refused, Err(Error::SectorSize { .. })),
        "{refused:?}"
    );
    let queue = Queue::new(&fence);
    assert_eq!(begin(&fence, UNIT), Err(Error::Served));
    begin(&fence, 0).unwrap();
    assert_eq!(begin(&fence, 0), Err(Error::UnderWay));
    drop(queue);
    assert!(
        fence.end().is_ok(),
        "nothing was moved: the new way is forgotten"
    );
    assert!(old.upgrade().is_some());
    let mut queue = Queue::new(&fence);

    begin(&fence, 0).unwrap();
    let new = Arc::downgrade(&fence.transforms()[1]);
    queue.follow();
    let keeper = fence.keeper().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let following = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                queue.follow();
                std::thread::yield_now();
            }
        });
        let end = End(&done);
        let all = UNITS * UNIT;
        assert!(keeper.close_for_reading(Direction::Forward, all / 2));
        keeper.advance(Direction::Forward, all / 2);
        assert!(matches!(fence.end(), Err(Error::HalfWay { .. })));
        assert!(keeper.close_for_reading(Direction::Forward, all));
        assert_eq!(fence.end(), Err(Error::NotAtRest));
        keeper.advance(Direction::Forward, all);
        keeper.open();
        assert!(old.upgrade().is_some());
        assert!(fence.end().is_ok());
        // And not some time later, when the queue looks.
        assert!(old.upgrade().is_none());
        drop(end);
        following.join().unwrap();
    });
    assert!(std::ptr::eq(
        queue.local.view().transform(0),
        &*new.upgrade().unwrap()
    ));
    // The hands of a move that is over are of no use in the next one.
    begin(&fence, 0).unwrap();
    assert!(!keeper.close_for_writing(Direction::Forward, UNIT));
    keeper.open();
    let next = fence.keeper().unwrap();
    drop(queue);
    assert!(next.close_for_writing(Direction::Forward, UNIT));
    drop(keeper);
    assert!(!fence.has_failed());
}

#[test]
fn regions_are_whole_units_within_the_disk() {
    let fence = moving();
    let keeper = fence.keeper().unwrap();
    assert!(!keeper.close_for_writing(Direction::Forward, UNIT / 2));
    assert!(
        keeper.close_for_writing(Direction::Back, 8 * UNIT),
        "there is nothing there"
    );
    assert!(fence.is_at_rest());
    assert!(keeper.close_for_reading(Direction::Forward, u64::MAX));
    keeper.advance(Direction::Forward, u64::MAX);
    assert_eq!(fence.position(), Some(forward(UNITS * UNIT)));
    assert!(keeper.close_for_reading(Direction::Back, 2 * UNIT));
    keeper.advance(Direction::Back, UNIT);
    let position = fence.position().unwrap();
    assert_eq!(position.boundary, (UNITS - 1) * UNIT);
    assert_eq!(position.direction, Direction::Back);
}

/// The states of a unit of the array.
const OLD: u8 = 0;
const NEW: u8 = 1;
const MOVED: u8 = 2;

struct Unit {
    state: AtomicU8,
    readers: AtomicU32,
    writers: AtomicU32,
}

struct Random(u64);

impl Random {
    /// A number below that one (splitmix64).
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % limit
    }
}

/// Queues that keep many operations in flight, a keeper who moves the whole
/// disk there and back, and somebody who freezes it now and then: in each
/// interleaving that comes up, no unit is touched while it is moved, and each
/// is taken for what it is from the beginning of an operation to its end.
#[test]
fn no_unit_is_ever_taken_for_what_it_is_not() {
    let seed: u64 = std::env::var("SEALBLK_FENCE_SEED").map_or_else(
        |_| u64::from(std::process::id()),
        |seed| seed.parse().unwrap(),
    );
    println!("SEALBLK_FENCE_SEED={seed}");
    let rounds = std::env::var("SEALBLK_FENCE_ROUNDS").map_or(6, |n| n.parse().unwrap());
    let fence = moving();
    let new = Arc::as_ptr(&fence.transforms()[1]) as usize;
    let units: Vec<Unit> = (0..UNITS)
        .map(|_| Unit {
            state: AtomicU8::new(OLD),
            readers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
        })
        .collect();
    let done = AtomicBool::new(false);
    let (operations, left_out) = (AtomicU64::new(0), AtomicU64::new(0));
    let steps = AtomicU64::new(0);
    let queue = |number: u64| {
        let mut random = Random(seed ^ (number << 32));
        let mut queue = Queue::new(&fence);
        let at =
            |start: u64, len: u64| (start / UNIT..(start + len) / UNIT).map(|n| &units[n as usize]);
        let check = |queue: &Queue, start: u64, len: u64| {
            let is_new = std::ptr::from_ref(queue.local.view().transform(start)) as usize == new;
            for unit in at(start, len) {
                let state = unit.state.load(Ordering::SeqCst);
                assert_eq!(state, if is_new { NEW } else { OLD });
            }
        };
        fn counter(unit: &Unit, access: Access) -> &AtomicU32 {
            match access {
                Access::Read => &unit.readers,
                Access::Write => &unit.writers,
            }
        }
        while !done.load(Ordering::SeqCst) || !queue.in_flight.is_empty() {
            queue.follow();
            let ends = random.below(4).min(queue.in_flight.len() as u64);
            for _ in 0..ends {
                let one = random.below(queue.in_flight.len() as u64) as usize;
                let (access, start, len) = queue.in_flight.swap_remove(one);
                check(&queue, start, len);
                for unit in at(start, len) {
                    counter(unit, access).fetch_sub(1, Ordering::SeqCst);
                }
            }
            for _ in 0..random.below(4) {
                if done.load(Ordering::SeqCst) || queue.in_flight.len() >= 16 {
                    break;
                }
                let access = [Access::Read, Access::Write][random.below(2) as usize];
                let first = random.below(UNITS);
                let count = 1 + random.below((UNITS - first).min(40));
                match queue.cut(access, first, count) {
                    Cut::Open(len) => {
                        let start = first * UNIT;
                        for unit in at(start, len) {
                            counter(unit, access).fetch_add(1, Ordering::SeqCst);
                        }
                        check(&queue, start, len);
                        queue.in_flight.push((access, start, len));
                        operations.fetch_add(1, Ordering::Relaxed);
                    }
                    Cut::Closed(_) => {
                        left_out.fetch_add(1, Ordering::Relaxed);
                    }
                    Cut::Failing(_) => panic!("nothing has failed"),
                }
            }
            // Queues sleep, and sessions end and begin: with nothing in flight.
            if queue.in_flight.is_empty() && random.below(3) == 0 {
                let turns = AtomicU64::new(random.below(200));
                queue.sleep(|| turns.fetch_sub(1, Ordering::Relaxed) < 1 << 32);
            }
            if queue.in_flight.is_empty() && random.below(50) == 0 {
                queue = Queue::new(&fence);
            }
            std::thread::yield_now();
        }
    };
    let freezer = || {
        let mut freezes = 0u64;
        while !done.load(Ordering::SeqCst) {
            let freeze = fence.hold.freeze().unwrap();
            eventually("the keeper rests", || {
                done.load(Ordering::SeqCst) || fence.is_at_rest()
            });
            assert!(fence.hold.is_frozen(freeze) && fence.hold.thaw());
            freezes += 1;
            let before = steps.load(Ordering::SeqCst);
            eventually("the keeper goes on", || {
                done.load(Ordering::SeqCst) || steps.load(Ordering::SeqCst) > before + 8
            });
        }
        freezes
    };
    let mover = || {
        let mut random = Random(seed);
        let keeper = fence.keeper().unwrap();
        for round in 0..rounds {
            let (direction, end, state) = match round % 2 {
                0 => (Direction::Forward, UNITS * UNIT, NEW),
                _ => (Direction::Back, 0, OLD),
            };
            while fence.position().unwrap().boundary != end {
                let (this, next) = (1 + random.below(6), 1 + random.below(6));
                let closed = keeper.close_for_writing(direction, this * UNIT)
                    && keeper.close_for_writing(direction, (this + next) * UNIT)
                    && keeper.close_for_reading(direction, this * UNIT);
                if !closed {
                    keeper.open();
                    assert!(keeper.wait_to_go_on(std::time::Duration::from_secs(60)));
                    continue;
                }
                let boundary = fence.position().unwrap().boundary / UNIT;
                let region = match direction {
                    Direction::Forward => boundary..UNITS.min(boundary + this),
                    Direction::Back => boundary.saturating_sub(this)..boundary,
                };
                for set in [MOVED, state] {
                    for unit in &units[region.start as usize..region.end as usize] {
                        assert_eq!(unit.readers.load(Ordering::SeqCst), 0);
                        assert_eq!(unit.writers.load(Ordering::SeqCst), 0);
                        unit.state.store(set, Ordering::SeqCst);
                    }
                    std::thread::yield_now();
                }
                keeper.advance(direction, this * UNIT);
                steps.fetch_add(1, Ordering::SeqCst);
                if random.below(10) == 0 {
                    keeper.open();
                }
            }
        }
        keeper.open();
    };
    std::thread::scope(|scope| {
        let queues: Vec<_> = (0..3)
            .map(|number| scope.spawn(move || queue(number)))
            .collect();
        let freezer = scope.spawn(freezer);
        let moved = scope.spawn(mover).join();
        done.store(true, Ordering::SeqCst);
        let freezes = freezer.join().unwrap();
        for queue in queues {
            queue.join().unwrap();
        }
        moved.unwrap();
        let [operations, left_out] = [&operations, &left_out].map(|it| it.load(Ordering::Relaxed));
        println!("{operations} operations, {left_out} left out, {freezes} freezes");
        assert!(operations > 1000 && left_out > 10);
    });
}
