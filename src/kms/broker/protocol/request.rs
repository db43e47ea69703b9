//! What a host asks for.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::answer::WrappedText;
use super::{CHALLENGE_MAX, Challenge, Malformed};
use crate::kms;
use crate::kms::broker::text;
use crate::secret::Secret;

/// What a host asks for. Sealed.
#[derive(Debug)]
pub struct Request {
    /// From the broker that is asked, and for this call alone.
    pub challenge: Challenge,
    /// Under which both ends keep their record of the call.
    pub correlation: Uuid,
    /// For how long the host waits for the answer. A broker whose key service
    /// does not help says so before.
    pub patience: Option<Duration>,
    /// The key set, as the broker calls it.
    pub key_set: String,
    /// What to do.
    pub operation: Operation,
}

/// What to do with a key set.
#[derive(Debug)]
pub enum Operation {
    /// Wrap `payload`, bound to `aad`.
    Wrap {
        /// The pinned version, if it is not to be the latest one.
        version: Option<String>,
        /// What it is bound to.
        aad: Vec<u8>,
        /// What to wrap.
        payload: Secret,
    },
    /// Unwrap what was wrapped with `aad`.
    Unwrap {
        /// What `Outcome::Wrapped` had.
        wrapped: kms::Wrapped,
        /// What it is bound to.
        aad: Vec<u8>,
    },
    /// Tell the version that would wrap now.
    CurrentVersion {
        /// The pinned version, if it is not to be the latest one.
        version: Option<String>,
    },
}

impl Operation {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Operation::Wrap { .. } => "wrap",
            Operation::Unwrap { .. } => "unwrap",
            Operation::CurrentVersion { .. } => "current_version",
        }
    }
}

/// [`Request`] as JSON, with what some operations have and others have not.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestText {
    challenge: Challenge,
    correlation: Uuid,
    operation: OperationName,
    key_set: String,
    #[serde(default)]
    patience_ms: Option<u32>,
    version: Option<String>,
    #[serde(default)]
    aad: Option<BytesText>,
    #[serde(default)]
    payload: Option<SecretText>,
    #[serde(default)]
    wrapped: Option<WrappedOwned>,
}

/// The same for writing, without taking anything.
#[derive(Serialize)]
struct RequestRef<'a> {
    challenge: &'a Challenge,
    correlation: Uuid,
    operation: OperationName,
    key_set: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    patience_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aad: Option<BytesRef<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<SecretRef<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped: Option<WrappedRef<'a>>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OperationName {
    Wrap,
    Unwrap,
    CurrentVersion,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct BytesText(#[serde(with = "text::bytes")] Vec<u8>);

#[derive(Deserialize)]
#[serde(transparent)]
struct SecretText(#[serde(with = "text::secret")] Secret);

#[derive(Deserialize)]
#[serde(transparent)]
struct WrappedOwned(#[serde(with = "WrappedText")] kms::Wrapped);

#[derive(Serialize)]
#[serde(transparent)]
struct BytesRef<'a>(#[serde(with = "text::bytes")] &'a [u8]);

#[derive(Serialize)]
#[serde(transparent)]
struct SecretRef<'a>(#[serde(serialize_with = "text::secret::serialize")] &'a Secret);

#[derive(Serialize)]
#[serde(transparent)]
struct WrappedRef<'a>(#[serde(serialize_with = "WrappedText::serialize")] &'a kms::Wrapped);

impl Request {
    /// The JSON of the request, which may hold a key.
    ///
    /// # Errors
    /// When there is no locked memory.
    pub fn to_secret(&self) -> io::Result<Secret> {
        let mut text = RequestRef {
            challenge: &self.challenge,
            correlation: self.correlation,
            operation: OperationName::CurrentVersion,
            key_set: &self.key_set,
            patience_ms: self
                .patience
                .map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
            version: None,
            aad: None,
            payload: None,
            wrapped: None,
        };
        match &self.operation {
            Operation::Wrap {
                version,
                aad,
                payload,
            } => {
                text.operation = OperationName::Wrap;
                text.version = version.as_deref();
                text.aad = Some(BytesRef(aad));
                text.payload = Some(SecretRef(payload));
            }
            Operation::Unwrap { wrapped, aad } => {
                text.operation = OperationName::Unwrap;
                text.aad = Some(BytesRef(aad));
                text.wrapped = Some(WrappedRef(wrapped));
            }
            Operation::CurrentVersion { version } => text.version = version.as_deref(),
        }
        text::to_secret(&text)
    }

    /// The request in an opened frame.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(json: &Secret) -> Result<Self, Malformed> {
        let text: RequestText = serde_json::from_slice(json)?;
        let operation = match (text.operation, text.aad, text.payload, text.wrapped) {
            (OperationName::Wrap, Some(aad), Some(payload), None) => Operation::Wrap {
                version: text.version,
                aad: aad.0,
                payload: payload.0,
            },
            (OperationName::Unwrap, Some(aad), None, Some(wrapped)) if text.version.is_none() => {
                Operation::Unwrap {
                    wrapped: wrapped.0,
                    aad: aad.0,
                }
            }
            (OperationName::CurrentVersion, None, None, None) => Operation::CurrentVersion {
                version: text.version,
            },
            _ => {
                return Err(Malformed(
                    "its fields are not those of its operation".into(),
                ));
            }
        };
        if text.challenge.0.len() > CHALLENGE_MAX {
            return Err(Malformed("its challenge is too long".into()));
        }
        Ok(Request {
            challenge: text.challenge,
            correlation: text.correlation,
            key_set: text.key_set,
            patience: text
                .patience_ms
                .map(|millis| Duration::from_millis(millis.into())),
            operation,
        })
    }
}
