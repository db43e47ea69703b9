//! Google Cloud KMS: symmetric keys that encrypt and decrypt at the service.
//!
//! The service wraps and unwraps; its keys never come here. `docs/kms/gcp-kms.md` has
//! the rights that this identity needs there.
//!
//! - `settings`: what is configured, and the names that may be,
//! - `session`: the present token,
//!   - `issue`: from a credential to a token, and `refused`: why there is none,
//!   - `credentials`: the credentials file; `jwt`: what is signed with it,
//! - `client`: one endpoint: requests with a token,
//! - `answer`: what the service says, in terms of [`kms::Class`](super::Class),
//! - `key`, `state`: keys, versions, and the states that those are in,
//! - `crypt`: encrypting and decrypting, with checksums both ways,
//! - [`envelope`]: the wrapped bytes,
//! - `json`: taking secrets out of JSON.
//!
//! What may be known of a key without the right to look at it is found by
//! encrypting something with it: the answer names the version.

mod answer;
mod client;
mod credentials;
mod crypt;
pub mod envelope;
mod issue;
mod json;
mod jwt;
mod key;
mod refused;
mod session;
mod settings;
mod state;

pub use session::Identity;
pub use settings::{Account, Auth, ENDPOINT, KeyName, METADATA_SERVER, Settings, version};

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use self::answer::Fault;
use self::client::Client;
use self::envelope::{ALGORITHMS, Envelope};
use self::key::Version;
use self::session::{Session, Token};
use super::call;
use super::cluster::{Cluster, Failed};
use super::envelope::{PLAINTEXT_MAX, associated, too_long};
use super::http::Http;
use super::{Class, Error, KeyRef, KeyVersion, Provider, Wrapped};
use crate::secret::Secret;
use crate::timestamp::Timestamp;

/// The most that a key in a hardware module takes at once, the associated data
/// included; others take 64 KiB of each.
const HSM_MAX: usize = 8 << 10;

/// The keys of Cloud KMS, as one identity may use them.
#[derive(Debug)]
pub struct GcpProvider {
    cluster: Cluster<Client>,
    session: Session,
    /// How long a call takes at most, with a token for it and a second try.
    whole: Duration,
}

impl GcpProvider {
    /// The provider's name.
    pub const NAME: &'static str = "gcp-kms";

    /// Nothing is read or connected to yet.
    pub fn new(settings: Settings) -> Self {
        let http = Arc::new(Http::new(settings.tls));
        let timing = settings.timing;
        let clients: Vec<Client> = settings
            .endpoints
            .into_iter()
            .map(|endpoint| Client::new(endpoint, http.clone()))
            .collect();
        GcpProvider {
            cluster: Cluster::new(clients, timing),
            session: Session::new(settings.auth, http, timing),
            whole: timing.deadline + timing.timeout.min(timing.deadline),
        }
    }

