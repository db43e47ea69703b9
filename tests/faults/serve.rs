//! `sealblk serve` on a disk that fails: what it is told by signals, and what a
//! server that ends leaves to the next.

use std::time::Duration;

use rustix::process::Signal;

use super::support::faulty_disk::{Fault, FaultyDisk, Kind, Rule};
use super::support::history::{Load, seed};
use super::support::home::Home;
use super::support::raw_front_end::{Form, RawFrontEnd, RawOptions};
use super::support::request::{Request, S_IOERR, S_OK};
use super::support::server::eventually;

/// Where the data of a volume begins.
const DATA: u64 = 16 << 20;

#[test]
fn a_server_goes_on_when_it_is_told_and_leaves_what_waits_to_the_next() {
    let home = Home::new();
    home.create("below.img", &[]);
    let disk = FaultyDisk::mount(&home.path("below.img"), &home.path("faulty"), 1);
    let volume = disk.file();
    let arguments = [volume.to_str().unwrap(), "--on-error", "stop", "--queues=2"];
    let mut server = home.serve(&arguments);
    let options = RawOptions {
        inflight: true,
        ..RawOptions::default()
    };
    let mut front_end = RawFrontEnd::connect(server.socket(), &options).unwrap();
    let broken = || Rule::of(Kind::Write, Fault::Errno(libc::EIO)).within(DATA..u64::MAX);
    let stopped = |server: &super::support::server::Server, times: usize| {
        eventually("it is stopped", || {
            let said = server.messages();
            (said.matches("the disk is stopped").count() >= times).then_some(())
        });
    };
    disk.fail(broken());
    let write = front_end.submit(0, Request::write(0, &[1; 4096]), Form::Direct);
    stopped(&server, 1);
    // For long enough that it is not tried again by itself.
    disk.await_hits(5);
    disk.heal();
    server.signal(Signal::USR1);
    let used = front_end.used(0);
    assert_eq!(front_end.outcome(write, used).status, S_OK);
    // What no time mends.
    disk.fail(broken());
    let write = front_end.submit(0, Request::write(0, &[2; 4096]), Form::Direct);
    stopped(&server, 2);
    server.signal(Signal::USR2);
    let used = front_end.used(0);
    assert_eq!(front_end.outcome(write, used).status, S_IOERR);
    drop(front_end);

    disk.heal();
    let mut load = Load::start(server.socket(), seed());
    load.run(Duration::from_millis(100));
    for _ in 0..2 {
        disk.fail(broken());
        load.run(Duration::from_millis(100));
        stopped(&server, 3);
        // It ends at once, and says what waited to nobody but the next one.
        assert!(server.terminate().success(), "{}", server.messages());
        disk.heal();
        server.restart(home.serve_command(&arguments));
        load.until_answered();
    }
    load.finish();
    assert!(load.taken_over > 0);
    drop(load);
    assert!(server.terminate().success(), "{}", server.messages());
}
