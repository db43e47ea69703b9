//! A host with a platform key, volumes whose data other code has encrypted, and
//! what `sealblk verify` says of them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sealblk::secret::{Dek, Secret};
use sealblk::units::SectorSize;
use serde_json::Value;

use super::support::home::Home;
use super::support::server::succeed;
use super::volume_support::random;

/// What `sealblk verify` ends with.
pub const PROVED: i32 = 0;
pub const DISPROVED: i32 = 12;
pub const UNDECIDED: i32 = 13;

/// Bytes of a volume here.
pub const SIZE: usize = 3 << 20;

pub const DISK: &str = "disk.img";

pub struct Lab {
    pub home: Home,
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    pub status: i32,
    pub report: Value,
    pub errors: String,
}

impl Found {
    /// A check, by its name.
    pub fn check(&self, name: &str) -> &Value {
        let checks = self.report["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == name);
        found.unwrap_or_else(|| panic!("no check {name:?}: {self:#?}"))
    }

    /// Panics unless it ended like that, and each of these checks too; all
    /// others have passed.
    pub fn expect(self, status: i32, others: &[(&str, &str)]) -> Found {
        assert_eq!(self.status, status, "{self:#?}");
        let verdict = match status {
            PROVED => "proved",
            DISPROVED => "disproved",
            _ => "undecided",
        };
        assert_eq!(self.report["verdict"], verdict);
        for check in self.report["checks"].as_array().unwrap() {
            let name = check["name"].as_str().unwrap();
            let expected = others.iter().find(|(other, _)| *other == name);
            let expected = expected.map_or("passed", |(_, outcome)| outcome);
            assert_eq!(check["outcome"], expected, "{name}: {self:#?}");
        }
        for (name, _) in others {
            self.check(name);
        }
        if status != PROVED {
            assert!(self.errors.contains("\nhelp: "), "{self:#?}");
        }
        self
    }
}

impl Lab {
    pub fn new() -> Lab {
        let home = Home::new();
        super::support::daemon::configure(&home, "", &verify_table(&home));
        Lab { home }
    }

    /// With a volume, of which nothing was written.
    pub fn with_volume(options: &[&str]) -> Lab {
        let lab = Lab::new();
        lab.create(options);
        lab
    }

    pub fn create(&self, options: &[&str]) {
        let size = SIZE.to_string();
        let create = ["volume", "create", DISK, "--size", &size];
        succeed(
            self.sealblk(&create)
                .args(["--header-area", "1M"])
                .args(options),
        );
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path(name)
    }

    pub fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.sealblk(&["--config", "sealblk.toml"]);
        command.args(arguments);
        command
    }

    pub fn verify(&self, arguments: &[&str]) -> Found {
        self.verify_disk(DISK, arguments)
    }

    pub fn verify_disk(&self, disk: &str, arguments: &[&str]) -> Found {
        let output = self
            .sealblk(&["verify", disk, "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        Found {
            status: output.status.code().unwrap(),
            report: serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{error}: {text}{errors}")),
            errors,
        }
    }

    /// The key of the volume.
    pub fn dek(&self) -> Dek {
        let to = self.path("dek");
        succeed(
            self.sealblk(&["volume", "export-dek", DISK, "--to", "dek"])
                .arg("--i-understand-that-this-key-decrypts-the-disk"),
        );
        let bytes = fs::read(&to).unwrap();
        fs::remove_file(to).unwrap();
        Dek::try_from(Secret::copy_of(&bytes).unwrap()).unwrap()
    }

    /// Writes bytes as they are from byte `at` of the data on.
    pub fn store(&self, at: usize, bytes: &[u8]) {
        let file = File::options().write(true).open(self.path(DISK)).unwrap();
        file.write_all_at(bytes, (1 << 20) + at as u64).unwrap();
    }

    /// Fills the volume with what a disk may hold, encrypted by other code.
    pub fn fill(&self, sector_size: SectorSize) {
        self.store(0, &encrypt(&self.dek(), sector_size, &contents(SIZE)));
    }

    /// With a volume that is filled.
    pub fn filled(options: &[&str], sector_size: SectorSize) -> Lab {
        let lab = Lab::with_volume(options);
        lab.fill(sector_size);
        lab
    }
}

/// The host key is beside everything else.
fn verify_table(home: &Home) -> String {
    format!("[verify]\nkey = {:?}\n", home.path("report.key"))
}

pub use super::volume_support::encrypt;

/// What a disk may hold: text, a program, noise, zeroes.
pub fn contents(length: usize) -> Vec<u8> {
    let text = include_bytes!("../../docs/architecture.md");
    let program = fs::read("/proc/self/exe").unwrap();
    let mut bytes = Vec::with_capacity(length + (64 << 10));
    let mut programs = program.chunks(32 << 10).cycle();
    while bytes.len() < length {
        bytes.extend_from_slice(&text[..16 << 10]);
        bytes.extend_from_slice(programs.next().unwrap());
        bytes.extend_from_slice(&random(8 << 10));
        bytes.extend_from_slice(&[0; 8 << 10]);
    }
    bytes.truncate(length);
    bytes
}
