//! Keys, their versions, and the wrapped bytes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose::URL_SAFE_NO_PAD};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::answer::{self, Operation, Question, Refusal};
use super::client::{Client, EMPTY};
use super::name::{self, KeyName, KeyUri, Version};
use super::settings::Algorithm;
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::envelope::bound::{self, Envelope};
use crate::kms::envelope::{self, check_beside};
use crate::kms::http::BaseUrl;
use crate::kms::{Class, Denied, Error, Wrapped};
use crate::secret::Secret;
use crate::timestamp::Timestamp;

/// As the service writes it, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What RSA-OAEP with SHA-256 adds (RFC 8017, section 7.1.1).
const OAEP_BYTES: usize = 66;

/// The pages of versions that are looked at, of 25 each as a rule.
const PAGES_MAX: usize = 40;

/// A version of a key, as the service tells of it.
#[derive(Debug)]
pub(super) struct Key {
    name: KeyName,
    pub version: Version,
    kind: String,
    /// The length of an RSA modulus.
    modulus: usize,
    pub attributes: Attributes,
    /// The time at the service when it said so.
    now: SystemTime,
}

#[derive(Deserialize)]
struct Bundle {
    key: Jwk,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    #[serde(default)]
    n: String,
}

/// When a key may be used, and how it is protected from being deleted.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Attributes {
    #[serde(default)]
    pub enabled: Option<bool>,
    #[serde(default)]
    nbf: Option<u64>,
    #[serde(default)]
    exp: Option<u64>,
    #[serde(default, rename = "recoveryLevel")]
    pub recovery_level: Option<String>,
}

impl Attributes {
    /// When the key ends.
    pub(super) fn expires(&self) -> Option<SystemTime> {
        self.exp.and_then(time)
    }
}

