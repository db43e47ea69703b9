//! A volume whose key is in Cloud KMS, from making it to losing the key: with
//! the program, a fake that Google's own clients take for the service, and an
//! independent front end as its guest.
#![cfg(feature = "gcp-kms")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/gcp/mod.rs"]
mod gcp;
#[path = "support/needles.rs"]
mod needles;
mod support;

use std::process::Command;

use serde_json::{Value, json};

use gcp::identity::Identities;
use gcp::kms::full_name;
use gcp::{Answer, Gcp};
use support::front_end::{FrontEnd, Options};
use support::home::{Home, refused};
use support::server::succeed;

struct Host {
    home: Home,
    gcp: Gcp,
}

impl Host {
    fn new() -> Self {
        let host = Host {
            home: Home::new(),
            gcp: Gcp::start(),
        };
        let toml = format!(
            r#"
            [daemon]
            state_dir = "{state}"
            [audit]
            path = "{audit}"
            [log]
            level = "trace"
            [key_sets.prod]
            provider = "gcp-kms"
            endpoints = ["{url}"]
            key = "{key}"
            auth = {{ method = "file", credentials = "{file}", trusted_hosts = ["127.0.0.1"] }}
            timeout = "20s"
            deadline = "20s"
            "#,
            state = host.home.path("state").display(),
            audit = host.home.path("audit.jsonl").display(),
            url = host.gcp.url(),
            key = full_name("disks"),
            file = host.gcp.account_file().display(),
        );
        let short = toml.replace("deadline = \"20s\"", "deadline = \"1s\"");
        let short = short.replace("timeout = \"20s\"", "timeout = \"1s\"");
        std::fs::write(host.home.path("sealblk.toml"), toml).unwrap();
        std::fs::write(host.home.path("hasty.toml"), short).unwrap();
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
        serde_json::from_str::<Value>(&info).unwrap()["wraps"][0].clone()
    }

    fn serve(&self) -> Command {
        self.sealblk(&["serve", "--socket", "disk.sock", "disk.img"])
    }

    fn set_state(&self, state: &'static str) {
        self.gcp.cloud().keys.set_state("disks", "1", state);
    }
}

#[test]
fn a_volume_lives_and_dies_with_its_key() {
    let host = Host::new();
    let wrap = host.create("disk.img");
    assert_eq!(wrap["provider"], "gcp-kms");
    assert_eq!(wrap["key_id"], full_name("disks"));
    assert_eq!(wrap["key_version"], "1");

    let secret = b"a guest's secret, 32 bytes long!".repeat(128);
    let mut server = host.home.start("disk.sock", host.serve());
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    guest.write(8, &secret);
    guest.flush();
    // Rotated, disabled, without rights: what runs goes on.
    host.gcp.cloud().keys.rotate("disks");
    host.set_state("DISABLED");
    host.gcp.cloud().identities.account_enabled = false;
    assert_eq!(guest.read(8, secret.len()), secret);
    drop(guest);
    let log = server.messages();
    assert!(
        log.contains("was given a token"),
        "the log is as full as it can be: {log}"
    );
    let tokens = host.gcp.cloud().identities.tokens();
    for secret in tokens.iter().map(|token| &token.as_bytes()[7..]) {
        needles::assert_absent(log.as_bytes(), secret, "the log");
    }
    needles::assert_absent(log.as_bytes(), &Identities::private_key()[100..], "the log");
    assert!(server.terminate().success());
    let stored = std::fs::read(host.home.path("disk.img")).unwrap();
    assert!(!stored.windows(32).any(|window| window == &secret[..32]));

    refused(&mut host.serve()).expect(8, &["is disabled"], "service-accounts enable");
    host.gcp.cloud().identities.account_enabled = true;
    refused(&mut host.serve()).expect(8, &["version 1 of", "is disabled"], "versions enable 1");
    host.set_state("DESTROY_SCHEDULED");
    refused(&mut host.serve()).expect(8, &["scheduled for destruction"], "versions restore 1");
    host.set_state("ENABLED");
    let mut server = host.home.start("disk.sock", host.serve());
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert_eq!(guest.read(8, secret.len()), secret);
    drop(guest);
    assert!(server.terminate().success());

    assert_eq!(host.create("other.img")["key_version"], "2");
    host.gcp.cloud().keys.denied = ["cloudkms.cryptoKeyVersions.useToDecrypt".to_owned()].into();
    refused(&mut host.serve()).expect(8, &["does not let this host decrypt"], "useToDecrypt");
    host.gcp.cloud().keys.denied.clear();
    host.gcp
        .intercept(|asked| asked.path.ends_with(":decrypt").then_some(Answer::Silence));
    let hasty = [
        "--config",
        "hasty.toml",
        "serve",
        "--socket",
        "disk.sock",
        "disk.img",
    ];
    refused(&mut host.home.sealblk(&hasty)).expect(
        9,
        &["did not answer within 1.0 s"],
        "service runs",
    );
    host.gcp.leave_alone();
    host.set_state("DESTROYED");
    refused(&mut host.serve()).expect(8, &["was destroyed at 2031-05-17"], "break-glass");
}

/// Somebody gives a copy the identity of another volume.
#[test]
fn a_wrapped_key_opens_no_other_volume() {
    let host = Host::new();
    host.create("disk.img");
    host.create("other.img");
    let uuid = |name: &str| -> Value {
        let info = succeed(&mut host.sealblk(&["volume", "info", "--json", name]));
        serde_json::from_str::<Value>(&info).unwrap()["uuid"].clone()
    };
    let (own, other) = (uuid("disk.img"), uuid("other.img"));
    let change = |uuid: &Value| {
        let mut cryptsetup = Command::new("cryptsetup");
        cryptsetup.args(["luksUUID", "--batch-mode", "--uuid", uuid.as_str().unwrap()]);
        succeed(cryptsetup.arg(host.home.path("disk.img")));
    };
    change(&other);
    refused(&mut host.serve()).expect(8, &["does not open"], "backup");
    change(&own);
    let mut served = host.home.start("disk.sock", host.serve());
    assert!(served.terminate().success());
    // The binding is checked by the service, and told apart from other faults.
    host.gcp.alter(|asked, answer| {
        if asked.path.ends_with(":decrypt") {
            answer["plaintextCrc32c"] = json!("1");
        }
    });
    let hasty = [
        "--config",
        "hasty.toml",
        "serve",
        "--socket",
        "disk.sock",
        "disk.img",
    ];
    refused(&mut host.home.sealblk(&hasty)).expect(
        9,
        &["the checksum is another one"],
        "between this host",
    );
}
