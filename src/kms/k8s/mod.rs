//! Any key service for which there is a plugin of the Kubernetes KMS API v2: a
//! process on this host, at a unix socket.
//!
//! - [`messages`]: what is said; `client`: saying it; `socket`: to whom,
//! - [`envelope`]: the wrapped bytes, and the limits of the API,
//! - `failure`: what a plugin says, in our terms.
//!
//! The API takes no associated data, and plugins are made for keys of 32 bytes.
//! So, as Kubernetes does, the plugin encrypts a fresh key of that length, and
//! that one seals the payload: with all that the plugin gave out, and the
//! binding, as associated data. The plugin never sees the payload.
//!
//! A plugin is one key. Its `key_id` changes when that is rotated, and is both
//! the key's id and its version here: what it means is the plugin's own matter.

mod client;
pub mod envelope;
mod failure;
pub mod messages;
mod socket;

use std::path::PathBuf;

use async_trait::async_trait;

use self::client::{Fault, Plugin, uid};
use self::envelope::Encrypted;
use self::failure::Method;
use self::messages::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusResponse,
};
use self::socket::Socket;
use super::cluster::{Cluster, Failed, Timing};
use super::envelope::{ALG, PLAINTEXT_MAX, Unopened, check_beside, no_memory, seal, too_long};
use super::{Class, Denied, Error, KeyRef, KeyVersion, Provider, Wrapped};
use crate::secret::Secret;

/// The length of the key that the plugin encrypts, in bytes.
const KEY_BYTES: usize = 32;

/// The versions of the API that are spoken here.
const VERSIONS: [&str; 2] = ["v2", "v2beta1"];

/// What is configured of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its socket.
    pub socket: PathBuf,
    /// The user that it runs as, if that is neither root nor ours.
    pub plugin_user: Option<u32>,
    /// How long to wait for an answer, and for the plugin to come.
    pub timing: Timing,
}

/// The key of one plugin.
#[derive(Debug)]
pub struct K8sProvider {
    plugin: Cluster<Plugin>,
}

impl K8sProvider {
    /// The provider's name.
    pub const NAME: &'static str = "k8s-kms";

    /// The key of the plugin of `settings`. Nothing is connected yet.
    pub fn new(settings: Settings) -> Self {
        let plugin = Plugin {
            socket: Socket::new(settings.socket, settings.plugin_user),
            timeout: settings.timing.timeout,
        };
        K8sProvider {
            plugin: Cluster::new([plugin], settings.timing),
        }
    }
}

impl Plugin {
    /// How the plugin is, if it speaks the API.
    async fn told(&self, key: &KeyRef) -> Result<StatusResponse, Failed> {
        if let Some(id) = &key.id {
            return Err(Failed::Everywhere(Error::new(
                Class::NotFound,
                format!("a KMS plugin is one key, and has none that is called {id:?}"),
                "name no key in the key set: which one it is, is configured at the plugin",
            )));
        }
        let status = self.status().await?;
        if !VERSIONS.contains(&status.version.as_str()) {
            let version: String = status.version.chars().take(100).collect();
            return Err(failure::malformed(
                &format!("version {version:?} of the API, and has to speak v2"),
                &self.socket,
            )
            .into());
        }
        Ok(status)
    }

    /// The key that the plugin encrypts with now, if it works.
    async fn current(&self, key: &KeyRef) -> Result<String, Failed> {
        let status = self.told(key).await?;
        self.check_healthy(&status)?;
        self.check_key_id(key, &status.key_id)?;
        Ok(status.key_id)
    }

    fn check_key_id(&self, key: &KeyRef, current: &str) -> Result<(), Error> {
        envelope::check_key_id(current).map_err(|what| failure::malformed(&what, &self.socket))?;
        self.check_pinned(key, current)
    }

    fn check_healthy(&self, status: &StatusResponse) -> Result<(), Error> {
        match status.healthz.as_str() {
            "ok" => Ok(()),
            other => Err(failure::unhealthy(other, &self.socket)),
        }
    }

    fn check_pinned(&self, key: &KeyRef, current: &str) -> Result<(), Error> {
        match &key.version {
            Some(version) if version != current => Err(Error::new(
                Class::NotFound,
                format!(
                    "the KMS plugin at {} encrypts with {current:?} alone, and not with {version:?}",
                    self.socket
                ),
                "leave version out: which one it is, is configured at the plugin",
            )),
            _ => Ok(()),
        }
    }

