//! What a guest and its front end can make a server do for nothing: garbage stops a
//! queue and does not keep it busy, and no log is filled.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::message::{self as m, Messages};
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::*;
use super::support::server::{Server, eventually};
use super::{Chain, Target, chains, framing, indirect};

/// For each queue thread: its state, and for how many nanoseconds it has run.
fn queue_threads(server: &Server) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let found = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let comm = std::fs::read_to_string(task.join("comm")).ok()?;
        let stat = std::fs::read_to_string(task.join("stat")).ok()?;
        let schedule = std::fs::read_to_string(task.join("schedstat")).ok()?;
        let state = stat.rsplit(") ").next()?.split(' ').next()?.to_owned();
        let ran = schedule.split(' ').next()?.to_owned();
        comm.starts_with("vq").then_some((state, ran))
    });
    found.collect()
}

/// Waits until all queue threads sleep, and stay so: none has run at all between many
/// looks in a row.
fn assert_sleeps(server: &Server, what: &str) {
    let mut last = (Vec::new(), 0);
    eventually(&format!("the queue threads sleep after {what}"), || {
        let now = queue_threads(server);
        assert!(!now.is_empty(), "there are queue threads");
        let sleep = now.iter().all(|(state, _)| state == "S");
        last = match sleep && now == last.0 {
            true => (now, last.1 + 1),
            false => (now, 0),
        };
        (last.1 > 30).then_some(())
    });
}

/// Every hostile chain there is, kicked again and again: each is answered once, or
/// ends the ring, and then nobody works.
#[test]
fn a_ring_of_garbage_keeps_nobody_busy() {
    let target = Target::sealblk();
    let cases = [
        chains::DIRECTIONS_AND_LENGTHS,
        chains::SECTORS_OUT_OF_RANGE,
        framing::LINKS,
        indirect::INDIRECT_TABLES,
    ];
    for case in cases.iter().flat_map(|cases| cases.iter().step_by(4)) {
        let mut raw = target.connect();
        let Chain { head, .. } = (case.build)(&mut raw);
        for _ in 0..40 {
            raw.queues[0].publish(head);
            raw.queues[0].kick();
        }
        assert_sleeps(&target.server, case.name);
    }
    // An index that makes no sense, and kicks for a ring that has stopped for it.
    let mut raw = target.connect();
    let index = raw.queues[0].available_idx.wrapping_add(0x8000);
    raw.queues[0].set_available_idx(index);
    for _ in 0..5000 {
        raw.queues[0].kick();
    }
    assert_sleeps(&target.server, "an index that makes no sense");
}

/// A descriptor that is ready all the time is no reason to look all the time.
#[test]
fn a_kick_that_never_ends_wakes_nobody() {
    let mut target = Target::sealblk();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&writer, &[1; 4096]).unwrap();
    let (gone, _) = rustix::pipe::pipe().unwrap();
    let (full, other) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut &other, &[1; 4096]).unwrap();
    let (hung_up, _) = UnixStream::pair().unwrap();
    let timer = {
        use rustix::event::epoll;
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(0);
        epoll::add(&set, &reader, data, epoll::EventFlags::IN).unwrap();
        set
    };
    let kicks: [(&str, BorrowedFd<'_>); 5] = [
        ("a pipe that is full", reader.as_fd()),
        ("a pipe without a writer", gone.as_fd()),
        ("a socket that is full", full.as_fd()),
        ("a socket that was hung up", hung_up.as_fd()),
        ("a set of others that is ready", timer.as_fd()),
    ];
    for (what, kick) in kicks {
        let mut raw = target.connect();
        let number = 0u64.to_le_bytes();
        // It may be refused. Then it keeps nobody busy.
        let taken = raw.messages.tell(m::SET_VRING_KICK, &number, &[kick]);
        if taken.is_ok() {
            assert_sleeps(&target.server, what);
        }
        drop(raw);
        target.assert_unharmed(what);
    }
    drop::<OwnedFd>(writer);
}

/// A front end that comes and goes, and another that breaks its ring, again and again:
/// the log has some of it, and what else there is.
#[test]
fn a_flood_of_lines_hides_no_other_line() {
    let home = Home::new();
    home.create("a.img", &[]);
    home.create("b.img", &[]);
    let arguments = ["--socket", "b.sock", "a.img", "b.img"];
    let mut server = home.start("disk.sock", home.serve_command(&arguments));
    // Its socket is made after that of the first.
    let mut other = eventually("the other disk is served", || {
        FrontEnd::connect(&home.path("b.sock"), &Options::default()).ok()
    });
    let begun = Instant::now();
    const TIMES: usize = 600;
    for _ in 0..TIMES {
        let mut messages = Messages::connect(server.socket()).unwrap();
        messages.ask(m::GET_FEATURES, &[]).unwrap();
    }
    // What comes once is there, and the other disk goes on.
    let mut raw = RawFrontEnd::connect(server.socket(), &RawOptions::default()).unwrap();
    raw.succeed(0, Request::read(0, 512), Form::Direct);
    let index = raw.queues[0].available_idx.wrapping_add(1000);
    raw.queues[0].set_available_idx(index);
    raw.queues[0].kick();
    eventually("what broke the ring is told", || {
        let told = server.messages().contains("broke the rules of its ring");
        told.then_some(())
    });
    drop(raw);
    other.write(0, &[3; 512]);
    assert_eq!(other.read(0, 512), [3; 512]);
    // That is told as well, when there is room for such lines again.
    eventually("what was left out is counted", || {
        drop(Messages::connect(server.socket()).unwrap());
        let told = server
            .messages()
            .contains("lines like the next one were left out");
        told.then_some(())
    });
    let words = server.messages();
    let lines = words
        .lines()
        .filter(|line| line.contains("front end connected"));
    let lines = lines.count();
    let most = 200 + (begun.elapsed() + Duration::from_secs(2)).as_secs() as usize;
    assert!(lines <= most && lines < TIMES, "{lines} lines of {TIMES}");
    server.assert_running("a flood of lines");
}
