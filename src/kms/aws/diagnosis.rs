//! What the service tells of itself, and of the identity that we have there.
//! For diagnosis alone: no use of a key depends on it.

use std::time::SystemTime;

use super::client::Client;
use super::key::{self, ALGORITHM};
use super::key_name::{KeyName, Target};
use super::{AwsProvider, SYMMETRIC_DEFAULT};
use crate::kms::cluster::Failed;
use crate::kms::envelope::context;
use crate::kms::http::Reply;
use crate::kms::{Class, Denied, Error, Wrapped};
use crate::timestamp::Timestamp;

/// What KMS tells anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The region.
    pub region: String,
    /// What time it is there.
    pub date: Option<Timestamp>,
}

/// Who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// The source that the credentials came from.
    pub source: &'static str,
    /// When they end, if they do.
    pub ends: Option<SystemTime>,
    /// The ARN that STS has for them, or why it is not known.
    pub arn: Result<String, String>,
}

impl AwsProvider {
    /// Whether KMS is at the first endpoint that answers. No identity is needed.
    ///
    /// # Errors
    /// When none answers, or with something else.
    pub async fn greeting(&self) -> Result<Greeting, Error> {
        self.cluster
            .call(async |client: &Client| {
                let reply = client.unsigned().await?;
                key::greeting(client, &reply)?;
                Ok(Greeting {
                    region: client.region().to_string(),
                    date: reply.date,
                })
            })
            .await
    }

    /// Who we are at the first endpoint that answers.
    ///
    /// # Errors
    /// When there are no credentials, or STS does not take them.
    pub async fn who(&self) -> Result<Who, Error> {
        self.cluster
            .call(async |client: &Client| {
                let loaded = client.loaded().await?;
                // STS may be out of reach where KMS is not: that is no failure.
                let limit = client.settings().timing.timeout / 2;
                let asked = tokio::time::timeout(limit, client.caller_identity(&loaded));
                let arn = match asked.await {
                    Ok(Ok(reply)) => caller(&reply)?,
                    Ok(Err(Failed::Here(error) | Failed::Everywhere(error))) => {
                        Err(error.to_string())
                    }
                    Err(_) => Err(format!(
                        "STS did not answer within {:.1} s",
                        limit.as_secs_f64()
                    )),
                };
                Ok(Who {
                    source: loaded.source(),
                    ends: loaded.ends(),
                    arn,
                })
            })
            .await
    }
}

/// What STS answers: no permission is needed for it, so what it refuses are
/// the credentials.
fn caller(reply: &Reply) -> Result<Result<String, String>, Error> {
    let text = String::from_utf8_lossy(&reply.body);
    let field = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (value, _) = rest.split_once(&format!("</{name}>"))?;
        Some(value.trim().to_owned())
    };
    match (reply.status, field("Arn")) {
        (200, Some(arn)) => Ok(Ok(arn)),
        (400 | 403, None) if field("Code").is_some() => {
            let words = [field("Code"), field("Message")].map(Option::unwrap_or_default);
            Err(Error::new(
                Class::Denied(Denied::Forbidden),
                "AWS does not take the credentials of this host",
                "renew them where they come from, and see that the clock of this host is right",
            )
            .with_words(&words.join(": ")))
        }
        (status, _) => Ok(Err(format!("STS answers with status {status}"))),
    }
}

/// What no key opens, as if `version` of `key` had wrapped it, if `key` is
/// named by its ARN. Whoever may not unwrap is told so all the same; who may
/// gets [`Class::BadKey`].
pub fn unopenable(key: &str, version: &str) -> Option<Wrapped> {
    let name: KeyName = key.parse().ok()?;
    if name.place.is_none() || !matches!(name.target, Target::Id(_)) {
        return None;
    }
    let header = context::header(SYMMETRIC_DEFAULT, key, version)?;
    Some(Wrapped {
        key_id: key.into(),
        version: version.into(),
        alg: ALGORITHM.into(),
        bytes: [&header[..], &[0; 152]].concat(),
    })
}
