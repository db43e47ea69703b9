//! Edited headers: what an attacker or another tool changes is refused, or
//! changes what the key is bound to; and no bytes at all make parsing panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod volume_support;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use sealblk::error::{Explain as _, Kind};
use sealblk::units::{Bytes, SectorSize};
use sealblk::volume::luks2::binary::{BINARY_BYTES, field};
use sealblk::volume::luks2::{Header, Metadata, Which, copies};
use sealblk::volume::{CreateOptions, Description, Error};
use serde_json::{Value, json};
use volume_support::*;

const COPY: usize = 16 << 10;

/// The header area of a small volume.
static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let place = Place::new();
    let options = CreateOptions {
        header_area: Bytes(32 << 10),
        ..options(MIB)
    };
    let location = place.location(false);
    drop(create_with(&location, options));
    let mut image = fs::read(&location.data).unwrap();
    image.truncate(2 * COPY);
    image
});

fn describe(image: &[u8]) -> Result<Description, Error> {
    let found = copies::read(&image.to_vec()).map_err(|lost| Error::BothDamaged {
        path: "image".into(),
        lost,
    })?;
    Description::of(&found.header, Path::new("image"))
}

/// The header with an edited document, and right checksums.
fn edited(edit: impl FnOnce(&mut Value)) -> Header {
    let mut header = copies::read(&*IMAGE).unwrap().header;
    let mut document = Value::Object(header.metadata.document().clone());
    edit(&mut document);
    header.metadata = parse(&document.to_string()).unwrap();
    header
}

fn parse(text: &str) -> Result<Metadata, impl std::fmt::Debug> {
    let mut area = text.as_bytes().to_vec();
    area.push(0);
    Metadata::parse(&area)
}

fn meaning(edit: impl FnOnce(&mut Value)) -> Result<Description, Error> {
    Description::of(&edited(edit), Path::new("image"))
}

fn set(pointer: &str, value: Value) -> Result<Description, Error> {
    meaning(|document| {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[name] = value;
    })
}

#[test]
fn headers_that_sealblk_cannot_serve_are_refused_with_the_reason() {
    let unsupported = [
        (
            "/config/requirements",
            json!({"mandatory": ["time-travel"]}),
            "time-travel",
        ),
        ("/segments/1", json!({"type": "linear"}), "2 segments"),
        ("/segments/0/size", json!("dynamic"), "no fixed size"),
        (
            "/segments/0/encryption",
            json!("aes-cbc-essiv:sha256"),
            "aes-cbc",
        ),
        ("/segments/0/type", json!("linear"), "linear"),
        (
            "/segments/0/integrity",
            json!({"type": "hmac(sha256)"}),
            "integrity",
        ),
        ("/segments/0/flags", json!(["backup-final"]), "flags"),
        (
            "/segments/0/sector_size",
            json!(1024),
            "sector size is 1024",
        ),
        ("/segments/0/offset", json!("33280"), "multiple of 4096"),
        ("/digests/0/hash", json!("sha512"), "sha512"),
        (
            "/digests/0/iterations",
            json!(4_000_000_000u32),
            "iterations",
        ),
        ("/tokens/0/version", json!(4), ""),
    ];
    let corrupt = [
        (
            "/tokens/0/type",
            json!("other"),
            "sealblk token was removed",
        ),
        ("/segments/0/size", json!("0"), "number of sectors"),
        ("/segments/0/size", json!("1000"), "number of sectors"),
        ("/segments/0/size", json!("+512"), "decimal"),
        ("/segments/0/size", json!(512), "segment 0"),
        ("/segments/0/size", json!("18446744073709551104"), "beyond"),
        ("/segments/0/offset", json!("16384"), "overlaps"),
        ("/segments/0/offset", json!("9223372036854771712"), "beyond"),
        (
            "/segments/0/iv_tweak",
            json!("18446744073709551615"),
            "iv_tweak",
        ),
        ("/segments", json!([]), "segments"),
        ("/config/json_size", json!("4096"), "json_size"),
        ("/config/keyslots_size", json!("513"), "keyslots_size"),
        (
            "/config/keyslots_size",
            json!("18446744073709547520"),
            "keyslots_size",
        ),
        ("/config/requirements", json!(["something"]), "requirements"),
        (
            "/config/requirements",
            json!({"mandatory": "x"}),
            "requirements",
        ),
        (
            "/config/requirements",
            json!({"mandatory": ["sealblk-rekey-v1"]}),
            "which its token does not have",
        ),
        ("/digests", json!({}), "digest"),
        ("/digests/0/digest", json!("AAAA"), "digest"),
        ("/digests/0/segments", json!([]), "digest"),
        ("/tokens/0/wraps", json!("none"), ""),
        ("/tokens/0/version", json!(null), ""),
        // That of a volume whose wraps are elsewhere, and nobody says where.
        ("/tokens/0/version", json!(2), ""),
        // That of a volume under way, and nobody says of what.
        ("/tokens/0/version", json!(3), ""),
        ("/tokens/0/key_store", json!("elsewhere"), ""),
        ("/tokens/0/zero_units", json!(1), ""),
    ];
    let all = unsupported.iter().map(|case| (Kind::Unsupported, case));
    let all = all.chain(corrupt.iter().map(|case| (Kind::Corrupt, case)));
    for (kind, (pointer, value, reason)) in all {
        let error = set(pointer, value.clone()).expect_err(pointer);
        assert_eq!(error.kind(), kind, "{pointer}: {error}");
        assert!(error.to_string().contains(reason), "{pointer}: {error}");
        assert!(error.help().is_some(), "{error}");
    }
}

