//! What the tests of volumes share.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use aes::Aes256;
use aes::cipher::{Array, KeyInit as _};
use sealblk::secret::Dek;
use sealblk::units::{Bytes, SectorSize};
use sealblk::volume::{Bound, CreateOptions, Location, Plan, Volume, Wrap};
use tempfile::TempDir;
use xts_mode::Xts128;

pub const MIB: u64 = 1 << 20;

/// A directory for one test.
pub struct Place {
    pub dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Place {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn location(&self, detached: bool) -> Location {
        Location {
            data: self.path("volume"),
            header: detached.then(|| self.path("header")),
        }
    }
}

pub fn wrap(name: &str) -> Wrap {
    Wrap {
        key_set: name.into(),
        provider: "test".into(),
        key_id: "k".into(),
        key_version: "1".into(),
        alg: "none".into(),
        bound: Bound::Aad,
        group: None,
        bytes: vec![7; 96],
        extra: Default::default(),
    }
}

pub fn options(size: u64) -> CreateOptions {
    CreateOptions {
        size: Some(Bytes(size)),
        ..CreateOptions::default()
    }
}

pub fn create_with(location: &Location, options: CreateOptions) -> (Volume, Dek) {
    let dek = Dek::generate().unwrap();
    let plan = Plan::new(location, options).unwrap();
    let volume = plan.write(&dek, "set", vec![wrap("set")]).unwrap();
    (volume, dek)
}

pub fn create(location: &Location, size: u64) -> (Volume, Dek) {
    create_with(location, options(size))
}

/// Encrypts as dm-crypt's `aes-xts-plain64` does, with the `xts-mode` crate
/// and none of sealblk's own cipher code.
pub fn encrypt(dek: &Dek, sector_size: SectorSize, plain: &[u8]) -> Vec<u8> {
    let key = |half: &[u8]| Aes256::new(&Array::try_from(half).unwrap());
    let (data, tweak) = dek.bytes().split_at(32);
    let xts = Xts128::new(key(data), key(tweak));
    let mut out = plain.to_vec();
    let step = u128::from(sector_size.sectors());
    xts.encrypt_area(&mut out, sector_size.bytes(), 0, |unit| {
        (unit * step).to_le_bytes().into()
    });
    out
}

/// Runs a program that has to be installed.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{program} has to be installed for this test: {error}"))
}

/// Runs a program that has to succeed, and returns what it printed.
pub fn ok(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}
