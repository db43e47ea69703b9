//! Configuration: from raw text and raw flags to one checked structure.
//!
//! `file` reads the configuration file, `cli` the flags; both produce the same
//! [`Options`], flags win, and what comes out ([`Serve`], [`Log`], the key set
//! definitions) is complete and free of contradictions. Nothing after it
//! checks again, and nothing else in the program reads files or the
//! environment to find out what to do.

mod choices;
mod error;
mod file;
mod group;
mod k8s;
mod kmip;
mod options;
mod pkcs11;
mod serve;
mod service;
mod values;
mod vault;

pub use choices::{Cache, Direct, Discard, LogFormat, LogLevel};
pub use error::Error;
pub use group::Group;
pub use options::Options;
pub(crate) use options::path_parser;
pub use serve::{Disk, Serve};
pub use values::{Engine, FilePath, Poll, QueueSize, Queues, Serial, SocketMode};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::keys::{self, Definition, KeySets, Source};
use crate::kms;

/// The configuration file that is read if it exists and no other is named.
pub const DEFAULT_PATH: &str = "/etc/sealblk/sealblk.toml";

/// Everything that is configured before a command adds its own flags.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read, if any.
    pub path: Option<PathBuf>,
    /// What the key sets are. There is always one named [`keys::DEFAULT`].
    pub key_sets: BTreeMap<keys::Name, Definition>,
    /// What and how to log.
    pub log: Log,
    /// The `[serve]` table.
    pub serve: Options,
}

/// What and how to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// For people or for machines.
    pub format: LogFormat,
}

/// The flags that every command has, and that override the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The key file of the key set [`keys::DEFAULT`].
    pub key_file: Option<PathBuf>,
    /// The log level.
    pub log_level: Option<LogLevel>,
    /// The log format.
    pub log_format: Option<LogFormat>,
}

impl Default for Config {
    /// The configuration of a host that has no configuration file.
    fn default() -> Self {
        Config {
            path: None,
            key_sets: BTreeMap::from([(keys::Name::default(), platform_key())]),
            log: Log::default(),
            serve: Options::default(),
        }
    }
}

/// The built-in default key set.
fn platform_key() -> Definition {
    Definition {
        source: Source::File {
            path: kms::file::DEFAULT_PATH.into(),
        },
        version: None,
    }
}

impl Config {
    /// Reads the file `named`, or else the one at [`DEFAULT_PATH`] if there
    /// is one, and puts the overrides on top.
    ///
    /// # Errors
    /// When the named file is missing, or a file cannot be read or is wrong.
    pub fn load(named: Option<&Path>, overrides: Overrides) -> Result<Self, Error> {
        let mut config = match named {
            Some(path) => file::read(path)?,
            None => match file::read(Path::new(DEFAULT_PATH)) {
                Err(Error::Missing { .. }) => Config::default(),
                other => other?,
            },
        };
        if let Some(path) = overrides.key_file {
            let set = config.key_sets.entry(keys::Name::default());
            set.or_insert_with(platform_key).source = Source::File { path };
        }
        config.log.level = overrides.log_level.unwrap_or(config.log.level);
        config.log.format = overrides.log_format.unwrap_or(config.log.format);
        Ok(config)
    }

    /// The key sets, ready to be used.
    pub fn key_sets(&self) -> KeySets {
        KeySets::new(self.key_sets.clone())
    }
}

#[cfg(test)]
mod tests;
