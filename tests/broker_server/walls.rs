//! The walls of a broker, tried from its inside.

use super::broker::Site;
use super::inject::{Answer, Puppet};

const CWD: u64 = libc::AT_FDCWD as u64;

#[test]
fn a_broker_writes_its_own_files_alone_and_runs_nothing() {
    let site = Site::new();
    let broker = site.broker("broker", "", "");
    let refused = Answer::Returned(-i64::from(libc::EACCES));
    let mut puppet = Puppet::take(broker.pid().as_raw_nonzero().get().cast_unsigned());
    let create = (libc::O_CREAT | libc::O_RDWR | libc::O_CLOEXEC) as u64;
    let outside = puppet.text(site.path("new").to_str().unwrap());
    let answer = puppet.call(libc::SYS_openat, &[CWD, outside, create, 0o600]);
    assert_eq!(answer, refused);
    let inside = broker.directory.join("state/new");
    let inside = puppet.text(inside.to_str().unwrap());
    let answer = puppet.call(libc::SYS_openat, &[CWD, inside, create, 0o600]);
    assert!(matches!(answer, Answer::Returned(0..)), "{answer:?}");
    let (inet, stream) = (libc::AF_INET as u64, libc::SOCK_STREAM as u64);
    let Answer::Returned(socket @ 0..) = puppet.call(libc::SYS_socket, &[inet, stream, 0]) else {
        panic!("it cannot ask key services");
    };
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[libc::AF_INET as u8, 0, 0x12, 0x34]);
    let address = puppet.give(&address);
    let bound = puppet.call(libc::SYS_bind, &[socket.cast_unsigned(), address, 16]);
    assert_eq!(bound, refused);
    let program = puppet.text("/bin/true");
    let ended = puppet.call(libc::SYS_execve, &[program, 0, 0]);
    assert_eq!(ended, Answer::Killed(libc::SIGSYS));
}