/// Of seconds since 1970.
fn time(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

impl Key {
    /// The version that is meant, whatever its state.
    pub(super) async fn read(
        client: &Client,
        name: &KeyName,
        version: Option<&Version>,
    ) -> Result<Result<Self, Refusal>, Failed> {
        let question = client.question(Operation::Get, name, version);
        let url = client.address(&question, super::API);
        let reply = match client.ask(&question, url, EMPTY).await? {
            Ok(reply) => reply,
            Err(refusal) => return explained(client, &question, refusal).await.map(Err),
        };
        let bundle: Bundle = answer::parse(&question, &reply)?;
        let found = identified(&question, &bundle.key.kid)?;
        let modulus = BASE64.decode(&bundle.key.n).unwrap_or_default();
        Ok(Ok(Key {
            name: name.clone(),
            version: found,
            kind: bundle.key.kty,
            modulus: modulus.iter().skip_while(|byte| **byte == 0).count(),
            attributes: bundle.attributes,
            now: reply
                .date
                .map_or_else(SystemTime::now, Timestamp::to_system),
        }))
    }

    /// Whether it may be used to wrap. The service itself wraps with a key
    /// that is disabled, and nothing could unwrap that.
    pub(super) fn check_usable(&self, client: &Client) -> Result<(), Error> {
        let (name, version) = (&self.name, &self.version);
        let id = format!("{client}/keys/{name}/{version}");
        let set = format!("az keyvault key set-attributes --id {id}");
        let Attributes {
            enabled, nbf, exp, ..
        } = self.attributes;
        if enabled == Some(false) {
            return Err(Error::new(
                Class::Denied(Denied::Disabled),
                format!("{id} is disabled"),
                format!("have it enabled: {set} --enabled true"),
            ));
        }
        let begins = nbf.and_then(time).filter(|begins| *begins > self.now);
        if let Some(begins) = begins {
            return Err(Error::new(
                Class::Denied(Denied::Expired),
                format!("{id} is not valid before {}", Timestamp::from(begins)),
                format!("wait, or have its beginning moved: {set} --not-before TIME"),
            ));
        }
        let ended = exp.and_then(time).filter(|ends| *ends <= self.now);
        if let Some(ended) = ended {
            return Err(Error::new(
                Class::Denied(Denied::Expired),
                format!(
                    "{id} has expired at {}: it still opens what it has wrapped, and wraps no more",
                    Timestamp::from(ended)
                ),
                format!(
                    "have the key rotated (az keyvault key rotate --name {name} {}), or its end moved: {set} --expires TIME",
                    answer::az_name(&client.settings().vault)
                ),
            ));
        }
        Ok(())
    }

    /// How it wraps.
    pub(super) fn algorithm(&self, configured: Option<Algorithm>) -> Result<Algorithm, Error> {
        let (name, kind) = (&self.name, &self.kind);
        let unfit = |why: String, next: &str| Err(Error::new(Class::Protocol, why, next));
        let rsa = match &**kind {
            "RSA" | "RSA-HSM" => true,
            "oct-HSM" | "oct" => false,
            _ => {
                return unfit(
                    format!("key {name} is of type {kind}, which wraps nothing"),
                    "make an RSA key with 3072 bits, or in a Managed HSM one of type oct-HSM with 256",
                );
            }
        };
        if rsa && self.modulus < 256 {
            return unfit(
                format!(
                    "key {name} has {} bits, which is too little",
                    self.modulus * 8
                ),
                "make an RSA key with 2048, 3072 or 4096 bits",
            );
        }
        match (configured, rsa) {
            (None, true) => Ok(Algorithm::RsaOaep256),
            (None, false) => Ok(Algorithm::A256KW),
            (Some(Algorithm::RsaOaep256), true) => Ok(Algorithm::RsaOaep256),
            (Some(algorithm), false) if algorithm != Algorithm::RsaOaep256 => Ok(algorithm),
            (Some(algorithm), _) => unfit(
                format!(
                    "key {name} is of type {kind}, which has no {}",
                    algorithm.name()
                ),
                "leave algorithm out of the key set: it follows from the key",
            ),
        }
    }

    /// Wraps with exactly this version: the whole envelope.
    pub(super) async fn wrap(
        &self,
        client: &Client,
        plaintext: &Secret,
        aad: &[u8],
    ) -> Result<Result<Wrapped, Refusal>, Failed> {
        let (name, version) = (&self.name, &self.version);
        let algorithm = self.algorithm(client.settings().algorithm)?;
        let no_memory = |error: std::io::Error| Failed::Everywhere(envelope::no_memory(&error));
        let key_id = name::key_id(&client.settings().vault, name);
        let header = bound::header(algorithm.number(), &key_id, version.as_str())
            .map_err(no_memory)?
            .ok_or_else(|| {
                Error::new(
                    Class::Protocol,
                    format!("the address of key {name} is too long"),
                    "use a shorter one",
                )
            })?;
        let inside = bound::bind(&header, plaintext, aad).map_err(no_memory)?;
        if algorithm == Algorithm::RsaOaep256 && inside.len() + OAEP_BYTES > self.modulus {
            return Err(Failed::Everywhere(
                Error::new(
                    Class::Protocol,
                    format!("{} bytes are too many for key {name}", plaintext.len()),
                    "use hierarchy = \"group\", or a longer RSA key",
                )
                .with_kind(Kind::Unsupported),
            ));
        }
        let question = client.question(Operation::Wrap, name, Some(version));
        let value = Zeroizing::new(BASE64.encode(&*inside));
        let body = Operand {
            alg: algorithm.name(),
            value: value.trim_end_matches('='),
        };
        let url = client.address(&question, algorithm.api());
        let reply = match client.ask(&question, url, Some(&body)).await? {
            Ok(reply) => reply,
            Err(refusal) => return explained(client, &question, refusal).await.map(Err),
        };
        let result: Outcome<'_> = serde_json::from_slice(&reply.body)
            .map_err(|_| Failed::Here(answer::strange(&question)))?;
        identified(&question, result.kid)?;
        let ciphertext = BASE64
            .decode(result.value)
            .map_err(|_| Failed::Here(answer::strange(&question)))?;
        let bytes = [&header[..], &ciphertext].concat();
        // What cannot be opened again is no wrap.
        bound::parse(Algorithm::NEWEST, &bytes).map_err(|_| answer::strange(&question))?;
        Ok(Ok(Wrapped {
            key_id,
            version: version.to_string(),
            alg: algorithm.name().into(),
            bytes,
        }))
    }
}

#[derive(Serialize)]
struct Operand<'o> {
    alg: &'o str,
    value: &'o str,
}

