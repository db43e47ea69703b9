//! Azure Key Vault and Managed HSM: keys that wrap and unwrap, and never leave
//! the service. A client of its REST interface, and none of its SDKs.
//!
//! - `settings`: what is configured; `name`: how keys are called,
//! - `cloud`: which vaults are where; `challenge`: where a vault says to log
//!   in, and how far it is believed,
//! - `session`: the present token; `login`, `assertion`: from an authority, for
//!   applications; `platform`: from the machine, for managed identities,
//! - `client`: requests; `answer`: what the service says, in terms of
//!   [`kms::Class`](super::Class),
//! - `keys`: versions and their state; `lost`: what became of those that are not
//!   there; `wraps`: the wrapped bytes,
//! - `health`: what the service tells of itself and of us, for diagnosis.
//!
//! The service takes no associated data: the binding is inside of what it
//! wraps (`kms::envelope::bound`).

mod answer;
mod assertion;
mod challenge;
mod client;
mod cloud;
mod health;
mod keys;
mod login;
mod lost;
mod name;
mod platform;
mod session;
mod settings;
mod wraps;

pub use health::{Health, Standing};
pub use name::{KeyName, KeyUri, Version, key_id};
pub use settings::{Algorithm, ClientId, Header, Identity, Platform, Settings, Tenant, Which};
pub use wraps::{check, unopenable};

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use self::answer::Refusal;
use self::client::Client;
use self::keys::Key;
use self::wraps::Parts;
use super::cluster::{Cluster, Failed};
use super::{Error, KeyRef, KeyVersion, Provider, Wrapped, envelope};
use crate::secret::Secret;

/// The version of the API that is asked for, where no later one is needed.
const API: &str = "7.4";

/// The pauses between calls while a permission may be on its way.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// The keys of one vault, as one identity may use them.
#[derive(Debug)]
pub struct AzureProvider {
    vault: Cluster<Client>,
    settings: Settings,
    /// Whether a denial was waited out in vain already, so that a host whose
    /// permission is gone learns it at once from then on.
    waited: AtomicBool,
}

impl AzureProvider {
    /// The provider's name.
    pub const NAME: &'static str = "azure-keyvault";

    /// Nothing is read or connected to yet.
    pub fn new(settings: Settings) -> Self {
        AzureProvider {
            vault: Cluster::new([Client::new(settings.clone())], settings.timing),
            settings,
            waited: AtomicBool::new(false),
        }
    }

    /// Makes a call, and repeats it while a permission may be on its way, if
    /// that is configured.
    async fn call<'c, T, F>(&'c self, call: impl Fn(&'c Client) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Result<T, Refusal>, Failed>>,
    {
        let patience = match self.waited.load(Ordering::Relaxed) {
            true => None,
            false => self.settings.retry_forbidden,
        };
        let until = patience.map(|patience| Instant::now() + patience);
        let mut pause = PAUSE_MIN;
        loop {
            let may_pass = AtomicBool::new(false);
            let result = self
                .vault
                .call(async |client: &'c Client| match call(client).await? {
                    Ok(value) => Ok(value),
                    Err(refusal) => {
                        may_pass.store(refusal.may_pass, Ordering::Relaxed);
                        Err(Failed::Here(refusal.error))
                    }
                })
                .await;
            match &result {
                Ok(_) => self.waited.store(false, Ordering::Relaxed),
                Err(error) if may_pass.into_inner() => match until {
                    Some(until) if Instant::now() + pause < until => {
                        tracing::debug!(%error, "asking again: the permission may be on its way");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(PAUSE_MAX);
                        continue;
                    }
                    _ => self.waited.store(true, Ordering::Relaxed),
                },
                Err(_) => {}
            }
            return result;
        }
    }
}

#[async_trait]
impl Provider for AzureProvider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        if plaintext.len() > envelope::PLAINTEXT_MAX {
            return Err(envelope::too_long());
        }
        let (name, version) = &name::wanted(key, &self.settings.vault)?;
        self.call(async |client: &Client| {
            // Asked first: the service wraps with disabled keys, too.
            let found = match Key::read(client, name, version.as_ref()).await? {
                Ok(found) => found,
                Err(refusal) => return Ok(Err(refusal)),
            };
            found.check_usable(client)?;
            found.wrap(client, plaintext, aad).await
        })
        .await
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        let parts = &Parts::of(wrapped)?;
        self.call(async |client: &Client| parts.unwrap(client, aad).await)
            .await
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error> {
        let (name, version) = &name::wanted(key, &self.settings.vault)?;
        self.call(async |client: &Client| {
            let read = Key::read(client, name, version.as_ref()).await?;
            Ok(read.map(|found| KeyVersion {
                id: found.version.to_string(),
                enabled: found.check_usable(client).is_ok(),
                expires: found.attributes.expires(),
            }))
        })
        .await
    }
}
