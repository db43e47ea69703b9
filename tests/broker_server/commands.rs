//! `sealblk broker check`, `keygen` and `pubkey`, and what keeps it from starting.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Output};

use super::broker::{Broker, Site, sealblk};
use super::policy::ALL;

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.args(arguments).output().unwrap()
}

fn assert_refused(output: &Output, status: i32, told: &str, help: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    let line = |start: &str| {
        let line = stderr.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no {start} {stderr}"))
            .to_owned()
    };
    assert!(line("error: ").contains(told), "{told}: {stderr}");
    assert!(line("help: ").contains(help), "{help}: {stderr}");
}

#[test]
fn a_key_is_made_once_and_its_public_key_printed() {
    let site = Site::new();
    let path = site.path("host.key");
    let file = path.to_str().unwrap();
    let public = sealblk(&["broker", "keygen", "--out", file]);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(public.trim().len(), 44);
    assert_eq!(sealblk(&["broker", "pubkey", file]), public);
    let again = run(&["broker", "keygen", "--out", file]);
    assert_refused(&again, 6, "host.key", "name another file");
    assert_eq!(sealblk(&["broker", "pubkey", file]), public);
    let nowhere = run(&["broker", "keygen", "--out", "/nonexistent/key"]);
    assert_refused(&nowhere, 3, "cannot make the key", "directory");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let open = run(&["broker", "pubkey", file]);
    assert_refused(&open, 4, "0644", "chmod 0600");
}

/// A broker that is not running, and its configuration.
fn stopped(site: &Site) -> Broker {
    let mut broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    broker.kill();
    broker
}

#[test]
fn check_tries_everything_and_names_what_is_wrong() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let broker = stopped(&site);
    let config = broker.directory.join("sealblk.toml");
    let config = config.to_str().unwrap();
    let check = || run(&["--config", config, "broker", "check"]);
    let json = || {
        let output = run(&["--config", config, "broker", "check", "--json"]);
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let good = check();
    assert!(good.status.success(), "{good:?}");
    let text = String::from_utf8(good.stdout).unwrap();
    let public = broker.key().to_string();
    assert!(
        text.contains(&public) && text.contains("1 hosts, 1 rules"),
        "{text}"
    );
    assert_eq!(json()["ok"], true);

    site.policy(&[&host], "[[rules]]\nhosts = [\"x\"]\nkey_sets = [\"*\"]\n");
    let doubtful = check();
    assert!(doubtful.status.success());
    let text = String::from_utf8(doubtful.stdout).unwrap();
    assert!(text.contains("rule 1 is for no host"), "{text}");
    site.write("policy.toml", b"[[rules]]\nhost = 1\n");
    assert_refused(&check(), 2, "policy.toml:2:1", "correct line 2");
    assert_eq!(json()["ok"], false);
    site.policy(&[&host], ALL);

    let key = broker.directory.join("server.key");
    let kept = fs::read(&key).unwrap();
    let other = site.authority.server();
    site.write("broker/server.key", &other.key_pem());
    assert_refused(
        &check(),
        2,
        "does not belong to the certificate",
        "configure the key",
    );
    site.write("broker/server.key", &kept);
    let expired = site.authority.server_at("127.0.0.1", (-3, -1));
    let pem = fs::read(broker.directory.join("server.pem")).unwrap();
    site.write("broker/server.pem", &expired.certificate_pem());
    site.write("broker/server.key", &expired.key_pem());
    assert_refused(&check(), 8, "expired on", "renewed");
    site.write("broker/server.pem", &pem);
    site.write("broker/server.key", &kept);
    site.write("broker/broker.x25519", b"no key");
    assert_refused(&check(), 2, "not an X25519 private key", "keygen");
    // It does not start either, for the same reason.
    let serve = run(&["--config", config, "broker", "serve"]);
    assert_refused(&serve, 2, "not an X25519 private key", "keygen");
}

#[test]
fn a_broker_needs_its_table_an_address_and_a_policy() {
    let site = Site::new();
    let mut broker = site.broker("broker", "", "");
    let config = broker.directory.join("sealblk.toml");
    // At the address of one that runs.
    broker.configure(None);
    let config_path = config.to_str().unwrap();
    let taken = run(&["--config", config_path, "broker", "serve"]);
    let stderr = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert_eq!(taken.status.code(), Some(5), "{stderr}");
    broker.kill();
    fs::remove_file(site.path("policy.toml")).unwrap();
    let lost = run(&["--config", config_path, "broker", "serve"]);
    assert_refused(
        &lost,
        3,
        "policy.toml",
        "put the policy of the broker there",
    );
    fs::write(&config, "").unwrap();
    for command in ["serve", "check"] {
        let output = run(&["--config", config_path, "broker", command]);
        assert_refused(&output, 2, "no table [broker]", "docs/broker.md");
    }
}
