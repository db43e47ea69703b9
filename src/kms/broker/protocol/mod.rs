//! What hosts and brokers say to each other.
//!
//! Over HTTPS with certificates on both sides go [`ChallengeAnswer`] and
//! [`Frame`]; inside of frames, which only that host and that broker can read
//! ([`super::seal`]), go [`Request`] and [`Answer`]. Their JSON holds keys, so
//! that it is written and read in secret memory. A broker that cannot tell who
//! asks answers with a bare HTTP status and a [`Problem`], which a host never
//! takes for a denial.

mod answer;
mod request;

pub use answer::{Answer, Failure, FailureClass, Outcome};
pub use request::{Operation, Request};

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::seal::PublicKey;
use super::text;

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
