//! A volume whose key is behind a Kubernetes KMS plugin, from making it to
//! losing the key: with the program, a plugin that is not ours, and an
//! independent front end as its guest.
#![cfg(feature = "k8s-kms")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/k8s_plugin.rs"]
mod k8s_plugin;
mod support;

use std::process::Command;

use serde_json::{Value, json};

use k8s_plugin::Plugin;
use support::front_end::{FrontEnd, Options};
use support::home::{Home, refused};
use support::server::succeed;

struct Host {
    home: Home,
    plugin: Plugin,
}

impl Host {
    fn new() -> Self {
        let host = Host {
            home: Home::new(),
            plugin: Plugin::start(),
        };
        let toml = format!(
            "[daemon]\nstate_dir = {:?}\n\
             [key_sets.prod]\n\
             provider = \"k8s-kms\"\n\
             endpoint = \"unix://{}\"\n\
             timeout = \"10s\"\n\
             deadline = \"10s\"\n",
            host.home.path("state"),
            host.plugin.socket().display()
        );
        // For a plugin that does not answer.
        let hasty = toml.replace("\"10s\"", "\"1s\"");
        std::fs::write(host.home.path("sealblk.toml"), toml).unwrap();
        std::fs::write(host.home.path("hasty.toml"), hasty).unwrap();
        host
    }

    fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.sealblk(&["--config", "sealblk.toml"]);
        command.args(arguments);
        command
    }

    fn create(&self, name: &str) -> Command {
        self.sealblk(&[
            "volume",
            "create",
            "--key-set",
            "prod",
            "--size",
            "4M",
            name,
        ])
    }

    fn serve(&self) -> Command {
        self.sealblk(&["serve", "--socket", "disk.sock", "disk.img"])
    }

    fn key_version(&self, name: &str) -> Value {
        let info = succeed(&mut self.sealblk(&["volume", "info", "--json", name]));
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["wraps"][0]["provider"], "k8s-kms");
        info["wraps"][0]["key_version"].clone()
    }
}

#[test]
fn a_volume_lives_and_dies_with_the_key_of_a_plugin() {
    let host = Host::new();
    succeed(&mut host.create("disk.img"));
    assert_eq!(host.key_version("disk.img"), "key-1");

    let secret = b"a guest's secret, 32 bytes long!".repeat(128);
    let mut server = host.home.start("disk.sock", host.serve());
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    guest.write(8, &secret);
    guest.flush();
    // Rotated, disabled, gone: what runs goes on.
    host.plugin.rotate();
    host.plugin.set_enabled("key-1", false);
    host.plugin.stop();
    assert_eq!(guest.read(8, secret.len()), secret);
    drop(guest);
    assert!(server.terminate().success());
    let stored = std::fs::read(host.home.path("disk.img")).unwrap();
    assert!(!stored.windows(32).any(|window| window == &secret[..32]));

    refused(&mut host.serve()).expect(9, &["there is no socket"], "start the plugin");
    host.plugin.start_again();
    refused(&mut host.serve()).expect(
        8,
        &[
            "the key is disabled",
            "FailedPrecondition: key key-1 is disabled",
        ],
        "enabled",
    );
    host.plugin.set_enabled("key-1", true);
    let mut server = host.home.start("disk.sock", host.serve());
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert_eq!(guest.read(8, secret.len()), secret);
    drop(guest);
    assert!(server.terminate().success());

    succeed(&mut host.create("other.img"));
    assert_eq!(host.key_version("other.img"), "key-2");
    host.plugin
        .set("code", json!({"Decrypt": ["PERMISSION_DENIED", "not you"]}));
    refused(&mut host.serve()).expect(8, &["may not use the key", "not you"], "permissions");
    host.plugin.set("code", json!({}));
    host.plugin.set("silent", json!(["Decrypt"]));
    let mut hasty = host.home.sealblk(&["--config", "hasty.toml", "serve"]);
    hasty.args(["--socket", "disk.sock", "disk.img"]);
    refused(&mut hasty).expect(9, &["did not answer within 1.0 s"], "service runs");
    host.plugin.set("silent", json!([]));
    host.plugin.delete("key-1");
    refused(&mut host.serve()).expect(3, &["does not find the key"], "configured");
}