#[test]
fn a_luks2_device_of_somebody_else_is_not_called_damaged() {
    let mut header = edited(|document| document["tokens"] = json!({}));
    header.binary.subsystem = field("").unwrap();
    let error = Description::of(&header, Path::new("image")).unwrap_err();
    assert!(matches!(error, Error::NotSealblk { .. }), "{error}");
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[test]
fn there_must_be_one_token_and_one_digest() {
    let two_tokens = meaning(|document| {
        let token = document["tokens"]["0"].clone();
        document["tokens"]["1"] = token;
    });
    assert!(
        two_tokens
            .unwrap_err()
            .to_string()
            .contains("several tokens")
    );
    let two_digests = meaning(|document| {
        let digest = document["digests"]["0"].clone();
        document["digests"]["1"] = digest;
    });
    assert!(
        two_digests
            .unwrap_err()
            .to_string()
            .contains("exactly one digest")
    );
}

#[test]
fn edits_that_parse_change_what_the_key_is_bound_to() {
    let base = meaning(|_| {}).unwrap();
    let bound = base.binding().bytes();
    let edits = [
        ("/tokens/0/zero_units", json!(true)),
        ("/segments/0/iv_tweak", json!("8")),
        ("/segments/0/sector_size", json!(4096)),
    ];
    for (pointer, value) in edits {
        let edited = set(pointer, value).unwrap();
        assert_ne!(edited.binding().bytes(), bound, "{pointer}");
    }
    let mut header = edited(|_| {});
    header.binary.uuid = field("00000000-0000-4000-8000-000000000000").unwrap();
    let other = Description::of(&header, Path::new("image")).unwrap();
    assert_ne!(other.binding().bytes(), bound);
    // Moving or shortening the data, and naming another key set, does not:
    // none of them makes a right key decrypt anything differently.
    for (pointer, value) in [
        ("/segments/0/size", json!("4096")),
        ("/segments/0/offset", json!("65536")),
        ("/tokens/0/key_set", json!("another")),
    ] {
        assert_eq!(set(pointer, value).unwrap().binding().bytes(), bound);
    }
    assert_eq!(base.layout.sector_size, SectorSize::B512);
}

#[test]
fn a_uuid_that_is_none_is_refused() {
    let mut header = edited(|_| {});
    header.binary.uuid = field("not a uuid").unwrap();
    let error = Description::of(&header, Path::new("image")).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[test]
fn unknown_fields_are_kept_wherever_they_are() {
    let header = edited(|document| {
        document["future"] = json!({"a": [1, -2.65240693219086e-104, null]});
        document["config"]["flags"] = json!(["allow-discards"]);
        document["segments"]["0"]["hint"] = json!("kept");
        document["tokens"]["0"]["later"] = json!(true);
        document["tokens"]["7"] = json!({"type": "foreign", "keyslots": []});
    });
    let mut expected = Value::Object(header.metadata.document().clone());
    let mut changed = header.metadata.clone();
    let description = Description::of(&header, Path::new("image")).unwrap();
    let mut token = description.token;
    token.wraps.push(wrap("more"));
    changed
        .replace_token("sealblk", token.to_json().unwrap())
        .unwrap();
    let wraps = serde_json::to_value(&token.wraps).unwrap();
    expected["tokens"]["0"]["wraps"] = wraps;
    assert_eq!(Value::Object(changed.document().clone()), expected);
}

#[test]
fn json_that_is_no_object_or_has_no_end_is_refused() {
    for text in ["", "[]", "{", "{}{}", "null", "{\"a\":1} x"] {
        assert!(parse(text).is_err(), "{text}");
    }
    assert!(Metadata::parse(b"{}").is_err());
    assert!(Metadata::parse(b"{}\0\0x").is_err());
    assert!(parse(&"[".repeat(100_000)).is_err());
    assert!(parse(&format!("{{\"a\":{}", "[".repeat(10_000))).is_err());
}

/// All pointers into a document.
fn pointers(value: &Value, at: String, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(name, inner)| pointers(inner, format!("{at}/{name}"), all)),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(index, inner)| pointers(inner, format!("{at}/{index}"), all)),
        _ => {}
    }
    all.push(at);
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(|number| number.to_string().into()),
        ".*".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!(["0", "0"])),
    ]
}

