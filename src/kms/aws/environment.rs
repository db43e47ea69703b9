//! What the library that loads credentials sees of this process: environment
//! variables that are for it, and files that are safe.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use reqsign_core::{Env, FileRead};

use crate::error::{Explain, Kind};
use crate::kms::Error;
use crate::kms::credential::SecretFile;

/// Environment variables.
#[derive(Clone, PartialEq, Eq)]
pub enum Environment {
    /// Those of this process, as far as they are about AWS.
    Process,
    /// These. `HOME` is the home directory.
    Fixed(Arc<BTreeMap<String, String>>),
}

impl fmt::Debug for Environment {
    /// Without the values: keys may be among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Environment::Process => f.write_str("Process"),
            Environment::Fixed(variables) => f.debug_set().entries(variables.keys()).finish(),
        }
    }
}

impl Environment {
    /// These variables, and no others.
    pub fn fixed<'v>(variables: impl IntoIterator<Item = (&'v str, &'v str)>) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Environment::Fixed(Arc::new(variables.into_iter().map(own).collect()))
    }

    /// The value of a variable, unless it is empty.
    pub fn get(&self, name: &str) -> Option<String> {
        let value = match self {
            Environment::Process => std::env::var(name).ok(),
            Environment::Fixed(variables) => variables.get(name).cloned(),
        };
        value.filter(|value| !value.is_empty())
    }

    /// The home directory of the user who runs this.
    pub fn home(&self) -> Option<PathBuf> {
        match self {
            Environment::Process => std::env::home_dir(),
            Environment::Fixed(_) => self.get("HOME").map(PathBuf::from),
        }
    }
}

impl Env for Environment {
    fn var(&self, key: &str) -> Option<String> {
        self.get(key)
    }

    fn vars(&self) -> HashMap<String, String> {
        match self {
            Environment::Process => {
                let ours = |name: &OsStr| name.to_str().is_some_and(|n| n.starts_with("AWS_"));
                std::env::vars_os()
                    .filter(|(name, value)| ours(name) && !value.is_empty())
                    .filter_map(|(name, value)| {
                        Some((name.into_string().ok()?, value.into_string().ok()?))
                    })
                    .collect()
            }
            Environment::Fixed(variables) => variables
                .iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }

    fn home_dir(&self) -> Option<PathBuf> {
        self.home()
    }
}

/// Files that a source reads. Why one could not be read is remembered: the
/// library passes over it.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// Whether others may be able to read them, as it is the custom for tokens.
    lax: bool,
    failed: Arc<Mutex<Option<Error>>>,
}

impl Files {
    /// Files that hold keys.
    pub(super) fn with_keys() -> Self {
        Files {
            lax: false,
            failed: Arc::default(),
        }
    }

    /// Files with tokens that somebody renews.
    pub(super) fn with_tokens() -> Self {
        Files {
            lax: true,
            ..Self::with_keys()
        }
    }

    /// Why a file that is there could not be read, if so.
    pub(super) fn failed(&self) -> Option<Error> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.take()
    }
}

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let file = match self.lax {
            true => SecretFile::new(path).readable_by_all(),
            false => SecretFile::new(path),
        };
        file.read().map(|secret| secret.to_vec()).map_err(|error| {
            let error = Error::from(error);
            // One that is not there is for the source to judge.
            if self.lax || error.kind() != Kind::NotFound {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                *failed = Some(error.clone());
            }
            reqsign_core::Error::config_invalid("the file cannot be read").with_source(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn no_value_is_shown() {
        let environment = Environment::fixed([("AWS_SECRET_ACCESS_KEY", "hidden"), ("EMPTY", "")]);
        let shown = format!("{environment:?}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hidden"));
        assert_eq!(environment.get("EMPTY"), None);
        assert_eq!(environment.vars().len(), 1);
    }

    #[test]
    fn a_file_with_keys_is_safe_and_one_with_a_token_may_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "text").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let read = |files: &Files, path: &PathBuf| {
            let read = files.file_read(path.to_str().unwrap());
            crate::runtime::block_on(read).unwrap()
        };
        let strict = Files::with_keys();
        assert!(read(&strict, &path).is_err());
        assert_eq!(strict.failed().unwrap().kind(), Kind::Permission);
        assert!(strict.failed().is_none());
        assert_eq!(read(&Files::with_tokens(), &path).unwrap(), b"text");
        let missing = directory.path().join("missing");
        assert!(read(&strict, &missing).is_err());
        assert!(strict.failed().is_none());
    }
}
