//! What flags and the configuration file set is what a front end finds.

use std::fs;

use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::raw_front_end::{RawFrontEnd, RawOptions};
use super::support::request::{F_DISCARD, F_RO};

fn connect(socket: &std::path::Path) -> FrontEnd {
    FrontEnd::connect(socket, &Options::default()).unwrap()
}

#[test]
fn several_volumes_are_served_by_one_process() {
    let home = Home::new();
    for name in ["a.img", "b.img", "c.img"] {
        home.create(name, &[]);
    }
    let arguments = [
        "serve", "a.img", "b.img", "c.img", "--socket", "a.sock", "--socket", "b.sock", "--socket",
        "c.sock",
    ];
    let mut server = home.start("c.sock", home.sealblk(&arguments));
    let sockets = ["a.sock", "b.sock", "c.sock"].map(|name| home.path(name));
    let mut front_ends = sockets.each_ref().map(|socket| connect(socket));
    for (front_end, byte) in front_ends.iter_mut().zip(1..) {
        front_end.write(0, &[byte; 4096]);
    }
    for (front_end, byte) in front_ends.iter_mut().zip(1..) {
        assert!(front_end.read(0, 4096) == [byte; 4096]);
    }
    let ids = front_ends.each_mut().map(|front_end| front_end.id());
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    let [a, _, _] = front_ends;
    // One leaves; the others are of no concern to it.
    drop(a);
    assert!(connect(&sockets[0]).read(0, 512) == [1; 512]);
    assert_eq!(server.terminate().code(), Some(0));
    assert!(sockets.iter().all(|socket| !socket.exists()));

    let refusal = home.refused(&["serve", "a.img", "b.img", "--socket", "a.sock"]);
    refusal.expect(
        2,
        &["2 volumes", "1 sockets"],
        "one --socket for each volume",
    );
    let twice = [
        "serve", "a.img", "a.img", "--socket", "a.sock", "--socket", "b.sock",
    ];
    home.refused(&twice).expect(2, &["a.img"], "of its own");
}

/// The `writeback` byte of the configuration space with these arguments.
fn writeback(home: &Home, arguments: &[&str]) -> u8 {
    let server = home.serve(&[&["disk.img"], arguments].concat());
    let connect = || RawFrontEnd::connect(server.socket(), &RawOptions::default()).unwrap();
    let mut raw = connect();
    let found = raw.config().unwrap().writeback;
    // A guest that chooses otherwise does so for itself, not for the next one.
    raw.set_writeback(found == 0).unwrap();
    assert_eq!(raw.config().unwrap().writeback, 1 - found);
    drop(raw);
    assert_eq!(connect().config().unwrap().writeback, found);
    found
}

#[test]
fn the_cache_mode_is_announced() {
    let home = Home::with_volume();
    assert_eq!(writeback(&home, &[]), 1);
    assert_eq!(writeback(&home, &["--cache", "writeback"]), 1);
    assert_eq!(writeback(&home, &["--cache", "writethrough"]), 0);
}

#[test]
fn flags_win_over_the_configuration_file_and_that_over_the_defaults() {
    let home = Home::with_volume();
    home.create("zeroes.img", &["--zero-units"]);
    let config = home.path("sealblk.toml");
    let text = format!(
        "[key_sets.default]\nprovider = \"file\"\nkey_file = {:?}\n\
         [serve]\nqueues = 3\ncache = \"writethrough\"\nserial = \"from-the-file\"\n\
         discard = \"pass\"\nsocket_mode = \"0660\"\npid_file = {:?}\n",
        home.path("platform.key"),
        home.path("file.pid"),
    );
    fs::write(&config, text).unwrap();
    let serve = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command
            .current_dir(home.directory())
            .args(["--config", "sealblk.toml", "serve", "--socket", "disk.sock"])
            .args(arguments);
        home.start("disk.sock", command)
    };
    let server = serve(&["zeroes.img"]);
    let mut front_end = connect(server.socket());
    let found = front_end.config().unwrap();
    assert_eq!((found.num_queues, found.writeback), (3, 0));
    assert_eq!(front_end.id(), b"from-the-file");
    assert!(front_end.has(F_DISCARD) && !front_end.has(F_RO));
    assert!(home.path("file.pid").exists());
    drop((front_end, server));
    fs::remove_file(home.path("file.pid")).unwrap();

    let server = serve(&[
        "disk.img",
        "--queues",
        "1",
        "--cache",
        "writeback",
        "--serial",
        "from-a-flag",
        "--discard",
        "ignore",
        "--pid-file",
        "flag.pid",
    ]);
    let mut front_end = connect(server.socket());
    let found = front_end.config().unwrap();
    assert_eq!((found.num_queues, found.writeback), (1, 1));
    assert_eq!(front_end.id(), b"from-a-flag");
    assert!(!front_end.has(F_DISCARD));
    assert!(home.path("flag.pid").exists() && !home.path("file.pid").exists());
    drop((front_end, server));

    let server = serve(&["disk.img", "--read-only"]);
    assert!(connect(server.socket()).has(F_RO));
}

#[test]
fn what_the_configuration_cannot_mean_is_refused() {
    let home = Home::with_volume();
    let config = home.path("sealblk.toml");
    for (text, cause) in [
        ("[serve]\nqueue = 4\n", "queue"),
        ("[serve]\nqueues = 0\n", "1 to 64"),
        ("[serve]\nqueues = \"four\"\n", "four"),
        ("[serve]\ncache = \"none\"\n", "none"),
        ("[server]\nqueues = 4\n", "server"),
        ("[serve]\nqueues = 4\nqueues = 5\n", "duplicate"),
        ("[serve\n", ""),
        ("[serve]\nsocket_mode = 660\n", "660"),
        ("[serve]\npid_file = \"relative.pid\"\n", "relative.pid"),
        (
            "[key_sets.default]\nprovider = \"file\"\nkey = \"/x\"\n",
            "key",
        ),
        ("[key_sets.default]\nprovider = \"nobody\"\n", "nobody"),
    ] {
        fs::write(&config, text).unwrap();
        let refusal = home.serve_refused(&["--config", "sealblk.toml"]);
        let place = "sealblk.toml:";
        refusal.expect(2, &[place, cause], "correct line");
    }
    fs::write(
        &config,
        "[serve]\nread_only = true\ncache = \"writeback\"\n",
    )
    .unwrap();
    let refusal = home.serve_refused(&["--config", "sealblk.toml"]);
    refusal.expect(2, &["read_only", "cache"], "leave out");
    let refusal = home.serve_refused(&["--config", "missing.toml"]);
    refusal.expect(3, &["missing.toml"], "--config");
    // Zero units are what makes discarded space read as zeroes.
    let refusal = home.serve_refused(&["--discard", "pass"]);
    refusal.expect(2, &["disk.img", "zero units"], "--discard ignore");
}
