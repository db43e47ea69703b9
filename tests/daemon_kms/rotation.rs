//! Keys that get another version while disks are served, and volumes that
//! follow: those that are attached, those that are not, and those that come
//! back later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use sealblk::config::{Config, Overrides};
use sealblk::keys::ledger::{Known, Ledger};
use sealblk::volume::{Inspection, Location, Wrap};
use serde_json::{Value, json};
use uuid::Uuid;

use super::lab::{Lab, connect, server};
use super::support::server::{eventually, succeed};

/// Nobody asks the service but when it is told to.
pub const QUIET: &str = "poll = \"1h\"";
const DIRECT: &str = "hierarchy = \"direct\"\npoll = \"1h\"";

/// What is on disk where nothing else was written.
pub const DATA: [u8; 4096] = [0x5a; 4096];

/// A guest that writes and reads back what it wrote, until it is told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Load {
    pub fn on(lab: &Lab, volume: &str) -> Load {
        let (socket, stop) = (lab.socket(volume), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut front_end = connect(&socket);
            let mut rounds = 0u64;
            // Once at least.
            while rounds == 0 || !stopped.load(Ordering::Relaxed) {
                let block = [rounds.to_le_bytes(); 512].concat();
                let sector = 64 + rounds % 64 * 8;
                front_end.write(sector, &block);
                if rounds.is_multiple_of(16) {
                    front_end.flush();
                }
                assert_eq!(front_end.read(sector, 4096), block, "round {rounds}");
                rounds += 1;
            }
            rounds
        });
        Load {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends it. How often it wrote and read.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Lab {
    /// The key has one version more.
    pub fn rotate_key(&self) {
        let engine = &self.service.name;
        server().post(&format!("{engine}/keys/disks/rotate"), json!({}));
    }

    /// Versions before this one open nothing any more.
    pub fn least_version(&self, version: u32) {
        let engine = &self.service.name;
        server().post(
            &format!("{engine}/keys/disks/config"),
            json!({ "min_decryption_version": version }),
        );
    }

    /// Runs `sealblk keyset`.
    pub fn keyset(&self, arguments: &[&str]) -> String {
        succeed(&mut self.daemon.sealblk(&[&["keyset"], arguments].concat()))
    }

    /// The ledger of the key set.
    pub fn ledger(&self) -> Value {
        let ledger = self.daemon.get("/v1/ledger?key_set=prod").json();
        ledger[0].clone()
    }

    /// What the ledger says of a version.
    pub fn version(&self, version: &str) -> Value {
        let ledger = self.ledger();
        let versions = ledger["versions"].as_array().unwrap();
        let found = versions.iter().find(|is| is["key_version"] == version);
        found.unwrap_or_else(|| panic!("{ledger}")).clone()
    }

    /// Attaches a volume, writes to it, and detaches it: it is known then.
    pub fn was_here(&self, volume: &str) {
        assert_eq!(self.attach(volume).status, 201);
        let mut front_end = self.connect(volume);
        front_end.write(0, &DATA);
        front_end.flush();
        drop(front_end);
        self.gone_and_detach(volume);
    }

    /// Detaches once the front end has gone.
    pub fn gone_and_detach(&self, volume: &str) {
        let path = format!("/v1/disks/{}?force=true", self.disk(volume));
        let reply = self.daemon.ask("DELETE", &path, None);
        assert_eq!(reply.status, 204, "{reply:?}");
    }

    /// What wraps the key of a volume, in its header.
    pub fn wraps(&self, volume: &str) -> Vec<Wrap> {
        let location = Location {
            data: self.path(volume),
            header: None,
        };
        let description = Inspection::of(&location).unwrap().description();
        description.unwrap().token.wraps
    }

    pub fn wrap_version(&self, volume: &str) -> String {
        let wraps = self.wraps(volume);
        assert_eq!(wraps.len(), 1, "{wraps:?}");
        wraps[0].key_version.clone()
    }

    /// How often the service was asked for what since this was asked.
    pub fn asked(&self) -> (usize, usize, usize) {
        let seen = self.service.proxies[0].seen();
        let text = String::from_utf8_lossy(&seen.requests).into_owned();
        let engine = &self.service.name;
        let count = |what: &str| text.matches(what).count();
        (
            count(&format!("POST /v1/{engine}/encrypt/disks ")),
            count(&format!("POST /v1/{engine}/decrypt/disks ")),
            count(&format!("GET /v1/{engine}/keys/disks ")),
        )
    }

    /// The lines of the audit log with that event.
    pub fn events(&self, event: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("audit.jsonl")).unwrap();
        let lines = text.lines();
        let lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["event"] == event).collect()
    }

    /// Takes note of volumes that were never attached here.
    pub fn note(&self, names: &[String]) {
        let config = Config::load(Some(&self.path("sealblk.toml")), Overrides::default()).unwrap();
        let ledger = Ledger::below(&config.daemon.state_dir);
        for name in names {
            let location = Location {
                data: self.path(name),
                header: None,
            };
            let description = Inspection::of(&location).unwrap().description().unwrap();
            let token = description.token;
            let place = (location.data, None);
            let known = Known::new(description.uuid, place, &token.key_set, &token.wraps);
            ledger.note(&known).unwrap();
        }
    }
}