    /// A call with a token; with a new one, once, if that is not taken. However
    /// many wait for one: nobody longer than it may take.
    async fn call<'c, T, F>(
        &'c self,
        work: impl Fn(&'c Client, Arc<Token>) -> F + Sync,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Fault>> + Send,
        T: Send,
    {
        let until = Instant::now() + self.whole;
        call::within(until, self.call_in_time(work)).await
    }

    async fn call_in_time<'c, T, F>(
        &'c self,
        work: impl Fn(&'c Client, Arc<Token>) -> F + Sync,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Fault>> + Send,
        T: Send,
    {
        let mut token = self.session.token().await?;
        let mut renewed = false;
        loop {
            let work = &work;
            let asked = self.cluster.call(|client: &'c Client| {
                let answer = work(client, token.clone());
                async move {
                    match answer.await {
                        Ok(value) => Ok(Ok(value)),
                        Err(Fault::Unauthenticated(error)) => Ok(Err(error)),
                        Err(Fault::Failed(failed)) => Err(failed),
                        Err(Fault::State(error, _)) => Err(Failed::Here(error)),
                    }
                }
            });
            let error = match asked.await? {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if renewed {
                return Err(error);
            }
            token = match self.session.token_after(&token).await? {
                Some(token) => token,
                // No other token is to be had.
                None => return Err(error),
            };
            renewed = true;
        }
    }

    /// Whether Cloud KMS is at the first endpoint that answers, and what time
    /// it has. No identity is needed.
    ///
    /// # Errors
    /// When none answers, or something else does.
    pub async fn greet(&self, key: &KeyRef) -> Result<Option<Timestamp>, Error> {
        let key = &name(key)?;
        self.cluster
            .call(async |client: &Client| client.greet(key).await)
            .await
    }

    /// Who we are, once there is a token of us.
    ///
    /// # Errors
    /// When no token is to be had.
    pub async fn identity(&self) -> Result<Identity, Error> {
        self.session.identity().await
    }
}

/// The key that is meant.
fn name(key: &KeyRef) -> Result<KeyName, Error> {
    let id = key.id.as_deref().unwrap_or_default();
    id.parse().map_err(|why: String| {
        Error::new(
            Class::NotFound,
            why,
            "name a key in the key set: key = \"projects/…/cryptoKeys/KEY\"",
        )
    })
}

/// The version that is meant, if one is pinned.
fn pinned(key: &KeyRef) -> Result<Option<u64>, Error> {
    let parsed = key.version.as_deref().map(version).transpose();
    parsed.map_err(|why| {
        Error::new(
            Class::NotFound,
            why,
            "name a version that the key has in the key set, or \"latest\"",
        )
    })
}

#[async_trait]
impl Provider for GcpProvider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        let (name, pinned) = (&name(key)?, pinned(key)?);
        if plaintext.len() > PLAINTEXT_MAX {
            return Err(too_long());
        }
        self.call(async |client: &Client, token: Arc<Token>| {
            // Asked first: the version is a part of what the wrap is bound to.
            let found = Version::current(client, &token, name, pinned).await?;
            found.check_usable(name)?;
            let version = found.number;
            let header = envelope::header(name, version).ok_or_else(too_long)?;
            let associated = associated(&header, aad);
            if plaintext.len() + associated.len() > HSM_MAX {
                return Err(Failed::Everywhere(too_long()).into());
            }
            let exactly = Some(version);
            let encrypted =
                crypt::encrypt(client, &token, name, exactly, plaintext, &associated).await?;
            let bytes = envelope::seal(&header, &encrypted.ciphertext);
            Ok(Wrapped {
                key_id: name.to_string(),
                version: version.to_string(),
                alg: encrypted.algorithm.into(),
                bytes: bytes.ok_or_else(too_long)?,
            })
        })
        .await
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        let envelope = &Envelope::of(wrapped)?;
        self.call(async |client: &Client, token: Arc<Token>| {
            let answer = crypt::decrypt(client, &token, envelope, aad).await;
            if let Err(Fault::State(..)) = &answer {
                // The version tells most: since when, and how it comes back.
                let version = Some(envelope.version);
                if let Ok(found) = Version::read(client, &token, &envelope.key, version).await {
                    found.check_usable(&envelope.key)?;
                }
            }
            answer
        })
        .await
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error> {
        let (name, pinned) = (&name(key)?, pinned(key)?);
        self.call(async |client: &Client, token: Arc<Token>| {
            let found = Version::current(client, &token, name, pinned).await?;
            Ok(found.told())
        })
        .await
    }
}

/// What no key opens, as if `version` of `key` had wrapped it. Whoever may not
/// unwrap is told so all the same; who may gets [`Class::BadKey`].
pub fn unopenable(key: &str, version: &str) -> Option<Wrapped> {
    let number = self::version(version).ok()?;
    let header = envelope::header(&key.parse().ok()?, number)?;
    Some(Wrapped {
        key_id: key.into(),
        version: version.into(),
        alg: ALGORITHMS[0].into(),
        bytes: envelope::seal(&header, &[0; 96])?,
    })
}
