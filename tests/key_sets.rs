//! Key sets: made, changed, checked and removed by command, with group keys
//! and break-glass access, on a real OpenBao.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;

use std::path::PathBuf;
use std::process::Command;

use openbao::OpenBao;
use serde_json::{Value, json};
use support::front_end::{FrontEnd, Options};
use support::home::{Home, Refusal, refused};
use support::server::succeed;

/// A host without key sets but the built-in one, and a server with two keys.
struct Host {
    home: Home,
    server: OpenBao,
    config: PathBuf,
    token: PathBuf,
}

impl Host {
    fn new() -> Self {
        let server = OpenBao::start_tls();
        server.mount("transit");
        for key in ["disks", "others"] {
            server.post(&format!("transit/keys/{key}"), json!({}));
        }
        let home = Home::new();
        let config = home.path("sealblk.toml");
        let text = format!(
            "[daemon]\nsocket = {:?}\nstate_dir = {:?}\n[key_sets.safe]\nprovider = \"file\"\nkey_file = {:?}\n",
            home.path("daemon.sock"),
            home.path("state"),
            home.path("safe.key"),
        );
        std::fs::write(&config, text).unwrap();
        server.permit("sealblk", "transit", "+");
        let token = server.write("token", &server.token("sealblk"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.args(["key", "init", "--key-file"]);
        succeed(command.arg(home.path("safe.key")));
        Host {
            home,
            server,
            config,
            token,
        }
    }

    fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.sealblk(&["--config"]);
        command.arg(&self.config).args(arguments);
        command
    }

    fn create_command(&self, name: &str, key: &str, more: &[&str]) -> Command {
        let auth = format!("auth={{ method = \"token\", token = {:?} }}", self.token);
        let ca = format!("ca_file={}", self.server.ca_file().display());
        let url = self.server.url();
        let create = [
            "keyset",
            "create",
            name,
            "--provider",
            "vault",
            "--key",
            key,
        ];
        let mut command = self.sealblk(&create);
        command.args(["--endpoint", &url, "--set", &auth, "--set", &ca]);
        command.args(["--set", "deadline=6s"]).args(more);
        command
    }

    fn make_key_set(&self, name: &str, key: &str, more: &[&str]) {
        succeed(&mut self.create_command(name, key, more));
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let mut command = self.sealblk(arguments);
        serde_json::from_str(&succeed(command.arg("--json"))).unwrap()
    }

    fn make_volume(&self, name: &str, key_set: &str) -> Value {
        let create = [
            "volume",
            "create",
            name,
            "--size",
            "4M",
            "--key-set",
            key_set,
        ];
        succeed(&mut self.sealblk(&create));
        self.json(&["volume", "info", name])
    }

    /// Serves the volume, and returns once a front end has read from it.
    fn opens(&self, volume: &str, more: &[&str]) {
        let mut command = self.sealblk(&["serve", volume, "--socket", "disk.sock"]);
        command.args(more);
        let mut server = self.home.start("disk.sock", command);
        let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
        front_end.read(0, 4096);
        drop(front_end);
        assert!(server.terminate().success());
    }

    fn refused(&self, arguments: &[&str]) -> Refusal {
        refused(&mut self.sealblk(arguments))
    }

    fn serve_refused(&self, volume: &str) -> Refusal {
        self.refused(&["serve", volume, "--socket", "disk.sock"])
    }
}

#[test]
fn a_key_set_lives_from_create_to_remove() {
    let host = Host::new();
    host.make_key_set("prod", "disks", &[]);
    let names = |list: Value| -> Vec<String> {
        let list = list.as_array().unwrap().clone();
        let name = |set: &Value| set["name"].as_str().unwrap().to_owned();
        list.iter().map(name).collect()
    };
    assert_eq!(
        names(host.json(&["keyset", "list"])),
        ["default", "prod", "safe"]
    );
    let shown = host.json(&["keyset", "show", "prod"]);
    assert_eq!(shown["provider"], "vault");
    assert_eq!(shown["definition"]["key"], "disks");
    let file = host.home.path("key-sets.d/prod.toml");
    assert_eq!(shown["defined_in"], file.to_str().unwrap());
    let check = host.json(&["keyset", "check", "prod"]);
    assert_eq!(
        (&check["key_version"], &check["enabled"]),
        (&json!("1"), &json!(true))
    );

    let info = host.make_volume("disk.img", "prod");
    assert_eq!(info["wraps"][0]["bound"], "group:1", "{info}");
    host.opens("disk.img", &[]);

    host.refused(&["keyset", "remove", "prod"])
        .expect(6, &["is needed by", "disk.img"], "--force");
    host.refused(&["keyset", "edit", "prod", "--provider", "file"])
        .expect(2, &["\"prod\"", "unknown field `auth`"], "docs/kms.md");
    succeed(&mut host.sealblk(&["keyset", "edit", "prod", "--set", "hierarchy=direct"]));
    let info = host.make_volume("direct.img", "prod");
    assert_eq!(info["wraps"][0]["bound"], "aad:1", "{info}");
    host.opens("disk.img", &[]);
    host.opens("direct.img", &[]);
    succeed(&mut host.sealblk(&["keyset", "edit", "prod", "--unset", "hierarchy"]));

    for volume in ["disk.img", "direct.img"] {
        std::fs::remove_file(host.home.path(volume)).unwrap();
    }
    succeed(&mut host.sealblk(&["keyset", "remove", "prod"]));
    assert!(!file.exists());
    host.refused(&["keyset", "show", "prod"])
        .expect(3, &["no key set \"prod\""], "keyset list");
}

#[test]
fn what_would_not_work_is_not_written() {
    let host = Host::new();
    let refused_create = |key: &str, more: &[&str]| {
        let refusal = refused(&mut host.create_command("prod", key, more));
        assert!(!host.home.path("key-sets.d/prod.toml").exists());
        refusal
    };
    refused_create("missing", &[]).expect(3, &["\"prod\"", "missing"], "");
    refused_create("disks", &["--set", "hierachy=direct"]).expect(
        2,
        &["unknown field `hierachy`"],
        "docs/kms.md",
    );
    refused_create("disks", &["--set", "break_glass=prod"]).expect(
        2,
        &["itself"],
        "another key set",
    );
    refused_create("disks", &["--set", "break_glass=nobody"]).expect(
        2,
        &["not defined"],
        "another key set",
    );
    refused_create("disks", &["--set", "poll=0s"]).expect(2, &["not a period"], "docs/kms.md");
    host.server.seal();
    refused_create("disks", &[]).expect(9, &["is sealed"], "unseal");
    succeed(&mut host.create_command("prod", "disks", &["--no-check"]));
    let again = refused(&mut host.create_command("prod", "disks", &["--no-check"]));
    again.expect(6, &["already"], "keyset edit");
    for (command, help) in [("edit", "change it in"), ("remove", "change it in")] {
        host.refused(&["keyset", command, "safe"])
            .expect(2, &["defined in"], help);
    }
    host.refused(&["keyset", "remove", "default"]).expect(
        2,
        &["built in"],
        "keyset create default",
    );
}

#[test]
fn a_volume_needs_nothing_of_this_host_but_its_key_set() {
    let host = Host::new();
    host.make_key_set("prod", "disks", &[]);
    host.make_volume("disk.img", "prod");
    std::fs::remove_dir_all(host.home.path("state")).unwrap();
    std::fs::remove_dir_all(host.home.path("key-sets.d")).unwrap();
    host.serve_refused("disk.img")
        .expect(3, &["no such key set"], "define the key set");
    host.make_key_set("prod", "disks", &["--no-check"]);
    host.opens("disk.img", &[]);
}

#[test]
fn the_break_glass_key_opens_when_it_is_asked_for() {
    let host = Host::new();
    host.make_key_set("prod", "disks", &["--set", "break_glass=safe"]);
    let info = host.make_volume("disk.img", "prod");
    assert_eq!(info["wraps"][1]["key_set"], "safe", "{info}");
    host.opens("disk.img", &[]);
    host.server.delete("transit/keys/disks/soft-delete");
    host.serve_refused("disk.img").expect(
        8,
        &["has been deleted", "was not tried"],
        "soft-delete-restore",
    );
    // It is denied, and not lost.
    host.refused(&[
        "serve",
        "disk.img",
        "--socket",
        "disk.sock",
        "--break-glass",
    ])
    .expect(
        8,
        &["has been deleted", "denies its key"],
        "soft-delete-restore",
    );
    host.opens("disk.img", &["--break-glass", "--even-if-denied"]);
    host.refused(&[
        "serve",
        "disk.img",
        "--socket",
        "disk.sock",
        "--even-if-denied",
    ])
    .expect(2, &["not how"], "--break-glass");
}

/// Without a daemon: a second wrap for a volume that is there, the server lost
/// for good, and a wrap that is taken away again.
#[test]
fn a_volume_gets_a_second_wrap_and_loses_it_again() {
    let mut host = Host::new();
    host.make_key_set("prod", "disks", &[]);
    host.make_volume("disk.img", "prod");
    let new = ["key", "new-recovery-key", "--to", "paper"];
    let said = succeed(&mut host.sealblk(&new));
    let id = said.split_whitespace().nth(3).unwrap().to_owned();
    host.refused(&new)
        .expect(6, &["cannot write"], "not exist yet");
    let add = |more: &[&str]| {
        let command = ["volume", "add-wrap", "disk.img"];
        host.json(&[&command, more].concat())
    };
    for (more, key_id) in [
        (["--key-set", "safe"], Value::Null),
        (["--recovery-key-file", "paper"], json!(id)),
    ] {
        let done = add(&more);
        assert_eq!(
            (&done["key_id"], &done["volumes"][0]["changed"]),
            (&key_id, &json!(true))
        );
        assert_eq!(add(&more)["volumes"][0]["changed"], false, "once more");
    }
    let info = host.json(&["volume", "info", "disk.img"]);
    let wraps: Vec<_> = info["wraps"].as_array().unwrap().iter().collect();
    let sets: Vec<_> = wraps
        .iter()
        .map(|it| (&it["key_set"], &it["break_glass"]))
        .collect();
    assert_eq!(
        sets,
        [
            (&json!("prod"), &json!(false)),
            (&json!("safe"), &json!(true)),
            (&json!("recovery-key"), &json!(true)),
        ]
    );
    host.refused(&["volume", "add-wrap", "disk.img", "--key-set", "prod"])
        .expect(6, &["own one"], "switch");
    host.refused(&["volume", "remove-wrap", "disk.img", "--key-set", "prod"])
        .expect(6, &["own one"], "switch");
    // Nobody removes the key set while a volume has a wrap of it.
    host.refused(&["volume", "remove-wrap", "disk.img", "--recovery-key", "12"])
        .expect(2, &["sixteen hexadecimal digits"], "volume info");

    // Nobody is waited for that is gone.
    let edit = ["keyset", "edit", "prod", "--no-check"];
    succeed(
        host.sealblk(&edit)
            .args(["--set", "timeout=1s", "--set", "deadline=1s"]),
    );
    host.server.kill();
    host.serve_refused("disk.img")
        .expect(9, &["was not tried"], "");
    host.opens("disk.img", &["--break-glass"]);
    host.opens("disk.img", &["--recovery-key-file", "paper"]);
    // Typed by hand, with a mistake and without.
    let paper = std::fs::read_to_string(host.home.path("paper")).unwrap();
    let groups = paper.lines().rfind(|line| line.starts_with("5: ")).unwrap();
    let group = groups.split_whitespace().nth(1).unwrap();
    let last = if group.ends_with('2') { "3" } else { "2" };
    let wrong = format!("{}{last}", &group[..7]);
    for (name, text) in [
        ("mistake", paper.replace(group, &wrong)),
        ("typed", paper.replace(group, &group.to_lowercase())),
    ] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(host.home.path(name), text).unwrap();
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(host.home.path(name), mode).unwrap();
    }
    let serve = ["serve", "disk.img", "--socket", "disk.sock"];
    let mistake = [&serve[..], &["--recovery-key-file", "mistake"]].concat();
    host.refused(&mistake)
        .expect(7, &["group 5"], "compare that group");
    host.opens("disk.img", &["--recovery-key-file", "typed"]);
    let whole = succeed(&mut host.sealblk(&["key", "check-recovery-key", "typed"]));
    assert!(whole.contains(&id), "{whole}");