#[test]
fn a_key_set_is_rotated_under_a_guest_by_one_wrap_and_its_proof() {
    let mut lab = Lab::new(1, QUIET);
    lab.make(&["a", "b", "c"]);
    lab.was_here("b");
    assert_eq!(lab.attach("a").status, 201);
    lab.connect("a").write(0, &DATA);
    let load = Load::on(&lab, "a");
    let before = lab.wraps("a");
    lab.asked();

    lab.rotate_key();
    let done: Value = serde_json::from_str(&lab.keyset(&["rotate", "prod", "--json"])).unwrap();
    assert_eq!(done["key_version"], "2", "{done}");
    assert_eq!((&done["volumes"], &done["behind"]), (&json!(2), &json!(0)));
    // One call wraps the group key, and one proves the result.
    let (wraps, unwraps, reads) = lab.asked();
    assert_eq!((wraps, unwraps), (1, 1));
    assert!(reads <= 2, "{reads}");
    for volume in ["a", "b"] {
        assert_eq!(lab.wrap_version(volume), "2");
    }
    let after = lab.wraps("a");
    assert_eq!(
        before[0].bytes, after[0].bytes,
        "only the group key was wrapped"
    );
    assert_eq!(lab.show("a")["key_version"], "2");
    let old = lab.version("1");
    assert_eq!(old["safe_to_disable"], true, "{old}");
    let text = lab.keyset(&["ledger", "prod"]);
    assert!(text.contains("version 1: SAFE TO DISABLE"), "{text}");
    assert!(text.contains("version 2: in use: new wraps"), "{text}");

    let of = ["key_set=\"prod\""];
    eventually("it is finished", || {
        (lab.metric("sealblk_rotations_finished_total", &of) == 1.0).then_some(())
    });
    assert_eq!(lab.metric("sealblk_key_set_volumes_behind", &of), 0.0);
    assert_eq!(lab.metric("sealblk_volume_rewraps_total", &of), 2.0);

    lab.least_version(2);
    assert!(load.end() > 0);
    lab.gone_and_detach("a");
    // One that has nothing in memory.
    lab.daemon.restart();
    for volume in ["a", "b"] {
        let reply = lab.attach(volume);
        assert_eq!(reply.status, 201, "{reply:?}");
        assert_eq!(lab.connect(volume).read(0, 4096), DATA);
    }
    // That one was never here: nobody could know of it.
    assert_ne!(lab.attach("c").status, 201);

    let started = lab.events("rotation_started");
    assert_eq!(started.len(), 1, "{started:?}");
    assert_eq!(started[0]["key_version"], "2");
    assert_eq!(started[0]["volumes"], 2);
    assert_eq!(lab.events("rotation_finished").len(), 1);
    let mut rewrapped: Vec<Value> = lab.events("volume_rewrapped");
    assert_eq!(rewrapped.len(), 2);
    let line = rewrapped.remove(0);
    assert!(line["from"].as_str().unwrap().ends_with(":1"), "{line}");
    assert!(line["to"].as_str().unwrap().ends_with(":2"), "{line}");
    assert_eq!(lab.events("key_set_rotate").len(), 1);
}

