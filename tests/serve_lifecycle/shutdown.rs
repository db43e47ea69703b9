//! How it ends: by one signal without losing a request, by two at once.

use rustix::process::Signal;

use super::Notified;
use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::message::{GET_FEATURES, Messages};
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions, Submitted};
use super::support::request::{Range, Request, S_OK};
use super::support::server::{
    DEADLINE, Volume, eventually, serve_command, serve_with_sealblk, succeed,
};

const QUEUES: usize = 4;
/// Bytes of one write, and of the place on the disk that it has.
const PIECE: usize = 256 << 10;
/// Writes in each queue: more than it takes at once.
const WRITES: usize = 48;
const CAPACITY: u64 = (QUEUES * WRITES * PIECE) as u64;

/// What the write at this place says: no encryption of zeroes looks like it.
fn pattern(place: usize) -> Vec<u8> {
    let line = format!("the write at place {place:5}, and no other one. ");
    line.bytes().cycle().take(PIECE).collect()
}

fn sector(place: usize) -> u64 {
    (place * PIECE / 512) as u64
}

struct Writes {
    raw: RawFrontEnd,
    /// By queue, in the order in which they were made available.
    submitted: Vec<Vec<(usize, Submitted)>>,
}

impl Writes {
    fn publish(&mut self, queue: usize, places: impl Iterator<Item = usize>) {
        for place in places {
            let write = Request::write(sector(place), &pattern(place));
            let form = Form::Direct;
            let submitted = self.raw.publish(queue, write, form);
            self.submitted[queue].push((place, submitted));
        }
    }

    fn used(&self) -> Vec<u16> {
        self.raw
            .queues
            .iter()
            .map(|queue| queue.used_idx())
            .collect()
    }

    /// Takes the completions there are, which have to be successes; returns
    /// their places.
    fn take(&mut self) -> Vec<usize> {
        let mut done = Vec::new();
        for queue in 0..QUEUES {
            while let Some(used) = self.raw.queues[queue].take_used() {
                let waiting = &mut self.submitted[queue];
                let at = waiting
                    .iter()
                    .position(|(_, submitted)| u32::from(submitted.head) == used.id)
                    .expect("a request completes once");
                let (place, submitted) = waiting.remove(at);
                let outcome = self.raw.outcome(submitted, used);
                assert_eq!(outcome.status, S_OK, "place {place}");
                done.push(place);
            }
        }
        done
    }
}

fn read(front_end: &mut FrontEnd, place: usize) -> Vec<u8> {
    front_end.read(sector(place), PIECE)
}

/// What was taken is completed, visibly, before the socket closes. What was
/// not taken is not done; a front end that goes on from the used ring, with
/// another server, finds everything done once.
#[test]
fn requests_in_flight_are_completed_before_the_socket_closes() {
    for signal in [Signal::TERM, Signal::INT] {
        let volume = Volume::new(CAPACITY, 4096).serve_with(&["--queues", "4"]);
        let mut server = serve_with_sealblk(&volume);
        let options = RawOptions {
            queues: QUEUES as u32,
            queue_size: 256,
            memory: 2 * CAPACITY as usize,
            ..RawOptions::default()
        };
        let mut writes = Writes {
            raw: RawFrontEnd::connect(server.socket(), &options).unwrap(),
            submitted: (0..QUEUES).map(|_| Vec::new()).collect(),
        };
        // The last ones are made available while there is no server.
        let places = |queue: usize| queue * WRITES..(queue + 1) * WRITES;
        for queue in 0..QUEUES {
            writes.publish(queue, places(queue).take(WRITES - 2));
        }
        writes.raw.queues.iter().for_each(|queue| queue.kick());
        eventually("the first request is done", || {
            writes.used().iter().any(|used| *used > 0).then_some(())
        });
        server.signal(signal);
        let end = writes.raw.messages.receive().unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof, "{end}");
        let used = writes.used();
        let status = server.wait();
        assert_eq!(status.code(), Some(0), "{}", server.messages());
        assert_eq!(writes.used(), used, "completed after the socket had closed");
        assert!(!server.socket().exists(), "the socket is left behind");
        let done = writes.take();
        assert!(!done.is_empty());

        server.restart(serve_command(server.directory(), &["--queues", "4"]));
        let mut other = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
        for queue in 0..QUEUES {
            for place in places(queue) {
                let written = read(&mut other, place) == pattern(place);
                assert_eq!(written, done.contains(&place), "place {place}");
            }
        }
        drop(other);
        for queue in 0..QUEUES {
            writes.publish(queue, places(queue).skip(WRITES - 2));
        }
        writes.raw.reconnect(server.socket()).unwrap();
        eventually("all requests are done", || {
            writes.take();
            writes.submitted.iter().all(Vec::is_empty).then_some(())
        });
        drop(writes);
        let mut other = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
        for place in 0..QUEUES * WRITES {
            assert!(read(&mut other, place) == pattern(place), "place {place}");
        }
    }
}

