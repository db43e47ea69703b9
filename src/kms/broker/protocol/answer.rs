//! What a broker answers.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CHALLENGE_MAX, Challenge, Malformed};
use crate::error::Explain;
use crate::kms::broker::text;
use crate::kms::{self, Class, Denied};
use crate::secret::Secret;
use crate::timestamp::Timestamp;

/// What a broker answers. Sealed.
#[derive(Debug)]
pub struct Answer {
    /// For the next call to this broker.
    pub next_challenge: Challenge,
    /// The broker's id of the call, as it stands in its records.
    pub request_id: Option<String>,
    /// What came out.
    pub outcome: Outcome,
}

/// What came out of a call.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Of `Operation::Wrap`.
    Wrapped(#[serde(with = "WrappedText")] kms::Wrapped),
    /// Of `Operation::Unwrap`.
    Payload(#[serde(with = "text::secret")] Secret),
    /// Of `Operation::CurrentVersion`.
    Version(#[serde(with = "VersionText")] kms::KeyVersion),
    /// It did not work: the key service's error, or the policy's denial.
    Error(Failure),
}

/// [`kms::Wrapped`] as JSON.
#[derive(Serialize, Deserialize)]
#[serde(remote = "kms::Wrapped", deny_unknown_fields)]
pub(super) struct WrappedText {
    key_id: String,
    version: String,
    alg: String,
    #[serde(with = "text::bytes")]
    bytes: Vec<u8>,
}

/// [`kms::KeyVersion`] as JSON.
#[derive(Serialize, Deserialize)]
#[serde(remote = "kms::KeyVersion")]
struct VersionText {
    id: String,
    enabled: bool,
    #[serde(with = "expiry", default, skip_serializing_if = "Option::is_none")]
    expires: Option<std::time::SystemTime>,
}

mod expiry {
    use super::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::time::SystemTime;

    pub fn serialize<S: Serializer>(time: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
        time.map(Timestamp::from).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<Timestamp>::deserialize(from)?.map(Timestamp::to_system))
    }
}

/// A [`kms::Error`] on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its class.
    pub class: FailureClass,
    /// How many seconds to leave the service alone, if it is throttled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// What is wrong.
    pub cause: String,
    /// What to do about it.
    pub next: String,
    /// The service's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
}

/// The classes of [`kms::Class`] by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "they are those of kms::Class")]
pub enum FailureClass {
    DeniedDisabled,
    DeniedExpired,
    DeniedDeleted,
    DeniedForbidden,
    NotFound,
    Throttled,
    Unreachable,
    Sealed,
    BadKey,
    Protocol,
}

impl From<&kms::Error> for Failure {
    fn from(error: &kms::Error) -> Self {
        use FailureClass as F;
        let mut retry = None;
        let class = match error.class() {
            Class::Denied(Denied::Disabled) => F::DeniedDisabled,
            Class::Denied(Denied::Expired) => F::DeniedExpired,
            Class::Denied(Denied::Deleted) => F::DeniedDeleted,
            Class::Denied(Denied::Forbidden) => F::DeniedForbidden,
            Class::NotFound => F::NotFound,
            Class::Throttled { retry_after } => {
                // Rounded up: not too early.
                retry = retry_after.map(|time| time.as_millis().div_ceil(1000));
                F::Throttled
            }
            Class::Unreachable => F::Unreachable,
            Class::Sealed => F::Sealed,
            Class::BadKey => F::BadKey,
            Class::Protocol => F::Protocol,
        };
        Failure {
            class,
            retry_after: retry.map(|seconds| u64::try_from(seconds).unwrap_or(u64::MAX)),
            cause: error.cause().into(),
            next: error.help().unwrap_or_default(),
            words: error.words().map(str::to_owned),
        }
    }
}

impl Failure {
    /// The class that it has in policy.
    pub fn class(&self) -> Class {
        use FailureClass as F;
        match self.class {
            F::DeniedDisabled => Class::Denied(Denied::Disabled),
            F::DeniedExpired => Class::Denied(Denied::Expired),
            F::DeniedDeleted => Class::Denied(Denied::Deleted),
            F::DeniedForbidden => Class::Denied(Denied::Forbidden),
            F::NotFound => Class::NotFound,
            F::Throttled => Class::Throttled {
                retry_after: self.retry_after.map(Duration::from_secs),
            },
            F::Unreachable => Class::Unreachable,
            F::Sealed => Class::Sealed,
            F::BadKey => Class::BadKey,
            F::Protocol => Class::Protocol,
        }
    }
}

/// [`Answer`] for writing.
#[derive(Serialize)]
struct AnswerRef<'a> {
    next_challenge: &'a Challenge,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    outcome: &'a Outcome,
}

/// [`Answer`] as it is read. Fields may be added.
#[derive(Deserialize)]
struct AnswerText {
    next_challenge: Challenge,
    request_id: Option<String>,
    outcome: Outcome,
}

impl Answer {
    /// The JSON of the answer, which may hold a key.
    ///
    /// # Errors
    /// When there is no locked memory.
    pub fn to_secret(&self) -> io::Result<Secret> {
        text::to_secret(&AnswerRef {
            next_challenge: &self.next_challenge,
            request_id: self.request_id.as_deref(),
            outcome: &self.outcome,
        })
    }

    /// The answer in an opened frame.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(json: &Secret) -> Result<Self, Malformed> {
        let text: AnswerText = serde_json::from_slice(json)?;
        if text.next_challenge.0.len() > CHALLENGE_MAX {
            return Err(Malformed("its challenge is too long".into()));
        }
        Ok(Answer {
            next_challenge: text.next_challenge,
            request_id: text.request_id,
            outcome: text.outcome,
        })
    }
}
