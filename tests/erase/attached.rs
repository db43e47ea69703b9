//! Volumes that a daemon serves.

use std::fs;

use sealblk::rekey::Kind;
use sealblk::volume::{Access, Location, Volume};
use serde_json::{Value, json};

use super::Before;
use super::key_store_support::{Host, VOLUME};
use super::support::daemon::{Daemon, command};
use super::support::front_end::{FrontEnd, Options};
use super::support::home::refused;
use super::support::server::{eventually, succeed};

/// A daemon with an attached volume, in the key set `prod` that is not built in.
fn attached() -> (Daemon, Before, String) {
    let host = Host::with("[key_sets.prod]\nprovider = \"file\"\nkey_file = \"KEY\"\n");
    let config = host.home.path("sealblk.toml");
    let key = super::support::server::key_file(host.home.directory());
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("KEY", key.to_str().unwrap())).unwrap();
    host.create(&["--key-set", "prod"]);
    let before = Before::of(&host);
    let command = command(&host.home);
    let daemon = Daemon::run(host.home, command);
    let volume = daemon.home.path(VOLUME);
    // As no disk of another test.
    let directory = daemon.home.directory().file_name().unwrap();
    let name = format!("{}-erase", directory.to_str().unwrap());
    let body = json!({"volume": volume, "socket": daemon.home.path("disk.sock"), "name": name});
    assert_eq!(
        daemon
            .ask("POST", "/v1/disks", Some(&body.to_string()))
            .status,
        201
    );
    (daemon, before, name)
}

fn audit(daemon: &Daemon) -> Vec<Value> {
    let log = fs::read_to_string(daemon.home.path("audit.jsonl")).unwrap();
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn an_attached_volume_is_erased_by_force_alone_and_detached_first() {
    let (mut daemon, before, name) = attached();
    let mut front_end =
        FrontEnd::connect(&daemon.home.path("disk.sock"), &Options::default()).unwrap();
    front_end.write(0, &[0x5a; 4096]);
    front_end.flush();
    let volume = daemon.home.path(VOLUME);
    let uuid = daemon.get(&format!("/v1/disks/{name}")).json()["uuid"].clone();
    let ledger = daemon
        .home
        .path(&format!("state/volumes/{}.json", uuid.as_str().unwrap()));
    assert!(ledger.exists());

    let erase = ["volume", "erase", VOLUME, "--yes"];
    refused(&mut daemon.sealblk(&erase)).expect(
        5,
        &["is attached, as the disk", &name],
        "nothing was destroyed",
    );
    // By another name of the same file.
    let link = daemon.home.path("link.img");
    std::os::unix::fs::symlink(&volume, &link).unwrap();
    refused(&mut daemon.sealblk(&["volume", "erase", "link.img", "--yes"])).expect(
        5,
        &["is attached, as the disk"],
        "sealblk detach",
    );
    assert_eq!(front_end.read(0, 4096), [0x5a; 4096]);
    let wrong =
        json!({"volume": volume, "force": true, "uuid": "00112233-4455-6677-8899-aabbccddeeff"});
    let reply = daemon.ask("POST", "/v1/volumes/erase", Some(&wrong.to_string()));
    assert_eq!(reply.status, 409, "{reply:?}");
    assert_eq!(front_end.read(0, 4096), [0x5a; 4096]);

    let worker = daemon.workers()[&name];
    let said = succeed(daemon.sealblk(&erase).args(["--force", "--json"]));
    let erased: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&erased["uuid"], &erased["detached"]),
        (&uuid, &json!(name))
    );
    assert_eq!(erased["finished"], true);
    before.assert_absent(&volume);
    eventually("its worker has ended", || {
        (!std::path::Path::new(&format!("/proc/{worker}")).exists()).then_some(())
    });
    assert_eq!(daemon.get("/v1/disks").json()["disks"], json!([]));
    assert!(!ledger.exists(), "it needs no key set any more");
    drop(front_end);

    let body = json!({"volume": volume, "socket": daemon.home.path("again.sock")});
    let reply = daemon.ask("POST", "/v1/disks", Some(&body.to_string()));
    assert_eq!(reply.status, 424, "{reply:?}");
    assert!(reply.body.contains("was erased on"), "{reply:?}");
    let metrics = daemon.get("/metrics").body;
    for (outcome, count) in [("finished", 1), ("failed", 3)] {
        let line = format!("sealblk_volumes_erased_total{{outcome=\"{outcome}\"}} {count}");
        assert!(metrics.contains(&line), "{metrics}");
    }
    // It was on record before, with who asked.
    let lines = audit(&daemon);
    let position = |event: &str| {
        lines
            .iter()
            .rposition(|line| line["event"] == event)
            .unwrap()
    };
    let (begun, ended) = (position("volume_erasing"), position("volume_erased"));
    assert_eq!(ended, begun + 1);
    assert_eq!(lines[begun]["actor"]["role"], "key-admin");
    assert_eq!(lines[begun]["correlation"], lines[ended]["correlation"]);
    assert_eq!(lines[ended]["disk"], json!(name));
    let refusals = lines
        .iter()
        .filter(|line| line["event"] == "volume_erased" && line["outcome"] == "failed");
    assert_eq!(refusals.count(), 3);

    // Nothing of it is left on record for the next daemon.
    daemon.restart();
    assert_eq!(daemon.get("/v1/disks").json()["disks"], json!([]));
}

/// A disk on record whose volume was erased while no daemon ran.
#[test]
fn an_erased_volume_on_record_fails_and_says_why() {
    let (mut daemon, _, name) = attached();
    daemon.lose_power();
    succeed(&mut daemon.sealblk(&["volume", "erase", VOLUME, "--yes"]));
    daemon.restart();
    let disk = eventually("it has failed", || {
        let disk = daemon.get(&format!("/v1/disks/{name}")).json();
        (disk["state"] == "failed").then_some(disk)
    });
    assert_eq!(disk["last_error"]["kind"], "key", "{disk}");
    let message = disk["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("was erased on"), "{message}");
    succeed(&mut daemon.sealblk(&["detach", &name]));
}

/// A daemon erases what is partly plain only for those who say that this part may
/// stay, and says that it does.
#[test]
fn a_daemon_does_not_pretend_that_plain_data_is_gone() {
    let (daemon, before, name) = attached();
    succeed(&mut daemon.sealblk(&["detach", &name]));
    let volume = daemon.home.path(VOLUME);
    let location = Location {
        data: volume.clone(),
        header: None,
    };
    let mut opened = Volume::open(&location, Access::ReadWrite).unwrap();
    let facts = opened.facts_to_begin(Kind::Decrypt).unwrap();
    opened.begin_decrypt(&facts).unwrap();
    drop(opened);
    let header = || fs::read(&volume).unwrap()[..128 << 10].to_vec();
    let intact = header();
    let erase = ["volume", "erase", VOLUME, "--yes", "--force"];
    refused(&mut daemon.sealblk(&erase)).expect(
        6,
        &["a part of the data", "leave that part readable"],
        "--leave-plain",
    );
    assert!(header() == intact);
    let told = succeed(daemon.sealblk(&erase).args(["--leave-plain", "--json"]));
    let erased: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&erased["finished"], &erased["partly_plain"]),
        (&json!(true), &json!(true))
    );
    before.assert_absent(&volume);
    let lines = audit(&daemon);
    let begun = lines
        .iter()
        .filter(|line| line["event"] == "volume_erasing");
    let left: Vec<_> = begun.map(|line| line["leave_plain"].clone()).collect();
    assert_eq!(left.last(), Some(&json!(true)), "{lines:?}");
}
