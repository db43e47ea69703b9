//! Encrypting and decrypting, with checksums both ways, so that nothing that
//! was damaged on the way is ever stored or used
//! (<https://cloud.google.com/kms/docs/data-integrity-guidelines>).

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::answer::{Fault, Question, Verb};
use super::client::{Client, strange};
use super::envelope::{ALGORITHMS, Envelope};
use super::json;
use super::session::Token;
use super::settings::KeyName;
use crate::kms::cluster::Failed;
use crate::kms::envelope::{PLAINTEXT_MAX, no_memory};
use crate::kms::{Class, Error};
use crate::secret::Secret;

/// What was encrypted.
pub(super) struct Encrypted {
    pub version: u64,
    pub algorithm: &'static str,
    pub ciphertext: Vec<u8>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EncryptRequest<'e> {
    plaintext: &'e str,
    plaintext_crc32c: String,
    additional_authenticated_data: &'e str,
    additional_authenticated_data_crc32c: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EncryptAnswer {
    name: String,
    ciphertext: String,
    #[serde(default)]
    ciphertext_crc32c: String,
    #[serde(default)]
    verified_plaintext_crc32c: bool,
    #[serde(default)]
    verified_additional_authenticated_data_crc32c: bool,
    #[serde(default)]
    protection_level: String,
}

/// The checksum as JSON has it: a number of 64 bits, in quotes.
fn checksum(bytes: &[u8]) -> String {
    crc32c::crc32c(bytes).to_string()
}

/// Encrypts with the version that is given, or the primary one.
pub(super) async fn encrypt(
    client: &Client,
    token: &Token,
    key: &KeyName,
    version: Option<u64>,
    plaintext: &[u8],
    associated: &[u8],
) -> Result<Encrypted, Fault> {
    let encoded = Zeroizing::new(BASE64.encode(plaintext));
    let body = EncryptRequest {
        plaintext: &encoded,
        plaintext_crc32c: checksum(plaintext),
        additional_authenticated_data: &BASE64.encode(associated),
        additional_authenticated_data_crc32c: checksum(associated),
    };
    let asked = client.ask(token, key, version, Verb::Encrypt, Some(&body));
    let (question, reply) = asked.await.map_err(|fault| without_echo(fault, &encoded))?;
    let answer: EncryptAnswer = Client::parse(&question, &reply)?;
    if !answer.verified_plaintext_crc32c || !answer.verified_additional_authenticated_data_crc32c {
        return Err(damaged(
            &question,
            "what it was sent: it did not confirm the checksums",
        )
        .into());
    }
    let Ok(ciphertext) = BASE64.decode(&answer.ciphertext) else {
        return Err(strange(&question, "a ciphertext that is not base64").into());
    };
    if checksum(&ciphertext) != answer.ciphertext_crc32c {
        return Err(damaged(&question, "its answer: the checksum is another one").into());
    }
    let Some(found) = key.version_of(&answer.name) else {
        return Err(strange(&question, "the name of another key").into());
    };
    if version.is_some_and(|version| version != found) {
        return Err(strange(&question, "another version than was asked for").into());
    }
    let external = answer.protection_level.starts_with("EXTERNAL");
    Ok(Encrypted {
        version: found,
        algorithm: ALGORITHMS[usize::from(external)],
        ciphertext,
    })
}

/// A service that quotes what it was sent must not bring that into a log.
fn without_echo(fault: Fault, encoded: &str) -> Fault {
    let clean = |error: Error| error.without_echo(encoded);
    match fault {
        Fault::Unauthenticated(error) => Fault::Unauthenticated(clean(error)),
        Fault::State(error, found) => Fault::State(clean(error), found),
        Fault::Failed(Failed::Here(error)) => Failed::Here(clean(error)).into(),
        other => other,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DecryptRequest<'d> {
    ciphertext: &'d str,
    ciphertext_crc32c: String,
    additional_authenticated_data: &'d str,
    additional_authenticated_data_crc32c: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DecryptAnswer<'d> {
    // Borrowed, so that there is no copy.
    #[serde(borrow, default)]
    plaintext: &'d str,
    #[serde(borrow, default)]
    plaintext_crc32c: &'d str,
}

/// Decrypts with the version that the ciphertext is of.
pub(super) async fn decrypt(
    client: &Client,
    token: &Token,
    envelope: &Envelope<'_>,
    aad: &[u8],
) -> Result<Secret, Fault> {
    let associated = envelope.associated(aad);
    let body = DecryptRequest {
        ciphertext: &BASE64.encode(envelope.ciphertext),
        ciphertext_crc32c: checksum(envelope.ciphertext),
        additional_authenticated_data: &BASE64.encode(&associated),
        additional_authenticated_data_crc32c: checksum(&associated),
    };
    let asked = client.ask(token, &envelope.key, None, Verb::Decrypt, Some(&body));
    let (question, reply) = asked.await?;
    let no_plaintext = || strange(&question, "no plaintext");
    let text = json::unescaped(&reply.body);
    let answer: DecryptAnswer<'_> = serde_json::from_slice(&text).map_err(|_| no_plaintext())?;
    let encoded = answer.plaintext.as_bytes();
    if encoded.is_empty() {
        // It encrypts no such thing.
        return Err(no_plaintext().into());
    }
    let room = base64::decoded_len_estimate(encoded.len());
    if room > PLAINTEXT_MAX + 3 {
        return Err(no_plaintext().into());
    }
    let here = |error: io::Error| Failed::Everywhere(no_memory(&error));
    let mut decoded = Secret::zeroed(room).map_err(here)?;
    let length = BASE64
        .decode_slice(encoded, &mut decoded)
        .map_err(|_| no_plaintext())?;
    let plaintext = &decoded[..length];
    if checksum(plaintext) != answer.plaintext_crc32c {
        return Err(damaged(&question, "its answer: the checksum is another one").into());
    }
    Ok(Secret::copy_of(plaintext).map_err(here)?)
}

/// Damaged between both ends of TLS: at Google's side, or by a box in between.
fn damaged(question: &Question<'_>, what: &str) -> Error {
    Error::new(
        Class::Unreachable,
        format!("{} or the way to it damaged {what}", question.endpoint),
        "if it happens again, find out what is between this host and the service",
    )
}
