//! Volumes whose key is at a key service: made, shown and served with a real
//! OpenBao, and refused for the right reason when it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

#[path = "support/needles.rs"]
mod needles;
#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;

use std::path::PathBuf;

use openbao::OpenBao;
use serde_json::{Value, json};
use support::front_end::{FrontEnd, Options};
use support::home::{Home, Refusal, refused};
use support::server::{Server, succeed};

/// A host with a key set `prod` at a server with TLS, where it logs in with
/// AppRole and has the policy of the documentation.
struct Host {
    home: Home,
    server: OpenBao,
    secret_id: String,
    config: PathBuf,
}

impl Host {
    fn new() -> Self {
        let server = OpenBao::start_tls();
        server.mount("transit");
        server.post("transit/keys/disks", json!({}));
        server.permit("sealblk", "transit", "disks");
        server.post("sys/auth/approle", json!({"type": "approle"}));
        let role = "auth/approle/role/host-1";
        server.post(
            role,
            json!({"token_policies": ["sealblk"], "token_ttl": "1h"}),
        );
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let role_id = text(&server.get(&format!("{role}/role-id"))["data"]["role_id"]);
        let secret = server.post(&format!("{role}/secret-id"), json!({}));
        let secret_id = text(&secret["data"]["secret_id"]);
        let home = Home::new();
        let config = home.path("sealblk.toml");
        let toml = format!(
            r#"
            [daemon]
            state_dir = "{state}"
            [log]
            level = "trace"
            [key_sets.prod]
            provider = "vault"
            endpoints = ["https://127.0.0.1:{nobody}", "{url}"]
            key = "disks"
            auth = {{ method = "approle", role_id = "{role_id}", secret_id = "{secret}" }}
            ca_file = "{ca}"
            deadline = "6s"
            "#,
            state = home.path("state").display(),
            nobody = openbao::free_port(),
            url = server.url(),
            secret = server.write("secret-id", &secret_id).display(),
            ca = server.ca_file().display(),
        );
        std::fs::write(&config, toml).unwrap();
        Host {
            home,
            server,
            secret_id,
            config,
        }
    }

    fn sealblk(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.home.sealblk(&["--config"]);
        command.arg(&self.config).args(arguments);
        command
    }

    fn create(&self, name: &str) -> Value {
        let create = [
            "volume",
            "create",
            name,
            "--size",
            "4M",
            "--key-set",
            "prod",
        ];
        succeed(&mut self.sealblk(&create));
        let info = succeed(&mut self.sealblk(&["volume", "info", name, "--json"]));
        serde_json::from_str(&info).unwrap()
    }

    fn serve(&self, name: &str) -> Server {
        let command = self.sealblk(&["serve", name, "--socket", "disk.sock"]);
        self.home.start("disk.sock", command)
    }

    fn serve_refused(&self, name: &str) -> Refusal {
        refused(&mut self.sealblk(&["serve", name, "--socket", "disk.sock"]))
    }
}

fn connect(server: &Server) -> FrontEnd {
    FrontEnd::connect(server.socket(), &Options::default()).unwrap()
}

#[test]
fn a_volume_is_made_shown_and_served_with_a_key_at_the_service() {
    let host = Host::new();
    let info = host.create("disk.img");
    let wrap = &info["wraps"][0];
    assert_eq!(wrap["key_set"], "prod", "{info}");
    assert_eq!(wrap["provider"], "vault");
    assert_eq!(wrap["key_id"], "disks");
    assert_eq!(wrap["key_version"], "1");

    let data = b"data of the guest".repeat(512);
    let data = &data[..8192];
    let mut server = host.serve("disk.img");
    let mut front_end = connect(&server);
    front_end.write(0, data);
    front_end.flush();
    let log = server.messages();
    assert!(
        log.contains("logged in"),
        "the log is as full as it can be: {log}"
    );
    needles::assert_absent(log.as_bytes(), host.secret_id.as_bytes(), "the log");
    let pid = server.pid();
    for name in ["cmdline", "environ"] {
        let shown = std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
        needles::assert_absent(&shown, host.secret_id.as_bytes(), name);
    }
    drop(front_end);
    assert!(server.terminate().success());

    // With a new version, old volumes open and new ones have it.
    host.server.post("transit/keys/disks/rotate", json!({}));
    let newer = host.create("newer.img");
    assert_eq!(newer["wraps"][0]["key_version"], "2");
    let mut server = host.serve("disk.img");
    assert_eq!(connect(&server).read(0, data.len()), data);
    assert!(server.terminate().success());
    let mut server = host.serve("newer.img");
    connect(&server);

    // The service gone, the disk goes on.
    let mut front_end = connect(&server);
    host.server.seal();
    front_end.write(8, data);
    front_end.flush();
    assert_eq!(front_end.read(8, data.len()), data);
    drop(front_end);
    assert!(server.terminate().success());
}

#[test]
fn what_the_service_says_is_what_the_operator_is_told() {
    let mut host = Host::new();
    host.create("disk.img");
    let server = &host.server;
    let open = || {
        let mut served = host.serve("disk.img");
        assert!(served.terminate().success());
    };
    open();

    server.delete("transit/keys/disks/soft-delete");
    host.serve_refused("disk.img").expect(
        8,
        &["\"prod\"", "has been deleted"],
        "soft-delete-restore",
    );
    server.post("transit/keys/disks/soft-delete-restore", json!({}));
    open();

    server.post("transit/keys/disks/rotate", json!({}));
    server.post(
        "transit/keys/disks/config",
        json!({"min_decryption_version": 2}),
    );
    host.serve_refused("disk.img").expect(
        8,
        &["version \"1\"", "below the minimum"],
        "min_decryption_version",
    );
    server.post(
        "transit/keys/disks/config",
        json!({"min_decryption_version": 1}),
    );
    open();

    server.permit("sealblk", "transit", "other");
    host.serve_refused("disk.img")
        .expect(8, &["does not permit transit/decrypt/disks"], "policy");
    server.permit("sealblk", "transit", "disks");
    open();

    server.post(
        "auth/approle/role/host-1/secret-id/destroy",
        json!({"secret_id": host.secret_id}),
    );
    host.serve_refused("disk.img")
        .expect(8, &["does not let this host log in"], "credential");
    let fresh = server.post("auth/approle/role/host-1/secret-id", json!({}));
    server.write("secret-id", fresh["data"]["secret_id"].as_str().unwrap());
    open();

    server.seal();
    host.serve_refused("disk.img").expect(
        9,
        &["none of 2 endpoints helped", "refuses", "is sealed"],
        "unseal",
    );
    host.server.kill();
    host.serve_refused("disk.img").expect(
        9,
        &["none of 2 endpoints helped", "refuses"],
        "check that the service runs",
    );
}

/// Somebody gives a copy the identity of another volume.
#[test]
fn a_wrapped_key_opens_no_other_volume() {
    let host = Host::new();
    let uuid = |info: Value| info["uuid"].as_str().unwrap().to_owned();
    let own = uuid(host.create("disk.img"));
    let other = uuid(host.create("other.img"));
    let change = |uuid: &str| {
        let mut cryptsetup = std::process::Command::new("cryptsetup");
        cryptsetup.args(["luksUUID", "--batch-mode", "--uuid", uuid]);
        succeed(cryptsetup.arg(host.home.path("disk.img")));
    };
    change(&other);
    host.serve_refused("disk.img")
        .expect(8, &["does not open the wrapped key"], "backup");
    change(&own);
    let mut served = host.serve("disk.img");
    assert!(served.terminate().success());
}
