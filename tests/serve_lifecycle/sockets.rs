//! What may stand at the socket's path already.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixStream};

use super::support::front_end::{FrontEnd, Options};
use super::support::home::{Guard, Home};

fn serves(server: &super::support::server::Server) {
    let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    front_end.write(0, &[1; 512]);
}

#[test]
fn the_socket_of_a_killed_server_is_replaced() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img"]);
    server.kill();
    let left = fs::symlink_metadata(home.path("disk.sock")).unwrap();
    assert!(left.file_type().is_socket());
    server.restart(home.serve_command(&["disk.img"]));
    serves(&server);
}

#[test]
fn the_socket_of_a_living_server_is_left_alone() {
    let home = Home::with_volume();
    home.create("other.img", &[]);
    let server = home.serve(&["disk.img"]);
    let other = ["serve", "other.img", "--socket", "disk.sock"];
    let refused = || {
        home.refused(&other)
            .expect(5, &["disk.sock"], "choose another --socket")
    };
    refused();
    serves(&server);

    // A server that is busy with one front end, while others queue up until
    // the system takes no more of them, is alive as well.
    let front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let address = rustix::net::SocketAddrUnix::new(server.socket()).unwrap();
        match rustix::net::connect(&socket, &address) {
            Ok(()) => waiting.push(socket),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(waiting.len() < 10_000, "the backlog has no end");
    }
    refused();
    drop((front_end, waiting));
    serves(&server);
}

#[test]
fn a_socket_of_another_kind_belongs_to_somebody_else() {
    let home = Home::with_volume();
    let _other = UnixDatagram::bind(home.path("disk.sock")).unwrap();
    home.serve_refused(&[])
        .expect(5, &["disk.sock"], "choose another --socket");
    let there = fs::symlink_metadata(home.path("disk.sock")).unwrap();
    assert!(there.file_type().is_socket());
}

#[test]
fn what_is_not_a_socket_is_refused_and_untouched() {
    let home = Home::with_volume();
    let path = home.path("disk.sock");
    fs::write(&path, "precious").unwrap();
    home.serve_refused(&[])
        .expect(6, &["disk.sock", "not a socket"], "move it away");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    home.serve_refused(&[])
        .expect(6, &["disk.sock", "not a socket"], "move it away");
    assert!(path.is_dir());
    fs::remove_dir(&path).unwrap();

    std::os::unix::fs::symlink(home.path("disk.img"), &path).unwrap();
    home.serve_refused(&[])
        .expect(6, &["disk.sock", "not a socket"], "move it away");
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
}

#[test]
fn a_path_that_cannot_be_is_refused() {
    let home = Home::with_volume();
    let long = "s".repeat(120);
    let refusal = home.refused(&["serve", "disk.img", "--socket", &long]);
    refusal.expect(2, &[&long, "107"], "shorter path");
    let refusal = home.refused(&["serve", "disk.img", "--socket", "nowhere/disk.sock"]);
    refusal.expect(3, &["nowhere/disk.sock"], "nowhere");
    let refusal = home.refused(&["serve", "disk.img", "--socket", "disk.img"]);
    refusal.expect(2, &["disk.img", "two purposes"], "of its own");
    let refusal = home.refused(&["serve", "disk.img", "--socket", "disk.img/disk.sock"]);
    assert!(refusal.status != 1, "{refusal:?}");
}

/// Servers that start at once on one path, over a socket that a killed one has
/// left: one gets it, and it is that one that is reached.
#[test]
fn of_many_that_want_one_socket_one_gets_it() {
    let home = Home::new();
    let names: Vec<String> = (0..6).map(|n| format!("{n}.img")).collect();
    names.iter().for_each(|name| drop(home.create(name, &[])));
    for _ in 0..5 {
        drop(fs::remove_file(home.path("disk.sock")));
        drop(std::os::unix::net::UnixListener::bind(home.path("disk.sock")).unwrap());
        let mut children: Vec<_> = names
            .iter()
            .map(|name| {
                let mut command = home.serve_command(&[name]);
                command.stderr(std::process::Stdio::null());
                Guard(command.spawn().unwrap())
            })
            .collect();
        let losers = super::support::server::eventually("all but one have ended", || {
            let ended = |child: &mut Guard| child.0.try_wait().unwrap();
            let codes: Vec<_> = children.iter_mut().filter_map(ended).collect();
            (codes.len() + 1 >= names.len()).then_some(codes)
        });
        let reached = UnixStream::connect(home.path("disk.sock"));
        let peer = reached.as_ref().ok().map(|stream| {
            rustix::net::sockopt::socket_peercred(stream)
                .unwrap()
                .pid
                .as_raw_nonzero()
                .get()
        });
        let mut winner = None;
        for child in &mut children {
            if child.0.try_wait().unwrap().is_none() {
                winner = Some(child.0.id() as i32);
            }
        }
        reached.expect("the socket can be reached");
        assert_eq!(losers.len(), names.len() - 1);
        assert!(
            losers.iter().all(|status| status.code() == Some(5)),
            "{losers:?}"
        );
        assert_eq!(peer, winner);
    }
}
