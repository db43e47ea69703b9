//! Judges of what a volume holds that know none of sealblk's code: cryptsetup says
//! where the data is and whether a key is the volume's, and OpenSSL decrypts.
#![allow(dead_code)]

use std::path::Path;
use std::process::Command;

use openssl::symm::{Cipher, decrypt};
use serde_json::Value;

fn cryptsetup(arguments: &[&str], header: &Path) -> Vec<u8> {
    let mut command = Command::new("cryptsetup");
    let output = command.args(arguments).arg(header).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    output.stdout
}

/// cryptsetup takes this for the key of the volume with that header. `scratch` is
/// a directory for it to read the key from.
pub fn proves(header: &Path, dek: &[u8], scratch: &Path) {
    let file = scratch.join("proof.dek");
    std::fs::write(&file, dek).unwrap();
    let file = file.to_str().unwrap();
    let key = ["--key-size", "512", "--volume-key-file", file];
    cryptsetup(&[&["open", "--test-passphrase"][..], &key].concat(), header);
}

/// What OpenSSL makes of stored data in units of so many bytes. Units of zeroes
/// are zeroes, if they are so in the format.
pub fn decrypted(dek: &[u8], unit: usize, zero_units: bool, stored: &[u8]) -> Vec<u8> {
    let units = stored.chunks_exact(unit).zip(0u128..);
    units
        .flat_map(|(bytes, index)| {
            if zero_units && bytes.iter().all(|&byte| byte == 0) {
                return bytes.to_vec();
            }
            let tweak = (index * (unit as u128 / 512)).to_le_bytes();
            decrypt(Cipher::aes_256_xts(), dek, Some(&tweak), bytes).unwrap()
        })
        .collect()
}

/// The `size` bytes of a volume: where they are and in which units, cryptsetup
/// reads in its header.
pub fn opened(header: &Path, data: &Path, size: u64, dek: &[u8], zero_units: bool) -> Vec<u8> {
    let dump = cryptsetup(&["luksDump", "--dump-json-metadata"], header);
    let dump: Value = serde_json::from_slice(&dump).unwrap();
    let segment = &dump["segments"]["0"];
    assert_eq!(segment["encryption"], "aes-xts-plain64", "{dump}");
    assert_eq!(segment["iv_tweak"], "0", "{dump}");
    let unit = segment["sector_size"].as_u64().unwrap() as usize;
    let offset: usize = segment["offset"].as_str().unwrap().parse().unwrap();
    let stored = std::fs::read(data).unwrap();
    decrypted(dek, unit, zero_units, &stored[offset..][..size as usize])
}
