//! What the service tells of itself, and of the identity that we have there.
//! For diagnosis alone: no use of a key depends on it.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::AzureProvider;
use super::client::Client;
use super::keys::Key;
use super::name;
use crate::kms::{Error, KeyRef};
use crate::timestamp::Timestamp;

/// What a vault tells anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What tokens for it are for, such as `https://vault.azure.net`.
    pub resource: String,
    /// Its tenant.
    pub tenant: Option<String>,
    /// The region that it is in.
    pub region: Option<String>,
    /// The version of the service.
    pub version: Option<String>,
    /// What time it is there.
    pub date: Option<Timestamp>,
}

/// Who we are, as the token says that we got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The object id that roles and policies are given to.
    pub object_id: Option<String>,
    /// The application.
    pub client_id: Option<String>,
    /// How long the token lasts still.
    pub ttl: Duration,
}

/// The claims of a token that are of interest. It is not ours to verify.
#[derive(Deserialize, Default)]
struct Claims {
    #[serde(default)]
    oid: Option<String>,
    #[serde(default)]
    appid: Option<String>,
}

impl AzureProvider {
    /// What the vault tells of itself. No identity is needed.
    ///
    /// # Errors
    /// When it does not answer, or wants us to log in somewhere strange.
    pub async fn health(&self) -> Result<Health, Error> {
        self.vault
            .call(async |client: &Client| {
                let (reply, challenge) = client.introduce().await?;
                let header = |name| reply.header(name).map(str::to_owned);
                Ok(Health {
                    resource: challenge.resource.clone(),
                    tenant: challenge.tenant.clone(),
                    region: header("x-ms-keyvault-region"),
                    version: header("x-ms-keyvault-service-version"),
                    date: reply.date,
                })
            })
            .await
    }

    /// Who we are.
    ///
    /// # Errors
    /// When no token is to be had.
    pub async fn standing(&self) -> Result<Standing, Error> {
        self.vault
            .call(async |client: &Client| {
                let (_, challenge) = client.introduce().await?;
                let held = client.token(&challenge).await?;
                let claims = claims(held.token.bytes()).unwrap_or_default();
                Ok(Standing {
                    object_id: claims.oid,
                    client_id: claims.appid,
                    ttl: held.ends.saturating_duration_since(Instant::now()),
                })
            })
            .await
    }

    /// How a key is protected from being deleted for good, as the service
    /// calls it.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn recovery_level(&self, key: &KeyRef) -> Result<Option<String>, Error> {
        let (name, version) = &name::wanted(key, &self.settings.vault)?;
        self.call(async |client: &Client| {
            let read = Key::read(client, name, version.as_ref()).await?;
            Ok(read.map(|found| found.attributes.recovery_level))
        })
        .await
    }
}

fn claims(token: &[u8]) -> Option<Claims> {
    let part = token.split(|byte| *byte == b'.').nth(1)?;
    let text = zeroize::Zeroizing::new(URL_SAFE_NO_PAD.decode(part).ok()?);
    serde_json::from_slice(&text).ok()
}
