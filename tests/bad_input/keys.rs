//! The key is not there, not the right one, or may not be used.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::support::home::Home;
use super::support::server::{key_file, succeed};
use super::{assert_serves, untouched, written};

/// Runs `sealblk key` on the platform key.
fn key(home: &Home, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.arg("key").args(arguments).arg("--key-file");
    succeed(command.arg(key_file(home.directory())))
}

/// The id of the only version of the platform key.
fn version(home: &Home) -> String {
    let list: serde_json::Value = serde_json::from_str(&key(home, &["list", "--json"])).unwrap();
    list["versions"][0]["id"].as_str().unwrap().into()
}

#[test]
fn another_key_file() {
    let home = written();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealblk"));
    succeed(
        command
            .args(["key", "init", "--key-file"])
            .arg(home.path("other.key")),
    );
    let refusal = untouched(&home, || {
        home.refused(&[
            "serve",
            "disk.img",
            "--socket",
            "disk.sock",
            "--key-file",
            "other.key",
        ])
    });
    refusal.expect(
        8,
        &["cannot unwrap the volume's key", "other.key"],
        "key file",
    );
}

#[test]
fn no_key_file() {
    let home = written();
    let refusal = untouched(&home, || {
        home.refused(&[
            "serve",
            "disk.img",
            "--socket",
            "disk.sock",
            "--key-file",
            "missing.key",
        ])
    });
    refusal.expect(3, &["missing.key", "does not exist"], "key");
}

#[test]
fn a_key_file_that_others_can_read() {
    let home = written();
    let mode = |mode| fs::set_permissions(key_file(home.directory()), Permissions::from_mode(mode));
    mode(0o640).unwrap();
    untouched(&home, || home.serve_refused(&[])).expect(4, &["platform.key", "0640"], "chmod");
    mode(0o600).unwrap();
    assert_serves(&home, &["disk.img"]);
}

#[test]
fn a_damaged_key_file() {
    let home = written();
    let path = key_file(home.directory());
    let good = fs::read_to_string(&path).unwrap();
    for bad in ["", "nonsense", &good[..good.len() / 2]] {
        fs::write(&path, bad).unwrap();
        untouched(&home, || home.serve_refused(&[])).expect(7, &["platform.key"], "backup");
    }
    fs::write(&path, good).unwrap();
    assert_serves(&home, &["disk.img"]);
}

#[test]
fn a_version_that_is_disabled_and_then_removed() {
    let home = written();
    let old = version(&home);
    key(&home, &["add-version"]);
    assert_serves(&home, &["disk.img"]);
    fs::remove_file(home.path("disk.log")).unwrap();

    key(&home, &["disable", &old]);
    let refusal = untouched(&home, || home.serve_refused(&[]));
    refusal.expect(8, &[&old, "disabled"], "sealblk key enable");
    key(&home, &["enable", &old]);
    assert_serves(&home, &["disk.img"]);
    fs::remove_file(home.path("disk.log")).unwrap();

    key(&home, &["disable", &old]);
    key(&home, &["remove-version", &old, "--destroy-key"]);
    let refusal = untouched(&home, || home.serve_refused(&[]));
    refusal.expect(8, &[&old, "removed"], "backup");
}

#[test]
fn a_key_set_that_this_host_does_not_have() {
    let home = Home::new();
    let config = |set: &str| {
        let text = format!(
            "[daemon]\nstate_dir = {:?}\n[key_sets.{set}]\nprovider = \"file\"\nkey_file = {:?}\n",
            home.path("state"),
            key_file(home.directory())
        );
        fs::write(home.path("sealblk.toml"), text).unwrap();
    };
    config("here");
    let create = ["--config", "sealblk.toml", "--key-set", "here"];
    home.create("disk.img", &create);
    config("there");
    let refusal = untouched(&home, || home.serve_refused(&["--config", "sealblk.toml"]));
    refusal.expect(3, &["\"here\"", "there"], "define the key set");
    let create = [
        "volume",
        "create",
        "new.img",
        "--size",
        "1M",
        "--key-set",
        "nowhere",
    ];
    untouched(&home, || home.refused(&create)).expect(3, &["nowhere"], "");
}
