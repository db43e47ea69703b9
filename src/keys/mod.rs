//! Key sets: the stable names between volumes and keys.
//!
//! A volume names its key set and never a key; the key set names the
//! provider, the key and which version of it to use. So a key is rotated or
//! replaced, and the service changed, without touching what the operator calls
//! things. This room turns data encryption keys into a token's wraps and back.
//! It knows nothing of configuration files, headers or disks.
#![forbid(unsafe_code)]

mod error;
mod witness;

pub use error::{Attempt, Error, Why};
pub use witness::{Actor, Context, KeyUse, Operation, Witness};

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::kms::file::FileProvider;
use crate::kms::k8s::{self, K8sProvider};
use crate::kms::kmip::{self, KmipProvider};
use crate::kms::pkcs11::{self, Pkcs11Provider};
use crate::kms::vault::{self, VaultProvider};
use crate::kms::{self, KeyRef, KeyVersion, Provider, Wrapped};
use crate::secret::Dek;
use crate::volume::token::{Bound, Token, Wrap};

/// The key set of a volume for which no other is named.
pub const DEFAULT: &str = "default";

/// The name of a key set: 1 to 64 letters, digits, dots, dashes and
/// underscores, of which the first is a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Name {
    fn default() -> Self {
        Name(DEFAULT.into())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let inner = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        let good = (1..=64).contains(&text.len())
            && text.bytes().all(inner)
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if good {
            Ok(Name(text.into()))
        } else {
            Err(format!(
                "{text:?} is not a name for a key set: use 1 to 64 letters, digits, '.', '-' and '_', and begin with a letter or digit"
            ))
        }
    }
}

/// What a key set is, as it was configured and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Who wraps and unwraps.
    pub source: Source,
    /// The version to wrap with; `None` is the latest one.
    pub version: Option<String>,
}

/// A provider and what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The platform key in a file of this host.
    File {
        /// The key file.
        path: PathBuf,
    },
    /// The key of a Kubernetes KMS plugin.
    K8s(Box<k8s::Settings>),
    /// A key on KMIP servers.
    Kmip {
        /// What [`kmip::by_name`] or [`kmip::by_id`] makes of its name or id.
        key: String,
        /// The servers, and how they are used.
        settings: Box<kmip::Settings>,
    },
    /// A key on a PKCS#11 token.
    Pkcs11 {
        /// What it is called there.
        key: pkcs11::KeyName,
        /// The token, and how it is reached.
        settings: Box<pkcs11::Settings>,
    },
    /// A key of HashiCorp Vault or OpenBao.
    Vault {
        /// The key.
        key: vault::KeyName,
        /// The service, and who we are there.
        settings: Box<vault::Settings>,
    },
}

impl Source {
    /// The name of the provider.
    pub fn provider(&self) -> &'static str {
        match self {
            Source::File { .. } => FileProvider::NAME,
            Source::K8s(_) => K8sProvider::NAME,
            Source::Kmip { .. } => KmipProvider::NAME,
            Source::Pkcs11 { .. } => Pkcs11Provider::NAME,
            Source::Vault { .. } => VaultProvider::NAME,
        }
    }
}

/// One key set, ready to be used.
#[derive(Debug)]
struct KeySet {
    provider: Arc<dyn Provider>,
    key: KeyRef,
}

/// All key sets that this process knows.
#[derive(Debug)]
pub struct KeySets(BTreeMap<Name, KeySet>);

impl KeySets {
    /// Key sets as defined. Nothing is read or connected to yet.
    pub fn new(definitions: impl IntoIterator<Item = (Name, Definition)>) -> Self {
        let sets = definitions.into_iter().map(|(name, definition)| {
            let (provider, id): (Arc<dyn Provider>, _) = match definition.source {
                Source::File { path } => (Arc::new(FileProvider::new(path)), None),
                Source::K8s(settings) => (Arc::new(K8sProvider::new(*settings)), None),
                Source::Kmip { key, settings } => {
                    (Arc::new(KmipProvider::new(*settings)), Some(key))
                }
                Source::Pkcs11 { key, settings } => (
                    Arc::new(Pkcs11Provider::new(*settings)),
                    Some(key.to_string()),
                ),
                Source::Vault { key, settings } => (
                    Arc::new(VaultProvider::new(*settings)),
                    Some(key.to_string()),
                ),
            };
            let version = definition.version;
            let key = KeyRef { id, version };
            (name, KeySet { provider, key })
        });
        KeySets(sets.collect())
    }

