//! A host with key stores, and volumes whose wrapped keys are moved between
//! them and their headers.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sealblk::volume::{Description, Inspection, Location, Wrap};
use serde_json::Value;

use super::support::home::{Home, Refusal, refused};
use super::support::server::succeed;

/// The name of every volume here.
pub const VOLUME: &str = "disk.img";

/// A host with a platform key and two key stores, `shared` and `other`, in
/// directories.
pub struct Host {
    pub home: Home,
}

impl Host {
    pub fn new() -> Host {
        Host::with("")
    }

    /// The same with further tables in the configuration.
    pub fn with(more: &str) -> Host {
        let host = Host { home: Home::new() };
        let directory = host.home.directory().display();
        let mut text = format!(
            "[daemon]\nsocket = \"{directory}/api.sock\"\nstate_dir = \"{directory}/state\"\n\
             run_dir = \"{directory}/run\"\n[audit]\npath = \"{directory}/audit.jsonl\"\n"
        );
        for store in ["shared", "other"] {
            fs::create_dir(host.store(store)).unwrap();
            host.chmod(&host.store(store), 0o700);
            text += &format!(
                "[key_stores.{store}]\nkind = \"directory\"\npath = {:?}\n",
                host.store(store)
            );
        }
        fs::write(host.home.path("sealblk.toml"), text + more).unwrap();
        host
    }

    /// The same with a volume.
    pub fn with_volume() -> Host {
        let host = Host::new();
        host.create(&[]);
        host
    }

    pub fn chmod(&self, path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The directory of a key store.
    pub fn store(&self, name: &str) -> PathBuf {
        self.home.path(name)
    }

    pub fn create(&self, more: &[&str]) -> String {
        let create = [
            "volume",
            "create",
            VOLUME,
            "--size",
            "1M",
            "--header-area",
            "64K",
        ];
        succeed(self.sealblk(&create).args(more))
    }

    pub fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.sealblk(&["--config", "sealblk.toml"]);
        command.args(arguments);
        command
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&succeed(self.sealblk(arguments).arg("--json"))).unwrap()
    }

    pub fn info(&self) -> Value {
        self.json(&["volume", "info", VOLUME])
    }

    pub fn refused(&self, arguments: &[&str]) -> Refusal {
        refused(&mut self.sealblk(arguments))
    }

    pub fn move_command(&self, to: &str) -> Command {
        self.sealblk(&["volume", "move-keys", VOLUME, "--to", to])
    }

    pub fn move_keys(&self, to: &str) -> String {
        succeed(&mut self.move_command(to))
    }

    pub fn move_refused(&self, to: &str) -> Refusal {
        refused(&mut self.move_command(to))
    }

    fn export_command(&self, to: &str) -> Command {
        self.sealblk(&[
            "volume",
            "export-dek",
            VOLUME,
            "--to",
            to,
            "--i-understand-that-this-key-decrypts-the-disk",
        ])
    }

    /// Opens the volume and returns its key, which its digest has proven.
    pub fn dek(&self) -> Vec<u8> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dek-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        succeed(&mut self.export_command(&name));
        let dek = fs::read(self.home.path(&name)).unwrap();
        fs::remove_file(self.home.path(&name)).unwrap();
        assert_eq!(dek.len(), 64);
        dek
    }

    /// Tries to open the volume, which must not work.
    pub fn opening_refused(&self) -> Refusal {
        let refusal = refused(&mut self.export_command("dek-refused"));
        assert!(!self.home.path("dek-refused").exists());
        refusal
    }

    pub fn location(&self) -> Location {
        Location {
            data: self.home.path(VOLUME),
            header: None,
        }
    }

    pub fn description(&self) -> Description {
        let inspection = Inspection::of(&self.location()).unwrap();
        inspection.description().unwrap()
    }

    /// The entry of the volume in a directory.
    pub fn entry(&self, store: &str) -> PathBuf {
        let uuid = self.description().uuid;
        self.store(store).join(format!("{uuid}.json"))
    }

    /// The names in a directory, but for the lock.
    pub fn names(&self, store: &str) -> Vec<String> {
        let entries = fs::read_dir(self.store(store)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".lock")
            .collect();
        names.sort();
        names
    }

    /// Panics if the file of the volume has anything of these wraps.
    pub fn assert_no_trace(&self, wraps: &[Wrap]) {
        let image = fs::read(self.home.path(VOLUME)).unwrap();
        assert!(!wraps.is_empty());
        for wrap in wraps {
            assert_absent(&image, wrap);
        }
    }

    /// What the audit log has of an event.
    pub fn audit(&self, event: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.home.path("audit.jsonl")).unwrap_or_default();
        let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &Value| line["event"] == event)
            .collect()
    }
}

/// Panics if a piece of the wrapped bytes, as they are or in base64, is there.
pub fn assert_absent(image: &[u8], wrap: &Wrap) {
    let text = BASE64.encode(&wrap.bytes);
    for needle in [&wrap.bytes[..], text.as_bytes()] {
        // The first bytes are the same in all wraps of a provider.
        for piece in needle.chunks_exact(12).skip(1) {
            let found = image.windows(piece.len()).position(|part| part == piece);
            assert_eq!(found, None, "a piece of a wrap is there still");
        }
    }
}
