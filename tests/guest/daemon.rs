//! Guests whose disks the daemon attaches, with their keys at a key service: all
//! the way from the key set to a key that is taken away and given back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use cryptoki::object::{Attribute, ObjectClass};
use sealblk::kms::kmip::Mode;
use serde_json::json;

use crate::home::refused;
use crate::machine::{Guest, project};
use crate::manager::Manager;
use crate::openbao::OpenBao;
use crate::pykmip::PyKmip;
use crate::server::{eventually, succeed};
use crate::softhsm::{self, Keys, LABEL, LIBRARY, Token};

/// What all data of a guest here begins with, every 64 bytes.
const PATTERN: &str = "sealblk-pattern seed=";
/// What the job `rounds` writes and verifies.
pub const ROUNDS: u64 = 2;
const ROUND: u64 = 256 << 10;

/// What a test does at its key service.
trait Service {
    /// Takes the key away from all who use it.
    fn disable(&self);
    /// Gives it back.
    fn enable(&self);
}

#[test]
fn a_guest_lives_on_a_key_in_openbao() {
    let service = Transit(OpenBao::start());
    let bao = &service.0;
    bao.mount("transit");
    bao.post("transit/keys/disks", json!({}));
    bao.permit("host", "transit", "disks");
    let token = bao.write("token", &bao.token("host"));
    let auth = format!("auth={{ method = \"token\", token = {token:?} }}");
    // The guest takes all CPUs that there are, and the server waits for one.
    let patience = ["--set", "timeout=20s", "--set", "deadline=60s"];
    let key_set = ["--endpoint", &bao.url(), "--key", "disks", "--set", &auth];
    let key_set = [&key_set[..], &patience].concat();
    let manager = Manager::start(vec![]);
    lives_with_its_key(
        manager,
        "vault",
        &key_set,
        &service,
        ("below the minimum", "min_decryption_version"),
    );
}

/// OpenBao's transit engine.
struct Transit(OpenBao);

impl Service for Transit {
    fn disable(&self) {
        // The latest version cannot be disabled.
        self.0.post("transit/keys/disks/rotate", json!({}));
        self.least_version(2);
    }

    fn enable(&self) {
        self.least_version(1);
    }
}

impl Transit {
    fn least_version(&self, version: u32) {
        let config = json!({ "min_decryption_version": version });
        self.0.post("transit/keys/disks/config", config);
    }
}

#[test]
fn a_guest_lives_on_a_key_at_a_kmip_server() {
    let server = PyKmip::start();
    let client = server.client(Mode::Get);
    let key = sealblk::runtime::block_on(client.create_key("disks"));
    let setting = |name: &str, file: &str| format!("{name}={}", server.path(file).display());
    let endpoint = format!("127.0.0.1:{}", server.port);
    let settings = [
        setting("ca_file", "ca.pem"),
        setting("client_cert", "host.pem"),
        setting("client_key", "host.key"),
        // PyKMIP starts a process for each connection, and that may take time.
        "timeout=20s".into(),
    ];
    let mut key_set = vec!["--endpoint", &endpoint, "--key", "disks"];
    for setting in &settings {
        key_set.extend(["--set", setting]);
    }
    let service = Kmip {
        key: key.unwrap().unwrap(),
        server: &server,
    };
    let manager = Manager::start(vec![]);
    lives_with_its_key(
        manager,
        "kmip",
        &key_set,
        &service,
        ("has been deactivated", "activated again"),
    );
}

struct Kmip<'a> {
    server: &'a PyKmip,
    key: String,
}

impl Service for Kmip<'_> {
    fn disable(&self) {
        self.server.revoke(&self.key, false);
    }

    fn enable(&self) {
        // Active.
        self.server.set_state(&self.key, 2);
    }
}

