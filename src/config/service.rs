//! What key sets at a service on the network have in common.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer};
use toml::Spanned;

use super::error::Error;
use super::file::Reader;
use super::values::{FilePath, TextVisitor};
use crate::kms::cluster::Timing;
use crate::kms::credential::SecretFile;
use crate::kms::tls;

/// A value that a type of the providers is made from, with its place.
#[derive(Clone, Debug)]
pub(super) struct Parsed<T>(pub(super) T);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = from.deserialize_any(TextVisitor::<T> {
            expecting: "text in quotes",
            integer: false,
            parse: str::parse,
        })?;
        Ok(Parsed(value))
    }
}

/// Where a secret is: an absolute path, or `credential:NAME` for one that
/// systemd was told to give to this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SecretPath(pub(super) SecretFile);

impl FromStr for SecretPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("credential:") {
            // systemd.exec(5): names that may be file names.
            if name.is_empty() || name.contains('/') || name == "." || name == ".." {
                return Err(format!("{name:?} is not the name of a systemd credential"));
            }
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
            return Ok(SecretPath(SecretFile::credential(name, directory)));
        }
        if Path::new(text).is_absolute() {
            return Ok(SecretPath(SecretFile::new(text)));
        }
        Err(
            "secrets are not written into the configuration: name a file by its absolute path, or credential:NAME"
                .into(),
        )
    }
}

/// A time to wait, such as `5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait(Duration);

impl Wait {
    /// As a duration.
    pub(super) fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let millis = match &text[digits.len()..] {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" => Some(60_000),
            _ => None,
        };
        let number: Option<u64> = digits.parse().ok();
        match number.zip(millis).and_then(|(n, unit)| n.checked_mul(unit)) {
            Some(millis @ 100..=600_000) => Ok(Wait(Duration::from_millis(millis))),
            _ => Err(format!(
                "{text:?} is not a time to wait: write 100ms to 10m, such as \"5s\""
            )),
        }
    }
}

/// A time between one second and a day, such as `60s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period(Duration);

impl Period {
    /// As a duration.
    pub(crate) fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            _ => None,
        };
        let number: Option<u64> = digits.parse().ok();
        match number.zip(unit).and_then(|(n, unit)| n.checked_mul(unit)) {
            Some(seconds @ 1..=86_400) => Ok(Period(Duration::from_secs(seconds))),
            _ => Err(format!(
                "{text:?} is not a period: write 1s to 24h, such as \"60s\" or \"5m\""
            )),
        }
    }
}

/// `timeout` and `deadline`, which must not be shorter.
pub(super) fn timing(
    reader: &Reader<'_>,
    timeout: Option<Parsed<Wait>>,
    deadline: Option<Spanned<Parsed<Wait>>>,
) -> Result<Timing, Error> {
    let default = Timing::default();
    let timeout = timeout.map_or(default.timeout, |wait| wait.0.0);
    let Some(deadline) = deadline else {
        return Ok(Timing {
            timeout,
            deadline: default.deadline.max(timeout),
        });
    };
    let at = deadline.span().start;
    let deadline = deadline.into_inner().0.0;
    if deadline < timeout {
        return Err(reader.at(at, "deadline is for all endpoints together, and cannot be shorter than timeout, which is for one"));
    }
    Ok(Timing { timeout, deadline })
}

/// `ca_file`, `client_cert` and `client_key`, of which the last two go together.
pub(super) fn tls(
    reader: &Reader<'_>,
    ca_file: Option<FilePath>,
    client_cert: Option<Spanned<FilePath>>,
    client_key: Option<Spanned<Parsed<SecretPath>>>,
) -> Result<tls::Settings, Error> {
    let client = match (client_cert, client_key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(tls::ClientCertificate {
            certificate: certificate.into_inner().into(),
            key: key.into_inner().0.0,
        }),
        (Some(alone), None) => {
            return Err(reader.at(alone.span().start, "client_cert needs client_key"));
        }
        (None, Some(alone)) => {
            return Err(reader.at(alone.span().start, "client_key needs client_cert"));
        }
    };
    Ok(tls::Settings {
        ca_files: ca_file.map(PathBuf::from).into_iter().collect(),
        client,
    })
}
