//! Wherever a move of wrapped keys is cut off, the volume opens, and the same
//! command finishes it.
//!
//! Fault model: the process is killed before any system call that changes a
//! file, at each of them in turn, and at random instants. What it had written
//! is then there (the power stays on); that the order also holds when the power
//! fails is read from the calls themselves: whenever it turns from the header
//! to the store or back, all that it wrote there has been synchronised.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod key_store_support;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use key_store_support::{Host, VOLUME};
use sealblk::volume::Token;
use support::home::Guard;
use support::server::{eventually, succeed};

/// The calls that change what a crash leaves behind.
const CALLS: [&str; 6] = [
    "pwrite64",
    "write",
    "fchmod",
    "renameat2",
    "renameat",
    "unlinkat",
];

/// The command under strace.
fn traced(host: &Host, to: &str, options: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qq"])
        .args(options)
        .arg(env!("CARGO_BIN_EXE_sealblk"))
        .args(["--config", "sealblk.toml"])
        .args(["volume", "move-keys", VOLUME, "--to", to])
        .current_dir(host.home.directory());
    command
}

/// What a cut move leaves has to open, be one of the steps that the format
/// page lists, and be finished by the same command.
fn check(host: &Host, dek: &[u8], to: &str, what: &str) {
    let token = host.description().token;
    assert_eq!(host.dek(), dek, "{what}: {token:?}");
    assert_eq!(token.wraps.is_empty(), token.key_store.is_some(), "{what}");
    host.move_keys(to);
    let token = host.description().token;
    assert_finished(host, &token, to, what);
    assert_eq!(host.dek(), dek, "{what}");
}

fn assert_finished(host: &Host, token: &Token, to: &str, what: &str) {
    assert_eq!(token.copy_in, None, "{what}");
    assert_eq!(token.key_store.as_deref().unwrap_or("header"), to, "{what}");
    for store in ["shared", "other"] {
        let count = usize::from(store == to);
        assert_eq!(host.names(store).len(), count, "{what}: {store}");
    }
}

/// Kills the move at each call, and finishes it. Returns how often it was killed.
fn kill_at_each_call(from: &str, to: &str) -> u32 {
    let host = Host::with_volume();
    let (dek, wraps) = (host.dek(), host.description().token.wraps);
    let mut killed = 0;
    for call in CALLS {
        for at in 1.. {
            if from != "header" || host.description().token.key_store.is_some() {
                host.move_keys(from);
            }
            let what = format!("{from} to {to}, killed at {call} {at}");
            let inject = format!("inject={call}:signal=KILL:when={at}");
            let trace = format!("trace={call}");
            let options = ["-o", "trace", "-e", &trace, "-e", &inject];
            let output = traced(&host, to, &options).output().unwrap();
            if output.status.success() {
                let token = host.description().token;
                assert_finished(&host, &token, to, &what);
                break;
            }
            // strace ends as its child did.
            assert_eq!(output.status.signal(), Some(9), "{what}: {output:?}");
            killed += 1;
            check(&host, &dek, to, &what);
            if to != "header" {
                host.assert_no_trace(&wraps);
            }
            assert!(at < 200, "{what}");
        }
    }
    killed
}

#[test]
fn a_move_out_that_is_killed_at_any_call_is_finished_by_repeating_it() {
    assert!(kill_at_each_call("header", "shared") > 12);
}

#[test]
fn a_move_in_that_is_killed_at_any_call_is_finished_by_repeating_it() {
    assert!(kill_at_each_call("shared", "header") > 12);
}

#[test]
fn a_move_between_stores_that_is_killed_at_any_call_is_finished_by_repeating_it() {
    assert!(kill_at_each_call("shared", "other") > 12);
}