#[test]
fn a_guest_lives_on_a_key_on_a_token() {
    let token = Token::new();
    token.make(Keys::Aes(32), LABEL, &[1], &[]);
    let uri = format!(
        "pkcs11:{};object={LABEL}?module-path={LIBRARY}",
        token.uri()
    );
    let pin = format!("pin={}", token.pin_file().display());
    let manager = Manager::start(vec![("SOFTHSM2_CONF", softhsm::configuration())]);
    lives_with_its_key(
        manager,
        "pkcs11",
        &["--key", &uri, "--set", &pin],
        &token,
        ("may not decrypt (CKA_DECRYPT)", "have the attribute set"),
    );
}

impl Service for Token {
    fn disable(&self) {
        may_decrypt(self, false);
    }

    fn enable(&self) {
        may_decrypt(self, true);
    }
}

fn may_decrypt(token: &Token, may: bool) {
    let attributes = [Attribute::Decrypt(may), Attribute::Unwrap(may)];
    token.set(ObjectClass::SECRET_KEY, &[1], &attributes);
}

fn lives_with_its_key(
    mut manager: Manager,
    provider: &str,
    key_set: &[&str],
    service: &impl Service,
    // What the refusal says: its cause, and the next step.
    why: (&str, &str),
) {
    let create = ["keyset", "create", "prod", "--provider", provider];
    // What the service has said holds for a second only.
    let poll = ["--set", "poll=1s"];
    manager.succeed(&[&create, key_set, &poll].concat());
    manager.succeed(&[
        "volume",
        "create",
        "--key-set",
        "prod",
        "--size",
        "24M",
        "disk.img",
    ]);
    succeed(&mut manager.attach());
    the_guest_does_not_miss_the_manager(&mut manager);
    manager.detach();
    the_file_holds_no_plaintext(&manager);

    service.disable();
    refused(&mut manager.attach()).expect(8, &["key set \"prod\"", why.0], why.1);
    assert!(manager.workers().is_empty());
    service.enable();
    succeed(&mut manager.attach());
    the_guest_finds_its_data(&manager);
    manager.detach();
    manager.succeed(&["audit", "verify"]);
    let said = manager.messages();
    assert!(
        !said.contains(" ERROR "),
        "nothing of this is a defect: {said}"
    );
}

pub fn the_guest_finds_its_data(manager: &Manager) {
    let regions: Vec<String> = (0..ROUNDS)
        .map(|round| format!("{}:{ROUND}:round{}", round * ROUND, round + 1))
        .collect();
    Guest::new("read-pattern")
        .on(&manager.path("disk.sock"))
        .env("REGIONS", &regions.join(" "))
        .succeed();
}

/// It has no `reconnect`: a connection that is lost, if only for a moment, would
/// be the end of its disk.
pub fn the_guest_does_not_miss_the_manager(manager: &mut Manager) {
    let mut guest = Guest::new("rounds")
        .on(&manager.path("disk.sock"))
        .env("ROUNDS", &ROUNDS.to_string())
        .start();
    let before = manager.disk();
    assert_eq!(before["state"], "running");
    let workers = manager.workers();
    assert_eq!(json!(workers), json!([before["pid"]]));
    guest.wait_for_line("round 1 begins");
    manager.kill_and_restart();
    let after = eventually("the new manager has the disk", || {
        Some(manager.disk()).filter(|disk| disk["state"] == "running")
    });
    for same in [
        "pid",
        "uuid",
        "key_set",
        "provider",
        "key_id",
        "key_version",
        "restarts",
    ] {
        assert_eq!(after[same], before[same], "{same}");
    }
    guest.succeed();
    assert_eq!(manager.workers(), workers);
}

pub fn the_file_holds_no_plaintext(manager: &Manager) {
    let image = manager.path("disk.img");
    let has_pattern = |bytes: &[u8]| {
        let mut places = bytes.windows(PATTERN.len());
        places.any(|at| at == PATTERN.as_bytes())
    };
    let sample = succeed(Command::new(project("qemu/pattern")).args(["round1", "0", "64"]));
    assert!(has_pattern(sample.as_bytes()), "{sample}");
    assert!(!has_pattern(&fs::read(&image).unwrap()), "plaintext");
    // Header aside, what the guest wrote is in there.
    assert!(fs::metadata(&image).unwrap().blocks() * 512 > ROUNDS * ROUND);
}
