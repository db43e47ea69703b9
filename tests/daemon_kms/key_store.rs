//! Disks whose wrapped keys are in a key store, which goes away and comes back.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::faulty_proxy::{Fault, Proxy};
use super::lab::{Lab, Service, server};
use super::support::daemon::kill;
use super::support::home::refused;
use super::support::server::{eventually, succeed};

const DATA: [u8; 4096] = [0x5a; 4096];

/// A daemon with key sets `prod` and `second`, and a key store `bao` that is
/// reached by a way of its own.
struct Stored {
    lab: Lab,
    store: Proxy,
    folder: String,
}

impl Stored {
    fn new() -> Stored {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = format!("stored-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let service = Service::new(1);
        let engine = &service.name;
        let policy = format!(
            r#"path "{engine}/keys/disks" {{ capabilities = ["read"] }}
            path "{engine}/encrypt/disks" {{ capabilities = ["update"] }}
            path "{engine}/decrypt/disks" {{ capabilities = ["update"] }}
            path "secret/data/{folder}/*" {{ capabilities = ["create", "read", "update"] }}
            path "secret/metadata/{folder}/*" {{ capabilities = ["delete"] }}"#
        );
        let acl = format!("sys/policies/acl/{engine}");
        server().post(&acl, json!({"policy": policy}));
        let store = Proxy::to(server().port());
        let auth = service.token_auth();
        let limits = "timeout = \"5s\"\ndeadline = \"5s\"";
        let rest = [
            service.key_set(
                "prod",
                &auth,
                &format!("break_glass = \"second\"\n{limits}"),
            ),
            service.key_set("second", &auth, limits),
            format!(
                "[key_stores.bao]\nkind = \"vault-kv\"\npath = {folder:?}\nauth = {auth}\n\
                 endpoints = [\"http://127.0.0.1:{}\"]\n{limits}\n",
                store.port()
            ),
        ];
        Stored {
            lab: Lab::with(service, &rest.concat()),
            store,
            folder,
        }
    }

    fn sealblk(&self, arguments: &[&str]) -> Command {
        self.lab.daemon.sealblk(arguments)
    }

    fn make(&self, volume: &str) {
        let create = [
            "volume",
            "create",
            volume,
            "--size",
            "4M",
            "--key-set",
            "prod",
            "--key-store",
            "bao",
        ];
        succeed(&mut self.sealblk(&create));
    }

    fn info(&self, volume: &str) -> Value {
        let info = succeed(&mut self.sealblk(&["volume", "info", "--json", volume]));
        serde_json::from_str(&info).unwrap()
    }

    fn calls(&self, operation: &str, outcome: &str) -> f64 {
        let labels = [
            "key_store=\"bao\"".to_owned(),
            format!("operation={operation:?}"),
            format!("outcome={outcome:?}"),
        ];
        let labels = labels.each_ref().map(String::as_str);
        self.lab.metric("sealblk_key_store_calls_total", &labels)
    }
}

#[test]
fn a_disk_is_attached_from_a_key_store_and_served_without_it() {
    let mut stored = Stored::new();
    for volume in ["a", "b"] {
        stored.make(volume);
    }
    let uuid = stored.info("a")["uuid"].as_str().unwrap().to_owned();
    // What is known of a volume comes from the store when it is attached.
    let known = stored.lab.path(&format!("state/volumes/{uuid}.json"));
    let _ = std::fs::remove_file(&known);

    assert_eq!(stored.lab.attach("a").status, 201);
    let disk = stored.lab.show("a");
    assert_eq!(
        (&disk["provider"], &disk["key_id"], &disk["key_version"]),
        (&json!("vault"), &json!("disks"), &json!("1"))
    );
    let known: Value = serde_json::from_slice(&std::fs::read(&known).unwrap()).unwrap();
    assert_eq!(known["key_sets"], json!(["prod", "second"]));
    assert_eq!(stored.calls("read", "ok"), 1.0);
    let mut front_end = stored.lab.connect("a");
    front_end.write(0, &DATA);
    front_end.flush();
    let to_header = ["volume", "move-keys", "a", "--to", "header"];
    refused(&mut stored.sealblk(&to_header)).expect(5, &["in use by process"], "detach it first");

    // Nothing that runs needs the store.
    stored.store.set(Fault::Refuse);
    let workers = stored.lab.daemon.workers();
    let pid = workers[&stored.lab.disk("a")];
    drop(front_end);
    kill(pid, Signal::KILL);
    eventually("another worker serves", || {
        let disk = stored.lab.show("a");
        (disk["state"] == "running" && disk["pid"] != pid).then_some(())
    });
    assert_eq!(stored.lab.connect("a").read(0, 4096), DATA);

    // What is attached now does, and says so.
    refused(&mut stored.lab.attach_command("b", &[])).expect(
        9,
        &["key store \"bao\" (vault-kv)", "refuses the connection"],
        "",
    );
    assert!(stored.calls("read", "unreachable") >= 1.0);
    let left = stored.lab.attach_command("b", &["--wait", "--no-block"]);
    succeed(&mut { left });
    let waiting = stored.lab.until("b", "waiting");
    assert_eq!(waiting["last_error"]["kind"], "unreachable", "{waiting}");
    stored.store.set(Fault::None);
    stored.lab.until("b", "running");

    // After a power failure, with the store away.
    stored.store.set(Fault::Refuse);
    stored.lab.daemon.lose_power();
    stored.lab.daemon.restart();
    for volume in ["a", "b"] {
        stored.lab.until(volume, "waiting");
    }
    stored.store.set(Fault::None);
    for volume in ["a", "b"] {
        stored.lab.until(volume, "running");
    }
    assert_eq!(stored.lab.connect("a").read(0, 4096), DATA);

    let log = std::fs::read_to_string(stored.lab.path("audit.jsonl")).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let reads = |outcome: &str| {
        let wanted = |line: &&Value| {
            line["event"] == "key_store_read"
                && line["outcome"] == outcome
                && line["volume"] == uuid.as_str()
        };
        lines.iter().filter(wanted).count()
    };
    assert_eq!(reads("ok"), 2);
    // One id ties the reading of the entry to the unwrapping of its key.
    let read = lines
        .iter()
        .find(|line| line["event"] == "key_store_read")
        .unwrap();
    assert!(
        lines
            .iter()
            .any(|line| line["event"] == "unwrap" && line["correlation"] == read["correlation"])
    );
}

#[test]
fn a_disk_without_an_entry_is_not_attached_until_it_has_one() {
    let stored = Stored::new();
    stored.make("a");
    let uuid = stored.info("a")["uuid"].as_str().unwrap().to_owned();
    let path = format!("secret/data/{}/{uuid}", stored.folder);
    let entry = server().get(&path)["data"]["data"].clone();
    server().delete(&format!("secret/metadata/{}/{uuid}", stored.folder));
    refused(&mut stored.lab.attach_command("a", &[])).expect(
        3,
        &[
            "key store \"bao\" has no entry of volume",
            &format!("secret/{}/{uuid}", stored.folder),
        ],
        "restore the entry",
    );
    server().post(&path, json!({"data": entry}));
    assert_eq!(stored.lab.attach("a").status, 201);
    succeed(&mut stored.sealblk(&["detach", &stored.lab.disk("a")]));
    succeed(&mut stored.sealblk(&["volume", "move-keys", "a", "--to", "header"]));
    assert_eq!(stored.lab.attach("a").status, 201);
    assert_eq!(stored.calls("read", "not_found"), 1.0);
}

/// A store that is defined while the daemon runs.
#[test]
fn a_daemon_learns_of_a_key_store_when_it_reads_its_configuration_again() {
    let stored = Stored::new();
    stored.make("a");
    let config = stored.lab.path("sealblk.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let (before, after) = text.split_once("[key_stores.bao]").unwrap();
    let audit = after.split_once("[audit]").unwrap().1;
    std::fs::write(&config, format!("{before}[audit]{audit}")).unwrap();
    succeed(&mut stored.sealblk(&["reload"]));
    refused(&mut stored.lab.attach_command("a", &[])).expect(
        3,
        &["no key store \"bao\" on this host"],
        "[key_stores.NAME]",
    );
    std::fs::write(&config, &text).unwrap();
    let reloaded = succeed(&mut stored.sealblk(&["reload", "--json"]));
    assert!(reloaded.contains("key_stores.bao"), "{reloaded}");
    assert_eq!(stored.lab.attach("a").status, 201);
}
