//! A volume whose data is being moved is served while that goes on, and killed
//! and served again.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::support::home::Home;
use super::support::registers::Registers;
use super::support::server::{Server, eventually, succeed};

const SIZE: u64 = 24 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

fn header(home: &Home) -> Value {
    let info = ["volume", "info", "--json", "disk.img", "--header", "h"];
    serde_json::from_str(&succeed(&mut home.sealblk(&info))).unwrap()
}

fn stored(home: &Home) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    let file = File::open(home.path("disk.img")).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn home() -> Home {
    let home = Home::new();
    let file = File::create_new(home.path("disk.img")).unwrap();
    file.set_len(SIZE).unwrap();
    home
}

/// Starts a command that moves data slowly, and interrupts it on its way.
fn interrupted(home: &Home, arguments: &[&str]) {
    let mut command = home.sealblk(arguments);
    let mut child = command.args(["--limit", "4M"]).spawn().unwrap();
    let start = Instant::now();
    // A part of it has to be moved: what is there is no zero any more, or is so.
    let before = stored(home);
    while stored(home) == before {
        assert!(start.elapsed() < PATIENCE, "nothing is moved");
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
}

fn goes_on(server: &mut Server, load: &mut Registers) {
    load.connect(server.socket()).unwrap();
    assert!(load.run(600, PATIENCE), "{}", server.messages());
}

#[test]
fn a_disk_is_encrypted_and_gets_a_new_key_while_it_is_served_and_killed() {
    let home = home();
    let mut load = Registers::new(SIZE, 2, true, 41);
    let encrypt = [
        "volume",
        "encrypt",
        "disk.img",
        "--header",
        "h",
        "--prepare",
    ];
    succeed(&mut home.sealblk(&encrypt));
    let serve = ["disk.img", "--header", "h", "--queues", "2"];
    let mut server = home.serve(&serve);
    for _ in 0..3 {
        goes_on(&mut server, &mut load);
        load.fill();
        server.kill();
        load.leave();
        server = home.serve(&serve);
    }
    goes_on(&mut server, &mut load);
    eventually("everything is encrypted", || {
        header(&home)["rekey"].is_null().then_some(())
    });
    load.run(600, PATIENCE);
    load.check_all();
    load.leave();
    assert!(server.terminate().success());
    assert!(
        !stored(&home)
            .windows(512)
            .step_by(512)
            .any(|part| part == [0; 512])
    );

    // Another key, begun by a command and gone on with by the server.
    interrupted(&home, &["volume", "rekey", "disk.img", "--header", "h"]);
    assert!(header(&home)["rekey"].is_object());
    let mut server = home.serve(&serve);
    goes_on(&mut server, &mut load);
    load.check_all();
    eventually("everything has its new key", || {
        header(&home)["rekey"].is_null().then_some(())
    });
    goes_on(&mut server, &mut load);
    load.check_all();
    load.leave();
    assert!(server.terminate().success());
}

#[test]
fn nobody_decrypts_by_serving_alone() {
    let home = home();
    let mut load = Registers::new(SIZE, 1, true, 43);
    succeed(&mut home.sealblk(&["volume", "encrypt", "disk.img", "--header", "h"]));
    let uuid = header(&home)["uuid"].as_str().unwrap().to_owned();
    let decrypt = ["volume", "decrypt", "disk.img", "--header", "h"];
    interrupted(&home, &[&decrypt[..], &["--confirm", &uuid]].concat());
    let serve = ["disk.img", "--header", "h"];
    let mut server = home.serve(&serve);
    goes_on(&mut server, &mut load);
    load.check_all();
    let rests = "is being decrypted, which rests";
    eventually("it says that", || {
        server.messages().contains(rests).then_some(())
    });
    assert!(header(&home)["rekey"].is_object());
    load.leave();
    assert!(server.terminate().success());
    assert!(header(&home)["rekey"].is_object());

    let mut server = home.serve(&[&serve[..], &["--decrypt"]].concat());
    goes_on(&mut server, &mut load);
    eventually("everything is plain", || {
        header(&home)["plain"].is_object().then_some(())
    });
    goes_on(&mut server, &mut load);
    load.check_all();
    load.leave();
    assert!(server.terminate().success());
    load.check_bytes(&stored(&home));
    home.serve_refused(&["--header", "h"])
        .expect(8, &["has been plain since"], "raw disk");
}
