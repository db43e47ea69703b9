//! What names a key on a token or in a cloud, what tokens, clouds, KMS plugins and
//! brokers wrapped, and the names in a certificate that a broker decides by.
//!
//! Taking them apart never panics. A name that is accepted is written in one
//! form, which means the same; an envelope is written back as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealblk::broker::wrapped;
use sealblk::kms::Wrapped;
use sealblk::kms::aws;
use sealblk::kms::azure::{self, KeyUri};
use sealblk::kms::gcp;
use sealblk::kms::k8s::envelope;
use sealblk::kms::pkcs11::{self, KeyName, Uri};
use sealblk::kms::tls::Holder;
use sealblk::secret::Secret;
use sealblk_fuzz::source::Source;
use sha2::{Digest, Sha256};

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    match source.below(9) {
        0 => uri(source.rest()),
        1 => token(&mut source),
        2 => plugin(source.rest()),
        3 => amazon(&mut source),
        4 => vault(&mut source),
        5 => identifier(source.rest()),
        6 => google(source.rest()),
        7 => broker(source.rest()),
        _ => certificate(source.rest()),
    }
});

fn uri(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let Ok(uri) = text.parse::<Uri>() else {
        return;
    };
    // By its name: a path may well have that in it.
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let path = path.strip_prefix("pkcs11:").unwrap_or(path);
    let mut attributes = path.split(';').chain(query.split('&'));
    assert!(
        !attributes.any(|attribute| attribute.starts_with("pin-value=")),
        "a PIN was accepted"
    );
    let token: Uri = uri.token.to_string().parse().expect("it is ours");
    assert_eq!(token.token, uri.token);
    if let Ok(name) = KeyName::of(&uri) {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
}

/// The name of a length in two bytes at `at`, and where it ends.
fn name(bytes: &[u8], at: usize) -> Option<(String, usize)> {
    let length = bytes.get(at..at + 2)?;
    let end = at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
    let name = String::from_utf8(bytes.get(at + 2..end)?.to_vec()).ok()?;
    Some((name, end))
}

/// A wrap of a token, of which the fields beside the bytes mostly agree with them.
fn token(source: &mut Source<'_>) {
    let alg = source.pick(&["A256GCM", "A256KWP", "RSA-OAEP-256", "RSA-OAEP", ""]);
    let bytes = source.rest().to_vec();
    let named = name(&bytes, 6).and_then(|(key_id, end)| {
        let (version, _) = name(&bytes, end)?;
        Some((key_id, version))
    });
    let (key_id, version) = named.unwrap_or_default();
    let wrapped = Wrapped {
        key_id,
        version,
        alg: alg.into(),
        bytes,
    };
    if pkcs11::check(&wrapped).is_ok() {
        let name: KeyName = wrapped.key_id.parse().expect("it was accepted");
        assert_eq!(name.to_string(), wrapped.key_id);
        assert!(pkcs11::id_of(&wrapped.version).is_ok());
        for length in 0..12 {
            let cut = Wrapped {
                bytes: wrapped.bytes[..length].to_vec(),
                ..wrapped.clone()
            };
            assert!(pkcs11::check(&cut).is_err());
        }
    }
}

/// A wrap of AWS KMS, of which the fields beside the bytes agree with them.
fn amazon(source: &mut Source<'_>) {
    let bytes = source.rest().to_vec();
    if let Ok(text) = std::str::from_utf8(&bytes)
        && let Ok(name) = text.parse::<aws::KeyName>()
    {
        assert_eq!(name.to_string(), text);
    }
    let named = name(&bytes, 6).and_then(|(key_id, end)| {
        let (version, end) = name(&bytes, end)?;
        Some((key_id, version, end))
    });
    let Some((key_id, version, header)) = named else {
        return;
    };
    let wrapped = Wrapped {
        key_id,
        version,
        alg: "SYMMETRIC_DEFAULT".into(),
        bytes,
    };
    if aws::check(&wrapped).is_err() {
        return;
    }
    let name: aws::KeyName = wrapped.key_id.parse().expect("it was accepted");
    assert!(name.place.is_some() && matches!(name.target, aws::Target::Id(_)));
    for length in 0..=header {
        let cut = Wrapped {
            bytes: wrapped.bytes[..length].to_vec(),
            ..wrapped.clone()
        };
        assert!(aws::check(&cut).is_err());
    }
}

/// A key identifier of Azure: what is accepted cannot leave its path.
fn identifier(text: &[u8]) {
    let Some(uri) = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<KeyUri>().ok())
    else {
        return;
    };
    let written = azure::key_id(&uri.vault, &uri.name);
    let again: KeyUri = written.parse().expect("it is ours");
    assert_eq!((&again.vault, &again.name), (&uri.vault, &uri.name));
    let url = uri.vault.join(["keys", uri.name.as_str()]);
    assert_eq!(url.path(), format!("/keys/{}", uri.name));
}

