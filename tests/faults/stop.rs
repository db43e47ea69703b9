//! A disk that is stopped: nothing is begun, nothing is lost, and whoever wants it to
//! end is not kept waiting.

use std::time::{Duration, Instant};

use sealblk::engine::hold::Mode;
use sealblk::engine::stats::Kind as Asked;
use sealblk::engine::trouble::{OnError, Work};

use super::lab::{Lab, USED};
use super::support::faulty_disk::{Fault, Kind, Rule};
use super::support::history::{Load, seed};
use super::support::in_process::OFFSET;
use super::support::request::{Request, S_IOERR, S_OK};
use super::support::server::{DEADLINE, eventually};

fn full() -> Rule {
    Rule::of(Kind::Write, Fault::Errno(libc::ENOSPC))
}

#[test]
fn a_stopped_disk_begins_nothing_and_says_why() {
    let lab = Lab::new(OnError::Stop);
    let mut front = lab.served.connect(2);
    front.write(0, &[1; 4096]);
    lab.disk.fail(full());
    let write = front.submit(0, Request::write(8, &[2; 8192])).unwrap();
    lab.await_stopped();
    let read = front.submit(1, Request::read(0, 4096)).unwrap();
    let standing = lab.served.disk.trouble().standing().unwrap();
    assert_eq!(standing.waiting, 1);
    assert_eq!(standing.last.operation, Work::Write);
    assert_eq!((standing.last.position, standing.last.bytes), (4096, 8192));
    assert_eq!(standing.last.errno, libc::ENOSPC);
    // It is tried again and again, and nothing else is.
    lab.disk.take_seen();
    lab.disk.await_hits(2);
    assert!(
        lab.disk
            .take_seen()
            .iter()
            .all(|seen| *seen == (Kind::Write, OFFSET + 4096))
    );
    assert!(front.try_complete(0).is_none() && front.try_complete(1).is_none());
    // Space is there, and all goes on by itself.
    lab.disk.heal();
    assert_eq!(front.complete(0).unwrap().1.status, S_OK);
    let (ticket, outcome) = front.complete(1).unwrap();
    assert_eq!((ticket, outcome.status), (read, S_OK));
    assert!(write < read && outcome.data == [1; 4096]);
    lab.await_going();
    let errors = lab.served.stats().snapshot().total().errors;
    assert_eq!(errors, 0);
    assert_eq!(front.read(8, 8192), [2; 8192]);
}

/// The pause between two attempts grows to seconds: nobody waits for that who
/// knows better.
#[test]
fn an_order_to_go_on_is_followed_at_once() {
    let lab = Lab::new(OnError::Stop);
    let mut front = lab.served.connect(1);
    lab.disk.fail(full());
    front.submit(0, Request::write(0, &[1; 4096])).unwrap();
    lab.await_stopped();
    // It is seconds by now.
    lab.disk.await_hits(5);
    let attempts = || lab.served.disk.trouble().standing().unwrap().attempts;
    let before = attempts();
    lab.served.disk.trouble().try_now();
    eventually("it is tried", || (attempts() > before).then_some(()));
    lab.await_stopped();
    lab.disk.heal();
    let start = Instant::now();
    lab.served.disk.trouble().try_now();
    assert_eq!(front.complete(0).unwrap().1.status, S_OK);
    assert!(start.elapsed() < DEADLINE);
    lab.await_going();
}

/// What no time mends, somebody can have failed.
#[test]
fn what_waits_can_be_given_up() {
    for policy in [OnError::Stop, OnError::Retry] {
        let lab = Lab::new(policy);
        let mut front = lab.served.connect(2);
        let bad = Rule::of(Kind::Read, Fault::Errno(libc::EIO));
        lab.disk.fail(bad.within(OFFSET..OFFSET + 4096));
        front.submit(0, Request::read(0, 4096)).unwrap();
        eventually("it waits", || lab.served.disk.trouble().standing());
        if policy == OnError::Retry {
            // Others go on.
            assert_eq!(front.run(1, Request::write(8, &[3; 512])).status, S_OK);
            assert_eq!(front.run(1, Request::read(8, 512)).data, [3; 512]);
        }
        lab.served.disk.trouble().give_up();
        assert_eq!(front.complete(0).unwrap().1.status, S_IOERR);
        lab.await_going();
        assert_eq!(front.run(0, Request::read(8, 4096)).status, S_OK);
        // The next one waits again.
        front.submit(0, Request::read(0, 512)).unwrap();
        eventually("it waits", || lab.served.disk.trouble().standing());
        lab.disk.heal();
        assert_eq!(front.complete(0).unwrap().1.status, S_OK);
    }
}

