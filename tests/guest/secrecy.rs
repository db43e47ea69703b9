//! The backing file holds nothing of what the guest wrote, and cryptsetup reads
//! all of it from there.

use std::collections::HashSet;
use std::fs;

use sha2::{Digest as _, Sha256};

use crate::MIB;
use crate::machine::Guest;
use crate::rescue::Rescue;
use crate::server::{Volume, image_in, serve_with_sealblk};

/// What every 64 bytes of the guest's files begin with.
const PATTERN: &[u8] = b"sealblk-pattern seed=secret";
/// The eight files of the job `smoke` are this many times the pattern.
const FILES: usize = 8 * 512 * 1024 / 64;
const SIZE: u64 = 32 * MIB;
const UNIT: usize = 512;

#[test]
fn a_file_system_is_ciphertext_in_the_backing_file() {
    let mut server = serve_with_sealblk(&Volume::new(SIZE, 512).serve_with(&["--queues", "2"]));
    let control = server.directory().join("plain.img");
    fs::File::create(&control).unwrap().set_len(SIZE).unwrap();
    let results = Guest::new("smoke")
        .served_by(&server)
        .raw(&control)
        .args(&["--queues", "2"])
        .env("DISKS", "/dev/sut0 /dev/raw0")
        .env("SEED", "secret")
        .env("CHECKSUM", "1")
        .succeed();
    let image = image_in(server.directory());
    let raw = fs::read(&image).unwrap();
    let control = fs::read(control).unwrap();
    assert!(count(&control) >= FILES, "the search does not find");
    assert_eq!(count(&raw), 0, "plaintext in the backing file");

    assert!(server.terminate().success());
    let rescue = Rescue::of(server.directory());
    rescue.cryptsetup_accepts_header_and_key();
    let plain = rescue.decrypted_by_cryptsetup(SIZE);
    // cryptsetup finds what the guest read, to the last byte.
    let seen = results.text("sha256");
    assert_eq!(seen.lines().next().unwrap(), sha256(&plain));
    assert!(count(&plain) >= FILES);

    let data = usize::try_from(rescue.data_offset()).unwrap();
    assert_eq!(raw.len(), data + plain.len());
    every_unit_is_its_own_ciphertext(&raw[data..], &plain);
}

fn every_unit_is_its_own_ciphertext(raw: &[u8], plain: &[u8]) {
    let mut units = HashSet::new();
    let mut plain_units = HashSet::new();
    let mut written = 0;
    for (number, (raw, plain)) in raw.chunks(UNIT).zip(plain.chunks(UNIT)).enumerate() {
        assert!(raw != plain, "unit {number} is stored as it is");
        // Never written: a hole in the file.
        if raw.iter().all(|byte| *byte == 0) {
            continue;
        }
        written += 1;
        assert!(units.insert(raw), "unit {number} repeats another one");
        plain_units.insert(plain);
        // Ciphertext has no structure: 512 random bytes without some 60 of the
        // 256 values, at the most, are as unlikely as a guessed key.
        let values: HashSet<&u8> = raw.iter().collect();
        assert!(
            values.len() > 150,
            "unit {number} has {} values",
            values.len()
        );
    }
    assert!(
        written * UNIT >= FILES * 64,
        "only {written} units are written"
    );
    // Equal plaintext units were there to be told from each other: the file
    // system's zeroes, to begin with.
    assert!(plain_units.len() < written);
}

/// How often the pattern is in there.
fn count(bytes: &[u8]) -> usize {
    bytes
        .windows(PATTERN.len())
        .filter(|at| *at == PATTERN)
        .count()
}

/// In hex.
fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
