//! What hosts and brokers say to each other.
//!
//! Over HTTPS with certificates on both sides go [`ChallengeAnswer`] and
//! [`Frame`]; inside of frames, which only that host and that broker can read
//! ([`super::seal`]), go [`Request`] and [`Answer`]. Their JSON holds keys, so
//! that it is written and read in secret memory. A broker that cannot tell who
//! asks answers with a bare HTTP status and a [`Problem`], which a host never
//! takes for a denial.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::seal::PublicKey;
use super::text;
use crate::error::Explain;
use crate::kms::{self, Class, Denied};
use crate::secret::Secret;
use crate::timestamp::Timestamp;

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// The most that a body has, in either direction.
pub const BODY_MAX: usize = 64 << 10;
/// Where a challenge is asked for (POST, empty body).
pub const CHALLENGE_PATH: &str = "/v1/broker/challenge";
/// Where calls go (POST, a [`Frame`] as JSON).
pub const CALL_PATH: &str = "/v1/broker/call";
/// Where the broker tells how it is (GET).
pub const HEALTH_PATH: &str = "/v1/broker/health";
/// For how long a broker accepts a challenge that it made.
pub const CHALLENGE_LIFE: Duration = Duration::from_secs(60);
/// The most that a challenge has, in bytes.
pub const CHALLENGE_MAX: usize = 512;

/// A value that a broker made, and accepts once. Opaque to hosts.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Challenge(#[serde(with = "text::bytes")] pub Vec<u8>);

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Challenge({} bytes)", self.0.len())
    }
}

/// The answer to a request for a challenge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeAnswer {
    /// [`VERSION`].
    pub version: u32,
    /// The public key of this broker, so that a host that knows several
    /// brokers seals to the right one. It is one that the host knows already.
    pub key: PublicKey,
    /// For one call within [`CHALLENGE_LIFE`].
    pub challenge: Challenge,
}

/// A sealed message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// [`VERSION`].
    pub version: u32,
    /// The name under which the broker's policy has the host.
    pub host: String,
    /// HPKE's encapsulated key.
    #[serde(with = "text::bytes")]
    pub enc: Vec<u8>,
    /// The message and its tag.
    #[serde(with = "text::bytes")]
    pub ciphertext: Vec<u8>,
}

/// A message that does not say what it must.
#[derive(Debug, thiserror::Error)]
#[error("it is not a message of this protocol: {0}")]
pub struct Malformed(String);

impl From<serde_json::Error> for Malformed {
    fn from(error: serde_json::Error) -> Self {
        // Its texts may quote what it read: only say where.
        Malformed(format!(
            "its JSON is wrong at line {}, column {}",
            error.line(),
            error.column()
        ))
    }
}

impl Frame {
    /// The frame in the body of a request or an answer.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        Ok(serde_json::from_slice(body)?)
    }
}

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
        /// What [`Outcome::Wrapped`] had.
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
    /// Of [`Operation::Wrap`].
    Wrapped(#[serde(with = "WrappedText")] kms::Wrapped),
    /// Of [`Operation::Unwrap`].
    Payload(#[serde(with = "text::secret")] Secret),
    /// Of [`Operation::CurrentVersion`].
    Version(#[serde(with = "VersionText")] kms::KeyVersion),
    /// It did not work: the key service's error, or the policy's denial.
    Error(Failure),
}

/// [`kms::Wrapped`] as JSON.
#[derive(Serialize, Deserialize)]
#[serde(remote = "kms::Wrapped", deny_unknown_fields)]
struct WrappedText {
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

/// The body of a bare HTTP error: what a broker says to whom it does not know,
/// or cannot read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it is about.
    pub problem: ProblemKind,
    /// In words.
    pub detail: String,
}

/// What a bare HTTP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// 400: the body is not a frame, or has not what it must.
    Malformed,
    /// 400: the protocol version is not known here.
    Version,
    /// 403: no host of that name, with that certificate, or with a key that
    /// opens the frame.
    Unknown,
    /// 409: the challenge is not this broker's, too old, or was used. Ask for
    /// a new one.
    Challenge,
    /// 413: the body is too large.
    TooLarge,
    /// 503: too many calls or connections.
    Busy,
    /// 500: the broker itself failed.
    Internal,
    /// Another one, of a newer broker.
    #[serde(other)]
    Other,
}

impl ProblemKind {
    /// The HTTP status that it goes with.
    pub fn status(self) -> u16 {
        match self {
            ProblemKind::Malformed | ProblemKind::Version => 400,
            ProblemKind::Unknown => 403,
            ProblemKind::Challenge => 409,
            ProblemKind::TooLarge => 413,
            ProblemKind::Internal | ProblemKind::Other => 500,
            ProblemKind::Busy => 503,
        }
    }
}

/// What [`HEALTH_PATH`] answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The version of sealblk there.
    pub version: String,
    /// [`VERSION`] there.
    pub protocol: u32,
    /// How many key sets it has.
    pub key_sets: u64,
}

#[cfg(test)]
mod tests;
