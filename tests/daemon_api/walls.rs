//! The walls of a daemon, tried from its inside.

use super::inject::{Answer, Puppet};
use super::support::daemon::{Daemon, command, configure};
use super::support::home::Home;
use super::support::server::succeed;

const CWD: u64 = libc::AT_FDCWD as u64;

fn refused_with(errno: i32) -> Answer {
    Answer::Returned(-i64::from(errno))
}

/// It writes where it was told, attaches disks there, and listens nowhere.
#[test]
fn a_daemon_writes_below_its_paths_alone() {
    let home = Home::new();
    home.create("disk.img", &[]);
    let directory = home.directory().to_str().unwrap().to_owned();
    let paths = format!("paths = [{directory:?}]\nrequire_sandbox = true");
    configure(&home, &paths, "");
    let daemon = {
        let command = command(&home);
        Daemon::run(home, command)
    };
    let attach = [
        "attach",
        "disk.img",
        "--socket",
        "disk.sock",
        "--name",
        "walled-1",
    ];
    succeed(&mut daemon.sealblk(&attach));
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = elsewhere.path().join("new");
    let mut puppet = Puppet::take(daemon.pid());
    let create = (libc::O_CREAT | libc::O_RDWR | libc::O_CLOEXEC) as u64;
    let outside = puppet.text(elsewhere.to_str().unwrap());
    let inside = puppet.text(&format!("{directory}/new"));
    let answer = puppet.call(libc::SYS_openat, &[CWD, outside, create, 0o600]);
    assert_eq!(answer, refused_with(libc::EACCES));
    let Answer::Returned(file @ 0..) = puppet.call(libc::SYS_openat, &[CWD, inside, create, 0o600])
    else {
        panic!("it cannot write where it may");
    };
    puppet.call(libc::SYS_close, &[file.cast_unsigned()]);
    let (inet, stream) = (libc::AF_INET as u64, libc::SOCK_STREAM as u64);
    let Answer::Returned(socket @ 0..) = puppet.call(libc::SYS_socket, &[inet, stream, 0]) else {
        panic!("it cannot ask key services");
    };
    // Port 0x1234 of any address.
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[libc::AF_INET as u8, 0, 0x12, 0x34]);
    let address = puppet.give(&address);
    let bound = puppet.call(libc::SYS_bind, &[socket.cast_unsigned(), address, 16]);
    assert_eq!(bound, refused_with(libc::EACCES));
    puppet.call(libc::SYS_close, &[socket.cast_unsigned()]);
    drop(puppet);
    // It goes on.
    succeed(&mut daemon.sealblk(&["detach", "walled-1"]));
}

#[test]
fn a_daemon_that_looks_into_other_processes_ends() {
    let daemon = Daemon::start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{status}");
    }
    let mut puppet = Puppet::take(daemon.pid());
    let answer = puppet.call(libc::SYS_ptrace, &[libc::PTRACE_SEIZE.into(), 1, 0, 0]);
    assert_eq!(answer, Answer::Killed(libc::SIGSYS));
}