/// The header of a frozen disk is not to change: it follows when it goes on, and not
/// when somebody happens to ask the next time.
#[test]
fn a_frozen_disk_follows_its_key_as_soon_as_it_is_thawed() {
    let lab = Lab::new(1, QUIET);
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let path = format!("/v1/disks/{}", lab.disk("a"));
    let freeze = Some("{}");
    let reply = lab.daemon.ask("POST", &format!("{path}/freeze"), freeze);
    assert_eq!(reply.status, 200, "{reply:?}");
    lab.rotate_key();
    let done: Value = serde_json::from_str(&lab.keyset(&["rotate", "prod", "--json"])).unwrap();
    assert_eq!(done["behind"], 1, "{done}");
    assert_eq!(lab.wrap_version("a"), "1");
    let reply = lab.daemon.ask("POST", &format!("{path}/thaw"), None);
    assert_eq!(reply.status, 200, "{reply:?}");
    eventually("it has followed", || {
        (lab.wrap_version("a") == "2").then_some(())
    });
    lab.gone_and_detach("a");
}

#[test]
fn a_new_version_is_noticed_at_the_poll_interval_and_each_key_wrapped_by_it() {
    let lab = Lab::new(1, "hierarchy = \"direct\"\npoll = \"1s\"");
    lab.make(&["a", "b"]);
    lab.was_here("b");
    assert_eq!(lab.attach("a").status, 201);
    let load = Load::on(&lab, "a");
    lab.rotate_key();
    eventually("the version is free", || {
        let ledger = lab.ledger();
        let versions = ledger["versions"].as_array().unwrap();
        let free = |version: &&Value| version["safe_to_disable"] == true;
        versions.iter().find(free).map(|old| {
            assert_eq!(old["key_version"], "1");
        })
    });
    assert_eq!(
        (lab.wrap_version("a"), lab.wrap_version("b")),
        ("2".into(), "2".into())
    );
    lab.least_version(2);
    assert!(load.end() > 0);
    lab.gone_and_detach("a");
    for volume in ["a", "b"] {
        assert_eq!(lab.attach(volume).status, 201);
    }
    // A manager that starts again has nothing to do.
    let rewrapped = lab.events("volume_rewrapped").len();
    let mut lab = lab;
    lab.daemon.restart();
    lab.until("a", "running");
    lab.asked();
    eventually("the service was asked", || {
        (lab.asked().2 > 0).then_some(())
    });
    assert_eq!(lab.events("volume_rewrapped").len(), rewrapped);
    assert_eq!(lab.show("a")["key_version"], "2");
}

