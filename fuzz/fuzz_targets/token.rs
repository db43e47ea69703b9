//! LUKS2 metadata with tokens of ours, as documents that are mostly right: tokens of
//! every version, requirements, segments and digests.
//!
//! Taking them apart never panics. A token that is accepted says one thing only,
//! means the same when it was written and read again, and is refused where an
//! older sealblk would make something else of it; what sealblk sets in the metadata
//! is what it reads there afterwards.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealblk::volume::luks2::{Metadata, Requirement};
use sealblk::volume::{Token, TokenError, token};
use sealblk_fuzz::edit::edit;
use sealblk_fuzz::source::Source;
use serde_json::{Value, json};

const WORDS: [&str; 30] = [
    "version",
    "key_set",
    "key_store",
    "copy_in",
    "zero_units",
    "wraps",
    "erased",
    "rekey",
    "plain",
    "since",
    "finished",
    "key_stores",
    "partly_plain",
    "provider",
    "key_id",
    "key_version",
    "alg",
    "bound",
    "bytes",
    "group",
    "id",
    "kind",
    "previous",
    "encrypt",
    "decrypt",
    "requirements",
    "mandatory",
    "sealblk-rekey-v1",
    "dynamic",
    "type",
];

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    match source.below(4) {
        0..=1 => {
            let mut value = sample(&mut source);
            edit(&mut value, &mut source, &WORDS);
            check_token(&value);
        }
        2 => {
            let mut document = document(&mut source);
            edit(&mut document, &mut source, &WORDS);
            check_metadata(document.to_string().as_bytes(), &mut source);
        }
        // No structure at all, where there is some in the seeds.
        _ => {
            let text = source.rest();
            if let Ok(value) = serde_json::from_slice(text) {
                check_token(&value);
            }
            check_metadata(text, &mut Source::new(&[]));
        }
    }
});

fn wrap(bound: &str) -> Value {
    json!({
        "key_set": "production", "provider": "file", "key_id": "platform",
        "key_version": "3", "alg": "A256GCM", "bound": bound, "bytes": "AQID/w==",
    })
}

/// A token that is right.
fn sample(source: &mut Source<'_>) -> Value {
    let since = "2031-02-28T23:59:59Z";
    let id = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    let previous = "QUJD".repeat(30) + "QUI=";
    let mut value = json!({
        "type": "sealblk", "keyslots": [], "version": 1, "key_set": "production",
        "zero_units": true, "wraps": [wrap("aad")],
    });
    match source.below(10) {
        0 => {}
        1 => {
            value["wraps"] = json!([wrap("group")]);
            value["wraps"][0]["group"] = json!({"id": id, "bytes": "AAEC"});
        }
        2 => {
            value["version"] = 2.into();
            value["key_store"] = "s".into();
            value.as_object_mut().expect("it is one").remove("wraps");
        }
        3 => value["copy_in"] = "s".into(),
        4 => {
            value["wraps"] = json!([]);
            value["erased"] = json!({"since": since, "finished": false, "key_stores": ["a", "b"]});
        }
        5 => {
            value["version"] = 3.into();
            value["rekey"] =
                json!({"id": id, "kind": "rekey", "since": since, "previous": previous});
        }
        6 => {
            value["version"] = 3.into();
            value["rekey"] = json!({"id": id, "kind": "encrypt", "since": since});
        }
        7 => {
            value["version"] = 3.into();
            value["rekey"] = json!({"id": id, "kind": "decrypt", "since": since});
        }
        8 => {
            value["version"] = 3.into();
            value["wraps"] = json!([]);
            value["plain"] = json!({"since": since});
        }
        _ => value["later"] = json!({"a": [1, 2.5, null]}),
    }
    value
}

