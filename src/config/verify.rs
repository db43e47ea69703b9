//! The `[verify]` table: the key that signs reports, and what the manager may
//! take for making them.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::Parsed;
use super::values::FilePath;
use crate::units::Bytes;

/// Where the host key is.
pub const DEFAULT_KEY: &str = "/etc/sealblk/report.key";

/// Bytes that the manager reads per second for a verification, at most: what a
/// disk below can spare while it serves guests.
const RATE: Bytes = Bytes(200 << 20);

/// The settings, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// The file with the host key.
    pub key: PathBuf,
    /// Bytes that the manager reads per second, at most.
    pub rate: Bytes,
}

impl Default for Verify {
    fn default() -> Self {
        Verify {
            key: DEFAULT_KEY.into(),
            rate: RATE,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    key: Option<FilePath>,
    rate: Option<Spanned<Parsed<Bytes>>>,
}

/// The settings that `value` describes.
pub(super) fn settings<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<Verify, Error> {
    let table: Table = reader.table(value)?;
    let rate = match table.rate {
        None => RATE,
        Some(given) if given.get_ref().0 < Bytes(1 << 20) => {
            let at = given.span().start;
            return Err(reader.at(at, "rate is what is read per second, and at least \"1M\""));
        }
        Some(given) => given.into_inner().0,
    };
    Ok(Verify {
        key: table.key.map_or_else(|| DEFAULT_KEY.into(), PathBuf::from),
        rate,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn parse(text: &str) -> Result<Config, Error> {
        super::super::file::parse(Path::new("/etc/x.toml"), text)
    }

    #[test]
    fn key_and_rate_are_read_and_checked() {
        let config = parse("[verify]\nkey = \"/k\"\nrate = \"1.5G\"").unwrap();
        assert_eq!(config.verify.key, Path::new("/k"));
        assert_eq!(config.verify.rate, Bytes(3 << 29));
        assert_eq!(parse("").unwrap().verify, Verify::default());
        for bad in [
            "rate = \"1K\"",
            "rate = 7",
            "key = \"relative\"",
            "speed = \"1G\"",
        ] {
            parse(&format!("[verify]\n{bad}")).unwrap_err();
        }
    }
}