/// A request that takes long: 1 GiB of zeroes, all in the same 64 MiB.
fn long_request() -> Request {
    let sectors = 1 << 17;
    Request::write_zeroes(&[Range::new(2048, sectors); 16])
}

#[test]
fn a_second_signal_ends_it_at_once_and_loses_nothing_flushed() {
    let home = Home::new();
    let notified = Notified::new(&home);
    let size = (65u64 << 20).to_string();
    succeed(&mut home.sealblk(&["volume", "create", "disk.img", "--size", &size]));
    let serve = ["disk.img", "--queues", "2", "--pid-file", "pid"];
    let mut server = home.start("disk.sock", notified.by(home.serve_command(&serve)));
    assert_eq!(notified.next(), "READY=1");

    let options = RawOptions {
        queues: 2,
        ..RawOptions::default()
    };
    let mut raw = RawFrontEnd::connect(server.socket(), &options).unwrap();
    let data = pattern(0);
    raw.succeed(0, Request::write(0, &data), Form::Direct);
    raw.succeed(0, Request::flush(), Form::Direct);
    let before: Vec<u16> = raw.queues.iter().map(|queue| queue.used_idx()).collect();
    for queue in 0..2 {
        for _ in 0..8 {
            raw.submit(queue, long_request(), Form::Direct);
        }
    }
    server.signal(Signal::TERM);
    assert_eq!(notified.next(), "STOPPING=1");
    server.signal(Signal::TERM);
    let status = server.wait();
    assert_eq!(status.code(), Some(1), "{}", server.messages());
    let after: Vec<u16> = raw.queues.iter().map(|queue| queue.used_idx()).collect();
    assert_eq!(before, after, "it waited for requests of 1 GiB");
    assert!(!home.path("pid").exists(), "the pid file is left behind");
    drop(raw);

    succeed(&mut home.sealblk(&["volume", "verify-header", "disk.img"]));
    server.restart(home.serve_command(&["disk.img"]));
    let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert!(front_end.read(0, data.len()) == data);
    front_end.flush();
}

#[test]
fn it_ends_with_nobody_connected_and_with_somebody_waiting() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img"]);
    assert_eq!(server.terminate().code(), Some(0));
    server.restart(home.serve_command(&["disk.img"]));

    let served = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    let mut waiting = Messages::connect(server.socket()).unwrap();
    waiting.send(GET_FEATURES, 0, &[], &[]).unwrap();
    assert_eq!(server.terminate().code(), Some(0), "{}", server.messages());
    // Cut off without an answer, and not left hanging.
    assert!(waiting.receive().is_err());
    drop(served);
}

/// A front end that asks and asks and never reads the answers has the session
/// stuck in sending; that must not keep the server from ending.
#[test]
fn it_ends_under_a_front_end_that_never_reads() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img"]);
    let flood = Messages::connect(server.socket()).unwrap();
    flood.set_patience(std::time::Duration::from_millis(300));
    let mut sent = 0;
    while flood.send(GET_FEATURES, 0, &[], &[]).is_ok() {
        sent += 1;
        assert!(sent < 1 << 20, "the socket takes everything");
    }
    flood.set_patience(DEADLINE);
    let status = server.terminate();
    assert_eq!(status.code(), Some(0), "{}", server.messages());
    drop(flood);
}
