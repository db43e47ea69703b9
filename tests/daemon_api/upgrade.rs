//! A running daemon and its workers become another version, under a front end that
//! keeps its connection.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::support::daemon::{Daemon, kill};
use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::request::{Request, S_OK};
use super::support::server::{eventually, succeed};

const OWN: &str = env!("CARGO_PKG_VERSION");

/// A copy of the program that says it is of version `version`, which is as long as the
/// real one: nothing else differs.
fn build(home: &Home, version: &str) -> PathBuf {
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_sealblk")).unwrap();
    let mark = format!("sealblk build {OWN}");
    let other = format!("sealblk build {version}");
    assert_eq!(mark.len(), other.len());
    let places = places(&bytes, mark.as_bytes());
    assert!(!places.is_empty(), "the program has no version");
    for place in places {
        bytes[place..place + other.len()].copy_from_slice(other.as_bytes());
    }
    let path = home.path(&format!("sealblk-{version}"));
    place(home, &path, &bytes);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Writes a program by another process: no child that another test is just starting
/// has it open for writing, so that it could not be run.
fn place(home: &Home, path: &Path, bytes: &[u8]) {
    let part = home.path("part");
    fs::write(&part, bytes).unwrap();
    succeed(std::process::Command::new("cp").arg(&part).arg(path));
    fs::remove_file(part).unwrap();
}

/// Where `needle` is in `bytes`.
fn places(bytes: &[u8], needle: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == needle[0]) {
        if bytes[from + at..].starts_with(needle) {
            found.push(from + at);
        }
        from += at + 1;
    }
    found
}

/// A disk of that name, which no other test may have, and a front end at it.
fn attach(daemon: &Daemon, name: &str) -> FrontEnd {
    daemon.home.create(&format!("{name}.img"), &[]);
    let volume = daemon.home.path(&format!("{name}.img"));
    let socket = daemon.home.path(&format!("{name}.sock"));
    succeed(
        daemon
            .sealblk(&["attach", "--name", name, "--socket"])
            .arg(&socket)
            .arg(volume),
    );
    FrontEnd::connect(&socket, &Options::default()).unwrap()
}

fn status(daemon: &Daemon) -> Value {
    daemon.get("/v1/status").json()
}

#[test]
fn daemon_and_workers_become_another_version_and_back() {
    let daemon = Daemon::start();
    let mut fronts = [attach(&daemon, "upgraded-1"), attach(&daemon, "upgraded-2")];
    for front in &mut fronts {
        assert_eq!(front.run(0, Request::write(8, &[7; 4096])).status, S_OK);
    }
    let pid = status(&daemon)["pid"].clone();
    let newer = build(&daemon.home, "9.9.9");
    let older = build(&daemon.home, OWN);
    for (program, version) in [(newer, "9.9.9"), (older, OWN)] {
        let before = daemon.workers();
        let mut upgrade = daemon.sealblk(&["upgrade", "--json", "--binary"]);
        let said: Value = serde_json::from_str(&succeed(upgrade.arg(&program))).unwrap();
        assert_eq!(said["manager"]["version"], version, "{said}");
        let disks = said["disks"].as_array().unwrap();
        assert_eq!(disks.len(), 2, "{said}");
        for disk in disks {
            assert_eq!(disk["version"], version, "{said}");
            assert!(disk["pause_us"].as_u64().is_some(), "{said}");
        }
        let now = status(&daemon);
        assert_eq!((&now["version"], &now["pid"]), (&version.into(), &pid));
        let after = daemon.workers();
        for name in ["upgraded-1", "upgraded-2"] {
            assert_ne!(before[name], after[name]);
            let disk = daemon.get(&format!("/v1/disks/{name}")).json();
            assert_eq!(disk["version"], version);
            assert_eq!(disk["front_end"], true, "{disk}");
            assert_eq!(disk["pid"], after[name], "{disk}");
        }
        for front in &mut fronts {
            assert!(front.run(0, Request::read(8, 4096)).data == [7; 4096]);
            assert_eq!(front.run(0, Request::write(16, &[9; 512])).status, S_OK);
        }
        // All have that version: nothing is left to be done.
        let mut again = daemon.sealblk(&["upgrade", "--json", "--binary"]);
        let said: Value = serde_json::from_str(&succeed(again.arg(&program))).unwrap();
        assert_eq!(said["disks"].as_array().unwrap().len(), 0, "{said}");
    }
    // A worker that dies after that is replaced by one of that version.
    kill(
        daemon.workers()["upgraded-1"],
        rustix::process::Signal::KILL,
    );
    eventually("another worker serves", || {
        let disk = daemon.get("/v1/disks/upgraded-1").json();
        (disk["state"] == "running" && disk["restarts"] == 1).then_some(())
    });
}

#[test]
fn a_program_that_is_not_good_enough_changes_nothing() {
    let daemon = Daemon::start();
    let mut front = attach(&daemon, "stays-1");
    let before = (status(&daemon)["instance"].clone(), daemon.workers());
    // One that does not know what is asked, one that others may write, and none.
    let loose = build(&daemon.home, OWN);
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o777)).unwrap();
    for (program, why) in [
        ("/bin/true", "not sealblk"),
        (loose.to_str().unwrap(), "can change"),
        ("/does/not/exist", "cannot be the new program"),
    ] {
        let output = daemon
            .sealblk(&["upgrade", "--binary", program])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{said}");
        let after = (status(&daemon)["instance"].clone(), daemon.workers());
        assert_eq!(before, after);
    }
    // A configuration that it would not take.
    let path = daemon.home.path("sealblk.toml");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.clone() + "\nnonsense = 1\n").unwrap();
    let reply = daemon.ask("POST", "/v1/upgrade", Some("{}"));
    assert_eq!(reply.status / 100, 4, "{reply:?}");
    assert!(reply.body.contains("nonsense"), "{reply:?}");
    fs::write(&path, good).unwrap();
    assert_eq!(before.0, status(&daemon)["instance"]);
    assert_eq!(front.run(0, Request::flush()).status, S_OK);
}

/// It passes the trial, and then fails as it starts: the one before goes on.
#[test]
fn a_daemon_that_fails_as_it_starts_gives_the_process_back() {
    let daemon = Daemon::start();
    let mut front = attach(&daemon, "returns-1");
    let before = status(&daemon);
    // It does not find the socket that it is given, and takes that for another's.
    let broken = build(&daemon.home, "9.9.9");
    let mut bytes = fs::read(&broken).unwrap();
    for place in places(&bytes, b"LISTEN_FDS") {
        bytes[place..place + 10].copy_from_slice(b"LISTEN_FDZ");
    }
    place(&daemon.home, &broken, &bytes);
    let output = daemon
        .sealblk(&["upgrade", "--binary"])
        .arg(&broken)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("did not start"), "{said}");
    let after = status(&daemon);
    assert_eq!(
        (&after["version"], &after["pid"]),
        (&before["version"], &before["pid"])
    );
    assert_ne!(after["instance"], before["instance"]);
    assert_eq!(front.run(0, Request::flush()).status, S_OK);
    // And can be upgraded, still.
    succeed(
        daemon
            .sealblk(&["upgrade", "--all"])
            .arg("--binary")
            .arg(build(&daemon.home, "9.9.8")),
    );
    assert_eq!(status(&daemon)["version"], "9.9.8");
    assert_eq!(front.run(0, Request::flush()).status, S_OK);
}
