//! AWS KMS: symmetric keys, in one region or in several.
//!
//! The service wraps and unwraps; its keys never come here. `docs/kms/aws-kms.md` has
//! the policies that this identity needs there.
//!
//! - `settings`, `region`, `key_name`: what is configured, and the names that may be,
//! - `credentials`, `environment`, `web`, `refusal`: who we are. What loads
//!   and signs is the library `reqsign`; files and addresses are given to it here,
//! - `client`: one endpoint: signed requests,
//! - `answer`: what the service says, in terms of [`kms::Class`](super::Class),
//! - `key`: keys, their states, and what is done with them,
//! - `diagnosis`: what the service tells of itself and of us.
//!
//! A wrap names its key by ARN, and is opened in any region that has a related
//! key, in accounts that the key set has, and under that key alone: what a
//! volume says of itself leads to no other.

mod answer;
mod client;
mod credentials;
mod diagnosis;
mod environment;
mod key;
mod key_name;
mod refusal;
mod region;
mod settings;
mod web;

pub use diagnosis::{Greeting, Who, unopenable};
pub use environment::Environment;
pub use key_name::{KeyName, Place, Target, account};
pub use region::{Region, Variant};
pub use settings::{Endpoint, Identity, Settings, Source};

use std::sync::Arc;

use async_trait::async_trait;

use self::client::Client;
use self::key::{ALGORITHM, CIPHERTEXT_MAX, Key};
use super::cluster::{Cluster, Failed};
use super::envelope::{check_beside, context, damaged};
use super::http::Http;
use super::{Class, Denied, Error, KeyRef, KeyVersion, Provider, Wrapped};
use crate::secret::Secret;

/// The one algorithm, as envelopes number them.
const SYMMETRIC_DEFAULT: u8 = 1;

/// The address of credentials, if they may be asked for there.
///
/// # Errors
/// When it is none, or not safe.
pub fn credentials_address(text: &str) -> Result<String, String> {
    web::permitted(text).map(|_| text.to_owned())
}

/// Whether `wrapped` can have been made here, before any service is asked.
///
/// # Errors
/// As [`Provider::unwrap`] would give them.
pub fn check(wrapped: &Wrapped) -> Result<(), Error> {
    Opened::of(wrapped).map(drop)
}

/// Keys of AWS KMS, as one identity may use them.
#[derive(Debug)]
pub struct AwsProvider {
    cluster: Cluster<Client>,
}

impl AwsProvider {
    /// The provider's name.
    pub const NAME: &'static str = "aws-kms";

    /// Nothing is read or connected to yet.
    pub fn new(settings: Settings) -> Self {
        let http = Arc::new(Http::new(settings.tls.clone()));
        let timing = settings.timing;
        let settings = Arc::new(settings);
        let clients: Vec<Client> = settings
            .endpoints
            .iter()
            .map(|endpoint| Client::new(endpoint.clone(), http.clone(), settings.clone()))
            .collect();
        AwsProvider {
            cluster: Cluster::new(clients, timing),
        }
    }
}

/// The key that is meant.
fn name(key: &KeyRef) -> Result<KeyName, Error> {
    let id = key.id.as_deref().unwrap_or_default();
    id.parse().map_err(|why: String| {
        Error::new(
            Class::NotFound,
            why,
            "name a key in the key set: key = \"alias/NAME\"",
        )
    })
}

/// What [`name`] is in the region of `client`, if it can be there.
fn there(client: &Client, name: &KeyName) -> Result<KeyName, Failed> {
    if let Some(place) = &name.place
        && place.region != *client.region()
        && !(name.target.may_be_multi_region()
            && place.region.partition() == client.region().partition())
    {
        // Another endpoint may well have it.
        return Err(Failed::Here(Error::new(
            Class::NotFound,
            format!(
                "key {name} is in {} alone, and {client} is in {}",
                place.region,
                client.region()
            ),
            "name its region in the key set",
        )));
    }
    Ok(name.within(client.region()))
}