proptest! {
    #[test]
    fn any_image_is_read_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..9000),
        magic in any::<bool>(),
    ) {
        let mut image = bytes;
        if magic && image.len() > 8 {
            image[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
        }
        let _ = describe(&image);
    }

    #[test]
    fn flipped_bytes_are_survived_or_refused(
        flips in prop::collection::vec((0..2 * COPY, 1..=255u8), 1..20),
        cut in prop::option::of(0..2 * COPY),
    ) {
        let mut image = IMAGE.clone();
        for (at, mask) in flips {
            image[at] ^= mask;
        }
        image.truncate(cut.unwrap_or(image.len()));
        // The other copy may have been left alone; then nothing has changed.
        if let Ok(description) = describe(&image) {
            let original = describe(&IMAGE).unwrap();
            prop_assert_eq!(description.token, original.token);
            prop_assert_eq!(description.layout, original.layout);
        }
    }

    #[test]
    fn any_value_anywhere_in_the_document_is_read_without_panic(
        pick in any::<prop::sample::Index>(),
        value in values(),
    ) {
        let edit = |document: &mut Value| {
            let mut all = Vec::new();
            pointers(document, String::new(), &mut all);
            all.retain(|pointer| !pointer.is_empty());
            *document.pointer_mut(pick.get(&all).as_str()).unwrap() = value;
        };
        if let Ok(description) = meaning(edit) {
            let layout = description.layout;
            prop_assert!(layout.size > 0 && i64::try_from(layout.end()).is_ok());
            let _ = description.binding().bytes();
        }
    }

    #[test]
    fn what_is_encoded_is_read_again(
        label in "[a-zA-Z0-9 ._-]{0,47}",
        seqid in any::<u64>(),
        note in values(),
    ) {
        let mut header = edited(|document| document["note"] = note);
        header.binary.label = field(&label).unwrap();
        header.binary.seqid = seqid;
        let mut image = vec![0; 2 * COPY];
        copies::create(&mut image, &header).unwrap();
        let found = copies::read(&image).unwrap();
        prop_assert!(found.is_whole());
        prop_assert_eq!(&found.header, &header);
        let one = header.encode(Which::Primary).unwrap().unwrap();
        prop_assert_eq!(&image[BINARY_BYTES..COPY], &one[BINARY_BYTES..]);
    }
}