#[derive(Deserialize)]
struct Outcome<'r> {
    kid: &'r str,
    // Borrowed, so that there is no copy: base64 has nothing to unescape.
    value: &'r str,
}

/// The version in a key identifier of an answer, if that is an answer to this
/// question.
fn identified(question: &Question<'_>, kid: &str) -> Result<Version, Error> {
    kid.parse::<KeyUri>()
        .ok()
        .filter(|uri| {
            uri.name
                .as_str()
                .eq_ignore_ascii_case(question.name.as_str())
        })
        .and_then(|uri| uri.version)
        .filter(|version| question.version.is_none_or(|asked| asked == version))
        .ok_or_else(|| answer::strange(question))
}

/// An envelope of this provider, taken apart.
#[derive(Debug)]
pub(super) struct Parts<'w> {
    /// Where it was wrapped. A key that was restored elsewhere opens it, too.
    vault: BaseUrl,
    name: KeyName,
    version: Version,
    algorithm: Algorithm,
    envelope: Envelope<'w>,
}

impl<'w> Parts<'w> {
    /// What is in a wrap, if all that stands in it goes together.
    pub(super) fn of(wrapped: &'w Wrapped) -> Result<Self, Error> {
        let envelope = bound::parse(Algorithm::NEWEST, &wrapped.bytes)?;
        let none = || envelope::damaged("the wrapped bytes name no algorithm");
        let algorithm = Algorithm::numbered(envelope.algorithm).ok_or_else(none)?;
        check_beside(&[
            ("key", &wrapped.key_id, envelope.key_id),
            ("key version", &wrapped.version, envelope.version),
            ("algorithm", &wrapped.alg, algorithm.name()),
        ])?;
        let uri: KeyUri = envelope.key_id.parse().map_err(envelope::damaged)?;
        if uri.version.is_some() {
            return Err(envelope::damaged("the wrapped bytes name a version twice"));
        }
        Ok(Parts {
            vault: uri.vault,
            name: uri.name,
            version: envelope.version.parse().map_err(envelope::damaged)?,
            algorithm,
            envelope,
        })
    }

    /// Opens it, under the version that it names. `None` if it is bound to
    /// something else.
    pub(super) async fn unwrap(
        &self,
        client: &Client,
        aad: &[u8],
    ) -> Result<Result<Secret, Refusal>, Failed> {
        let question = client.question(Operation::Unwrap, &self.name, Some(&self.version));
        let value = URL_SAFE_NO_PAD.encode(self.envelope.ciphertext);
        let body = Operand {
            alg: self.algorithm.name(),
            value: &value,
        };
        let url = client.address(&question, self.algorithm.api());
        let reply = match client.ask(&question, url, Some(&body)).await? {
            Ok(reply) => reply,
            Err(refusal) => {
                let refusal = explained(client, &question, refusal).await?;
                return Ok(Err(self.moved(question.vault, refusal)));
            }
        };
        let strange = || Failed::Here(answer::strange(&question));
        let result: Outcome<'_> = serde_json::from_slice(&reply.body).map_err(|_| strange())?;
        identified(&question, result.kid)?;
        let room = base64::decoded_len_estimate(result.value.len());
        if room > envelope::PLAINTEXT_MAX + bound::DIGEST_BYTES + 3 {
            return Err(strange());
        }
        let no_memory = |error: std::io::Error| Failed::Everywhere(envelope::no_memory(&error));
        let mut decoded = Secret::zeroed(room).map_err(no_memory)?;
        let length = BASE64
            .decode_slice(result.value, &mut decoded)
            .map_err(|_| strange())?;
        let inside = Secret::copy_of(&decoded[..length]).map_err(no_memory)?;
        match self.envelope.unbind(&inside, aad).map_err(no_memory)? {
            Some(payload) => Ok(Ok(payload)),
            None => Err(Failed::Here(Error::new(
                Class::BadKey,
                format!(
                    "the wrapped key opens with key {}, and was made for another volume, or was tampered with",
                    self.name
                ),
                "restore the volume's header from a backup, and find out who changed it",
            ))),
        }
    }
}

