//! A volume whose key is in AWS KMS, from making it to losing the key: with
//! the program, a server that verifies signatures, and an independent front
//! end as its guest.
#![cfg(feature = "aws-kms")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/faulty_proxy.rs"]
mod faulty_proxy;
#[allow(dead_code)]
#[path = "support/moto.rs"]
mod moto;
#[path = "support/needles.rs"]
mod needles;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use faulty_proxy::{Fault, Proxy};
use moto::{Key, OPERATIONS, REGION, User, policy, server};
use support::front_end::{FrontEnd, Options};
use support::home::{Home, refused};
use support::server::succeed;

const SECOND: &str = "eu-west-1";

struct Host {
    home: Home,
    user: User,
    key: Key,
    near: Proxy,
}

impl Host {
    /// A key set of a multi-Region key, by an alias that both regions have,
    /// with credentials in a file.
    fn new() -> Self {
        let user = server().user(&policy(&OPERATIONS));
        let key = server().key(json!({"multi_region": true}));
        key.ask("replicate", json!({"to": SECOND}));
        for region in [REGION, SECOND] {
            key.ask("alias", json!({"alias": user.name, "region": region}));
        }
        let host = Host {
            home: Home::new(),
            near: Proxy::to(server().port()),
            user,
            key,
        };
        let credentials = host.home.path("credentials");
        let text = format!(
            "[prod]\naws_access_key_id={}\naws_secret_access_key={}\n",
            host.user.access_key, host.user.secret
        );
        std::fs::write(&credentials, text).unwrap();
        std::fs::set_permissions(&credentials, PermissionsExt::from_mode(0o600)).unwrap();
        let toml = format!(
            r#"
            [daemon]
            state_dir = {state:?}
            [audit]
            path = {audit:?}
            [log]
            level = "trace"
            [key_sets.prod]
            provider = "aws-kms"
            key = "alias/{alias}"
            regions = ["{REGION}", "{SECOND}"]
            endpoints = ["http://127.0.0.1:{near}", "{far}"]
            sts_endpoint = "{far}"
            credentials = {{ source = "profile", profile = "prod", credentials_file = {credentials:?} }}
            deadline = "6s"
            "#,
            state = host.home.path("state"),
            audit = host.home.path("audit.log"),
            alias = host.user.name,
            near = host.near.port(),
            far = server().url(),
        );
        std::fs::write(host.home.path("sealblk.toml"), toml).unwrap();
        host
    }

    fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.sealblk(&["--config", "sealblk.toml"]);
        command.args(arguments);
        command
    }

    fn create(&self, name: &str) -> Value {
        let create = [
            "volume",
            "create",
            "--key-set",
            "prod",
            "--size",
            "4M",
            name,
        ];
        succeed(&mut self.sealblk(&create));
        let info = succeed(&mut self.sealblk(&["volume", "info", "--json", name]));
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["wraps"][0]["provider"], "aws-kms");
        info["wraps"][0].clone()
    }

    fn serve(&self) -> Command {
        self.sealblk(&["serve", "--socket", "disk.sock", "disk.img"])
    }

    fn opens(&self) {
        let mut server = self.home.start("disk.sock", self.serve());
        assert!(server.terminate().success());
    }

    fn both(&self, state: &str) {
        for region in [REGION, SECOND] {
            self.key
                .ask("state", json!({"state": state, "region": region}));
        }
    }
}

#[test]
fn a_volume_lives_and_dies_with_its_key() {
    let host = Host::new();
    let wrap = host.create("disk.img");
    assert_eq!(wrap["key_id"], host.key.arn.as_str());
    assert_eq!(wrap["key_version"], host.key.material.as_str());

    let secret = b"a guest's secret, 32 bytes long!".repeat(128);
    let mut running = host.home.start("disk.sock", host.serve());
    let mut guest = FrontEnd::connect(running.socket(), &Options::default()).unwrap();
    guest.write(8, &secret);
    guest.flush();
    let log = running.messages();
    assert!(log.contains("loaded credentials"), "{log}");
    needles::assert_absent(log.as_bytes(), host.user.secret.as_bytes(), "the log");
    let pid = running.pid();
    for name in ["cmdline", "environ"] {
        let shown = std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
        needles::assert_absent(&shown, host.user.secret.as_bytes(), name);
    }
    // Rotated, disabled, out of reach: what runs goes on.
    let newer = host.key.ask("rotate", json!({}));
    host.both("Disabled");
    assert_eq!(guest.read(8, secret.len()), secret);
    drop(guest);
    assert!(running.terminate().success());

    refused(&mut host.serve()).expect(
        8,
        &["\"prod\"", "is disabled", "DisabledException"],
        "aws kms enable-key --region eu-central-1",
    );
    host.both("PendingDeletion");
    refused(&mut host.serve()).expect(8, &["is to be deleted on 2040"], "cancel-key-deletion");
    host.both("Enabled");
    host.opens();

    // A new volume has the new material; the old one opens.
    let wrap = host.create("newer.img");
    assert_eq!(wrap["key_version"], newer["material"]);
    host.opens();
    // Without the first region.
    host.near.set(Fault::Refuse);
    host.opens();
    let wrap = host.create("elsewhere.img");
    assert_eq!(wrap["key_version"], newer["material"]);
    host.near.set(Fault::None);

    // The record has the service's own id of the request.
    let record = std::fs::read_to_string(host.home.path("audit.log")).unwrap();
    let seen = host.user.seen();
    let decrypt = seen
        .iter()
        .find(|one| one["operation"] == "Decrypt")
        .unwrap();
    assert!(record.contains(decrypt["request_id"].as_str().unwrap()));
    needles::assert_absent(record.as_bytes(), host.user.secret.as_bytes(), "the record");

    host.user.allow(&policy(&["DescribeKey"]));
    refused(&mut host.serve()).expect(
        8,
        &["kms:Decrypt", "is not authorized"],
        "docs/kms/aws-kms.md",
    );
    host.user.allow(&policy(&OPERATIONS));
    for region in [REGION, SECOND] {
        host.key.ask("remove", json!({"region": region}));
    }
    refused(&mut host.serve()).expect(3, &["has no key"], "region and account");
}