/// Kills a rotation at each call that puts something in its place, and finishes
/// it. Returns how often it was killed.
fn kill_rotation_at_each_call(place: &str) -> u32 {
    let host = Host::new();
    fs::create_dir(host.home.path("state")).unwrap();
    host.create(&["--key-store", place]);
    let dek = host.dek();
    // Of the version that it needs.
    let version = || -> String {
        let ledger = host.json(&["keyset", "ledger", "default"]);
        let versions = ledger[0]["versions"].as_array().unwrap();
        let used = |is: &&serde_json::Value| !is["volumes"].as_array().unwrap().is_empty();
        let mut used = versions.iter().filter(used);
        let found = used.next().unwrap()["key_version"].as_str().unwrap();
        assert!(used.next().is_none(), "{ledger}");
        found.into()
    };
    let mut killed = 0;
    for call in ["pwrite64", "renameat2"] {
        for at in 1.. {
            let what = format!("{place}, killed at {call} {at}");
            let before = host.description().token.wraps;
            let old = version();
            succeed(&mut host.sealblk(&["key", "add-version"]));
            let inject = format!("inject={call}:signal=KILL:when={at}");
            let trace = format!("trace={call}");
            let mut rotate = Command::new("strace");
            rotate
                .args(["-f", "-qq", "-o", "trace", "-e", &trace, "-e", &inject])
                .arg(env!("CARGO_BIN_EXE_sealblk"))
                .arg("--key-file")
                .arg(support::server::key_file(host.home.directory()))
                .args(["--config", "sealblk.toml", "keyset", "rotate", "default"])
                .current_dir(host.home.directory());
            let output = rotate.output().unwrap();
            // What is left opens, with the old version or the new one.
            assert_eq!(host.dek(), dek, "{what}");
            let done = output.status.success();
            if !done {
                assert_eq!(output.status.signal(), Some(9), "{what}: {output:?}");
                killed += 1;
                succeed(&mut host.sealblk(&["keyset", "rotate", "default"]));
            }
            assert_ne!(version(), old, "{what}");
            succeed(&mut host.sealblk(&["key", "disable", &old]));
            assert_eq!(host.dek(), dek, "{what}");
            let ledger = host.json(&["keyset", "ledger", "default"]);
            let rotation = &ledger[0]["rotation"];
            assert_eq!(rotation["behind"], 0, "{what}: {ledger}");
            assert!(!rotation["finished"].is_null(), "{what}: {ledger}");
            let image = fs::read(host.home.path(VOLUME)).unwrap();
            for wrap in &before {
                // What begins it is the same in all wraps of a key.
                let text = BASE64.encode(&wrap.bytes);
                let end = &text.as_bytes()[text.len() - 64..];
                let left = image.windows(64).any(|part| part == end);
                assert!(!left, "{what}: the old wrap is there still");
            }
            if done {
                break;
            }
            assert!(at < 50, "{what}");
        }
    }
    killed
}

#[test]
fn a_rotation_that_is_killed_at_any_step_leaves_a_volume_that_opens_and_is_finished_by_repeating() {
    // Header: two copies; each of them, the job twice, and the ledger.
    assert!(kill_rotation_at_each_call("header") >= 5);
}

#[test]
fn so_does_one_of_a_volume_whose_wraps_are_in_a_key_store() {
    // The entry, the job twice, and the ledger.
    assert!(kill_rotation_at_each_call("shared") >= 4);
}

/// After a cut, somebody may want it back instead.
#[test]
fn a_move_that_was_cut_off_can_be_taken_back() {
    let host = Host::with_volume();
    let dek = host.dek();
    for (from, to) in [
        ("header", "shared"),
        ("shared", "header"),
        ("shared", "other"),
    ] {
        for at in 1..20 {
            host.move_keys(from);
            let inject = format!("inject=pwrite64:signal=KILL:when={at}");
            let options = ["-o", "trace", "-e", "trace=pwrite64", "-e", &inject];
            let done = traced(&host, to, &options).output().unwrap().status;
            assert_eq!(host.dek(), dek);
            let what = format!("{to}, cut at write {at}, back to {from}");
            host.move_keys(from);
            assert_finished(&host, &host.description().token, from, &what);
            assert_eq!(host.dek(), dek, "{what}");
            if done.success() {
                break;
            }
        }
    }
}

