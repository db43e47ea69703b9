//! Keys as the service describes them, and what is done with them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::answer::{self, Question, cancel_deletion, strange};
use super::client::Client;
use super::key_name::{KeyName, Target};
use crate::kms::cluster::Failed;
use crate::kms::envelope::{self, PLAINTEXT_MAX};
use crate::kms::http::Reply;
use crate::kms::{Class, Denied, Error};
use crate::secret::Secret;

/// The algorithm, in the service's own terms.
pub(super) const ALGORITHM: &str = "SYMMETRIC_DEFAULT";

/// The longest that the service makes of a plaintext, in bytes.
pub(super) const CIPHERTEXT_MAX: usize = 6144;

/// What an encryption context says of what is encrypted: the same for all, so
/// that policies can name it.
const PURPOSE: (&str, &str) = ("sealblk-purpose", "wrapped-key");
const BINDING: &str = "sealblk-binding";

/// What the service tells of a key.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    arn: String,
    key_state: String,
    #[serde(default)]
    key_usage: String,
    #[serde(default)]
    key_spec: String,
    #[serde(default)]
    multi_region: Option<bool>,
    valid_to: Option<f64>,
    deletion_date: Option<f64>,
    current_key_material_id: Option<String>,
}

/// A key that the service has.
#[derive(Debug)]
pub(super) struct Key {
    /// Its ARN, never that of an alias.
    pub arn: String,
    /// What wraps now: the id of its material, or its own id where the
    /// service does not tell that.
    pub version: String,
    /// Why it may not be used, if so.
    pub unusable: Option<Error>,
    /// When its material ends, if it was imported with an end.
    pub expires: Option<SystemTime>,
}

fn time(seconds: f64) -> Option<SystemTime> {
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

fn shown(seconds: Option<f64>) -> String {
    match seconds.and_then(time) {
        Some(time) => format!(" on {}", crate::timestamp::Timestamp::from(time)),
        None => String::new(),
    }
}

impl Key {
    /// Looks at a key.
    pub(super) async fn describe(client: &Client, name: &KeyName) -> Result<Self, Failed> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Describe<'d> {
            key_id: &'d str,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Described {
            key_metadata: Metadata,
        }
        let key_id = &*name.to_string();
        let (question, reply) = client
            .ask("DescribeKey", key_id, &Describe { key_id })
            .await?;
        let Described { key_metadata } = parse(&question, &reply)?;
        Key::of(client, &question, key_metadata)
    }

    fn of(client: &Client, question: &Question<'_>, found: Metadata) -> Result<Self, Failed> {
        let arn: Option<KeyName> = found.arn.parse().ok();
        let Some((place, Target::Id(id))) = arn.and_then(|arn| Some((arn.place?, arn.target)))
        else {
            return Err(strange(question, "an ARN that is none of a key").into());
        };
        let accounts = &client.settings().accounts;
        if place.region != *client.region()
            || !(accounts.is_empty() || accounts.contains(&place.account))
        {
            return Err(strange(question, "a key of another region or account").into());
        }
        if found.key_usage != "ENCRYPT_DECRYPT" || found.key_spec != ALGORITHM {
            return Err(Failed::Everywhere(Error::new(
                Class::Protocol,
                format!(
                    "key {} is of kind {} for {}, which does not bind a wrapped key to its volume",
                    question.key, found.key_spec, found.key_usage
                ),
                "make one: aws kms create-key --key-spec SYMMETRIC_DEFAULT --key-usage ENCRYPT_DECRYPT",
            )));
        }
        let regions = client.settings().endpoints.iter();
        if found.multi_region != Some(true)
            && regions
                .clone()
                .any(|endpoint| endpoint.region != place.region)
        {
            return Err(Failed::Everywhere(Error::new(
                Class::Protocol,
                format!(
                    "key {} is not a multi-Region key: the other regions of the key set could not open what it wraps",
                    found.arn
                ),
                "name one region in the key set, or a key that was made with --multi-region and replicated",
            )));
        }
        let material = found.current_key_material_id.clone();
        Ok(Key {
            version: material.unwrap_or(id),
            unusable: unusable(question, &found),
            expires: found.valid_to.and_then(time),
            arn: found.arn,
        })
    }
}

/// Why a key may not be used, if so.
fn unusable(question: &Question<'_>, found: &Metadata) -> Option<Error> {
    let (key, region) = (&found.arn, question.region);
    let (class, cause, next) = match &*found.key_state {
        // Updating: its primary region moves, and it works.
        "Enabled" | "Updating" => return None,
        "Disabled" => (
            Class::Denied(Denied::Disabled),
            format!("key {key} is disabled"),
            format!("have it enabled: aws kms enable-key --region {region} --key-id {key}"),
        ),
        "PendingDeletion" | "PendingReplicaDeletion" => (
            Class::Denied(Denied::Deleted),
            format!("key {key} is to be deleted{}", shown(found.deletion_date)),
            cancel_deletion(region, key),
        ),
        "PendingImport" => {
            let over = found.valid_to.and_then(time);
            let expired = over.is_some_and(|end| end <= SystemTime::now());
            let (denied, cause) = match expired {
                true => (
                    Denied::Expired,
                    format!("the imported material of key {key} ended{}", shown(found.valid_to)),
                ),
                false => (
                    Denied::Disabled,
                    format!("key {key} has no material: it was deleted or has ended, or was not imported yet"),
                ),
            };
            (
                Class::Denied(denied),
                cause,
                "import the same material again: aws kms get-parameters-for-import, and aws kms import-key-material".into(),
            )
        }
        "Unavailable" => (
            Class::Sealed,
            format!("the key store that key {key} is in is not connected"),
            "have it connected: aws kms describe-custom-key-stores, aws kms connect-custom-key-store".into(),
        ),
        state => (
            Class::Unreachable,
            format!("key {key} is in the state {state:?}"),
            "wait until it is enabled: aws kms describe-key shows it".into(),
        ),
    };
    Some(Error::new(class, cause, next))
}

