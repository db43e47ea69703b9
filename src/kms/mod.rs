//! Key management services: wrap a key, unwrap it, say which version is current.
//!
//! Each provider is a folder or file of its own and implements [`Provider`];
//! `tests/kms_conformance` holds all of them to the same behaviour. What they
//! may know is a key's name and some bytes: nothing in here imports anything
//! of disks, volumes, headers or key sets.
//!
//! What comes out of a provider as [`Wrapped::bytes`] is versioned by that
//! provider, and is opened by it alone. A service that takes no associated
//! data binds the `aad` inside of what it wraps, and checks it after.
#![forbid(unsafe_code)]

#[cfg(feature = "aws-kms")]
pub mod aws;
#[cfg(feature = "azure-keyvault")]
pub mod azure;
#[cfg(feature = "broker")]
pub mod broker;
pub mod call;
pub mod cluster;
pub mod credential;
mod echo;
pub(crate) mod envelope;
mod error;
pub mod file;
#[cfg(feature = "gcp-kms")]
pub mod gcp;
pub mod http;
#[cfg(feature = "k8s-kms")]
pub mod k8s;
pub mod kmip;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
pub mod recovery;
pub mod tls;
pub mod vault;

pub use error::{Class, Denied, Error};

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::secret::Secret;

/// The providers by name, in the order of the alphabet, and whether this
/// sealblk was built with each.
pub const PROVIDERS: [(&str, bool); 9] = [
    ("aws-kms", cfg!(feature = "aws-kms")),
    ("azure-keyvault", cfg!(feature = "azure-keyvault")),
    ("broker", cfg!(feature = "broker")),
    ("file", true),
    ("gcp-kms", cfg!(feature = "gcp-kms")),
    ("k8s-kms", cfg!(feature = "k8s-kms")),
    ("kmip", true),
    ("pkcs11", cfg!(feature = "pkcs11")),
    ("vault", true),
];

/// Whether this process has loaded a library of somebody else, for a token: one that
/// may crash when the process ends.
pub fn runs_code_of_others() -> bool {
    #[cfg(feature = "pkcs11")]
    return pkcs11::is_loaded();
    #[cfg(not(feature = "pkcs11"))]
    return false;
}

/// Which key of a service to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRef {
    /// The key's name, URI or id as the service has it. `None` where the
    /// provider is itself one key: a key file, a Kubernetes KMS plugin.
    pub id: Option<String>,
    /// The version to stay with (*pinned*); `None` is the latest one.
    pub version: Option<String>,
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id.as_deref().unwrap_or("its only key"))?;
        match &self.version {
            Some(version) => write!(f, ", version {version}"),
            None => f.write_str(", latest version"),
        }
    }
}

/// A key that has been wrapped, and all that is needed to have it unwrapped,
/// except for the right to do so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The key that wrapped it, in the service's own terms.
    pub key_id: String,
    /// The version of that key.
    pub version: String,
    /// The algorithm, in the service's own terms.
    pub alg: String,
    /// The provider's envelope. Not secret.
    pub bytes: Vec<u8>,
}

/// What a service says of one version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// The version, as it stands in [`Wrapped::version`] of what it wraps.
    pub id: String,
    /// Whether it may be used now.
    pub enabled: bool,
    /// When it ends, if that is set.
    pub expires: Option<SystemTime>,
}

/// A key management service with one identity and one set of endpoints.
///
/// Futures end within the provider's own deadline. A provider retries what
/// its service asks to be retried, and reports the rest with its [`Class`].
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// The provider's name in configuration, in tokens and in messages.
    fn name(&self) -> &'static str;

    /// Wraps `plaintext` under `key`. The result opens only with the same `aad`.
    ///
    /// # Errors
    /// As the service answers; see [`Class`].
    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error>;

    /// Opens what [`Provider::wrap`] made, under whichever key and version did.
    ///
    /// # Errors
    /// [`Class::BadKey`] when the bytes or `aad` are not what was wrapped;
    /// otherwise as the service answers.
    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error>;

    /// The version that [`Provider::wrap`] would use now: the latest one, or
    /// that of `key` if it is pinned. A version that may not be used is
    /// reported with `enabled == false`, and is not an error.
    ///
    /// # Errors
    /// As the service answers.
    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error>;
}
