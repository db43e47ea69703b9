//! Keys and their versions, as the service describes them.

use std::time::SystemTime;

use serde::Deserialize;

use super::answer::{Fault, Precondition, Question, Verb};
use super::client::{Client, strange};
use super::crypt;
use super::envelope::ALGORITHMS;
use super::session::Token;
use super::settings::KeyName;
use super::state::State;
use crate::kms::cluster::Failed;
use crate::kms::{Class, Denied, Error, KeyVersion};
use crate::timestamp::Timestamp;

/// A version of a key.
#[derive(Debug)]
pub(super) struct Version {
    pub number: u64,
    state: State,
    /// When it was or will be destroyed.
    destroyed: Option<String>,
}

#[derive(Deserialize)]
struct KeyAnswer {
    #[serde(default)]
    purpose: String,
    primary: Option<VersionAnswer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionAnswer {
    name: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    algorithm: String,
    destroy_time: Option<String>,
    destroy_event_time: Option<String>,
}

/// Whether the service does not let the key be looked at.
fn is_hidden(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::Failed(Failed::Here(error)) if error.class() == Class::Denied(Denied::Forbidden)
    )
}

impl Version {
    /// The version that would be used now: the primary one, or that which is
    /// pinned. Without the right to look at the key, it is the one that
    /// encrypts something. If that is not permitted either, the first denial
    /// counts.
    pub(super) async fn current(
        client: &Client,
        token: &Token,
        key: &KeyName,
        pinned: Option<u64>,
    ) -> Result<Self, Fault> {
        const NOTHING: &[u8] = &[0; 32];
        let hidden = match Version::read(client, token, key, pinned).await {
            Err(fault) if is_hidden(&fault) => fault,
            other => return other,
        };
        let (number, state) =
            match crypt::encrypt(client, token, key, pinned, NOTHING, b"sealblk probe").await {
                Ok(encrypted) => (encrypted.version, State::Enabled),
                Err(Fault::State(
                    _,
                    Precondition {
                        version: Some(version),
                        state: Some(state),
                    },
                )) => (version, state),
                Err(fault) if is_hidden(&fault) => return Err(hidden),
                Err(fault) => return Err(fault),
            };
        Ok(Version {
            number,
            state,
            destroyed: None,
        })
    }

    /// The same, as the service describes it.
    pub(super) async fn read(
        client: &Client,
        token: &Token,
        key: &KeyName,
        pinned: Option<u64>,
    ) -> Result<Self, Fault> {
        let asked = client.ask(token, key, pinned, Verb::Get, None::<&()>);
        let (question, reply) = asked.await?;
        if pinned.is_some() {
            let found: VersionAnswer = Client::parse(&question, &reply)?;
            let version = Version::of(&question, found)?;
            return match pinned == Some(version.number) {
                true => Ok(version),
                false => Err(strange(&question, "another version than was asked for").into()),
            };
        }
        let found: KeyAnswer = Client::parse(&question, &reply)?;
        if found.purpose != "ENCRYPT_DECRYPT" {
            return Err(unfit(key, "purpose", &found.purpose).into());
        }
        match found.primary {
            Some(primary) => Ok(Version::of(&question, primary)?),
            None => Err(Error::new(
                Class::NotFound,
                format!("{key} has no primary version"),
                format!(
                    "have one made: gcloud kms keys versions create --primary {}",
                    key.options()
                ),
            )
            .into()),
        }
    }

    fn of(question: &Question<'_>, found: VersionAnswer) -> Result<Self, Error> {
        let key = question.key;
        let Some(number) = key.version_of(&found.name) else {
            return Err(strange(question, "a version of another key"));
        };
        // Of a key for something else, whose version was pinned.
        if !ALGORITHMS.contains(&found.algorithm.as_str()) {
            return Err(unfit(key, "algorithm", &found.algorithm));
        }
        let Some(state) = State::of(&found.state) else {
            return Err(Error::new(
                Class::Protocol,
                format!(
                    "version {number} of {key} has state {:.60?}, which is not known here",
                    found.state
                ),
                "upgrade sealblk on this host, or use another version",
            ));
        };
        Ok(Version {
            number,
            state,
            destroyed: found.destroy_event_time.or(found.destroy_time),
        })
    }

    pub(super) fn check_usable(&self, key: &KeyName) -> Result<(), Error> {
        if self.state.is_usable() {
            return Ok(());
        }
        let time = self.destroyed.as_deref().filter(|time| time.len() < 40);
        Err(self.state.refusal(key, Some(self.number), time))
    }

    pub(super) fn told(&self) -> KeyVersion {
        KeyVersion {
            id: self.number.to_string(),
            enabled: self.state.is_usable(),
            expires: match self.state {
                State::DestroyScheduled => self.destroyed.as_deref().and_then(time),
                _ => None,
            },
        }
    }
}

/// A time as JSON has it (google.protobuf.Timestamp), in whole seconds.
fn time(text: &str) -> Option<SystemTime> {
    let seconds = text.split(['.', 'Z']).next()?;
    let time: Timestamp = format!("{seconds}Z").parse().ok()?;
    Some(time.to_system())
}

fn unfit(key: &KeyName, what: &str, found: &str) -> Error {
    Error::new(
        Class::Protocol,
        format!("{key} has {what} {found:.60?}, and does not encrypt and decrypt with a binding"),
        "make a key for it: gcloud kms keys create NAME --purpose=encryption …",
    )
}
