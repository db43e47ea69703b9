//! Front ends come, wait, and go in every way.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::support::front_end::{FrontEnd, Options};
use super::support::home::{Home, SIZE};
use super::support::message::{GET_FEATURES, Messages};
use super::support::request::Request;
use super::support::server::{DEADLINE, Server, eventually};

/// Names the socket for [`be_a_front_end`].
const SOCKET: &str = "SEALBLK_TEST_SOCKET";
const PIECE: usize = 64 << 10;

fn connect(server: &Server) -> FrontEnd {
    FrontEnd::connect(server.socket(), &Options::default()).unwrap()
}

/// Not a test by itself: the process that [`a_killed_front_end_is_followed_by_the_next`]
/// kills.
#[test]
fn be_a_front_end() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let options = Options {
        queues: 2,
        ..Options::default()
    };
    let mut front_end = FrontEnd::connect(socket.as_ref(), &options).unwrap();
    let mut completed = 0;
    loop {
        for queue in 0..2 {
            while front_end.in_flight(queue) < 16 {
                let sector = (front_end.in_flight(queue) * PIECE / 512) as u64;
                let write = Request::write(sector, &[0x77; PIECE]);
                front_end.submit(queue, write).unwrap();
            }
            front_end.complete(queue).unwrap();
            completed += 1;
            if completed == 100 {
                println!("\nbusy");
            }
        }
    }
}

#[test]
fn a_killed_front_end_is_followed_by_the_next() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img", "--queues", "2"]);
    let last = SIZE / 512 - 8;
    for round in 0..3u8 {
        connect(&server).write(last, &[round; 4096]);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "front_ends::be_a_front_end", "--nocapture"])
            .env(SOCKET, server.socket())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let busy = lines.any(|line| line.unwrap() == "busy");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(busy, "the front end got nothing done");

        let mut next = connect(&server);
        assert!(next.read(0, PIECE) == [0x77; PIECE]);
        assert!(next.read(last, 4096) == [round; 4096]);
        next.flush();
    }
    server.assert_running("three front ends were killed");
    assert_eq!(server.terminate().code(), Some(0));
}

/// What a server holds: open files, threads, mappings, and resident KiB.
pub fn holdings(server: &Server) -> [usize; 4] {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", server.pid())).unwrap();
    let status = read("status");
    let number = |field: &str| {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    [
        server.open_files(),
        number("Threads:"),
        read("maps").lines().count(),
        number("VmRSS:"),
    ]
}

#[test]
fn fifty_front_ends_leave_nothing_behind() {
    let home = Home::with_volume();
    let server = home.serve(&["disk.img", "--queues", "4"]);
    let one = |round: usize| {
        let options = Options {
            queues: 4,
            ..Options::default()
        };
        let mut front_end = FrontEnd::connect(server.socket(), &options).unwrap();
        for queue in 0..4 {
            let sector = ((round * 4 + queue) % 64 * 128) as u64;
            front_end.succeed(queue, Request::write(sector, &[round as u8; PIECE]));
            front_end.succeed(queue, Request::read(sector, PIECE));
            // One more, which may be in flight when it leaves.
            front_end.submit(queue, Request::read(0, PIECE)).unwrap();
        }
    };
    // The first ones warm up what is allocated once.
    (0..10).for_each(one);
    let before = eventually("no queue is left", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
        let mut names =
            tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
        let queues = names.any(|name| name.is_ok_and(|name| name.starts_with("vq")));
        (!queues).then(|| holdings(&server))
    });
    (10..60).for_each(one);
    // Queue threads end a little after the socket is closed.
    let what = format!("as many files, threads and mappings as before: {before:?}");
    let after = eventually(&what, || {
        let now = holdings(&server);
        (now[0] <= before[0] && now[1] <= before[1] && now[2] <= before[2] + 2).then_some(now)
    });
    let grown = after[3].saturating_sub(before[3]);
    assert!(grown < 4096, "{grown} KiB more are resident");
}

#[test]
fn a_second_front_end_waits_for_the_first_to_leave() {
    let home = Home::with_volume();
    let server = home.serve(&["disk.img"]);
    let mut first = connect(&server);
    first.write(0, &[1; 512]);
    let mut second = Messages::connect(server.socket()).unwrap();
    second.send(GET_FEATURES, 0, &[], &[]).unwrap();
    second.set_patience(Duration::from_millis(100));
    assert!(
        second.receive().is_err(),
        "two front ends are served at once"
    );
    // It is said, since QEMU says nothing while it waits, and who it waits for.
    let waits = format!("one has the wrong socket process={}", std::process::id());
    eventually("it is said that one waits", || {
        (server.messages().matches(&waits).count() == 1).then_some(())
    });
    // Those that only look whether somebody is there do no harm.
    for _ in 0..5 {
        drop(Messages::connect(server.socket()).unwrap());
    }
    assert!(first.read(0, 512) == [1; 512], "the first is still served");
    drop(first);
    second.set_patience(DEADLINE);
    let reply = second.receive().unwrap();
    assert_eq!(reply.request, GET_FEATURES);
    drop(second);
    assert!(connect(&server).read(0, 512) == [1; 512]);
}

#[test]
fn connecting_and_leaving_does_no_harm() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img"]);
    // It has all that it needs once it has served somebody.
    connect(&server).write(0, &[3; 512]);
    let before = server.open_files();
    for round in 0..100 {
        let messages = Messages::connect(server.socket()).unwrap();
        if round % 2 == 0 {
            messages.send(GET_FEATURES, 0, &[], &[]).unwrap();
        }
    }
    connect(&server).write(0, &[3; 512]);
    eventually("files are closed", || {
        (server.open_files() <= before).then_some(())
    });
    assert_eq!(server.terminate().code(), Some(0));
}
