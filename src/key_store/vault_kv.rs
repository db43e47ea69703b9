//! Entries as secrets of a KV engine of version 2, in Vault or OpenBao.
#![forbid(unsafe_code)]

use async_trait::async_trait;
use uuid::Uuid;

use super::{Entry, Failed, KeyStore, Stored, Version};
use crate::error::Kind;
use crate::kms::vault::kv::{Kv, Written};
use crate::kms::vault::{KeyName, MountPath, Settings};
use crate::kms::{Class, Error};

/// A folder of a KV engine.
#[derive(Debug)]
pub struct VaultKv(Kv);

impl VaultKv {
    /// What this kind is called.
    pub const KIND: &'static str = "vault-kv";

    /// Nothing is read or connected to yet.
    pub fn new(settings: Settings, folder: MountPath) -> Self {
        VaultKv(Kv::new(settings, folder))
    }
}

/// A UUID is a plain name as it stands.
fn name(volume: Uuid) -> Result<KeyName, Failed> {
    let name = volume.to_string().parse();
    name.map_err(|why: String| {
        let error = Error::new(Class::Protocol, why, "report this as a defect of sealblk");
        Failed::Store(error.with_kind(Kind::Internal))
    })
}

/// The number of a version that this store gave.
fn number(version: &Version) -> Result<u64, Failed> {
    version.0.parse().map_err(|_| Failed::Conflict)
}

#[async_trait]
impl KeyStore for VaultKv {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn place(&self, volume: Uuid) -> String {
        match name(volume) {
            Ok(name) => format!("{} at {}", self.0.path(&name), self.0.endpoints()),
            Err(_) => volume.to_string(),
        }
    }

    async fn get(&self, volume: Uuid) -> Result<Option<Stored>, Failed> {
        let Some(secret) = self.0.read(&name(volume)?).await? else {
            return Ok(None);
        };
        Ok(Some(Stored {
            entry: Entry::from_json(secret.data).map_err(Failed::Entry)?,
            version: Version(secret.version.to_string()),
        }))
    }

    async fn put(&self, entry: &Entry, expected: Option<&Version>) -> Result<Version, Failed> {
        let data = entry.to_json().map_err(Failed::Entry)?;
        let expected = expected.map(number).transpose()?;
        match self.0.write(&name(entry.volume)?, &data, expected).await? {
            Written::Version(version) => Ok(Version(version.to_string())),
            Written::Conflict => Err(Failed::Conflict),
        }
    }

    async fn purge(&self, volume: Uuid) -> Result<(), Failed> {
        Ok(self.0.destroy(&name(volume)?).await?)
    }

    async fn list(&self) -> Result<Vec<Uuid>, Failed> {
        let names = self.0.list().await?;
        let volumes = names.iter().filter_map(|name| {
            let volume = Uuid::try_parse(name).ok()?;
            // In the one form in which they are written.
            (volume.to_string() == *name).then_some(volume)
        });
        Ok(volumes.collect())
    }
}