impl Parts<'_> {
    /// Says of a key that is not found that it may be in another vault.
    fn moved(&self, vault: &BaseUrl, refusal: Refusal) -> Refusal {
        if refusal.error.class() != Class::NotFound || self.vault == *vault {
            return refusal;
        }
        let words = refusal.error.words().unwrap_or_default().to_owned();
        let cause = format!(
            "it was wrapped in {}, and {vault} has no such version of key {}",
            self.vault, self.name
        );
        let next = format!(
            "name that vault in the key set, or have the key restored here from a backup: az keyvault key restore --file FILE {}",
            answer::az_name(vault)
        );
        Refusal {
            error: Error::new(Class::NotFound, cause, next).with_words(&words),
            ..refusal
        }
    }
}

/// Says more of a refusal where the service itself says too little: it has one
/// answer for a key that never was and one that can be recovered.
async fn explained(
    client: &Client,
    question: &Question<'_>,
    refusal: Refusal,
) -> Result<Refusal, Failed> {
    if refusal.error.class() != Class::NotFound {
        return Ok(refusal);
    }
    let words = refusal.error.words().unwrap_or_default().to_owned();
    if let Some(purge) = deleted(client, question.name).await? {
        let (vault, name) = (question.vault, question.name);
        let until = purge.map_or(String::new(), |at| {
            format!(" until {}", Timestamp::from(at))
        });
        let error = Error::new(
            Class::Denied(Denied::Deleted),
            format!("key {name} of {vault} has been deleted, and can be recovered{until}"),
            answer::recover(vault, name),
        );
        return Ok(Refusal {
            error: error.with_words(&words),
            may_pass: false,
        });
    }
    let Some(asked) = question.version else {
        return Ok(refusal);
    };
    let versions = versions(client, question.name).await.unwrap_or_default();
    let newest: Vec<&str> = versions.iter().rev().take(3).map(Version::as_str).collect();
    if newest.is_empty() {
        return Ok(refusal);
    }
    let error = Error::new(
        Class::NotFound,
        format!(
            "key {} of {} has no version {asked}: the newest are {}",
            question.name,
            question.vault,
            newest.join(", ")
        ),
        "name a version that it has in the key set, or \"latest\"; what a lost version has wrapped opens with a backup of the key alone",
    );
    Ok(Refusal {
        error: error.with_words(&words),
        may_pass: false,
    })
}

/// When a deleted key will be gone, if it is one that is kept until then. Who
/// may not know that is told nothing.
async fn deleted(client: &Client, name: &KeyName) -> Result<Option<Option<SystemTime>>, Failed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Deleted {
        recovery_id: String,
        #[serde(default)]
        scheduled_purge_date: Option<u64>,
    }
    let question = client.question(Operation::GetDeleted, name, None);
    let url = client.address(&question, super::API);
    let Ok(reply) = client.ask(&question, url, EMPTY).await? else {
        return Ok(None);
    };
    let found: Option<Deleted> = serde_json::from_slice(&reply.body).ok();
    let found = found.filter(|found| !found.recovery_id.is_empty());
    Ok(found.map(|found| found.scheduled_purge_date.and_then(time)))
}

