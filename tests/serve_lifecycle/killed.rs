//! A server that is killed, and another that is started in its place, as a service
//! manager would.

use std::time::{Duration, Instant};

use super::support::history::{Dice, Load, kills, seed, spread};
use super::support::home::Home;
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::{Request, S_OK};
use super::support::server::eventually;
use super::support::slow_disk::SlowDisk;

#[test]
fn what_was_in_flight_is_done_by_the_next_server() {
    let home = Home::with_volume();
    let arguments = ["disk.img", "--queues", "2"];
    let mut server = home.serve(&arguments);
    let (kills, seed) = (kills(4), seed());
    let (mut dice, mut pauses) = (Dice(seed), vec![]);
    let mut load = Load::start(server.socket(), seed);
    for _ in 0..kills {
        load.until_answered();
        load.run(Duration::from_micros(dice.below(30_000)));
        let killed = Instant::now();
        server.kill();
        server.restart(home.serve_command(&arguments));
        load.until_answered();
        pauses.push(killed.elapsed());
    }
    load.finish();
    let (least, median, worst) = spread(pauses);
    println!(
        "{kills} kills, {} requests, {} taken over; pauses {least:.1?}, {median:.1?}, {worst:.1?} \
         (least, median, worst)",
        load.answered, load.taken_over,
    );
    drop(load);
    assert!(server.terminate().success(), "{}", server.messages());
}

/// What a thread of the ring is doing, the process does not outlive.
#[test]
fn a_call_of_a_killed_server_ends_before_its_process() {
    let home = Home::new();
    home.create("below.img", &[]);
    let slow = SlowDisk::mount(&home.path("below.img"), &home.path("slow"));
    let volume = slow.file();
    let arguments = [volume.to_str().unwrap(), "--direct", "never"];
    let mut server = home.serve(&arguments);
    let options = RawOptions {
        inflight: true,
        ..RawOptions::default()
    };
    let mut front_end = RawFrontEnd::connect(server.socket(), &options).unwrap();
    slow.keep_writes();
    let submitted = front_end.submit(0, Request::write(8, &NEW), Form::Direct);
    slow.await_writes(1);
    server.signal(rustix::process::Signal::KILL);
    let stat = format!("/proc/{}/stat", server.pid());
    eventually("its first thread has ended", || {
        let stat = std::fs::read_to_string(&stat).unwrap();
        stat.contains(") Z ").then_some(())
    });
    assert!(server.is_running(), "with a write that has not ended");
    slow.release();
    server.wait();
    server.restart(home.serve_command(&arguments));
    front_end.reconnect(server.socket()).unwrap();
    let used = front_end.used(0);
    assert_eq!(front_end.outcome(submitted, used).status, S_OK);
    let read = front_end.succeed(0, Request::read(8, NEW.len()), Form::Direct);
    assert!(read.data == NEW);
}

const OLD: [u8; 4096] = [1; 4096];
const NEW: [u8; 4096] = [2; 4096];

/// The write of the killed server is at the disk, which answers when we say so.
#[test]
fn the_next_server_waits_for_the_last_write_of_the_one_before() {
    let home = Home::new();
    home.create("below.img", &[]);
    let slow = SlowDisk::mount(&home.path("below.img"), &home.path("slow"));
    let volume = slow.file();
    let mut server = home.serve(&[volume.to_str().unwrap()]);
    let options = RawOptions {
        inflight: true,
        ..RawOptions::default()
    };
    let mut front_end = RawFrontEnd::connect(server.socket(), &options).unwrap();
    front_end.succeed(0, Request::write(8, &OLD), Form::Direct);
    slow.keep_writes();
    let submitted = front_end.submit(0, Request::write(8, &NEW), Form::Direct);
    slow.await_writes(1);
    // What holds a volume is not there for others, dead or alive.
    let used = ["volume", "repair", volume.to_str().unwrap()];
    home.refused(&used).expect(5, &["in use"], "stop the other");
    let dead = server.pid();
    server.kill();

    std::thread::scope(|scope| {
        let next = scope.spawn(|| {
            let command = home.serve_command(&[volume.to_str().unwrap()]);
            home.start("disk.sock", command)
        });
        eventually("the next server waits", || {
            let said = std::fs::read_to_string(home.path("disk.log")).unwrap_or_default();
            said.contains("waiting for what a process that has ended")
                .then_some(())
        });
        assert!(!next.is_finished());
        let seen = slow.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].write, "{seen:?} of {dead}");
        slow.release();
        server = next.join().unwrap();
    });
    front_end.reconnect(server.socket()).unwrap();
    let used = front_end.used(0);
    assert_eq!(front_end.outcome(submitted, used).status, S_OK);
    let read = front_end.succeed(0, Request::read(8, NEW.len()), Form::Direct);
    assert!(read.data == NEW);
    drop(front_end);
    assert!(server.terminate().success(), "{}", server.messages());
}