    // The header has nothing of a wrap that was removed.
    let before = std::fs::read(host.home.path("disk.img")).unwrap();
    succeed(&mut host.sealblk(&["volume", "remove-wrap", "disk.img", "--recovery-key", &id]));
    succeed(&mut host.sealblk(&["volume", "remove-wrap", "disk.img", "--key-set", "safe"]));
    let after = std::fs::read(host.home.path("disk.img")).unwrap();
    for needle in [id.as_bytes(), b"\"safe\""] {
        let has = |image: &[u8]| image.windows(needle.len()).any(|part| part == needle);
        assert!(has(&before) && !has(&after));
    }
    for how in [&["--break-glass"][..], &["--recovery-key-file", "typed"]] {
        host.refused(&[&serve[..], how].concat())
            .expect(9, &["cannot unwrap"], "");
    }
    let again = ["volume", "remove-wrap", "disk.img", "--key-set", "safe"];
    assert_eq!(host.json(&again)["volumes"][0]["changed"], false);
}

/// A rotation at the service, and a version that is no longer accepted.
#[test]
fn new_volumes_do_not_need_the_old_version() {
    let host = Host::new();
    host.make_key_set("prod", "disks", &[]);
    let old = host.make_volume("old.img", "prod");
    host.server.post("transit/keys/disks/rotate", json!({}));
    let new = host.make_volume("new.img", "prod");
    let version = |info: &Value| info["wraps"][0]["key_version"].as_str().unwrap().to_owned();
    assert_eq!((version(&old), version(&new)), ("1".into(), "2".into()));
    assert_eq!(old["wraps"][0]["group"], new["wraps"][0]["group"]);
    host.opens("old.img", &[]);
    let config = json!({"min_decryption_version": 2});
    host.server.post("transit/keys/disks/config", config);
    host.opens("new.img", &[]);
    host.serve_refused("old.img")
        .expect(8, &["below the minimum"], "min_decryption_version");
}