/// As in a guest that is reset: its ring is stopped at once, and what waits fails;
/// the next driver finds the disk as it is.
#[test]
fn stopping_a_ring_does_not_wait_for_the_disk_below() {
    let lab = Lab::new(OnError::Stop);
    let mut load = Load::start(&lab.served.path("socket"), seed());
    lab.disk
        .fail(Rule::of(Kind::Write, Fault::Errno(libc::EIO)));
    load.fill();
    lab.await_stopped();
    let start = Instant::now();
    for queue in 0..2 {
        load.front_end.stop_queue(queue).unwrap();
    }
    assert!(start.elapsed() < DEADLINE);
    assert!(lab.served.disk.trouble().standing().is_none());
    let errors = lab.served.stats().snapshot().total().errors;
    assert!(errors > 0, "what waited was answered");
    drop(load);
    lab.disk.heal();
    let mut front = lab.served.connect(1);
    front.write(0, &[1; 4096]);
    front.flush();
}

/// A front end that goes, or a server that is ended, keeps nobody waiting; and the
/// requests are with the front end still: the next session does them.
#[test]
fn what_waits_when_a_session_ends_is_done_by_the_next() {
    for policy in [OnError::Stop, OnError::Retry] {
        let mut lab = Lab::new(policy);
        let mut load = Load::start(&lab.served.path("socket"), seed());
        load.run(Duration::from_millis(200));
        for _ in 0..3 {
            lab.disk
                .fail(Rule::of(Kind::Write, Fault::Errno(libc::ENOSPC)));
            load.run(Duration::from_millis(100));
            eventually("it waits", || lab.served.disk.trouble().standing());
            let in_flight = load.in_flight();
            // The connection breaks.
            load.front_end.messages.hang_up();
            eventually("nobody waits", || {
                lab.served.disk.trouble().standing().is_none().then_some(())
            });
            lab.disk.heal();
            assert!(in_flight > 0);
            load.until_answered();
        }
        load.finish();
        assert!(load.taken_over > 0);
        let errors = lab.served.stats().snapshot().total().errors;
        assert_eq!(errors, 0, "nothing has failed");
        // One that is stopped ends as well.
        lab.disk
            .fail(Rule::of(Kind::Write, Fault::Errno(libc::ENOSPC)));
        load.fill();
        eventually("it waits", || lab.served.disk.trouble().standing());
        drop(load);
        lab.served.stop();
    }
}

/// A snapshot is taken of a disk that waits: nothing touches it, and a denied key
/// keeps it from the disk as well.
#[test]
fn nothing_is_tried_while_the_disk_is_frozen_or_its_key_denied() {
    let lab = Lab::new(OnError::Stop);
    let hold = lab.served.disk.hold();
    let mut load = lab.load(seed());
    assert!(load.run(100, Duration::from_secs(10)));
    lab.disk.fail(full());
    load.run(1 << 40, Duration::from_millis(100));
    lab.await_stopped();
    let era = hold.freeze().unwrap();
    let waiter = {
        let hold = hold.clone();
        std::thread::spawn(move || hold.wait_until_quiet(era))
    };
    eventually("a frozen disk that waits is quiet", || {
        waiter.is_finished().then_some(())
    });
    assert!(waiter.join().unwrap());
    lab.disk.take_seen();
    lab.served.disk.trouble().try_now();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(lab.disk.take_seen(), [], "it was touched");
    hold.set(Mode::Pause);
    assert!(hold.thaw());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(lab.disk.take_seen(), [], "it was touched");
    lab.disk.heal();
    hold.set(Mode::Run);
    load.drain();
    lab.await_going();
    load.check_all();
    // One whose key is denied for good fails what waits.
    lab.disk.fail(full());
    load.run(1 << 40, Duration::from_millis(100));
    lab.await_stopped();
    load.tolerant = true;
    hold.set(Mode::Fail);
    load.drain();
    assert!(load.failed[1] > 0);
    lab.await_going();
    let answered = lab.served.stats().snapshot();
    assert_eq!(
        answered.requests(Asked::Write).errors + answered.requests(Asked::WriteZeroes).errors,
        load.failed[1]
    );
    hold.set(Mode::Run);
    lab.disk.heal();
    load.check_all();
}

/// Buffers are few: what waits has none, and so keeps none from others.
#[test]
fn requests_that_are_tried_again_keep_no_buffers_from_others() {
    let lab = Lab::new(OnError::Retry);
    let mut front = lab.served.connect(2);
    lab.disk
        .fail(full().within(OFFSET + USED..OFFSET + 3 * USED));
    // Twice as much as a queue has buffers for.
    for n in 0..32 {
        let data = vec![n as u8 + 1; 128 << 10];
        front
            .submit(0, Request::write((USED + n * (64 << 10)) / 512, &data))
            .unwrap();
    }
    eventually("all wait", || {
        let standing = lab.served.disk.trouble().standing();
        standing.filter(|standing| standing.waiting == 32)
    });
    let data = vec![9; 1 << 20];
    let ticket = front.submit(0, Request::write(0, &data)).unwrap();
    let (done, outcome) = front.complete(0).unwrap();
    assert_eq!((done, outcome.status), (ticket, S_OK));
    front.submit(0, Request::read(0, 1 << 20)).unwrap();
    assert!(front.complete(0).unwrap().1.data == data);
    lab.disk.heal();
    for _ in 0..32 {
        assert_eq!(front.complete(0).unwrap().1.status, S_OK);
    }
    lab.await_going();
}
