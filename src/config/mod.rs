//! Configuration: from raw text and raw flags to one checked structure.
//!
//! `file` reads the configuration file, `cli` the flags; both produce the same
//! [`Options`], flags win, and what comes out ([`Serve`], [`Log`], the key set
//! definitions) is complete and free of contradictions. Nothing after it
//! checks again, and nothing else in the program reads files or the
//! environment to find out what to do.

mod choices;
pub mod daemon;
mod error;
mod file;
mod group;
mod kmip;
mod options;
mod serve;
mod service;
pub mod user;
mod values;
mod vault;

pub use choices::{Cache, Direct, Discard, LogFormat, LogLevel};
pub use daemon::Daemon;
pub use error::Error;
pub use group::Group;
pub use options::Options;
pub(crate) use options::path_parser;
pub use serve::{Disk, Serve};
pub use values::{Engine, FilePath, Poll, QueueSize, Queues, Serial, SocketMode};

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

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
    /// The same as the tables that they were read from, for those that were.
    pub tables: BTreeMap<keys::Name, Map<String, Value>>,
    /// What and how to log.
    pub log: Log,
    /// The `[serve]` table.
    pub serve: Options,
    /// The `[daemon]` table.
    pub daemon: Daemon,
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
    /// The socket of the manager.
    pub daemon: Option<FilePath>,
}

impl Default for Config {
    /// The configuration of a host that has no configuration file.
    fn default() -> Self {
        Config {
            path: None,
            key_sets: BTreeMap::from([(keys::Name::default(), platform_key())]),
            tables: BTreeMap::new(),
            log: Log::default(),
            serve: Options::default(),
            daemon: Daemon::default(),
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
        if let Some(socket) = overrides.daemon {
            let socket = PathBuf::from(socket);
            daemon::check_socket(&socket).map_err(|why| {
                Error::contradiction(
                    why,
                    "put it into a directory with a shorter path, such as /run/sealblk",
                )
            })?;
            config.daemon.socket = socket;
        }
        Ok(config)
    }

    /// Every setting that has a value, by its name in the file, as text. Two
    /// that are the same here are the same.
    pub fn settings(&self) -> BTreeMap<String, String> {
        fn put(all: &mut BTreeMap<String, String>, name: &str, value: &dyn fmt::Debug) {
            all.insert(name.into(), format!("{value:?}"));
        }
        let mut all = BTreeMap::new();
        // Taken apart, so that a new setting cannot be forgotten here.
        let Daemon {
            socket,
            socket_group,
            socket_mode,
            state_dir,
            run_dir,
            attach_concurrency,
            keep_deks,
            poll,
            roles,
        } = &self.daemon;
        put(&mut all, "daemon.socket", socket);
        put(&mut all, "daemon.socket_group", socket_group);
        put(&mut all, "daemon.socket_mode", socket_mode);
        put(&mut all, "daemon.state_dir", state_dir);
        put(&mut all, "daemon.run_dir", run_dir);
        put(&mut all, "daemon.attach_concurrency", attach_concurrency);
        put(&mut all, "daemon.keep_deks", keep_deks);
        put(&mut all, "daemon.poll", poll);
        put(&mut all, "daemon.roles", roles);
        let Log { level, format } = &self.log;
        put(&mut all, "log.level", level);
        put(&mut all, "log.format", format);
        put(&mut all, "serve", &self.serve);
        for (name, definition) in &self.key_sets {
            put(&mut all, &format!("key_sets.{name}"), definition);
        }
        all
    }

    /// The key sets, ready to be used.
    pub fn key_sets(&self) -> KeySets {
        KeySets::new(self.key_sets.clone())
    }
}

#[cfg(test)]
mod tests;
