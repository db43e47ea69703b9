//! The AWS SDK for Python opens what we wrap, and we what it encrypts, by the
//! layout of docs/kms/aws-kms.md alone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sealblk::kms::aws::AwsProvider;
use sealblk::kms::{Provider, Wrapped};
use sealblk::secret::Secret;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::moto::{Key, OPERATIONS, REGION, User, policy, server};
use super::{AAD, wait};

/// The header as documented, and the context that goes with it.
fn header(key: &Key) -> (Vec<u8>, Value) {
    let mut header = b"sbWX\x01\x01".to_vec();
    for name in [&key.arn, &key.material] {
        header.extend((name.len() as u16).to_be_bytes());
        header.extend(name.as_bytes());
    }
    let mut bound = header.clone();
    bound.extend((AAD.len() as u64).to_be_bytes());
    bound.extend(AAD);
    let binding = BASE64.encode(Sha256::digest(&bound));
    let context = json!({"sealblk-purpose": "wrapped-key", "sealblk-binding": binding});
    (header, context)
}

fn boto(user: &User, what: &str, key: &Key, mut with: Value) -> Value {
    with["region"] = REGION.into();
    with["key"] = key.arn.as_str().into();
    with["secret"] = user.secret.as_str().into();
    user.ask(what, with)
}

#[test]
fn what_the_sdk_encrypts_we_open() {
    let user = server().user(&policy(&OPERATIONS));
    let key = server().key(json!({}));
    let (header, context) = header(&key);
    let made = boto(
        &user,
        "boto_encrypt",
        &key,
        json!({"plaintext": BASE64.encode([7; 64]), "context": context}),
    );
    assert_eq!(made["key_id"], key.arn.as_str());
    let blob = BASE64.decode(made["blob"].as_str().unwrap()).unwrap();
    let wrapped = Wrapped {
        key_id: key.arn.clone(),
        version: key.material.clone(),
        alg: "SYMMETRIC_DEFAULT".into(),
        bytes: [header, blob].concat(),
    };
    let provider = AwsProvider::new(user.settings());
    let opened = wait(provider.unwrap(&wrapped, AAD)).unwrap();
    assert_eq!(opened[..], [7; 64]);
}

#[test]
fn what_we_wrap_the_sdk_opens_with_the_documented_context() {
    let user = server().user(&policy(&OPERATIONS));
    let key = server().key(json!({}));
    let provider = AwsProvider::new(user.settings());
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key.by_arn(), &payload, AAD)).unwrap();
    let (header, context) = header(&key);
    assert_eq!(wrapped.bytes[..header.len()], header);
    let blob = BASE64.encode(&wrapped.bytes[header.len()..]);
    let opened = boto(
        &user,
        "boto_decrypt",
        &key,
        json!({"blob": blob, "context": context}),
    );
    assert_eq!(opened["plaintext"], BASE64.encode(&payload[..]));
}
