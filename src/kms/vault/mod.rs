//! HashiCorp Vault and OpenBao: keys of a transit secrets engine.
//!
//! The service wraps and unwraps; its keys never come here. `docs/kms/vault.md` has
//! the policy that this identity needs there.
//!
//! - `settings`: what is configured, and the names that may be,
//! - `session`: from a credential to a token, and keeping it alive,
//! - `client`: one endpoint: requests with a token,
//! - `answer`: what the service says, in terms of [`kms::Class`](super::Class),
//! - `transit`: keys, versions, and the wrapped bytes,
//! - `health`: what the service tells of itself and of us, for diagnosis,
//! - `kv`: secrets of a KV engine, which wraps nothing: it keeps what is given.
//!
//! `rewrap` is never used: it ignores the associated data.

mod answer;
mod client;
mod health;
pub mod kv;
mod session;
mod settings;
#[cfg(test)]
mod tests;
mod transit;

pub use health::{Health, Identity, unopenable};
pub use settings::{Auth, KeyName, MountPath, RoleId, Settings, version};

use std::sync::Arc;

use async_trait::async_trait;

use self::client::Client;
use self::transit::{Ciphertext, Key};
use super::cluster::Cluster;
use super::http::Http;
use super::{Class, Denied, Error, KeyRef, KeyVersion, Provider, Wrapped};
use crate::secret::Secret;

/// The keys of one transit engine, as one identity may use them.
#[derive(Debug)]
pub struct VaultProvider {
    cluster: Cluster<Client>,
}

impl VaultProvider {
    /// The provider's name.
    pub const NAME: &'static str = "vault";

    /// Nothing is read or connected to yet.
    pub fn new(settings: Settings) -> Self {
        VaultProvider {
            cluster: cluster(settings),
        }
    }
}

/// A client for each endpoint, which share their TLS.
fn cluster(settings: Settings) -> Cluster<Client> {
    let http = Arc::new(Http::new(settings.tls.clone()));
    let timing = settings.timing;
    let settings = Arc::new(settings);
    let clients: Vec<Client> = settings
        .endpoints
        .iter()
        .map(|endpoint| Client::new(endpoint.clone(), http.clone(), settings.clone()))
        .collect();
    Cluster::new(clients, timing)
}

/// The name of the key that is meant.
fn name(key: &KeyRef) -> Result<KeyName, Error> {
    let id = key.id.as_deref().unwrap_or_default();
    id.parse().map_err(|why: String| {
        Error::new(
            Class::NotFound,
            why,
            "name a key of the transit engine in the key set: key = \"NAME\"",
        )
    })
}

#[async_trait]
impl Provider for VaultProvider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        let name = &name(key)?;
        self.cluster
            .call(async |client: &Client| {
                // Asked first: `encrypt` makes a key that is not there, where
                // the policy allows that.
                let found = Key::read(client, name).await?;
                let version = found.version(name, key.version.as_deref())?;
                found.check_usable(name, version)?;
                let ciphertext = transit::encrypt(client, name, version, plaintext, aad).await?;
                Ok(Wrapped {
                    key_id: name.to_string(),
                    version: version.to_string(),
                    alg: found.algorithm(name)?.into(),
                    bytes: ciphertext.to_bytes(),
                })
            })
            .await
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        let (name, ciphertext) = &Ciphertext::of(wrapped)?;
        self.cluster
            .call(async |client: &Client| {
                let answer = transit::decrypt(client, name, ciphertext, aad).await;
                let Err(super::cluster::Failed::Here(error)) = &answer else {
                    return answer;
                };
                if error.class() == Class::Denied(Denied::Disabled)
                    && let Ok(key) = Key::read(client, name).await
                {
                    // "Too old" is said of both; only one can be taken back.
                    key.check_not_deleted(name, ciphertext.version())?;
                }
                answer
            })
            .await
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error> {
        let name = &name(key)?;
        self.cluster
            .call(async |client: &Client| {
                let found = Key::read(client, name).await?;
                let version = found.version(name, key.version.as_deref())?;
                Ok(KeyVersion {
                    id: version.to_string(),
                    enabled: found.check_usable(name, version).is_ok(),
                    expires: None,
                })
            })
            .await
    }
}