/// 50 times in each direction, whenever it happens to be.
#[test]
fn a_move_that_is_killed_at_any_time_is_finished_by_repeating_it() {
    let host = Host::with_volume();
    let dek = host.dek();
    // The shortest of some: one may have waited for the machine.
    let times = ["shared", "header", "shared", "header", "shared"].map(|to| {
        let start = Instant::now();
        host.move_keys(to);
        start.elapsed()
    });
    let most = times.into_iter().min().unwrap();
    let mut cut = 0;
    for round in 0..100u32 {
        let to = ["header", "shared"][round as usize % 2];
        let mut command = host.move_command(to);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut mover = Guard(command.spawn().unwrap());
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        let part = u32::from(u16::from_le_bytes(random));
        std::thread::sleep(Duration::from_secs_f64(
            most.as_secs_f64() * f64::from(part) / f64::from(u16::MAX),
        ));
        let _ = mover.0.kill();
        let status = eventually("it has ended", || mover.0.try_wait().unwrap());
        cut += u32::from(!status.success());
        check(&host, &dek, to, &format!("round {round}, {part} of 65535"));
    }
    assert!(cut > 10, "only {cut} were cut off");
}

/// One traced call: its name, the file that it is about, and a second name.
struct Call {
    name: String,
    file: String,
    created: bool,
}

/// The calls of a move, with the paths of the files.
fn calls(host: &Host, to: &str) -> Vec<Call> {
    let trace = "trace=pwrite64,write,fsync,fdatasync,renameat,renameat2,linkat,unlinkat,openat";
    succeed(&mut traced(host, to, &["-y", "-o", "trace", "-e", trace]));
    let text = fs::read_to_string(host.home.path("trace")).unwrap();
    let parse = |line: &str| {
        let (_pid, call) = line.split_once(' ')?;
        let (name, rest) = call.trim_start().split_once('(')?;
        let end = rest.rsplit_once(" = ")?.1;
        if end.starts_with('-') {
            return None;
        }
        let inside = |text: &str| Some(text.split_once('<')?.1.split_once('>')?.0.to_owned());
        let directory = inside(rest).unwrap_or_default();
        let file = match name {
            "openat" => inside(end)?,
            // The new name is what counts.
            "renameat" | "renameat2" | "linkat" | "unlinkat" => {
                let name = rest.split('"').nth(match name {
                    "unlinkat" => 1,
                    _ => 3,
                })?;
                format!("{directory}/{name}")
            }
            _ => directory,
        };
        Some(Call {
            name: name.into(),
            file,
            created: name == "openat" && rest.contains("O_CREAT"),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Follows what is written and not yet synchronised, and fails where the move
/// turns to the other place with something pending.
fn assert_synchronised(host: &Host, to: &str) {
    let home = host.home.directory().canonicalize().unwrap();
    let header = home.join(VOLUME).to_str().unwrap().to_owned();
    let stores = ["shared", "other"].map(|name| home.join(name).to_str().unwrap().to_owned());
    let (mut pending, mut turns, mut last) = (BTreeSet::new(), 0, None);
    for Call {
        name,
        file,
        created,
    } in calls(host, to)
    {
        let store = stores.iter().find(|store| file.starts_with(*store));
        let place = match store {
            _ if file == header => &header,
            // The lock holds nothing.
            Some(_) if file.ends_with("/.lock") => continue,
            Some(store) => store,
            None => continue,
        };
        match name.as_str() {
            "fsync" | "fdatasync" => _ = pending.remove(&file),
            "openat" if !created => {}
            _ => {
                if last.as_ref() != Some(place) {
                    assert!(pending.is_empty(), "to {to}: {name} {file}: {pending:?}");
                    turns += 1;
                    last = Some(place.clone());
                }
                match name.as_str() {
                    "pwrite64" | "write" => _ = pending.insert(file),
                    // A name in a directory.
                    "renameat" | "renameat2" | "linkat" => {
                        let written = pending.iter().any(|file| file.ends_with(".new"));
                        assert!(!written, "to {to}: named before it was synchronised");
                        pending.insert(place.clone());
                    }
                    _ => _ = pending.insert(place.clone()),
                }
            }
        }
        // The name of what is being made goes with it.
        if name == "openat" && created {
            pending.remove(place);
        }
    }
    assert!(pending.is_empty(), "to {to}: {pending:?}");
    assert!(turns >= 3, "to {to}: {turns}");
}

#[test]
fn each_step_is_on_stable_storage_before_the_next_one() {
    let host = Host::with_volume();
    for to in ["shared", "other", "header", "other", "shared", "header"] {
        assert_synchronised(&host, to);
    }
}
