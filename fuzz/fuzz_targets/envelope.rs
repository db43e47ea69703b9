//! Wrapped keys and platform key files, from bytes that anybody may have
//! written.
//!
//! Taking them apart never panics; a sealed envelope opens as it was sealed
//! and in no other form; a key file that is accepted is written back as the
//! same key file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealblk::kms::file::{Envelope, KeyFile, PLAINTEXT_MAX, VersionId, seal};
use sealblk::secret::Secret;
use sealblk_fuzz::source::Source;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    match source.below(4) {
        0 => sealed(&mut source),
        1 => foreign(source.rest()),
        2 => drop(key_file(source.rest())),
        _ => checksummed(source.rest()),
    }
});

fn secret(bytes: &[u8]) -> Secret {
    Secret::copy_of(bytes).expect("locked memory")
}

/// An envelope of ours that somebody changed.
fn sealed(source: &mut Source<'_>) {
    let mut key = [0x5a; 32];
    let given = source.take(8);
    key[..given.len()].copy_from_slice(given);
    let (id, version) = (u128::from(source.u64()), VersionId(source.u32()));
    let len = usize::from(source.u16()) % (PLAINTEXT_MAX + 2);
    let plaintext = vec![source.byte(); len];
    let aad_len = source.byte();
    let aad = source.take(aad_len.into()).to_vec();
    let key = secret(&key);
    let bytes = match seal(
        Uuid::from_u128(id),
        version,
        &key,
        &secret(&plaintext),
        &aad,
    ) {
        Ok(bytes) => bytes,
        Err(_) => return assert!(len > PLAINTEXT_MAX),
    };
    assert!(len <= PLAINTEXT_MAX);

    let (mut changed, mut changed_aad) = (bytes.clone(), aad.clone());
    for _ in 0..source.below(4) {
        let at = usize::from(source.u16());
        match source.below(4) {
            0 => {
                let at = at % changed.len().max(1);
                if let Some(byte) = changed.get_mut(at) {
                    *byte ^= source.byte();
                }
            }
            1 => changed.truncate(at),
            2 => changed.extend(source.take(8)),
            _ => changed_aad.push(source.byte()),
        }
    }
    let opened = Envelope::parse(&changed)
        .ok()
        .and_then(|envelope| envelope.open(&key, &changed_aad).ok());
    match changed == bytes && changed_aad == aad {
        true => assert_eq!(opened.expect("it was not changed")[..], plaintext),
        false => assert!(opened.is_none(), "it was changed"),
    }
}

/// Bytes that were never an envelope.
fn foreign(bytes: &[u8]) {
    if let Ok(envelope) = Envelope::parse(bytes) {
        assert_eq!(bytes[6..22], *envelope.key_id.as_bytes());
        assert_eq!(bytes[22..26], envelope.version.0.to_be_bytes());
        assert!(envelope.open(&secret(&[7; 32]), b"").is_err());
        assert!(envelope.open(&secret(&[7; 5]), b"").is_err());
    }
}

fn key_file(text: &[u8]) -> bool {
    let Ok(file) = KeyFile::parse(&secret(text)) else {
        return false;
    };
    let written = match file.to_text() {
        Ok(written) => written,
        Err(error) => panic!("a key file that was accepted cannot be written: {error}"),
    };
    let again = match KeyFile::parse(&written) {
        Ok(again) => again,
        Err(cause) => panic!("a key file of ours is refused: {cause}"),
    };
    assert_eq!(again.key_id, file.key_id);
    assert_eq!(again.versions.len(), file.versions.len());
    for (a, b) in again.versions.iter().zip(&file.versions) {
        assert_eq!((a.id, a.created, a.state), (b.id, b.created, b.state));
        assert_eq!(a.key(), b.key());
    }
    assert_eq!(
        again.latest().map(|version| version.id),
        file.latest().map(|version| version.id)
    );
    true
}

/// A key file's object in the order over which its checksum is computed.
#[derive(Serialize)]
struct Canonical<'a> {
    format: &'a Value,
    version: &'a Value,
    key_id: &'a Value,
    versions: Vec<CanonicalVersion<'a>>,
}

#[derive(Serialize)]
struct CanonicalVersion<'a> {
    id: &'a Value,
    created: &'a Value,
    state: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a Value>,
}

/// A key file that somebody edited who knows how the checksum is made.
fn checksummed(text: &[u8]) {
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else {
        return;
    };
    let Some(versions) = value.get("versions").and_then(Value::as_array) else {
        return;
    };
    let versions = versions.iter().map(|version| CanonicalVersion {
        id: &version["id"],
        created: &version["created"],
        state: &version["state"],
        key: version.get("key"),
    });
    let canonical = serde_json::to_vec(&Canonical {
        format: &value["format"],
        version: &value["version"],
        key_id: &value["key_id"],
        versions: versions.collect(),
    });
    let canonical = canonical.expect("values are written");
    let checksum: String = Sha256::digest(&canonical)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    value["checksum"] = checksum.into();
    key_file(value.to_string().as_bytes());
}
