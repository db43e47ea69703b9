//! A disk that gets another key, by commands, while the key of its key set gets
//! another version, is taken away, and is given back.

use std::process::Command;

use serde_json::{Value, json};

use super::super::lab::server;
use super::super::support::home::refused;
use super::super::support::registers::Registers;
use super::super::support::server::{eventually, succeed};
use super::{Lab, events, lab};

const SIZE: u64 = 4 << 20;

fn rekey(lab: &Lab, disk: &str, arguments: &[&str]) -> Command {
    lab.daemon.sealblk(&[&["rekey", disk], arguments].concat())
}

fn state(lab: &Lab) -> String {
    let state = &lab.show("a")["rekey"]["state"];
    state.as_str().unwrap_or("none").to_owned()
}

fn until(lab: &Lab, wanted: &str) {
    eventually(wanted, || (state(lab) == wanted).then_some(()));
}

fn work(load: &mut Registers) {
    assert!(load.run(100, super::super::support::server::DEADLINE));
}

#[test]
fn a_disk_gets_another_key_while_that_of_its_key_set_comes_and_goes() {
    let lab = lab("pause");
    let size = SIZE.to_string();
    succeed(&mut lab.daemon.sealblk(&[
        "volume",
        "create",
        "a",
        "--size",
        &size,
        "--key-set",
        "prod",
        "--header-area",
        "64K",
        "--zero-units",
    ]));
    assert_eq!(lab.attach("a").status, 201);
    let disk = lab.disk("a");
    let mut load = Registers::new(SIZE, 1, false, 21);
    load.connect(&lab.socket("a")).unwrap();
    work(&mut load);
    let started = succeed(&mut rekey(&lab, &disk, &["--start", "--limit", "64K"]));
    assert!(started.contains("begun"), "{started}");
    let status = succeed(&mut rekey(&lab, &disk, &["--status"]));
    assert!(status.contains("re-encrypted: "), "{status}");
    assert!(status.contains("at most 64 KiB/s"), "{status}");
    let busy = refused(&mut rekey(&lab, &disk, &["--start"]));
    busy.expect(5, &["being moved already"], "--status");

    // Its wraps are of the new key, and follow the key of the key set.
    server().post(
        &format!("{}/keys/disks/rotate", lab.service.name),
        json!({}),
    );
    succeed(&mut lab.daemon.sealblk(&["keyset", "rotate", "prod"]));
    eventually("its wrap follows", || {
        (lab.show("a")["key_version"] == "2").then_some(())
    });
    assert_eq!(state(&lab), "moving");
    work(&mut load);

    // Denied: its guest waits, and nothing is moved.
    lab.service.deny();
    lab.until("a", "paused");
    until(&lab, "held");
    let held = lab.show("a")["rekey"]["boundary"].clone();
    succeed(&mut rekey(&lab, &disk, &["--limit", "0"]));
    super::wait_for_polls(&lab, 1);
    assert_eq!(lab.show("a")["rekey"]["boundary"], held);
    let label = format!("disk={disk:?}");
    let metric = |name: &str| lab.metric(name, &[&label]);
    eventually("metrics tell", || {
        (metric("sealblk_disk_rekey_size_bytes") == SIZE as f64).then_some(())
    });
    succeed(&mut rekey(&lab, &disk, &["--pause"]));
    lab.service.permit();
    lab.until("a", "running");
    until(&lab, "paused");
    work(&mut load);

    // To the end, which --watch waits for.
    let watched = succeed(&mut rekey(&lab, &disk, &["--resume", "--watch", "--json"]));
    let last: Value = serde_json::from_str(watched.lines().last().unwrap()).unwrap();
    assert_eq!(last[0]["rekey"], Value::Null, "{watched}");
    work(&mut load);
    load.check_all();
    load.leave();
    eventually("its front end has gone", || {
        (lab.show("a")["front_end"] == false).then_some(())
    });
    succeed(&mut lab.daemon.sealblk(&["detach", &disk]));
    let shown = succeed(&mut lab.daemon.sealblk(&["volume", "info", "a"]));
    assert!(!shown.contains("under way"), "{shown}");
    // It opens by what is in its header.
    assert_eq!(lab.attach("a").status, 201);
    load.connect(&lab.socket("a")).unwrap();
    load.check_all();
    let actions: Vec<Value> = events(&lab, &["rekey", "rekey_asked", "rekey_changed"])
        .into_iter()
        .map(|event| match &event["action"] {
            Value::Null => event["event"].clone(),
            action => action.clone(),
        })
        .collect();
    let expected = [
        "begin",
        "rekey_asked",
        "rekey_asked",
        "pace",
        "pause",
        "resume",
        "finish",
    ];
    assert_eq!(actions, expected);
}
