//! The wrapped bytes: wrapping into them, and opening them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::answer::{self, Operation, Refusal};
use super::client::Client;
use super::keys::{BASE64, Key, identified};
use super::lost::explained;
use super::name::{self, KeyName, KeyUri, Version};
use super::settings::Algorithm;
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::envelope::bound::{self, Envelope};
use crate::kms::envelope::{self, check_beside};
use crate::kms::http::BaseUrl;
use crate::kms::{Class, Error, Wrapped};
use crate::secret::Secret;

/// What RSA-OAEP with SHA-256 adds (RFC 8017, section 7.1.1).
const OAEP_BYTES: usize = 66;

impl Key {
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
            Err(refusal) => {
                let error = refusal.error.without_echo(body.value);
                let refusal = Refusal { error, ..refusal };
                return explained(client, &question, refusal).await.map(Err);
            }
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
