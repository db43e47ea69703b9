//! A key service that is the right one, and lies: about what it wrapped, what
//! it unwrapped, and which version it has. No volume is made that it could not
//! open, none is opened with another key, and none loses the wrap it had.
//!
//! What stands above the providers does not know which one it is: this service
//! speaks the protocol of Vault.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::hostile::{Asked, Hostile, Stream, http};

/// What is untrue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// It unwraps what was wrapped before that.
    AnotherKey,
    Zeros,
    Short,
    Long,
    Nothing,
    /// What it unwraps is what it was given.
    TheSameBack,
    /// It does not open what it wrapped.
    Refused,
    /// What it wrapped is no text for a terminal.
    Escapes,
}

const LIES: [Lie; 7] = [
    Lie::AnotherKey,
    Lie::Zeros,
    Lie::Short,
    Lie::Long,
    Lie::Nothing,
    Lie::TheSameBack,
    Lie::Refused,
];

struct State {
    lie: Lie,
    version: u32,
    /// What was wrapped, in its order, by what it was wrapped as.
    kept: Vec<(String, String)>,
    aad: HashMap<String, Value>,
}

/// A host with a key set at a liar.
struct Site {
    directory: TempDir,
    state: Arc<Mutex<State>>,
    _server: Hostile,
}

