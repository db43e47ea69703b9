//! What names a key on a PKCS#11 token, what tokens, KMS plugins and brokers
//! wrapped, and the names in a certificate that a broker decides by.
//!
//! Taking them apart never panics. A name that is accepted is written in one
//! form, which means the same; a plugin's envelope is written back as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealblk::broker::wrapped;
use sealblk::kms::Wrapped;
use sealblk::kms::k8s::envelope;
use sealblk::kms::pkcs11::{self, KeyName, Uri};
use sealblk::kms::tls::Holder;
use sealblk::secret::Secret;
use sealblk_fuzz::source::Source;
use sha2::{Digest, Sha256};

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    match source.below(5) {
        0 => uri(source.rest()),
        1 => token(&mut source),
        2 => plugin(source.rest()),
        3 => broker(source.rest()),
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

/// What a host brings back, with what stands beside it as it says itself.
fn broker(bytes: &[u8]) {
    // The digest is made to fit: nobody finds one by trying.
    let json = bytes.get(37..).unwrap_or_default();
    let start = bytes.get(..5).unwrap_or(bytes);
    let bytes = [start, &Sha256::digest(json), json].concat();
    let value: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let given = Wrapped {
        key_id: text("key_set"),
        version: text("key_version"),
        alg: format!("broker+{}", text("alg")),
        bytes,
    };
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
