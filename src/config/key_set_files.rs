//! Key sets that have a file each, `NAME.toml` in one directory: what
//! `sealblk keyset` makes and changes. In it stands what would stand below
//! `[key_sets.NAME]` in the configuration.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::file;
use crate::durable;
use crate::keys::{Definition, Name};

/// What the file of a key set begins with.
const HEADING: &str = "# A key set of sealblk. Change it with `sealblk keyset edit`.\n";

/// The directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySetFiles(PathBuf);

impl KeySetFiles {
    /// The files in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        KeySetFiles(directory.into())
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The file of a key set.
    pub fn path(&self, name: &Name) -> PathBuf {
        self.0.join(format!("{name}.toml"))
    }

    /// Reads and checks all files: what each defines, and what stands there. A directory that is not there has none.
    ///
    /// # Errors
    /// When one cannot be read, or is wrong.
    pub fn read_all(&self) -> Result<BTreeMap<Name, (Definition, toml::Table)>, Error> {
        let fail = |source| Error::Read {
            path: self.0.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.map_err(fail)?,
        };
        let mut definitions = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(fail)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let is_toml = path
                .extension()
                .is_some_and(|extension| extension == "toml");
            // Editors leave files of other names behind.
            let Some(Ok(name)) = stem.filter(|_| is_toml).map(str::parse::<Name>) else {
                continue;
            };
            let text = file::text_of(&path)?;
            definitions.insert(name.clone(), file::parse_key_set(&path, &name, &text)?);
        }
        Ok(definitions)
    }

    /// Checks settings that are to become those of a key set.
    ///
    /// # Errors
    /// When they are wrong. No file is named then: there may be none yet.
    pub fn check(&self, name: &Name, settings: &toml::Table) -> Result<Definition, Error> {
        let parsed = file::parse_key_set(&self.path(name), name, &text_of(settings));
        match parsed {
            Ok((definition, _)) => Ok(definition),
            Err(Error::File { message, .. }) => Err(Error::contradiction(
                format!("the settings of key set {:?}: {message}", name.as_str()),
                "docs/kms.md lists the settings that key sets of each provider have",
            )),
            Err(other) => Err(other),
        }
    }

    /// Writes the file of a key set: a new one, or with `replace` in place of
    /// the one that is there.
    ///
    /// # Errors
    /// When it is there already, or cannot be written.
    pub fn write(&self, name: &Name, settings: &toml::Table, replace: bool) -> io::Result<()> {
        durable::directory(&self.0)?;
        let (path, text) = (self.path(name), text_of(settings));
        match replace {
            true => durable::replace(&path, text.as_bytes(), 0o644),
            false => durable::create(&path, text.as_bytes(), 0o644),
        }
    }

    /// Removes the file of a key set.
    ///
    /// # Errors
    /// When it is not there, or cannot be removed.
    pub fn remove(&self, name: &Name) -> io::Result<()> {
        durable::remove(&self.path(name))
    }
}

fn text_of(settings: &toml::Table) -> String {
    format!("{HEADING}{settings}")
}
