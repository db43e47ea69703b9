//! What the daemon knows of key sets beside their definitions: who needs them.

use std::process::Command;

use serde_json::Value;

use super::support::daemon::{Daemon, attach_a, command, configure};
use super::support::home::Home;
use super::support::server::succeed;

/// A daemon with key set `prod`, whose volumes open with `safe` as well.
fn daemon() -> Daemon {
    let home = Home::new();
    let keys = ["prod", "safe"].map(|name| home.path(&format!("{name}.key")));
    for key in &keys {
        let mut init = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        succeed(init.args(["key", "init", "--key-file"]).arg(key));
    }
    let [prod, safe] = &keys;
    let sets = format!(
        "[key_sets.prod]\nprovider = \"file\"\nkey_file = {prod:?}\nbreak_glass = \"safe\"\n"
    );
    configure(&home, "", &sets);
    let files = home.path("key-sets.d");
    std::fs::create_dir(&files).unwrap();
    let text = format!("provider = \"file\"\nkey_file = {safe:?}\n");
    std::fs::write(files.join("safe.toml"), text).unwrap();
    let command = command(&home);
    Daemon::run(home, command)
}

fn disks(daemon: &Daemon, key_set: &str) -> Value {
    daemon.get(&format!("/v1/key-sets/{key_set}")).json()["disks"].clone()
}

#[test]
fn the_disks_of_a_key_set_are_counted() {
    let daemon = daemon();
    let create = ["volume", "create", "a.img", "--size", "4M"];
    succeed(daemon.sealblk(&create).args(["--key-set", "prod"]));
    assert_eq!(disks(&daemon, "prod"), 0);
    let attach = attach_a("counted-1");
    succeed(&mut daemon.sealblk(&attach));
    assert_eq!(
        (disks(&daemon, "prod"), disks(&daemon, "safe")),
        (1.into(), 0.into())
    );
    let list = daemon.get("/v1/key-sets").json();
    let all = list.as_array().unwrap().iter();
    let total: u64 = all.map(|set| set["disks"].as_u64().unwrap()).sum();
    assert_eq!(total, 1, "{list}");
    let gone = succeed(
        daemon
            .sealblk(&["detach", "counted-1", "--json"])
            .arg("--force"),
    );
    let gone: Value = serde_json::from_str(&gone).unwrap();
    assert_eq!(gone["name"], "counted-1");
    assert_eq!(disks(&daemon, "prod"), 0);
}

/// Also when the host that attaches a volume is not the one that made it.
#[test]
fn an_attached_volume_needs_its_break_glass_key_set() {
    let daemon = daemon();
    let create = ["volume", "create", "a.img", "--size", "4M"];
    succeed(daemon.sealblk(&create).args(["--key-set", "prod"]));
    std::fs::remove_dir_all(daemon.home.path("state/volumes")).unwrap();
    let attach = attach_a("break-glass-1");
    succeed(&mut daemon.sealblk(&attach));
    let volumes = std::fs::read_dir(daemon.home.path("state/volumes")).unwrap();
    let notes = volumes.map(|note| note.unwrap().path());
    // And the lock of who writes.
    let notes = notes.filter(|path| path.extension().is_some_and(|is| is == "json"));
    let notes: Vec<Value> = notes
        .map(|note| serde_json::from_slice(&std::fs::read(note).unwrap()).unwrap())
        .collect();
    assert_eq!(notes.len(), 1);
    assert_eq!(notes[0]["key_sets"], serde_json::json!(["prod", "safe"]));
}
