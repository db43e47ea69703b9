//! What the service tells of itself, and of the identity that we have there.
//! For diagnosis alone: no use of a key depends on it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::VaultProvider;
use super::answer;
use super::client::Client;
use super::transit::{ALGORITHMS, ENVELOPE};
use crate::kms::cluster::Failed;
use crate::kms::{Class, Error, Wrapped};
use crate::timestamp::Timestamp;

/// The state of an endpoint, as it tells anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it was ever set up.
    pub initialized: bool,
    /// Whether it waits to be unsealed.
    pub sealed: bool,
    /// Whether another node is the active one.
    pub standby: bool,
    /// The version of its program.
    pub version: String,
    /// What time it is there.
    pub date: Option<Timestamp>,
}

/// Who we are at the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name that it shows for this identity.
    pub name: String,
    /// The policies that decide what it may do.
    pub policies: Vec<String>,
    /// How long the token lasts still; `None` for one without an end.
    pub ttl: Option<Duration>,
    /// Whether it can be renewed before.
    pub renewable: bool,
}

#[derive(Deserialize)]
struct HealthAnswer {
    initialized: bool,
    sealed: bool,
    #[serde(default)]
    standby: bool,
    #[serde(default)]
    version: String,
}

#[derive(Deserialize)]
struct LookUpAnswer {
    data: LookedUp,
}

#[derive(Deserialize)]
struct LookedUp {
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    policies: Vec<String>,
    /// `null` where the identity has none.
    #[serde(default)]
    identity_policies: Option<Vec<String>>,
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

impl VaultProvider {
    /// The state of the first endpoint that answers. No identity is needed.
    ///
    /// # Errors
    /// When none answers, or with something else.
    pub async fn health(&self) -> Result<Health, Error> {
        self.cluster
            .call(async |client: &Client| {
                let (question, reply) = client.health().await?;
                // The status tells the same again.
                let told: HealthAnswer = serde_json::from_slice(&reply.body).map_err(|_| {
                    Failed::Here(Error::new(
                        Class::Protocol,
                        format!(
                            "{} answers {} with status {}, and not as Vault or OpenBao do",
                            question.endpoint, question.path, reply.status
                        ),
                        "check that the endpoint is that of Vault or OpenBao, and what is in between",
                    ))
                })?;
                Ok(Health {
                    initialized: told.initialized,
                    sealed: told.sealed,
                    standby: told.standby,
                    version: told.version,
                    date: reply.date,
                })
            })
            .await
    }

    /// Who we are at the first endpoint that answers. `None` when it has a
    /// token of us, and does not permit it to look itself up: it is no good,
    /// or its policies leave that out.
    ///
    /// # Errors
    /// When no token is to be had, as the service answers.
    pub async fn identity(&self) -> Result<Option<Identity>, Error> {
        self.cluster
            .call(async |client: &Client| {
                let (question, reply) = client.look_up().await?;
                if reply.status == 403 {
                    return Ok(None);
                }
                let LookUpAnswer { data } = answer::parse(&question, &reply)?;
                let more = data.identity_policies.unwrap_or_default();
                Ok(Some(Identity {
                    name: data.display_name,
                    policies: data.policies.into_iter().chain(more).collect(),
                    // Only a token without an end has none left.
                    ttl: (data.ttl > 0).then(|| Duration::from_secs(data.ttl)),
                    renewable: data.renewable,
                }))
            })
            .await
    }
}

/// What no key opens, as if `version` of `key` had wrapped it. Whoever may not
/// unwrap is told so all the same; who may gets [`Class::BadKey`].
pub fn unopenable(key: &str, version: &str) -> Wrapped {
    let text = format!("vault:v{version}:{}", BASE64.encode([0; 96]));
    Wrapped {
        key_id: key.into(),
        version: version.into(),
        alg: ALGORITHMS[0].into(),
        bytes: [&[ENVELOPE], text.as_bytes()].concat(),
    }
}