fn doctor(host: &Host) -> (i32, Vec<Value>) {
    let output = host
        .sealblk(&["doctor", "--key-set", "prod", "--json"])
        .output()
        .unwrap();
    let shown = [&*output.stdout, &*output.stderr].concat();
    needles::assert_absent(&shown, host.user.secret.as_bytes(), "the doctor");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = all["key_sets"][0]["checks"].as_array().unwrap().clone();
    (output.status.code().unwrap(), checks)
}

/// Panics unless each check of that name has this status, and one says that.
fn expect(checks: &[Value], name: &str, status: &str, words: &str) {
    let named: Vec<&Value> = checks
        .iter()
        .filter(|check| check["name"] == name)
        .collect();
    assert!(!named.is_empty(), "{name} is not in {checks:?}");
    assert!(
        named.iter().all(|check| check["status"] == status),
        "{named:?}"
    );
    let said = named
        .iter()
        .any(|check| check["message"].as_str().unwrap().contains(words));
    assert!(said, "{words:?} is not in {named:?}");
}

#[test]
fn the_doctor_says_what_is_wrong() {
    let host = Host::new();
    let (status, checks) = doctor(&host);
    for name in [
        "service",
        "clock",
        "identity",
        "read_key",
        "key",
        "wrap",
        "unwrap",
        "replication",
    ] {
        expect(&checks, name, "ok", "");
    }
    expect(&checks, "service", "ok", "AWS KMS answers for eu-west-1");
    expect(
        &checks,
        "identity",
        "ok",
        &format!("user/{}", host.user.name),
    );
    expect(&checks, "identity", "ok", "from source \"profile\"");
    expect(
        &checks,
        "replication",
        "ok",
        "each other one unwraps by itself",
    );
    assert_eq!(status, 0, "{checks:?}");

    host.user.allow(&policy(&["DescribeKey", "Encrypt"]));
    let (status, checks) = doctor(&host);
    expect(&checks, "wrap", "ok", "");
    expect(&checks, "unwrap", "fail", "kms:Decrypt");
    assert_eq!(status, 8);

    host.user.allow(&policy(&OPERATIONS));
    host.user.ask("clock", json!({"seconds": 4000}));
    let (status, checks) = doctor(&host);
    expect(&checks, "read_key", "fail", "clock of this host");
    assert_eq!(status, 9);

    host.user.ask("clock", json!({"seconds": 0}));
    // STS out of reach is no failure, where KMS is not.
    let config = host.home.path("sealblk.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let sts = format!("sts_endpoint = \"{}\"", server().url());
    assert!(text.contains(&sts));
    let nowhere = "sts_endpoint = \"http://127.0.0.1:1\"";
    std::fs::write(&config, text.replace(&sts, nowhere)).unwrap();
    let (status, checks) = doctor(&host);
    expect(&checks, "identity", "warn", "refuses the connection");
    expect(&checks, "unwrap", "ok", "");
    assert_eq!(status, 0);
    std::fs::write(&config, text).unwrap();

    let wrong = host.home.path("credentials");
    std::fs::write(
        &wrong,
        "[prod]\naws_access_key_id=AKIANOBODY\naws_secret_access_key=x\n",
    )
    .unwrap();
    let (status, checks) = doctor(&host);
    expect(
        &checks,
        "identity",
        "fail",
        "AWS does not take the credentials",
    );
    assert_eq!(status, 8);
}
