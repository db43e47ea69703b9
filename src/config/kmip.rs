//! A key set with `provider = "kmip"`.
#![forbid(unsafe_code)]

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, SecretPath, Wait};
use super::values::FilePath;
use crate::keys::{Definition, Source};
use crate::kms::kmip::protocol::Version;
use crate::kms::kmip::{self, Endpoint, Mode, Settings, WrappingKey};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KmipKeySet {
    #[serde(rename = "provider")]
    _provider: String,
    endpoints: Spanned<Vec<Parsed<Endpoint>>>,
    key_name: Option<Spanned<String>>,
    key_id: Option<Spanned<String>>,
    version: Option<Spanned<String>>,
    #[serde(default)]
    mode: Mode,
    wrapping_key: Option<Spanned<String>>,
    wrapping_key_file: Option<Spanned<Parsed<SecretPath>>>,
    protocol: Option<Parsed<Version>>,
    ca_file: Option<FilePath>,
    client_cert: Option<Spanned<FilePath>>,
    client_key: Option<Spanned<Parsed<SecretPath>>>,
    timeout: Option<Parsed<Wait>>,
    deadline: Option<Spanned<Parsed<Wait>>>,
}

/// The key set that `value` describes.
pub(super) fn definition<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<Definition, Error> {
    let at = value.span().start;
    let set: KmipKeySet = reader.table(value)?;
    let tls = service::tls(reader, set.ca_file, set.client_cert, set.client_key)?;
    if tls.client.is_none() {
        return Err(reader.at(
            at,
            "KMIP servers know their clients by certificates: add client_cert and client_key",
        ));
    }
    let endpoints_at = set.endpoints.span().start;
    let endpoints = set.endpoints.into_inner();
    if endpoints.is_empty() {
        return Err(reader.at(endpoints_at, "name at least one endpoint"));
    }
    let version = set.version.filter(|version| version.get_ref() != "latest");
    let key = match (set.key_name, set.key_id) {
        (Some(name), None) => {
            let at = name.span().start;
            kmip::by_name(name.get_ref()).map_err(|why| reader.at(at, why))?
        }
        (None, Some(id)) => {
            if let Some(version) = version {
                return Err(reader.at(
                    version.span().start,
                    "version goes with key_name: a unique identifier names one key for good",
                ));
            }
            let at = id.span().start;
            kmip::by_id(id.get_ref()).map_err(|why| reader.at(at, why))?
        }
        (Some(_), Some(id)) => {
            return Err(reader.at(id.span().start, "write either key_name or key_id"));
        }
        (None, None) => {
            return Err(reader.at(
                at,
                "it names no key: add key_name = \"NAME\" or key_id = \"UNIQUE IDENTIFIER\"",
            ));
        }
    };
    let version = match version {
        Some(version) => {
            let at = version.span().start;
            Some(kmip::by_id(version.get_ref()).map_err(|why| reader.at(at, why))?)
        }
        None => None,
    };
    let wrapping_key = match (set.wrapping_key, set.wrapping_key_file) {
        (None, None) => None,
        (Some(id), _) if set.mode != Mode::Get => {
            return Err(reader.at(id.span().start, "wrapping_key goes with mode = \"get\""));
        }
        (Some(id), Some(file)) => Some(WrappingKey {
            id: id.into_inner(),
            file: file.into_inner().0.0,
        }),
        (Some(alone), None) => {
            return Err(reader.at(alone.span().start, "wrapping_key needs wrapping_key_file"));
        }
        (None, Some(alone)) => {
            return Err(reader.at(alone.span().start, "wrapping_key_file needs wrapping_key"));
        }
    };
    let settings = Settings {
        endpoints: endpoints.into_iter().map(|parsed| parsed.0).collect(),
        tls,
        mode: set.mode,
        wrapping_key,
        timing: service::timing(reader, set.timeout, set.deadline)?,
        version: set.protocol.map(|parsed| parsed.0),
    };
    let source = Source::Kmip {
        key,
        settings: Box::new(settings),
    };
    Ok(Definition::new(source, version))
}