    /// Wraps `dek` with the key of `key_set`, bound to `binding` (the bytes of
    /// [`crate::volume::Binding`]).
    ///
    /// # Errors
    /// When there is no such key set, or its provider fails.
    pub async fn wrap(&self, key_set: &str, dek: &Dek, binding: &[u8]) -> Result<Wrap, Error> {
        let set = self.get(key_set)?;
        let wrapped = set
            .provider
            .wrap(&set.key, dek.as_secret(), binding)
            .await
            .map_err(|source| set.failed(key_set, source))?;
        tracing::debug!(
            key_set,
            provider = set.provider.name(),
            key_id = wrapped.key_id,
            key_version = wrapped.version,
            "wrapped a data encryption key"
        );
        Ok(Wrap {
            key_set: key_set.into(),
            provider: set.provider.name().into(),
            key_id: wrapped.key_id,
            key_version: wrapped.version,
            alg: wrapped.alg,
            bound: Bound::Aad,
            bytes: wrapped.bytes,
            extra: Default::default(),
        })
    }

    /// Unwraps the data encryption key that is in `token`. Its wraps are tried
    /// in their order; the first one that opens is taken.
    ///
    /// # Errors
    /// What each wrap failed for, or that there is none.
    pub async fn unwrap(&self, token: &Token, binding: &[u8]) -> Result<Dek, Error> {
        let mut failed = Vec::new();
        for wrap in &token.wraps {
            match self.unwrap_one(wrap, binding).await {
                Ok(dek) => {
                    tracing::debug!(
                        key_set = wrap.key_set,
                        provider = wrap.provider,
                        key_id = wrap.key_id,
                        key_version = wrap.key_version,
                        "unwrapped a data encryption key"
                    );
                    return Ok(dek);
                }
                Err(why) => {
                    let attempt = Attempt {
                        key_set: wrap.key_set.clone(),
                        provider: wrap.provider.clone(),
                        key_id: wrap.key_id.clone(),
                        key_version: wrap.key_version.clone(),
                        why,
                    };
                    tracing::debug!(%attempt, "a wrapped key did not open");
                    failed.push(attempt);
                }
            }
        }
        Err(Error::Unwrap(failed))
    }

    async fn unwrap_one(&self, wrap: &Wrap, binding: &[u8]) -> Result<Dek, Why> {
        if let Bound::Other(how) = &wrap.bound {
            return Err(Why::Binding(how.clone()));
        }
        let set = self
            .find(&wrap.key_set)
            .ok_or_else(|| Why::UnknownKeySet(self.names()))?;
        if wrap.provider != set.provider.name() {
            return Err(Why::OtherProvider(set.provider.name()));
        }
        let wrapped = Wrapped {
            key_id: wrap.key_id.clone(),
            version: wrap.key_version.clone(),
            alg: wrap.alg.clone(),
            bytes: wrap.bytes.clone(),
        };
        let secret = set
            .provider
            .unwrap(&wrapped, binding)
            .await
            .map_err(Why::Kms)?;
        Dek::try_from(secret).map_err(Why::BadDek)
    }

    /// The version of its key that `key_set` would wrap with now.
    ///
    /// # Errors
    /// When there is no such key set, or its provider fails.
    pub async fn current_version(&self, key_set: &str) -> Result<KeyVersion, Error> {
        let set = self.get(key_set)?;
        set.provider
            .current_version(&set.key)
            .await
            .map_err(|source| set.failed(key_set, source))
    }

    fn find(&self, name: &str) -> Option<&KeySet> {
        self.0.get(&Name(name.into()))
    }

    fn get(&self, name: &str) -> Result<&KeySet, Error> {
        self.find(name).ok_or_else(|| Error::UnknownKeySet {
            name: name.into(),
            known: self.names(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().map(Name::to_string).collect()
    }
}

impl KeySet {
    /// `source`, with the place where it happened.
    fn failed(&self, name: &str, source: kms::Error) -> Error {
        Error::Kms {
            key_set: name.into(),
            provider: self.provider.name(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