    async fn wrap(&self, key: &KeyRef, payload: &Secret, aad: &[u8]) -> Result<Wrapped, Failed> {
        self.current(key).await?;
        let everywhere = |error| Failed::Everywhere(no_memory(&error));
        let inner = Secret::random(KEY_BYTES).map_err(everywhere)?;
        let question = EncryptRequest {
            plaintext: inner.to_vec(),
            uid: uid(),
        };
        let answer: Result<EncryptResponse, _> = self.ask(Method::Encrypt, question).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(fault) => return Err(self.explain(fault, Method::Encrypt)),
        };
        let encrypted = Encrypted {
            ciphertext: answer.ciphertext,
            key_id: answer.key_id,
            annotations: answer.annotations,
        };
        encrypted
            .check()
            .map_err(|what| failure::malformed(&what, &self.socket))?;
        self.check_pinned(key, &encrypted.key_id)?;
        if encrypted
            .ciphertext
            .windows(KEY_BYTES)
            .any(|part| *part == inner[..])
        {
            return Err(
                failure::malformed("back the key that it was to encrypt", &self.socket).into(),
            );
        }
        let header = encrypted
            .header()
            .ok_or_else(|| failure::malformed("too many annotations", &self.socket))?;
        Ok(Wrapped {
            version: encrypted.key_id.clone(),
            key_id: encrypted.key_id,
            alg: ALG.into(),
            bytes: seal(&header, &inner, payload, aad).map_err(everywhere)?,
        })
    }

    async fn unwrap(
        &self,
        envelope: &envelope::Envelope<'_>,
        aad: &[u8],
    ) -> Result<Secret, Failed> {
        let encrypted = envelope.encrypted.clone();
        let question = DecryptRequest {
            ciphertext: encrypted.ciphertext,
            uid: uid(),
            key_id: encrypted.key_id,
            annotations: encrypted.annotations,
        };
        let answer: Result<DecryptResponse, _> = self.ask(Method::Decrypt, question).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(Fault::Refused(status)) if failure::is_vague(&status) => {
                // How it is may tell more than its answer.
                self.current(&KeyRef::default()).await?;
                return Err(self.explain(Fault::Refused(status), Method::Decrypt));
            }
            Err(fault) => return Err(self.explain(fault, Method::Decrypt)),
        };
        if answer.plaintext.len() != KEY_BYTES {
            let what = format!(
                "a key of {} bytes, and was given one of {KEY_BYTES}",
                answer.plaintext.len()
            );
            return Err(failure::malformed(&what, &self.socket).into());
        }
        let everywhere = |error| Failed::Everywhere(no_memory(&error));
        let inner = Secret::copy_of(&answer.plaintext).map_err(everywhere)?;
        envelope.sealed.open(&inner, aad).map_err(|why| match why {
            Unopened::Unauthentic => Error::new(
                Class::BadKey,
                format!(
                    "what the KMS plugin at {} gives out does not open the wrapped key: it was tampered with, or belongs to another volume",
                    self.socket
                ),
                "restore the volume's header from a backup, and find out who changed it",
            )
            .into(),
            Unopened::Memory(error) => everywhere(error),
        })
    }
}

#[async_trait]
impl Provider for K8sProvider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(&self, key: &KeyRef, plaintext: &Secret, aad: &[u8]) -> Result<Wrapped, Error> {
        if plaintext.len() > PLAINTEXT_MAX {
            return Err(too_long());
        }
        let wrap = |plugin| Plugin::wrap(plugin, key, plaintext, aad);
        self.plugin.call(wrap).await
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, Error> {
        let envelope = envelope::parse(&wrapped.bytes)?;
        let key_id = &envelope.encrypted.key_id;
        check_beside(&[
            ("key", &wrapped.key_id, key_id),
            ("key version", &wrapped.version, key_id),
            ("algorithm", &wrapped.alg, ALG),
        ])?;
        let unwrap = |plugin| Plugin::unwrap(plugin, &envelope, aad);
        self.plugin.call(unwrap).await
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, Error> {
        let current = async |plugin: &Plugin| {
            let status = plugin.told(key).await?;
            let enabled = match plugin.check_healthy(&status) {
                Ok(()) => true,
                Err(error) => match error.class() {
                    // The key itself is meant: that is an answer.
                    Class::Denied(Denied::Disabled | Denied::Expired | Denied::Deleted) => false,
                    _ => return Err(error.into()),
                },
            };
            plugin.check_key_id(key, &status.key_id)?;
            Ok(KeyVersion {
                id: status.key_id,
                enabled,
                expires: None,
            })
        };
        self.plugin.call(current).await
    }
}
