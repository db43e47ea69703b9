//! The group key of a key set as this host stores it for new volumes: wrapped
//! by the service, in one small file.
//!
//! Nothing is lost with it: each volume carries the wrap of the group key that
//! it needs, and new volumes then get a new group key.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::Name;
use crate::durable;
use crate::kms::Wrapped;
use crate::volume::base64_text;

const VERSION: u32 = 1;

/// A group key, wrapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The group key.
    pub id: Uuid,
    /// The provider that wrapped it.
    pub provider: String,
    /// The key that was configured then, as far as the provider has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What the service made of it.
    key_id: String,
    key_version: String,
    alg: String,
    #[serde(with = "base64_text")]
    bytes: Vec<u8>,
}

impl Record {
    /// What is to be stored.
    pub fn new(id: Uuid, provider: &str, key: Option<String>, wrapped: Wrapped) -> Self {
        Record {
            version: VERSION,
            id,
            provider: provider.into(),
            key,
            key_id: wrapped.key_id,
            key_version: wrapped.version,
            alg: wrapped.alg,
            bytes: wrapped.bytes,
        }
    }

    /// The wrapped group key.
    pub fn wrapped(&self) -> Wrapped {
        Wrapped {
            key_id: self.key_id.clone(),
            version: self.key_version.clone(),
            alg: self.alg.clone(),
            bytes: self.bytes.clone(),
        }
    }
}

/// Where the records are: one directory, one file for each key set.
#[derive(Clone, Debug)]
pub struct Records(PathBuf);

impl Records {
    /// The records in the state directory `state`.
    pub fn below(state: &Path) -> Self {
        Records(state.join("groups"))
    }

    /// The file of a key set.
    pub fn path(&self, name: &Name) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// The record of a key set, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn read(&self, name: &Name) -> io::Result<Option<Record>> {
        durable::read_json(&self.path(name), VERSION, |read: &Record| read.version)
    }

    /// Stores `record`. With `replace`, in place of the one that is there;
    /// otherwise the one that is there stays, and is returned: somebody else
    /// was faster.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &Name, record: Record, replace: bool) -> io::Result<Record> {
        durable::directory(&self.0)?;
        let text = serde_json::to_vec_pretty(&record)?;
        let path = self.path(name);
        if replace {
            durable::replace(&path, &text, 0o600)?;
            return Ok(record);
        }
        match durable::create(&path, &text, 0o600) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self
                .read(name)?
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)),
            result => result.map(|()| record),
        }
    }

    /// Removes the record of a key set, if there is one.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &Name) -> io::Result<()> {
        durable::remove_if_there(&self.path(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_second_gets_the_record_of_the_first() {
        let state = tempfile::tempdir().unwrap();
        let records = Records::below(state.path());
        let name = Name::default();
        assert_eq!(records.read(&name).unwrap(), None);
        let record = |version: &str| {
            let wrapped = Wrapped {
                key_id: "k".into(),
                version: version.into(),
                alg: "a".into(),
                bytes: vec![1, 2, 3],
            };
            Record::new(Uuid::new_v4(), "vault", Some("disks".into()), wrapped)
        };
        let first = record("1");
        assert_eq!(records.write(&name, first.clone(), false).unwrap(), first);
        assert_eq!(records.write(&name, record("2"), false).unwrap(), first);
        assert_eq!(records.read(&name).unwrap(), Some(first));
        let third = record("3");
        records.write(&name, third.clone(), true).unwrap();
        assert_eq!(records.read(&name).unwrap(), Some(third));
        std::fs::write(records.path(&name), "{\"version\": 9}").unwrap();
        records.read(&name).unwrap_err();
        records.remove(&name).unwrap();
        records.remove(&name).unwrap();
    }
}
