//! A volume has one writer, or readers; the lock dies with the process.

use super::support::front_end::{FrontEnd, Options};
use super::support::home::{Home, Refusal};
use super::support::request::{Request, S_IOERR};

fn assert_busy(refusal: Refusal, file: &str, pid: u32) {
    let by = format!("process {pid}");
    refusal.expect(5, &[file, "in use", &by], "stop the other one");
}

fn connect(socket: &std::path::Path) -> FrontEnd {
    FrontEnd::connect(socket, &Options::default()).unwrap()
}

#[test]
fn a_second_server_of_a_volume_is_refused_until_the_first_is_gone() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img"]);
    let mut front_end = connect(server.socket());
    front_end.write(0, &[7; 4096]);
    let second = ["serve", "disk.img", "--socket", "second.sock"];
    assert_busy(home.refused(&second), "disk.img", server.pid());
    let read_only = [&second[..], &["--read-only"]].concat();
    assert_busy(home.refused(&read_only), "disk.img", server.pid());
    std::fs::hard_link(home.path("disk.img"), home.path("alias.img")).unwrap();
    let alias = ["serve", "alias.img", "--socket", "second.sock"];
    assert_busy(home.refused(&alias), "alias.img", server.pid());
    assert!(!home.path("second.sock").exists());
    // Nor may its header be changed behind its back.
    assert_busy(
        home.refused(&["volume", "repair", "disk.img"]),
        "disk.img",
        server.pid(),
    );
    assert!(
        front_end.read(0, 4096) == [7; 4096],
        "the first still serves"
    );

    front_end.flush();
    server.kill();
    let second = home.start("second.sock", home.sealblk(&second));
    assert!(connect(second.socket()).read(0, 4096) == [7; 4096]);
}

#[test]
fn header_and_data_are_both_locked() {
    let home = Home::new();
    home.create("one.img", &["--header", "one.header"]);
    home.create("two.img", &["--header", "two.header"]);
    let serve = |data, header| ["serve", data, "--header", header, "--socket", "second.sock"];
    let first = home.serve(&["one.img", "--header", "one.header"]);
    for (data, header, busy) in [
        ("one.img", "one.header", "one.img"),
        ("one.img", "two.header", "one.img"),
        ("two.img", "one.header", "one.header"),
    ] {
        assert_busy(home.refused(&serve(data, header)), busy, first.pid());
    }
    let second = home.start("second.sock", home.sealblk(&serve("two.img", "two.header")));
    connect(second.socket()).write(0, &[1; 512]);
    connect(first.socket()).write(0, &[2; 512]);
}

#[test]
fn readers_share_a_volume_and_keep_a_writer_out() {
    let home = Home::with_volume();
    let mut server = home.serve(&["disk.img"]);
    let mut front_end = connect(server.socket());
    front_end.write(8, &[9; 4096]);
    drop(front_end);
    assert!(server.terminate().success());

    let image = std::fs::read(home.path("disk.img")).unwrap();
    let reader = |socket| {
        let arguments = ["serve", "disk.img", "--read-only", "--socket", socket];
        home.start(socket, home.sealblk(&arguments))
    };
    let readers = [reader("one.sock"), reader("two.sock")];
    let mut front_ends = readers.each_ref().map(|reader| connect(reader.socket()));
    for front_end in &mut front_ends {
        assert!(front_end.read(8, 4096) == [9; 4096]);
        let outcome = front_end.run(0, Request::write(8, &[1; 512]));
        assert_eq!(outcome.status, S_IOERR);
        front_end.flush();
    }
    let writer = home.serve_refused(&[]);
    assert_eq!(writer.status, 5, "{writer:?}");
    assert!(writer.error.contains("disk.img"), "{writer:?}");
    drop(front_ends);
    drop(readers);
    assert!(std::fs::read(home.path("disk.img")).unwrap() == image);
    home.serve(&["disk.img"]);
}
