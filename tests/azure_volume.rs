//! A volume whose key is at Azure, from making it to losing the key: with the
//! program, the fake in `support/azure`, and an independent front end as its
//! guest.
#![cfg(feature = "azure-keyvault")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/azure/mod.rs"]
mod azure;
#[allow(dead_code)]
#[path = "support/certificates.rs"]
mod certificates;
#[allow(dead_code)]
#[path = "support/needles.rs"]
mod needles;
mod support;

use std::path::PathBuf;
use std::process::Command;

use azure::vault::Vault;
use azure::{Azure, CLIENT, KEY, Kind, login};
use serde_json::Value;
use support::front_end::{FrontEnd, Options};
use support::home::{Home, Refusal, refused};
use support::server::{Server, succeed};

/// A host with a key set `prod` at a vault.
struct Host {
    home: Home,
    azure: Azure,
    kind: Kind,
    config: PathBuf,
}

impl Host {
    /// Who is `identity`, in TOML.
    fn new(kind: Kind, identity: impl Fn(&Azure) -> String) -> Self {
        let azure = Azure::start();
        let home = Home::new();
        let config = home.path("sealblk.toml");
        let resource = azure.state().vault(kind).resource;
        let toml = format!(
            "[log]\nlevel = \"trace\"\n\
             [daemon]\nstate_dir = {:?}\n\
             [audit]\npath = {:?}\n\
             [key_sets.prod]\n\
             provider = \"azure-keyvault\"\n\
             key = \"{}/keys/{KEY}\"\n\
             authority = \"{}\"\n\
             resource = {resource:?}\n\
             ca_file = {:?}\n\
             identity = {}\n\
             deadline = \"6s\"\n",
            home.path("state"),
            home.path("audit.log"),
            azure.url(kind),
            azure.login_url(),
            azure.ca_file(),
            identity(&azure),
        );
        std::fs::write(&config, toml).unwrap();
        Host {
            home,
            azure,
            kind,
            config,
        }
    }

    fn at<T>(&self, change: impl FnOnce(&mut Vault) -> T) -> T {
        change(self.azure.state().vault(self.kind))
    }

    fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.sealblk(&["--config"]);
        command.arg(&self.config).args(arguments);
        command
    }

    /// Makes a volume, and says which wrap it has.
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

    fn start(&self) -> Server {
        self.home.start("disk.sock", self.serve())
    }

    fn serve_refused(&self) -> Refusal {
        refused(&mut self.serve())
    }
}

fn lives_and_dies_with_its_key(kind: Kind, alg: &str, identity: impl Fn(&Azure) -> String) {
    let host = Host::new(kind, identity);
    // To be told as deleted, which the usual role of an HSM leaves out.
    host.at(|vault| {
        vault
            .permissions
            .get_mut(CLIENT)
            .unwrap()
            .insert("getDeleted")
    });
    let first = host.at(|vault| vault.latest(KEY).id.clone());
    let wrap = host.create("disk.img");
    assert_eq!(wrap["provider"], "azure-keyvault");
    assert_eq!(
        wrap["key_id"],
        format!("{}/keys/{KEY}", host.azure.url(kind))
    );
    assert_eq!(wrap["key_version"], first);
    assert_eq!(wrap["alg"], alg);

    let secret = b"a guest's secret, 32 bytes long!".repeat(128);
    let mut server = host.start();
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    guest.write(8, &secret);
    guest.flush();
    // The key is rotated and then disabled: what runs goes on.
    host.at(|vault| {
        vault.rotate(KEY);
        vault.version(&first).enabled = false;
    });
    assert_eq!(guest.read(8, secret.len()), secret);
    drop(guest);
    assert!(server.terminate().success());
    let stored = std::fs::read(host.home.path("disk.img")).unwrap();
    assert!(!stored.windows(32).any(|window| window == &secret[..32]));

    host.serve_refused()
        .expect(8, &[&first, "is disabled"], "--enabled true");
    host.at(|vault| {
        vault.version(&first).enabled = true;
        // It has ended, and opens what it has wrapped.
        vault.version(&first).exp = Some(azure::now() - 1);
    });
    let mut server = host.start();
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert_eq!(guest.read(8, secret.len()), secret);
    drop(guest);
    assert!(server.terminate().success());
    let second = host.at(|vault| vault.latest(KEY).id.clone());
    assert_eq!(host.create("other.img")["key_version"], second);

    host.at(|vault| vault.delete(KEY));
    host.serve_refused().expect(
        8,
        &["has been deleted, and can be recovered until"],
        "az keyvault key recover --name disks",
    );
    host.at(|vault| vault.recover(KEY));
    host.at(|vault| vault.permissions.remove(CLIENT));
    // Neither a credential nor a token is shown, at the highest level of logging.
    let output = host.serve().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(said.contains("ForbiddenByRbac"), "{said}");
    let said = said + &std::fs::read_to_string(host.home.path("audit.log")).unwrap();
    let tokens: Vec<String> = host.azure.state().tokens.keys().cloned().collect();
    assert!(!tokens.is_empty());
    for secret in tokens.iter().map(String::as_str).chain([login::SECRET]) {
        needles::assert_absent(said.as_bytes(), secret.as_bytes(), "what the program says");
    }
    host.at(|vault| vault.mood = azure::vault::Mood::Gone);
    host.serve_refused().expect(
        9,
        &["broke the connection off"],
        "see what the service logs",
    );
}

#[test]
fn a_volume_lives_and_dies_with_an_rsa_key_of_a_vault() {
    lives_and_dies_with_its_key(Kind::Vault, "RSA-OAEP-256", |azure| {
        let secret = azure.path("client-secret");
        format!("{{ method = \"client-secret\", client_id = {CLIENT:?}, secret = {secret:?} }}")
    });
}

#[test]
fn a_volume_lives_and_dies_with_a_symmetric_key_of_an_hsm() {
    lives_and_dies_with_its_key(Kind::Hsm, "A256KW", |azure| {
        let endpoint = azure.platform_url();
        format!("{{ method = \"managed-identity\", endpoint = {endpoint:?} }}")
    });
}
