//! A volume whose key is on a PKCS#11 token, from making it to losing the key:
//! with the program, SoftHSM, and an independent front end as its guest.
#![cfg(feature = "pkcs11")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/needles.rs"]
mod needles;
#[allow(dead_code)]
#[path = "support/softhsm.rs"]
mod softhsm;
mod support;

use std::path::PathBuf;
use std::process::Command;

use cryptoki::object::{Attribute, ObjectClass};
use serde_json::Value;

use softhsm::{Keys, LABEL, LIBRARY, Token};
use support::front_end::{FrontEnd, Options};
use support::home::{Home, Refusal, refused};
use support::server::{Server, succeed};

/// A host with a key set `prod` on a token.
struct Host {
    home: Home,
    token: Token,
    config: PathBuf,
}

impl Host {
    fn new(keys: Keys, more: &str) -> Self {
        let token = Token::new();
        token.make(keys, LABEL, &[1], &[]);
        let home = Home::new();
        let config = home.path("sealblk.toml");
        let state = home.path("state");
        let toml = format!(
            "[log]\nlevel = \"trace\"\n\
             [daemon]\nstate_dir = {state:?}\n\
             [key_sets.prod]\n\
             provider = \"pkcs11\"\n\
             uri = \"pkcs11:{};object={LABEL}?module-path={LIBRARY}\"\n\
             pin = \"{}\"\n\
             deadline = \"6s\"\n\
             {more}\n",
            token.uri(),
            token.pin_file().display(),
        );
        std::fs::write(&config, toml).unwrap();
        Host {
            home,
            token,
            config,
        }
    }

    fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.sealblk(&["--config"]);
        command.arg(&self.config).args(arguments);
        command.env("SOFTHSM2_CONF", softhsm::configuration());
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

    fn start(&self) -> Server {
        self.home.start("disk.sock", self.serve())
    }

    fn serve_refused(&self) -> Refusal {
        refused(&mut self.serve())
    }

    /// Forbids, or permits again, what the key is used for.
    fn allow(&self, keys: Keys, may: bool) {
        let (class, attributes) = match keys {
            Keys::Aes(_) => (
                ObjectClass::SECRET_KEY,
                vec![Attribute::Decrypt(may), Attribute::Unwrap(may)],
            ),
            Keys::Rsa(_) => (ObjectClass::PRIVATE_KEY, vec![Attribute::Decrypt(may)]),
        };
        self.token.set(class, &[1], &attributes);
    }
}

fn lives_and_dies_with_its_key(keys: Keys, more: &str, alg: &str) {
    let host = Host::new(keys, more);
    succeed(&mut host.create("disk.img"));
    let info = succeed(&mut host.sealblk(&["volume", "info", "--json", "disk.img"]));
    let info: Value = serde_json::from_str(&info).unwrap();
    let wrap = &info["wraps"][0];
    assert_eq!(wrap["provider"], "pkcs11");
    assert_eq!(wrap["key_id"], "pkcs11:object=disks");
    assert_eq!(wrap["key_version"], "01");
    assert_eq!(wrap["alg"], alg);

    let secret = b"a guest's secret, 32 bytes long!".repeat(128);
    let mut server = host.start();
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    guest.write(8, &secret);
    guest.flush();
    // The key is rotated and then disabled: what runs goes on.
    host.token.make(keys, LABEL, &[2], &[]);
    host.allow(keys, false);
    assert_eq!(guest.read(8, secret.len()), secret);
    drop(guest);
    assert!(server.terminate().success());
    let stored = std::fs::read(host.home.path("disk.img")).unwrap();
    assert!(!stored.windows(32).any(|window| window == &secret[..32]));

    host.serve_refused().expect(8, &["CKA_"], "attribute");
    host.allow(keys, true);
    let mut server = host.start();
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert_eq!(guest.read(8, secret.len()), secret);
    drop(guest);
    assert!(server.terminate().success());
    succeed(&mut host.create("other.img"));
    let info = succeed(&mut host.sealblk(&["volume", "info", "--json", "other.img"]));
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["wraps"][0]["key_version"], "02");

    // Neither the PIN nor a key is shown, at the highest level of logging.
    softhsm::write(&host.token.pin_file(), "not the right pin");
    let output = host.serve().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(said.contains("CKR_PIN_INCORRECT"), "{said}");
    softhsm::write(&host.token.pin_file(), &host.token.pin);
    host.token.delete(&[1]);
    let output = host.serve().output().unwrap();
    let said = said + &String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("with CKA_ID 01"), "{said}");
    for secret in host.token.secrets() {
        needles::assert_absent(said.as_bytes(), &secret, "what the program says");
    }

    let text = std::fs::read_to_string(&host.config).unwrap();
    let elsewhere = text.replace(&host.token.uri(), "token=elsewhere");
    std::fs::write(
        &host.config,
        elsewhere.replace("6s", "1s") + "timeout = \"1s\"\n",
    )
    .unwrap();
    host.serve_refused()
        .expect(9, &["token=elsewhere is not there"], "plug the token in");
}

#[test]
fn a_volume_lives_and_dies_with_an_aes_key_on_a_token() {
    lives_and_dies_with_its_key(Keys::Aes(32), "", "A256GCM");
}

#[test]
fn a_volume_lives_and_dies_with_a_key_that_wraps() {
    lives_and_dies_with_its_key(Keys::Aes(32), "mechanism = \"kwp\"", "A256KWP");
}

#[test]
fn a_volume_lives_and_dies_with_a_key_pair_on_a_token() {
    lives_and_dies_with_its_key(Keys::Rsa(2048), "", "RSA-OAEP");
}