/// The answer in JSON.
fn parse<T: DeserializeOwned>(question: &Question<'_>, reply: &Reply) -> Result<T, Failed> {
    // The error would quote what it stumbles on.
    serde_json::from_slice(&reply.body)
        .map_err(|_| Failed::Here(strange(question, "something else than was asked for")))
}

/// What is authenticated with the key, and stands in CloudTrail.
fn context(binding: &str) -> BTreeMap<&str, &str> {
    BTreeMap::from([PURPOSE, (BINDING, binding)])
}

/// Wraps with a key that was described.
pub(super) async fn encrypt(
    client: &Client,
    key: &Key,
    plaintext: &Secret,
    binding: &str,
) -> Result<Vec<u8>, Failed> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Encrypt<'e> {
        key_id: &'e str,
        plaintext: &'e str,
        encryption_context: BTreeMap<&'e str, &'e str>,
        encryption_algorithm: &'e str,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Encrypted {
        ciphertext_blob: String,
        key_id: String,
    }
    if plaintext.len() > PLAINTEXT_MAX {
        return Err(Failed::Everywhere(envelope::too_long()));
    }
    let encoded = Zeroizing::new(BASE64.encode(&**plaintext));
    // By its ARN: an alias may have been moved since.
    let body = Encrypt {
        key_id: &key.arn,
        plaintext: &encoded,
        encryption_context: context(binding),
        encryption_algorithm: ALGORITHM,
    };
    let asked = client.ask("Encrypt", &key.arn, &body).await;
    let (question, reply) = asked.map_err(|failed| failed.without_echo(&encoded))?;
    let answer: Encrypted = parse(&question, &reply)?;
    if answer.key_id != key.arn {
        return Err(strange(&question, "what another key has encrypted").into());
    }
    match BASE64.decode(answer.ciphertext_blob) {
        Ok(blob) if (1..=CIPHERTEXT_MAX).contains(&blob.len()) => Ok(blob),
        _ => Err(strange(&question, "no ciphertext").into()),
    }
}

/// Unwraps under `key`, which the service knows as `arn`.
pub(super) async fn decrypt(
    client: &Client,
    key: &str,
    arn: &str,
    blob: &[u8],
    binding: &str,
) -> Result<Secret, Failed> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Decrypt<'d> {
        key_id: &'d str,
        ciphertext_blob: &'d str,
        encryption_context: BTreeMap<&'d str, &'d str>,
        encryption_algorithm: &'d str,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Decrypted<'d> {
        // Borrowed, so that there is no copy: base64 has nothing to unescape.
        plaintext: &'d str,
        #[serde(borrow)]
        key_id: Cow<'d, str>,
    }
    let body = Decrypt {
        key_id: key,
        ciphertext_blob: &BASE64.encode(blob),
        encryption_context: context(binding),
        encryption_algorithm: ALGORITHM,
    };
    let (question, reply) = client.ask("Decrypt", key, &body).await?;
    let nothing = || Failed::Here(strange(&question, "no plaintext"));
    let answer: Decrypted<'_> = serde_json::from_slice(&reply.body).map_err(|_| nothing())?;
    if answer.key_id != arn {
        return Err(strange(&question, "what another key has decrypted").into());
    }
    let encoded = answer.plaintext.as_bytes();
    let room = base64::decoded_len_estimate(encoded.len());
    if room > PLAINTEXT_MAX + 3 {
        return Err(nothing());
    }
    let no_memory = |error: std::io::Error| Failed::Everywhere(envelope::no_memory(&error));
    let mut decoded = Secret::zeroed(room).map_err(no_memory)?;
    let length = BASE64
        .decode_slice(encoded, &mut decoded)
        .map_err(|_| nothing())?;
    Secret::copy_of(&decoded[..length]).map_err(no_memory)
}

/// Why a key that was refused for its state cannot be used: the error of a
/// call does not tell all states apart, DescribeKey does.
pub(super) async fn explain(client: &Client, name: &KeyName, error: Error) -> Error {
    let state = matches!(
        error.class(),
        Class::Denied(Denied::Disabled | Denied::Deleted)
    );
    if !state {
        return error;
    }
    match Key::describe(client, name).await {
        Ok(Key {
            unusable: Some(why),
            ..
        }) => why.with_words(error.words().unwrap_or_default()),
        _ => error,
    }
}

/// The time of the service, if its answer is one of KMS.
pub(super) fn greeting(client: &Client, reply: &Reply) -> Result<(), Error> {
    match reply.headers.contains_key("x-amzn-requestid") && answer::fault(reply).is_some() {
        true => Ok(()),
        false => {
            let question = Question {
                endpoint: client.url(),
                region: client.region(),
                operation: "DescribeKey",
                key: "",
            };
            Err(match reply.status {
                500..600 => answer::refusal(&question, reply),
                _ => strange(&question, "something that AWS KMS does not say"),
            })
        }
    }
}
