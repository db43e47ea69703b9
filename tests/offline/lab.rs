//! A host with a platform key, commands that run there, and judges.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sealblk::keys::ledger::Ledger;
use sealblk::units::SectorSize;
use serde_json::Value;

use crate::judge;
use crate::volume_support::Place;

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub status: i32,
    pub out: String,
    pub errors: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Done {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

pub struct Lab {
    pub place: Place,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Lab {
            place: Place::new(),
        };
        // The host's own state is none of a test.
        let directory = lab.place.dir.path().display();
        let config = format!(
            "[daemon]\nstate_dir = \"{directory}/state\"\nsocket = \"{directory}/daemon.sock\"\n\
             [audit]\npath = \"{directory}/audit.jsonl\"\n"
        );
        fs::write(lab.path("sealblk.toml"), config).unwrap();
        lab.ok(&["key", "init"]);
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command
            .arg("--config")
            .arg(self.path("sealblk.toml"))
            .arg("--key-file")
            .arg(self.path("platform.key"))
            .args(arguments)
            .current_dir(self.place.dir.path())
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Done {
        self.command(arguments).output().unwrap().into()
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.status, 0, "{arguments:?}: {done:?}");
        done.out
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Runs what must fail, and returns the error and the help line.
    pub fn fails(&self, status: i32, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.status, status, "{arguments:?}: {done:?}");
        assert!(
            done.errors.contains("error: ") && done.errors.contains("\nhelp: "),
            "{done:?}"
        );
        done.errors
    }

    /// The key of a volume, by the way of a rescue.
    pub fn dek(&self, volume: &[&str]) -> Vec<u8> {
        let file = self.path("exported.dek");
        let _ = fs::remove_file(&file);
        let mut arguments = vec!["volume", "export-dek", "--to", "exported.dek"];
        arguments.push("--i-understand-that-this-key-decrypts-the-disk");
        arguments.extend(volume);
        self.ok(&arguments);
        fs::read(file).unwrap()
    }

    /// cryptsetup takes this for the key of the volume with that header.
    pub fn cryptsetup_proves(&self, header: &str, dek: &[u8]) {
        judge::proves(&self.path(header), dek, self.place.dir.path());
    }

    pub fn write(&self, name: &str, bytes: &[u8], offset: u64) {
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false);
        let file = file.open(self.path(name)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    pub fn read(&self, name: &str, offset: u64, length: usize) -> Vec<u8> {
        read(&self.path(name), offset, length)
    }

    /// The ledger of the host, which is kept from now on.
    pub fn ledger(&self) -> Ledger {
        let state = self.path("state");
        fs::create_dir_all(&state).unwrap();
        Ledger::below(&state)
    }

    /// What the audit log says of operations: their actions, in order.
    pub fn actions(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("audit.jsonl")).unwrap();
        let lines = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter(|line| line["event"] == "rekey")
            .map(|line| line["action"].as_str().unwrap().to_owned())
            .collect()
    }
}

pub fn read(path: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let file = File::open(path).unwrap();
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// What OpenSSL makes of stored data.
pub fn decrypted(dek: &[u8], unit: SectorSize, zero_units: bool, stored: &[u8]) -> Vec<u8> {
    judge::decrypted(dek, unit.bytes(), zero_units, stored)
}

/// Data in which each sector tells where it is, with zeroes here and there.
pub fn disk(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut random = Random(seed | 1);
    for (index, chunk) in bytes.chunks_mut(16 << 10).enumerate() {
        if index % 7 == 3 {
            continue;
        }
        for (sector, part) in chunk.chunks_mut(512).enumerate() {
            part.fill(random.next() as u8 | 1);
            let name = (index * 32 + sector) as u64;
            let length = part.len().min(8);
            part[..length].copy_from_slice(&name.to_le_bytes()[..length]);
        }
    }
    bytes
}

/// Random numbers that a seed gives.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
