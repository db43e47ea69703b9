//! `sealblk serve` at both ends, without a manager.

use std::path::Path;

use super::log::{self, Log, end_of, switch_all};
use super::support::home::Home;
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::Request;
use super::support::server::Server;

fn serve(home: &Home, socket: &str, more: &[&str]) -> Server {
    let serve = ["serve", "disk.img", "--queues", "1", "--socket", socket];
    home.start(socket, home.sealblk(&[&serve, more].concat()))
}

fn connect(socket: &Path) -> std::io::Result<RawFrontEnd> {
    log::connect(socket, &RawOptions::default())
}

fn send_away(front: &mut RawFrontEnd) {
    let log = Log::below(end_of(RawOptions::default().memory));
    log.announce(&mut front.messages).unwrap();
    switch_all(front, true).unwrap();
    front.stop_queue(0).unwrap();
}

#[test]
fn a_guest_moves_from_one_server_to_another() {
    let home = Home::new();
    home.create("disk.img", &[]);
    let here = serve(&home, "here.sock", &[]);
    let there = serve(&home, "there.sock", &["--incoming"]);
    let mut front = connect(here.socket()).unwrap();
    for byte in 1..4u8 {
        front.succeed(0, Request::write(8, &[byte; 4096]), Form::Direct);
        send_away(&mut front);
        // Cancelled: it goes on here.
        switch_all(&mut front, false).unwrap();
        let base = front.queues[0].used_idx();
        front.start_queue(0, base).unwrap();
        let read = front.succeed(0, Request::read(8, 4096), Form::Direct);
        assert_eq!(read.data, [byte; 4096]);
    }
    assert!(connect(there.socket()).is_err());
    send_away(&mut front);
    let mut other = connect(there.socket()).unwrap();
    let read = other.succeed(0, Request::read(8, 4096), Form::Direct);
    assert_eq!(read.data, [3; 4096]);
    other.succeed(0, Request::write(8, &[9; 4096]), Form::Direct);
    let base = front.queues[0].used_idx();
    switch_all(&mut front, false).unwrap();
    assert!(front.start_queue(0, base).is_err());
    // Once the other one has let it go, it can come back.
    send_away(&mut other);
    let mut front = connect(here.socket()).unwrap();
    let read = front.succeed(0, Request::read(8, 4096), Form::Direct);
    assert_eq!(read.data, [9; 4096]);
}

/// What does not fit any more is not served, and is free for the other one again.
#[test]
fn a_volume_that_has_another_key_by_now_is_not_taken() {
    let home = Home::new();
    home.create("disk.img", &[]);
    let header = std::fs::read(home.path("disk.img")).unwrap();
    let there = serve(&home, "there.sock", &["--incoming"]);
    // Another volume in its place, in the same file.
    home.create("other.img", &[]);
    let other = std::fs::read(home.path("other.img")).unwrap();
    std::fs::write(home.path("disk.img"), &other).unwrap();
    assert!(connect(there.socket()).is_err());
    std::fs::write(home.path("disk.img"), &header).unwrap();
    let mut front = connect(there.socket()).unwrap();
    front.succeed(0, Request::write(8, &[5; 4096]), Form::Direct);
}
