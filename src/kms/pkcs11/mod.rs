//! Keys on a token that is reached through a PKCS#11 library: hardware security
//! modules, smart cards, and software in their place.
//!
//! - [`uri`]: which library, token and key (RFC 7512),
//! - `module`: the library, once in a process; `token`: sessions and the login,
//! - `name`: how keys are called; `key`: which object is meant; `lifecycle`:
//!   whether it may be used,
//! - `mechanism`: how it wraps; `sealing`: the envelopes,
//! - `service`: what a provider does, on a token; `failure`: what a token says,
//!   in our terms.
//!
//! AES-GCM takes associated data, and has the envelope that KMIP has. AES key
//! wrap and RSA-OAEP take none: the binding is inside of what they wrap
//! (`kms::envelope::bound`).
//!
//! A library may wait for its device as long as it likes. So each call runs
//! beside, and is given up at its deadline; what comes of it later is wiped.

mod failure;
mod key;
mod lifecycle;
mod mechanism;
mod module;
mod name;
mod sealing;
mod service;
mod token;
pub mod uri;

pub use mechanism::Choice;
pub(super) use module::is_loaded;
pub use name::{KeyName, id_of};
pub use uri::{TokenMatch, Uri};

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use self::module::Module;
use self::name::Wanted;
use self::sealing::Envelope;
use self::token::Token;
use super::cluster::{Cluster, Failed, Timing};
use super::credential::SecretFile;
use super::envelope;
use super::{Class, Error, KeyRef, KeyVersion, Provider, Wrapped};
use crate::error::Kind;
use crate::secret::{Secret, before_rest};

/// What is configured of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The library.
    pub module: PathBuf,
    /// The token.
    pub token: TokenMatch,
    /// The file with the PIN of its user, if it wants one.
    pub pin: Option<SecretFile>,
    /// How to wrap; by the kind of the key if `None`.
    pub mechanism: Option<Choice>,
    /// How long to wait for the library, and for the token to come.
    pub timing: Timing,
}

/// The keys on one token.
#[derive(Debug)]
pub struct Pkcs11Provider {
    tokens: Cluster<Server>,
}

/// The token, as the one endpoint.
#[derive(Debug)]
struct Server {
    token: Arc<Token>,
    mechanism: Option<Choice>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.token.fmt(f)
    }
}

impl Pkcs11Provider {
    /// The provider's name.
    pub const NAME: &'static str = "pkcs11";

    /// The keys on the token of `settings`. Nothing is loaded or opened yet.
    pub fn new(settings: Settings) -> Self {
        let module = Module::at(&settings.module);
        let server = Server {
            token: Arc::new(Token::new(module, settings.token, settings.pin)),
            mechanism: settings.mechanism,
        };
        Pkcs11Provider {
            tokens: Cluster::new([server], settings.timing),
        }
    }
}

impl Server {
    /// Does `work` where it may wait. What is given up does not end there: it
    /// keeps its permit until the library returns.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Token) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Failed> {
        let calls = self.token.module().calls.clone();
        let permit = calls.acquire_owned().await;
        let token = self.token.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let result = work(&token);
            before_rest();
            result
        });
        done.await.unwrap_or_else(|error| {
            Err(Error::new(
                Class::Protocol,
                format!("a call to {self} ended in a defect: {error}"),
                "report it",
            )
            .with_kind(Kind::Internal)
            .into())
        })
    }
}

/// Checks what can be checked of a wrap before a token is asked: that its bytes
/// are an envelope of this provider, and that what stands beside them agrees.
///
/// # Errors
/// When it is not so.
pub fn check(wrapped: &Wrapped) -> Result<(), Error> {
    Envelope::of(wrapped)?;
    Wanted::of_wrapped(wrapped).map(drop)
}

#[async_trait]
impl Provider for Pkcs11Provider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        if plaintext.len() > envelope::PLAINTEXT_MAX {
            return Err(envelope::too_long());
        }
        let wanted = &Wanted::of(key)?;
        self.tokens
            .call(async |server: &Server| {
                let (wanted, choice, aad) = (wanted.clone(), server.mechanism, aad.to_vec());
                let plaintext = Secret::copy_of(plaintext)
                    .map_err(|error| Failed::Everywhere(envelope::no_memory(&error)))?;
                let wrap =
                    move |token: &Token| service::wrap(token, &wanted, choice, &plaintext, &aad);
                server.run(wrap).await
            })
            .await
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        check(wrapped)?;
        let wanted = &Wanted::of_wrapped(wrapped)?;
        self.tokens
            .call(async |server: &Server| {
                let (wanted, wrapped, aad) = (wanted.clone(), wrapped.clone(), aad.to_vec());
                let unwrap = move |token: &Token| service::unwrap(token, &wanted, &wrapped, &aad);
                server.run(unwrap).await
            })
            .await
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error> {
        let wanted = &Wanted::of(key)?;
        self.tokens
            .call(async |server: &Server| {
                let (wanted, choice) = (wanted.clone(), server.mechanism);
                let current = move |token: &Token| service::current(token, &wanted, choice);
                server.run(current).await
            })
            .await
    }
}
