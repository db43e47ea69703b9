//! Entries as files of one directory, best on storage that hosts share.
//!
//! A file is called by the UUID of its volume and by nothing else, so that no
//! text of a header is ever a path. Reading takes no lock and needs no right to
//! write. A change is made under a lock that hosts share, and a crash at any
//! instant leaves the old entry or the new one, whole.
//!
//! - `folder`: the directory, opened once and checked; reading; failures,
//! - `change`: the lock, writing, and destroying.
#![forbid(unsafe_code)]

mod change;
mod folder;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use self::folder::Folder;
use super::{Entry, Failed, KeyStore, Stored, Version};
use crate::kms::{Class, Error};

/// A directory, and how long it may take to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The directory. It must be there.
    pub path: PathBuf,
    /// How long the file system may be silent: that of a server which is gone
    /// can hang for ever.
    pub timeout: Duration,
}

/// A directory of entries.
#[derive(Debug)]
pub struct Directory {
    settings: Settings,
}

impl Directory {
    /// What this kind is called.
    pub const KIND: &'static str = "directory";

    /// Nothing is opened yet.
    pub fn new(settings: Settings) -> Self {
        Directory { settings }
    }

    /// Works on the directory where that may block, and not endlessly.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Failed> {
        let path = self.settings.path.clone();
        let working = tokio::task::spawn_blocking(move || work(&Folder::open(&path)?));
        match tokio::time::timeout(self.settings.timeout, working).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Failed::Store(Error::new(
                Class::Unreachable,
                format!("work on it ended early: {error}"),
                "try again",
            ))),
            Err(_) => Err(Failed::Store(Error::new(
                Class::Unreachable,
                format!(
                    "{} did not answer within {:.1} s",
                    self.settings.path.display(),
                    self.settings.timeout.as_secs_f64()
                ),
                "check the server of that file system; `timeout` can be raised if it is just slow",
            ))),
        }
    }
}

/// The file of a volume. Made of a UUID, it is a plain name.
fn file_name(volume: Uuid) -> String {
    format!("{volume}.json")
}

#[async_trait]
impl KeyStore for Directory {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn place(&self, volume: Uuid) -> String {
        let path = self.settings.path.join(file_name(volume));
        path.display().to_string()
    }

    async fn get(&self, volume: Uuid) -> Result<Option<Stored>, Failed> {
        self.work(move |folder| folder.read(volume)).await
    }

    async fn put(&self, entry: &Entry, expected: Option<&Version>) -> Result<Version, Failed> {
        let (entry, expected) = (entry.clone(), expected.cloned());
        self.work(move |folder| change::put(folder, &entry, expected.as_ref()))
            .await
    }

    async fn purge(&self, volume: Uuid) -> Result<(), Failed> {
        self.work(move |folder| change::purge(folder, volume)).await
    }

    async fn list(&self) -> Result<Vec<Uuid>, Failed> {
        self.work(|folder| Ok(folder.list()?)).await
    }
}