fn check_token(value: &Value) {
    let read = Token::from_json(value);
    // The version decides, whatever else there is.
    match value.get("version").and_then(Value::as_u64) {
        None | Some(0) => assert!(matches!(read, Err(TokenError::NoVersion))),
        Some(newer) if newer > u64::from(token::VERSION) => {
            assert!(matches!(read, Err(TokenError::Newer { found }) if found == newer));
        }
        Some(_) => {}
    }
    let Ok(token) = read else {
        drop(read.map_err(|error| format!("{error} {error:?}")));
        return;
    };
    let json = token.to_json().expect("it came from JSON");
    assert_eq!(Token::from_json(&json).expect("it is ours"), token);
    assert_eq!(
        Token::from_json(&json)
            .and_then(|token| token.to_json())
            .expect("it is ours"),
        json
    );
    // Where its key is: in one place.
    let places = [
        !token.wraps.is_empty(),
        token.key_store.is_some(),
        token.erased.is_some(),
        token.plain.is_some(),
    ];
    let places = places.iter().filter(|is| **is).count();
    assert!(places <= 1, "{token:?}");
    // What an older sealblk must not open has a version that it refuses.
    assert_eq!(
        token.version == 3,
        token.rekey.is_some() || token.plain.is_some()
    );
    assert_eq!(token.version == 2, token.key_store.is_some());
    if let Some(rekey) = &token.rekey {
        assert!(!token.wraps.is_empty() && token.key_store.is_none());
        let bytes = rekey.previous.as_ref().map(Vec::len);
        assert!(bytes.is_none_or(|bytes| bytes == token::PREVIOUS_BYTES));
        assert_eq!(bytes.is_some(), !rekey.is_partly_plain());
    }
    // Edits that sealblk makes of it are tokens.
    let settled = token
        .clone()
        .with_rekey(None)
        .with_wraps(token.wraps.clone());
    if let Ok(json) = settled.to_json()
        && let Ok(again) = Token::from_json(&json)
    {
        assert_eq!(again, settled);
    }
}

fn document(source: &mut Source<'_>) -> Value {
    let token = sample(source);
    let salt = "A".repeat(43) + "=";
    let mut document = json!({
        "keyslots": {},
        "tokens": {"0": token},
        "segments": {"0": {
            "type": "crypt", "offset": "16777216", "iv_tweak": "0", "size": "1048576",
            "encryption": "aes-xts-plain64", "sector_size": 4096,
        }},
        "digests": {"0": {
            "type": "pbkdf2", "keyslots": [], "segments": ["0"], "hash": "sha256",
            "iterations": 1000, "salt": salt, "digest": salt,
        }},
        "config": {"json_size": "12288", "keyslots_size": "16744448"},
    });
    match source.below(4) {
        0 => {}
        1 => document["config"]["requirements"] = json!({"mandatory": []}),
        2 => document["config"]["requirements"] = json!({"mandatory": ["sealblk-rekey-v1"]}),
        _ => document["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]}),
    }
    document
}

fn check_metadata(text: &[u8], source: &mut Source<'_>) {
    let area = [text, &[0; 64]].concat();
    let Ok(mut metadata) = Metadata::parse(&area) else {
        return;
    };
    let written = [&metadata.text()[..], &[0; 8]].concat();
    assert_eq!(Metadata::parse(&written).expect("it is ours"), metadata);
    let _ = metadata.digest();
    let _ = (
        metadata.keyslots(),
        metadata.keyslots_size(),
        metadata.json_size(),
    );
    if let Ok(segment) = metadata.segment() {
        let size = source.u64();
        let mut resized = metadata.clone();
        if resized.set_segment_size(size).is_ok() {
            let again = resized.segment().expect("it was one before");
            assert_eq!(again.offset, segment.offset);
        }
    }
    if let Ok(Some((_, value))) = metadata.token(token::TYPE) {
        let value = value.clone();
        check_token(&value);
        let before = metadata.clone();
        metadata
            .replace_token(token::TYPE, value)
            .expect("there is one");
        let found = metadata.token(token::TYPE).expect("as before");
        assert!(found.is_some());
        assert_eq!(before.segment().is_ok(), metadata.segment().is_ok());
    }
    if metadata.requirement().is_ok() {
        for wanted in [Requirement::Rekey, Requirement::None] {
            if metadata.set_requirement(wanted).is_ok() {
                assert_eq!(metadata.requirement().ok(), Some(wanted));
            }
        }
    }
}
