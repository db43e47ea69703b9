//! Versions of keys: what they are, and whether they may be used.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::answer::{self, Operation, Question, Refusal};
use super::client::{Client, EMPTY};
use super::lost::explained;
use super::name::{KeyName, KeyUri, Version};
use super::settings::Algorithm;
use crate::kms::cluster::Failed;
use crate::kms::{Class, Denied, Error};
use crate::timestamp::Timestamp;

/// As the service writes it, with or without padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A version of a key, as the service tells of it.
#[derive(Debug)]
pub(super) struct Key {
    pub name: KeyName,
    pub version: Version,
    kind: String,
    /// The length of an RSA modulus.
    pub modulus: usize,
    pub attributes: Attributes,
    /// The time at the service when it said so.
    now: SystemTime,
}

#[derive(Deserialize)]
pub(super) struct Bundle {
    pub key: Jwk,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Deserialize)]
pub(super) struct Jwk {
    pub kid: String,
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
pub(super) fn time(seconds: u64) -> Option<SystemTime> {
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
}

/// The version in a key identifier of an answer, if that is an answer to this
/// question.
pub(super) fn identified(question: &Question<'_>, kid: &str) -> Result<Version, Error> {
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
