//! The built-in provider: a platform key in a file on this host.
//!
//! For those who have no key management service. It protects disks that leave
//! the host, from everyone who has no copy of the key file; `docs/kms/file.md` says
//! what it does not protect from. Here lives all that knows the file:
//!
//! - `keyfile`: what is in it; `text`: how that is written down,
//! - `storage` and `directory`: reading it safely, replacing it as a whole,
//! - `envelope`: the wrapped bytes.
//!
//! The file is read anew for each call, so that a version that was added,
//! disabled or removed is so at once, and its keys are in memory no longer
//! than that call.

mod directory;
mod envelope;
mod error;
mod keyfile;
mod storage;
mod text;

/// For fuzzing: the wrapped bytes without a key file.
#[doc(hidden)]
pub use super::envelope::{Malformed, PLAINTEXT_MAX, Unopened};
#[doc(hidden)]
pub use envelope::{Envelope, seal};
pub use error::{Cause, Change, Error};
pub use keyfile::{KeyFile, State, Version, VersionId};
pub use storage::{create, read, update};

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::envelope::{ALG, cannot_seal, check_beside, no_memory};
use super::{Class, Denied, KeyRef, KeyVersion, Provider, Wrapped};
use crate::error::Kind;
use crate::kms;
use crate::secret::Secret;

/// Where the platform key is unless something else is configured.
pub const DEFAULT_PATH: &str = "/etc/sealblk/platform.key";

/// The platform key in one key file.
#[derive(Debug)]
pub struct FileProvider {
    path: PathBuf,
}

impl FileProvider {
    /// The provider's name.
    pub const NAME: &'static str = "file";

    /// The platform key in the key file at `path`, which is read when needed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FileProvider { path: path.into() }
    }

    /// The key file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How `sealblk key` is called for this file.
    fn command(&self, rest: &str) -> String {
        if self.path == Path::new(DEFAULT_PATH) {
            format!("sealblk key {rest}")
        } else {
            format!("sealblk key {rest} --key-file {}", self.path.display())
        }
    }

    /// The version that `key` means, whatever its state.
    fn resolve<'f>(&self, file: &'f KeyFile, key: &KeyRef) -> Result<&'f Version, kms::Error> {
        if let Some(id) = &key.id
            && *id != file.key_id.to_string()
        {
            return Err(self.other_key(id, file));
        }
        match &key.version {
            None => file.latest().ok_or_else(|| {
                kms::Error::new(
                    Class::Denied(Denied::Deleted),
                    format!("all versions in {} have been removed", self.path.display()),
                    format!("add one: {}", self.command("add-version")),
                )
            }),
            Some(text) => self.find(file, text),
        }
    }

    fn find<'f>(&self, file: &'f KeyFile, text: &str) -> Result<&'f Version, kms::Error> {
        text.parse()
            .ok()
            .and_then(|id| file.version(id))
            .ok_or_else(|| {
                kms::Error::new(
                    Class::NotFound,
                    format!("{} has no version {text}", self.path.display()),
                    format!(
                        "restore the backup of the key file that has this version; those that are here: {}",
                        self.command("list")
                    ),
                )
                .with_kind(Kind::Key)
            })
    }

    /// The key of a version, if it may be used.
    fn usable<'f>(&self, version: &'f Version) -> Result<&'f Secret, kms::Error> {
        let id = version.id;
        let path = self.path.display();
        match (version.state, version.key()) {
            (State::Enabled, Some(key)) => Ok(key),
            (State::Disabled, _) => Err(kms::Error::new(
                Class::Denied(Denied::Disabled),
                format!("version {id} of the platform key in {path} is disabled"),
                format!("enable it: {}", self.command(&format!("enable {id}"))),
            )),
            (State::Removed, _) | (_, None) => Err(kms::Error::new(
                Class::Denied(Denied::Deleted),
                format!("version {id} of the platform key has been removed from {path}"),
                "restore the backup of the key file that still has this version",
            )),
        }
    }

    fn other_key(&self, wanted: &str, file: &KeyFile) -> kms::Error {
        kms::Error::new(
            Class::NotFound,
            format!(
                "{} holds platform key {}, and not {wanted}",
                self.path.display(),
                file.key_id
            ),
            format!(
                "name the key file that holds {wanted}, with --key-file or in the configuration"
            ),
        )
        .with_kind(Kind::Key)
    }
}

#[async_trait]
impl Provider for FileProvider {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    async fn wrap(
        &self,
        key: &KeyRef,
        plaintext: &Secret,
        aad: &[u8],
    ) -> Result<Wrapped, kms::Error> {
        let file = read(&self.path)?;
        let version = self.resolve(&file, key)?;
        let kek = self.usable(version)?;
        let bytes = envelope::seal(file.key_id, version.id, kek, plaintext, aad)
            .map_err(|error| cannot_seal(&error))?;
        Ok(Wrapped {
            key_id: file.key_id.to_string(),
            version: version.id.to_string(),
            alg: ALG.into(),
            bytes,
        })
    }

    async fn unwrap(&self, wrapped: &Wrapped, aad: &[u8]) -> Result<Secret, kms::Error> {
        let envelope = Envelope::parse(&wrapped.bytes)?;
        check_beside(&[
            ("key", &wrapped.key_id, &envelope.key_id.to_string()),
            (
                "key version",
                &wrapped.version,
                &envelope.version.to_string(),
            ),
            ("algorithm", &wrapped.alg, ALG),
        ])?;
        let file = read(&self.path)?;
        if file.key_id != envelope.key_id {
            return Err(self.other_key(&wrapped.key_id, &file));
        }
        let version = self.find(&file, &wrapped.version)?;
        let kek = self.usable(version)?;
        envelope.open(kek, aad).map_err(|error| match error {
            Unopened::Unauthentic => kms::Error::new(
                Class::BadKey,
                format!(
                    "version {} of the platform key in {} does not open the wrapped key: it was tampered with, or belongs to another volume",
                    version.id,
                    self.path.display()
                ),
                "restore the volume's header from a backup, and find out who changed it",
            ),
            Unopened::Memory(error) => no_memory(&error),
        })
    }

    async fn current_version(&self, key: &KeyRef) -> Result<KeyVersion, kms::Error> {
        let file = read(&self.path)?;
        let version = self.resolve(&file, key)?;
        Ok(KeyVersion {
            id: version.id.to_string(),
            enabled: version.state == State::Enabled,
            expires: None,
        })
    }
}
