//! A key set with `provider = "pkcs11"`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, SecretPath, Wait};
use super::values::FilePath;
use crate::keys::{Definition, Source};
use crate::kms::credential::SecretFile;
use crate::kms::pkcs11::{self, Choice, KeyName, Settings, Uri};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pkcs11KeySet {
    #[serde(rename = "provider")]
    _provider: String,
    uri: Spanned<Parsed<Uri>>,
    module: Option<Spanned<FilePath>>,
    pin: Option<Spanned<Parsed<SecretPath>>>,
    version: Option<Spanned<String>>,
    mechanism: Option<Choice>,
    timeout: Option<Parsed<Wait>>,
    deadline: Option<Spanned<Parsed<Wait>>>,
}

/// The key set that `value` describes.
pub(super) fn definition<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<Definition, Error> {
    let set: Pkcs11KeySet = reader.table(value)?;
    let at = set.uri.span().start;
    let uri = set.uri.into_inner().0;
    let key = KeyName::of(&uri).map_err(|why| reader.at(at, why))?;
    let module = match (set.module, uri.module) {
        (Some(module), None) => PathBuf::from(module.into_inner()),
        (None, Some(module)) => module,
        (Some(module), Some(_)) => {
            return Err(reader.at(
                module.span().start,
                "write either module or module-path in the URI",
            ));
        }
        (None, None) => {
            return Err(reader.at(
                at,
                "it names no library: add module = \"/PATH/LIBRARY.so\", or ?module-path=/PATH/LIBRARY.so to the URI",
            ));
        }
    };
    let pin = match (set.pin, uri.pin_source) {
        (Some(pin), None) => Some(pin.into_inner().0.0),
        (None, source) => source.map(SecretFile::new),
        (Some(pin), Some(_)) => {
            return Err(reader.at(
                pin.span().start,
                "write either pin or pin-source in the URI",
            ));
        }
    };
    let version = match set.version {
        Some(version) if version.get_ref() != "latest" => {
            let at = version.span().start;
            if key.id.is_some() {
                return Err(reader.at(
                    at,
                    "version goes with a URI without id: with it, the URI names one object for good",
                ));
            }
            pkcs11::id_of(version.get_ref())
                .map_err(|why| reader.at(at, format!("{why}, or \"latest\"")))?;
            Some(version.into_inner())
        }
        _ => None,
    };
    let source = Source::Pkcs11 {
        key,
        settings: Box::new(Settings {
            module,
            token: uri.token,
            pin,
            mechanism: set.mechanism,
            timing: service::timing(reader, set.timeout, set.deadline)?,
        }),
    };
    Ok(Definition::new(source, version))
}
