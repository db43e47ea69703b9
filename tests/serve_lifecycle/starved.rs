//! A server without descriptors, and one whose notifications nobody takes.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::message::{GET_FEATURES, Messages, SET_VRING_CALL, SET_VRING_ERR};
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::Request;
use super::support::server::Server;

fn limit_open_files(server: &Server, most: u64) {
    let pid = Pid::from_raw(server.pid() as i32);
    let limit = Rlimit {
        current: Some(most),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

/// Sets up queues as far as the server's descriptors reach.
fn try_to_start(server: &Server, options: &RawOptions) -> std::io::Result<()> {
    let mut raw = RawFrontEnd::negotiate(server.socket(), options)?;
    // A message whose descriptors got lost may be waited for by both sides.
    raw.messages.set_patience(Duration::from_millis(200));
    raw.set_memory()?;
    for index in 0..options.queues {
        raw.start_queue(index, 0)?;
        raw.enable(index, true)?;
    }
    Ok(())
}

/// When a front end cannot be accepted or served because descriptors are
/// short, that is a matter of this front end: the disks go on, and later ones
/// are served.
#[test]
fn a_shortage_of_descriptors_passes() {
    let home = Home::with_volume();
    home.create("other.img", &[]);
    let arguments = [
        "serve",
        "other.img",
        "disk.img",
        "--socket",
        "other.sock",
        "--socket",
        "disk.sock",
        "--queues",
        "2",
    ];
    let mut server = home.start("disk.sock", home.sealblk(&arguments));
    let other = home.path("other.sock");
    let mut served = FrontEnd::connect(&other, &Options::default()).unwrap();
    served.write(0, &[5; 4096]);
    let usual = getrlimit(Resource::Nofile).current.unwrap();
    let open = server.open_files() as u64;
    for spare in 0..24 {
        limit_open_files(&server, open + spare);
        let mut messages = Messages::connect(server.socket()).unwrap();
        messages.set_patience(Duration::from_millis(30));
        // Whether there is an answer depends on what is left.
        if messages.send(GET_FEATURES, 0, &[], &[]).is_ok() {
            let _ = messages.receive();
        }
        drop(messages);
        let options = RawOptions {
            queues: 2,
            ..RawOptions::default()
        };
        if spare > 8 {
            let _ = try_to_start(&server, &options);
        }
        server.assert_running("descriptors ran short");
        assert!(served.read(0, 4096) == [5; 4096], "the other disk goes on");
        limit_open_files(&server, usual);
    }
    let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    front_end.write(0, &[6; 4096]);
    drop((front_end, served));
    assert_eq!(server.terminate().code(), Some(0));
}

/// An eventfd whose counter is full: a blocking write to it never returns.
fn full() -> OwnedFd {
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fd
}

/// A front end cannot stop a queue thread by a call descriptor that blocks:
/// completions go on, and after it the next front end is served.
#[test]
fn notifications_that_nobody_takes_block_nothing() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img"]);
    let mut raw = RawFrontEnd::connect(server.socket(), &RawOptions::default()).unwrap();
    let index = 0u64.to_le_bytes();
    for message in [SET_VRING_CALL, SET_VRING_ERR] {
        raw.messages
            .tell(message, &index, &[full().as_fd()])
            .unwrap();
    }
    for at in 0..4 {
        raw.succeed(0, Request::write(at, &[at as u8; 512]), Form::Direct);
    }
    // Broken, so that the error descriptor is signalled as well.
    raw.queues[0].set_available_idx(20_000);
    raw.queues[0].kick();
    drop(raw);
    let mut next = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert!(next.read(3, 512) == [3; 512]);
    drop(next);
    assert_eq!(server.terminate().code(), Some(0), "{}", server.messages());
}