/// Whether `version` is the one that wraps now: there is no choice.
fn check_version(key: &Key, pinned: Option<&str>) -> Result<(), Error> {
    match pinned {
        Some(version) if version != key.version => Err(Error::new(
            Class::NotFound,
            format!(
                "key {} wraps with {}, and not with {version}: AWS KMS encrypts with the current material alone",
                key.arn, key.version
            ),
            "set version = \"latest\" in the key set; to stay with a key, name it by its id and not by an alias",
        )),
        _ => Ok(()),
    }
}

/// A wrap that has been taken apart.
struct Opened<'w> {
    envelope: context::Envelope<'w>,
    key: KeyName,
    place: Place,
}

impl<'w> Opened<'w> {
    fn of(wrapped: &'w Wrapped) -> Result<Self, Error> {
        let envelope = context::parse(SYMMETRIC_DEFAULT, CIPHERTEXT_MAX, &wrapped.bytes)?;
        check_beside(&[
            ("key", &wrapped.key_id, envelope.key_id),
            ("version", &wrapped.version, envelope.version),
            ("algorithm", &wrapped.alg, ALGORITHM),
        ])?;
        let key: KeyName = envelope.key_id.parse().map_err(damaged)?;
        match (&key.place, &key.target) {
            (Some(place), Target::Id(_)) => Ok(Opened {
                place: place.clone(),
                envelope,
                key,
            }),
            _ => Err(damaged("the wrapped bytes name no key by its ARN")),
        }
    }

    /// What to call the key. Without accounts in the key set by its id alone,
    /// which the service takes for one of our own account.
    fn name_at(&self, client: &Client) -> Result<(KeyName, String), Failed> {
        let arn = there(client, &self.key)?;
        let accounts = &client.settings().accounts;
        if accounts.is_empty() {
            let own = KeyName {
                place: None,
                target: arn.target.clone(),
            };
            return Ok((own, arn.to_string()));
        }
        let account = &self.place.account;
        if !accounts.contains(account) {
            return Err(Failed::Everywhere(Error::new(
                Class::Denied(Denied::Forbidden),
                format!(
                    "the key was wrapped in account {account}, and the key set is of {}",
                    accounts.join(", ")
                ),
                "if that is one of yours, add it to accounts in the key set",
            )));
        }
        let text = arn.to_string();
        Ok((arn, text))
    }
}

#[async_trait]
impl Provider for AwsProvider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        let name = &name(key)?;
        self.cluster
            .call(async |client: &Client| {
                let found = Key::describe(client, &there(client, name)?).await?;
                check_version(&found, key.version.as_deref())?;
                if let Some(why) = found.unusable {
                    return Err(why.into());
                }
                let header = context::header(SYMMETRIC_DEFAULT, &found.arn, &found.version)
                    .ok_or_else(|| damaged("the key has a name that is too long"))?;
                let binding = context::binding(&header, aad);
                let blob = key::encrypt(client, &found, plaintext, &binding).await?;
                Ok(Wrapped {
                    key_id: found.arn,
                    version: found.version,
                    alg: ALGORITHM.into(),
                    bytes: [header, blob].concat(),
                })
            })
            .await
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        let opened = &Opened::of(wrapped)?;
        let binding = &*opened.envelope.binding(aad);
        self.cluster
            .call(async |client: &Client| {
                let (name, arn) = opened.name_at(client)?;
                let blob = opened.envelope.ciphertext;
                let key = &*name.to_string();
                match key::decrypt(client, key, &arn, blob, binding).await {
                    Err(Failed::Here(error)) => {
                        Err(key::explain(client, &name, error).await.into())
                    }
                    answer => answer,
                }
            })
            .await
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error> {
        let name = &name(key)?;
        self.cluster
            .call(async |client: &Client| {
                let found = Key::describe(client, &there(client, name)?).await?;
                check_version(&found, key.version.as_deref())?;
                Ok(KeyVersion {
                    id: found.version,
                    enabled: found.unusable.is_none(),
                    expires: found.expires,
                })
            })
            .await
    }
}