/// The versions of a key, the oldest first, as far as it is permitted to list
/// them; else the latest one.
pub(super) async fn versions(client: &Client, name: &KeyName) -> Result<Vec<Version>, Failed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Page {
        #[serde(default)]
        value: Vec<Item>,
        #[serde(default)]
        next_link: Option<String>,
    }
    #[derive(Deserialize)]
    struct Item {
        kid: String,
        #[serde(default)]
        attributes: Created,
    }
    #[derive(Deserialize, Default)]
    struct Created {
        #[serde(default)]
        created: u64,
    }
    let question = client.question(Operation::Versions, name, None);
    let first = client.address(&question, super::API);
    let mut next = Some(first.clone());
    let mut found = Vec::new();
    for _ in 0..PAGES_MAX {
        let Some(url) = next.take() else { break };
        let Ok(reply) = client.ask(&question, url, EMPTY).await? else {
            break;
        };
        let page: Page = answer::parse(&question, &reply)?;
        for item in page.value {
            found.push((item.attributes.created, identified(&question, &item.kid)?));
        }
        next = page
            .next_link
            .filter(|link| !link.is_empty())
            .and_then(|link| Url::parse(&link).ok())
            .filter(|link| continues(&first, link));
    }
    if found.is_empty() {
        let latest = client.question(Operation::Get, name, None);
        let url = client.address(&latest, super::API);
        let Ok(reply) = client.ask(&latest, url, EMPTY).await? else {
            return Ok(Vec::new());
        };
        let bundle: Bundle = answer::parse(&latest, &reply)?;
        return Ok(vec![identified(&latest, &bundle.key.kid)?]);
    }
    found.sort_by_key(|(created, _)| *created);
    Ok(found.into_iter().map(|(_, version)| version).collect())
}

/// Whether a link leads to more of the same list, and takes our token nowhere
/// else.
fn continues(list: &Url, link: &Url) -> bool {
    link.origin() == list.origin() && link.path() == list.path()
}

/// What no key opens, as if `version` of `key` had wrapped it. Whoever may not
/// unwrap is told so all the same; who may gets [`Class::BadKey`]. `None` if
/// that is no version.
pub fn unopenable(key: &str, version: &str) -> Option<Wrapped> {
    version.parse::<Version>().ok()?;
    let algorithm = Algorithm::RsaOaep256;
    let header = bound::header(algorithm.number(), key, version).ok()??;
    Some(Wrapped {
        key_id: key.into(),
        version: version.into(),
        alg: algorithm.name().into(),
        bytes: [&header[..], &[0; 256]].concat(),
    })
}

/// Checks what can be checked of a wrap before a vault is asked: that its bytes
/// are an envelope of this provider, and that what stands beside them agrees.
///
/// # Errors
/// When it is not so.
pub fn check(wrapped: &Wrapped) -> Result<(), Error> {
    Parts::of(wrapped).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_goes_on_at_the_same_place_alone() {
        let url = |text: &str| Url::parse(text).unwrap();
        let list = url("https://v.vault.azure.net/keys/k/versions?api-version=7.4");
        let more = "https://v.vault.azure.net:443/keys/k/versions?$skiptoken=x";
        assert!(continues(&list, &url(more)));
        for bad in [
            "https://w.vault.azure.net/keys/k/versions?$skiptoken=x",
            "http://v.vault.azure.net/keys/k/versions",
            "https://v.vault.azure.net/secrets",
        ] {
            assert!(!continues(&list, &url(bad)), "{bad}");
        }
    }

    #[test]
    fn what_is_beside_an_envelope_has_to_agree() {
        let key = "https://v.vault.azure.net/keys/disks";
        let good = unopenable(key, &"0".repeat(32)).unwrap();
        check(&good).unwrap();
        let damaged = |change: fn(&mut Wrapped)| {
            let mut changed = good.clone();
            change(&mut changed);
            assert_eq!(check(&changed).unwrap_err().class(), Class::BadKey);
        };
        damaged(|wrapped| wrapped.alg = "A256KW".into());
        damaged(|wrapped| wrapped.key_id.push('s'));
        damaged(|wrapped| wrapped.version = "1".repeat(32));
        damaged(|wrapped| wrapped.bytes[5] = 0);
        for key in ["disks", "http://v.vault.azure.net/keys/disks"] {
            let other = unopenable(key, &"0".repeat(32)).unwrap();
            assert_eq!(check(&other).unwrap_err().class(), Class::BadKey);
        }
        assert_eq!(unopenable(key, "latest"), None);
        let mut newer = good.clone();
        newer.bytes[5] = Algorithm::NEWEST + 1;
        assert_eq!(check(&newer).unwrap_err().class(), Class::Protocol);
    }
}