impl Site {
    fn new(hierarchy: &str) -> Self {
        let state = Arc::new(Mutex::new(State {
            lie: Lie::None,
            version: 1,
            kept: Vec::new(),
            aad: HashMap::new(),
        }));
        let own = state.clone();
        let serve = move |stream: &mut dyn Stream| {
            while let Some(asked) = Asked::read(stream) {
                let answer = own.lock().unwrap().answer(&asked);
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        };
        let server = Hostile::plain(Box::new(serve));
        let directory = TempDir::new().unwrap();
        let site = Site {
            directory,
            state,
            _server: server,
        };
        let token = site.path("token");
        std::fs::write(&token, "token").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&token, mode).unwrap();
        let text = format!(
            "[daemon]\nstate_dir = {:?}\n[key_sets.prod]\nprovider = \"vault\"\nendpoints = [\"http://127.0.0.1:{}\"]\nkey = \"disks\"\nauth = {{ method = \"token\", token = {token:?} }}\nhierarchy = {hierarchy:?}\ntimeout = \"20s\"\ndeadline = \"20s\"\n",
            site.path("state"),
            site._server.port
        );
        std::fs::write(site.path("sealblk.toml"), text).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn tells(&self, lie: Lie) {
        self.state.lock().unwrap().lie = lie;
    }

    fn sealblk(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.args(["--config".as_ref(), self.path("sealblk.toml").as_os_str()]);
        command.args(arguments).current_dir(self.directory.path());
        command.output().unwrap()
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) {
        let output = self.sealblk(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }

    /// What a command says that is refused, with the next step.
    #[track_caller]
    fn refused(&self, arguments: &[&str], what: &str) -> String {
        let output = self.sealblk(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success(),
            "{what}: {arguments:?} succeeded: {printed}{said}"
        );
        assert!(said.contains("help: "), "{what}: {said}");
        assert!(!said.contains("panicked"), "{what}: {said}");
        let is_plain = said.chars().all(|c| c == '\n' || !c.is_control());
        assert!(is_plain, "{what}: {said:?}");
        said
    }

    fn create(&self, name: &str) -> [String; 7] {
        let words = [
            "volume",
            "create",
            "--key-set",
            "prod",
            "--size",
            "1M",
            name,
        ];
        words.map(str::to_owned)
    }

    fn export(name: &str) -> [&str; 6] {
        [
            "volume",
            "export-dek",
            "--i-understand-that-this-key-decrypts-the-disk",
            "--to",
            "dek",
            name,
        ]
    }

    /// The key of a volume, as its key set gives it.
    #[track_caller]
    fn dek(&self, name: &str) -> Vec<u8> {
        self.succeed(&Self::export(name));
        let dek = std::fs::read(self.path("dek")).unwrap();
        std::fs::remove_file(self.path("dek")).unwrap();
        assert_eq!(dek.len(), 64);
        dek
    }
}

impl State {
    fn answer(&mut self, asked: &Asked) -> Vec<u8> {
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let said = if asked.is_for("lookup-self") {
            json!({"data": {"ttl": 0, "creation_ttl": 0, "renewable": false}})
        } else if asked.is_for("/keys/disks") {
            json!({"data": {"type": "aes256-gcm96", "latest_version": self.version}})
        } else if asked.is_for("/encrypt/disks") {
            let number = BASE64.encode((self.kept.len() as u64).to_be_bytes());
            let wrapped = format!("vault:v{}:{number}", body["key_version"]);
            let plaintext = body["plaintext"].as_str().unwrap().to_owned();
            self.kept.push((wrapped.clone(), plaintext));
            self.aad
                .insert(wrapped.clone(), body["associated_data"].clone());
            match self.lie {
                Lie::Escapes => json!({"data": {"ciphertext": "vault:v1:\u{1b}[31m\n"}}),
                _ => json!({"data": {"ciphertext": wrapped}}),
            }
        } else {
            return self.decrypted(&body);
        };
        http("200 OK", "", said.to_string().as_bytes())
    }

    fn decrypted(&self, body: &Value) -> Vec<u8> {
        let wrapped = body["ciphertext"].as_str().unwrap_or_default();
        let refused = http(
            "400 Bad Request",
            "",
            br#"{"errors":["cipher: message authentication failed"]}"#,
        );
        let Some(at) = self.kept.iter().position(|(known, _)| known == wrapped) else {
            return refused;
        };
        if self.aad[wrapped] != body["associated_data"] {
            return refused;
        }
        let good = self.kept[at].1.clone();
        let length = BASE64.decode(&good).unwrap().len();
        let plaintext = match self.lie {
            Lie::None | Lie::Escapes => good,
            Lie::AnotherKey => match at {
                0 => BASE64.encode(vec![7; length]),
                at => self.kept[at - 1].1.clone(),
            },
            Lie::Zeros => BASE64.encode(vec![0; length]),
            Lie::Short => BASE64.encode(vec![7; length - 1]),
            Lie::Long => BASE64.encode(vec![7; length + 1]),
            Lie::Nothing => String::new(),
            Lie::TheSameBack => BASE64.encode(wrapped),
            Lie::Refused => return refused,
        };
        let said = json!({"data": {"plaintext": plaintext}});
        http("200 OK", "", said.to_string().as_bytes())
    }
}

/// A wrap that cannot be opened would be found when the guest's data is there.
#[test]
fn no_volume_is_made_with_a_wrap_that_does_not_open() {
    for hierarchy in ["direct", "group"] {
        let site = Site::new(hierarchy);
        for lie in LIES.into_iter().chain([Lie::Escapes]) {
            site.tells(lie);
            let create = site.create("disk.img");
            let what = format!("{hierarchy}, {lie:?}");
            let said = site.refused(&create.each_ref().map(String::as_str), &what);
            assert!(said.contains("key set \"prod\""), "{what}: {said}");
            assert!(!site.path("disk.img").exists(), "{what}: {said}");
            let group = site.path("state/groups/prod.json");
            assert!(!group.exists(), "{what}: {said}");
        }
        site.tells(Lie::None);
        let create = site.create("disk.img");
        site.succeed(&create.each_ref().map(String::as_str));
        site.dek("disk.img");
    }
}

#[test]
fn no_volume_is_opened_with_another_key_than_its_own() {
    let site = Site::new("direct");
    let mut deks = Vec::new();
    for name in ["one.img", "two.img"] {
        let create = site.create(name);
        site.succeed(&create.each_ref().map(String::as_str));
        deks.push(site.dek(name));
    }
    for lie in LIES {
        site.tells(lie);
        let what = format!("{lie:?}");
        site.refused(&Site::export("two.img"), &what);
        assert!(!site.path("dek").exists(), "{what}");
    }
    site.tells(Lie::None);
    assert_eq!(site.dek("one.img"), deks[0]);
    assert_eq!(site.dek("two.img"), deks[1]);
}

#[test]
fn a_rotation_by_a_liar_leaves_all_as_it_was() {
    let site = Site::new("direct");
    let create = site.create("disk.img");
    site.succeed(&create.each_ref().map(String::as_str));
    let dek = site.dek("disk.img");
    let before = std::fs::read(site.path("disk.img")).unwrap();
    site.state.lock().unwrap().version = 2;
    for lie in LIES {
        site.tells(lie);
        let what = format!("{lie:?}");
        site.refused(&["keyset", "rotate", "prod"], &what);
        let now = std::fs::read(site.path("disk.img")).unwrap();
        assert!(now == before, "{what}: the volume has changed");
    }
    site.tells(Lie::None);
    site.succeed(&["keyset", "rotate", "prod"]);
    assert!(std::fs::read(site.path("disk.img")).unwrap() != before);
    assert_eq!(site.dek("disk.img"), dek);
    // A version that goes backwards is one to follow, and is proven as well.
    site.state.lock().unwrap().version = 1;
    site.succeed(&["keyset", "rotate", "prod"]);
    assert_eq!(site.dek("disk.img"), dek);
}

/// Who says the same untrue thing twice can have another group key wrapped. No
/// volume follows that: it does not open them.
#[test]
fn no_volume_follows_a_group_key_that_is_not_its_own() {
    let site = Site::new("group");
    let create = site.create("disk.img");
    site.succeed(&create.each_ref().map(String::as_str));
    let dek = site.dek("disk.img");
    let before = std::fs::read(site.path("disk.img")).unwrap();
    site.state.lock().unwrap().version = 2;
    for lie in LIES {
        site.tells(lie);
        let output = site.sealblk(&["keyset", "rotate", "prod"]);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(
            !output.status.success() || said.contains("1 of its 1 volumes have yet to follow"),
            "{lie:?}: {said}"
        );
        let now = std::fs::read(site.path("disk.img")).unwrap();
        assert!(now == before, "{lie:?}: the volume has changed: {said}");
    }
    site.tells(Lie::None);
    assert_eq!(site.dek("disk.img"), dek);
    // As docs/network.md has it: without the record, all is made anew.
    std::fs::remove_file(site.path("state/groups/prod.json")).unwrap();
    site.succeed(&["keyset", "rotate", "prod"]);
    assert!(std::fs::read(site.path("disk.img")).unwrap() != before);
    assert_eq!(site.dek("disk.img"), dek);
}