#[test]
fn who_was_away_is_named_and_follows_when_it_comes_back() {
    let lab = Lab::new(1, QUIET);
    lab.make(&["a", "b", "lost"]);
    for volume in ["a", "b", "lost"] {
        lab.was_here(volume);
    }
    let (here, away) = (lab.path("b"), lab.path("b.away"));
    std::fs::rename(&here, &away).unwrap();
    std::fs::remove_file(lab.path("lost")).unwrap();
    lab.rotate_key();
    let done: Value = serde_json::from_str(&lab.keyset(&["rotate", "prod", "--json"])).unwrap();
    assert_eq!(done["behind"], 2, "{done}");
    let old = lab.version("1");
    assert_eq!(old["safe_to_disable"], false);
    let why = old["why_not"].as_str().unwrap();
    assert_eq!(why, "2 volumes need it (2 not seen where it was)");
    let holders = old["volumes"].as_array().unwrap();
    assert_eq!(holders[0]["state"], "unseen", "{old}");
    assert!(
        holders[0]["problem"].as_str().unwrap().contains("b"),
        "{old}"
    );
    let behind = || lab.metric("sealblk_key_set_volumes_behind", &["key_set=\"prod\""]);
    eventually("all were tried", || (behind() == 2.0).then_some(()));
    assert!(lab.events("rotation_finished").is_empty());

    // One comes back.
    std::fs::rename(&away, &here).unwrap();
    assert_eq!(lab.attach("b").status, 201);
    eventually("it has followed", || {
        (lab.wrap_version("b") == "2").then_some(())
    });
    assert_eq!(lab.connect("b").read(0, 4096), DATA);
    let old = lab.version("1");
    assert_eq!(old["volumes"].as_array().unwrap().len(), 1, "{old}");

    // The other one is gone for good.
    let lost: Uuid = serde_json::from_value(old["volumes"][0]["uuid"].clone()).unwrap();
    lab.keyset(&["forget-volume", &lost.to_string()]);
    assert_eq!(lab.version("1")["safe_to_disable"], true);
    assert_eq!(lab.events("volume_forgotten").len(), 1);
    let known = lab.version("2")["volumes"][1]["uuid"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/ledger/{known}");
    assert_eq!(lab.daemon.ask("DELETE", &path, None).status, 409);
}

#[test]
fn a_pinned_key_set_stays_until_it_is_pinned_elsewhere() {
    let lab = Lab::new(1, QUIET);
    let auth = lab.service.token_auth();
    let url = format!("http://127.0.0.1:{}", lab.service.proxies[0].port());
    let auth = format!("auth={auth}");
    let mount = format!("mount={}", lab.service.name);
    let create = [
        "create",
        "pinned",
        "--provider",
        "vault",
        "--endpoint",
        &url,
        "--key",
        "disks",
        "--set",
        &auth,
        "--set",
        &mount,
        "--set",
        "poll=1h",
        "--key-version",
        "1",
    ];
    lab.keyset(&create);
    succeed(
        lab.daemon
            .sealblk(&[
                "volume",
                "create",
                "p",
                "--size",
                "1M",
                "--key-set",
                "pinned",
            ])
            .args(["--header-area", "32K"]),
    );
    lab.rotate_key();
    let rotate =
        || -> Value { serde_json::from_str(&lab.keyset(&["rotate", "pinned", "--json"])).unwrap() };
    assert_eq!(rotate()["key_version"], "1");
    assert_eq!(lab.wrap_version("p"), "1");
    lab.keyset(&["edit", "pinned", "--key-version", "2"]);
    let done = rotate();
    assert_eq!(
        (&done["key_version"], &done["behind"]),
        (&json!("2"), &json!(0))
    );
    assert_eq!(lab.wrap_version("p"), "2");
    let text = lab.keyset(&["ledger", "pinned"]);
    assert!(text.contains("(vault, pinned)"), "{text}");
    assert!(text.contains("SAFE TO DISABLE"), "{text}");
}

/// Also one that another process wraps is found: the record has the new version
/// then, and the volumes do not.
#[test]
fn volumes_follow_a_group_key_that_a_command_has_wrapped() {
    let lab = Lab::new(1, QUIET);
    lab.make(&["a"]);
    lab.was_here("a");
    lab.rotate_key();
    lab.make(&["b"]);
    assert_eq!(
        (lab.wrap_version("a"), lab.wrap_version("b")),
        ("1".into(), "2".into())
    );
    lab.asked();
    lab.keyset(&["rotate", "prod"]);
    assert_eq!(lab.asked().0, 0, "it is wrapped already");
    assert_eq!(lab.wrap_version("a"), "2");
}

#[test]
fn without_a_daemon_the_command_does_it() {
    let mut lab = Lab::new(1, DIRECT);
    lab.make(&["a", "b"]);
    for volume in ["a", "b"] {
        lab.was_here(volume);
    }
    lab.daemon.server.kill();
    lab.rotate_key();
    let text = lab.keyset(&["rotate", "prod"]);
    assert!(text.contains("its volumes (2) have followed"), "{text}");
    lab.least_version(2);
    let text = lab.keyset(&["ledger", "prod"]);
    assert!(text.contains("version 1: SAFE TO DISABLE"), "{text}");
    lab.daemon.restart();
    for volume in ["a", "b"] {
        assert_eq!(lab.attach(volume).status, 201);
        assert_eq!(lab.connect(volume).read(0, 4096), DATA);
    }
    assert_eq!(lab.events("rotation_finished").len(), 1);
}