/// A wrap of a vault of Azure.
fn vault(source: &mut Source<'_>) {
    let alg = source.pick(&[
        "RSA-OAEP-256",
        "A256KW",
        "CKM_AES_KEY_WRAP",
        "CKM_AES_KEY_WRAP_PAD",
        "",
    ]);
    let bytes = source.rest().to_vec();
    let named = name(&bytes, 6).and_then(|(key_id, end)| {
        let (version, _) = name(&bytes, end)?;
        Some((key_id, version))
    });
    let (key_id, version) = named.unwrap_or_default();
    let wrapped = Wrapped {
        key_id,
        version,
        alg: alg.into(),
        bytes,
    };
    if azure::check(&wrapped).is_ok() {
        assert!(wrapped.key_id.parse::<KeyUri>().is_ok());
        assert!(wrapped.version.parse::<azure::Version>().is_ok());
        for length in 0..12 {
            let cut = Wrapped {
                bytes: wrapped.bytes[..length].to_vec(),
                ..wrapped.clone()
            };
            assert!(azure::check(&cut).is_err());
        }
    }
}

fn plugin(bytes: &[u8]) {
    let Ok(parsed) = envelope::parse(bytes) else {
        return;
    };
    assert_eq!(parsed.encrypted.check(), Ok(()));
    let header = parsed.encrypted.header().expect("it is within the limits");
    assert_eq!(bytes[..header.len()], header);
    let key = Secret::copy_of(&[7; 32]).expect("locked memory");
    assert!(parsed.sealed.open(&key, b"").is_err());
}

fn google(bytes: &[u8]) {
    let Ok(parsed) = gcp::envelope::parse(bytes) else {
        return;
    };
    let header = gcp::envelope::header(&parsed.key, parsed.version).expect("it is not too long");
    assert_eq!([&header[..], parsed.ciphertext].concat(), bytes);
}

/// What a host brings back, with what stands beside it as it says itself.
fn broker(bytes: &[u8]) {
    let json = bytes.get(37..).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let given = |bytes: Vec<u8>| Wrapped {
        key_id: text("key_set"),
        version: text("key_version"),
        alg: format!("broker+{}", text("alg")),
        bytes,
    };
    let _ = wrapped::read(&given(bytes.to_vec()), &text("key_set"));
    // The digest is made to fit: nobody finds one by trying.
    let start = bytes.get(..5).unwrap_or(bytes);
    let given = given([start, &Sha256::digest(json), json].concat());
    if let Ok(wrap) = wrapped::read(&given, &given.key_id) {
        assert_eq!(wrapped::of(&wrap).ok(), Some(given.clone()));
        let another = format!("{}x", given.key_id);
        assert!(wrapped::read(&given, &another).is_err());
    }
}

fn certificate(bytes: &[u8]) {
    let Some(holder) = Holder::of(bytes) else {
        return;
    };
    for name in holder.names {
        let name = name.as_str();
        assert!(!name.is_empty() && !name.chars().any(char::is_control));
    }
}
