//! The `[audit]` table: whether and where uses of keys are recorded.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::Parsed;
use super::values::FilePath;
use crate::audit::{self, Settings};
use crate::units::Bytes;

/// What the configuration says of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Audit {
    /// Nothing: commands keep none, the manager one in its usual place.
    #[default]
    Unset,
    /// None is kept.
    Off,
    /// One is kept.
    On(Settings),
}

impl Audit {
    /// The log that commands keep which use keys without the manager.
    pub fn of_commands(&self) -> Option<Settings> {
        match self {
            Audit::On(settings) => Some(settings.clone()),
            Audit::Unset | Audit::Off => None,
        }
    }

    /// The log that the manager keeps.
    pub fn of_manager(&self) -> Option<Settings> {
        match self {
            Audit::On(settings) => Some(settings.clone()),
            Audit::Unset => Some(Settings::default()),
            Audit::Off => None,
        }
    }

    /// Where the log is to be looked for.
    pub fn path(&self) -> PathBuf {
        match self {
            Audit::On(settings) => settings.path.clone(),
            Audit::Unset | Audit::Off => audit::DEFAULT_PATH.into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditTable {
    enabled: Option<bool>,
    path: Option<FilePath>,
    max_size: Option<Parsed<MaxSize>>,
    keep: Option<Spanned<u32>>,
}

/// The size at which a log is rotated.
#[derive(Clone, Copy, Debug)]
struct MaxSize(u64);

impl FromStr for MaxSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Bytes>()? {
            // Less would be more files than lines; more than this, nobody reads.
            Bytes(size @ 0x1_0000..=0x1_0000_0000) => Ok(MaxSize(size)),
            _ => Err(format!("{text:?} is not a size for a log: write 64K to 4G")),
        }
    }
}

pub(super) fn table<'a>(reader: &Reader<'a>, value: Spanned<DeValue<'a>>) -> Result<Audit, Error> {
    let table: AuditTable = reader.table(value)?;
    let default = Settings::default();
    let keep = match table.keep {
        Some(keep) if *keep.get_ref() == 0 => {
            return Err(reader.at(
                keep.span().start,
                "at least one rotated file is kept; leave keep out to keep all",
            ));
        }
        keep => keep.map(Spanned::into_inner),
    };
    if table.enabled == Some(false) {
        return Ok(Audit::Off);
    }
    Ok(Audit::On(Settings {
        path: table.path.map_or(default.path, PathBuf::from),
        max_size: table.max_size.map_or(default.max_size, |size| size.0.0),
        keep,
    }))
}
