//! The configuration file: TOML to a [`Config`], with the place of each fault.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::choices::{LogFormat, LogLevel};
use super::error::Error;
use super::key_set_files::KeySetFiles;
use super::values::FilePath;
use super::{Config, Log, Options};
use crate::key_store;
use crate::keys::{Definition, Name, Source};
use crate::kms;
use crate::paths;

/// More than any sensible configuration has, and little enough to be read whole.
const FILE_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {
    level: Option<LogLevel>,
    format: Option<LogFormat>,
}

/// A key set with `provider = "file"`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKeySet {
    #[serde(rename = "provider")]
    _provider: String,
    key_file: Option<FilePath>,
    version: Option<Spanned<String>>,
}

/// Reads and checks the configuration file at `path`.
pub(super) fn read(path: &Path) -> Result<Config, Error> {
    parse(path, &text_of(path)?)
}

/// The text of a file that nobody but root or ourselves, and its group, can have
/// written.
pub(crate) fn text_of(path: &Path) -> Result<String, Error> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path: path.into() },
        _ => Error::Read {
            path: path.into(),
            source,
        },
    };
    let bytes =
        paths::read_own(path, FILE_MAX).map_err(|error| match paths::Unsafe::of(&error) {
            Some(paths::Unsafe::Mode(_)) => Error::WorldWritable { path: path.into() },
            _ => fail(error),
        })?;
    String::from_utf8(bytes)
        .map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Checks the `text` of a file that describes the key set `name` alone. Also
/// what stands there.
pub(super) fn parse_key_set(
    path: &Path,
    name: &Name,
    text: &str,
) -> Result<(Definition, toml::Table), Error> {
    let reader = Reader { path, text };
    let table = DeTable::parse(text).map_err(|e| reader.toml(&e))?;
    let span = table.span();
    let value = Spanned::new(span, DeValue::Table(table.into_inner()));
    Ok((reader.key_set(name, value.clone())?, reader.table(value)?))
}

/// Checks `text`, which was read from `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<Config, Error> {
    Reader { path, text }.config()
}

/// A file that is being read: values to types, and faults to places.
pub(super) struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Reader<'a> {
    /// A reader of `text` as if it was read from `path`.
    #[cfg(all(test, feature = "aws-kms"))]
    pub(super) fn of(path: &'a Path, text: &'a str) -> Self {
        Reader { path, text }
    }

    fn config(&self) -> Result<Config, Error> {
        let root = DeTable::parse(self.text).map_err(|e| self.toml(&e))?;
        // The daemon may read it again from elsewhere, and errors name it.
        let beside = std::path::absolute(self.path).unwrap_or_else(|_| self.path.into());
        let mut config = Config {
            path: Some(PathBuf::from(self.path)),
            key_set_files: KeySetFiles::new(beside.with_file_name(super::KEY_SET_DIR)),
            ..Config::default()
        };
        for (key, value) in root.into_inner() {
            match key.get_ref().as_ref() {
                "log" => {
                    let log: LogTable = self.table(value)?;
                    let default = Log::default();
                    config.log = Log {
                        level: log.level.unwrap_or(default.level),
                        format: log.format.unwrap_or(default.format),
                    };
                }
                "audit" => config.audit = super::audit::table(self, value)?,
                "serve" => config.serve = self.table::<Options>(value)?,
                "daemon" => config.daemon = super::daemon::settings(self, value)?,
                "verify" => config.verify = super::verify::settings(self, value)?,
                #[cfg(feature = "broker")]
                "broker" => config.broker = Some(super::broker::settings(self, value)?),
                #[cfg(not(feature = "broker"))]
                "broker" => {
                    return Err(self.at(
                        key.span().start,
                        "this sealblk was built without the broker: build it with `cargo build --release --features broker`",
                    ));
                }
                "key_set_dir" => {
                    let path: FilePath = self.table(value)?;
                    config.key_set_files = KeySetFiles::new(PathBuf::from(path));
                }
                "key_sets" => {
                    let what = "key sets are tables: [key_sets.NAME]";
                    for (name, value) in self.entries(value, what)? {
                        let at = name.span().start;
                        let name: Name =
                            name.get_ref().parse().map_err(|e: String| self.at(at, e))?;
                        let definition = self.key_set(&name, value.clone())?;
                        config.tables.insert(name.clone(), self.table(value)?);
                        config.defined_in.insert(name.clone(), self.path.into());
                        config.key_sets.insert(name, definition);
                    }
                }
                "key_stores" => {
                    let what = "key stores are tables: [key_stores.NAME]";
                    for (name, value) in self.entries(value, what)? {
                        let at = name.span().start;
                        let name: key_store::Name =
                            name.get_ref().parse().map_err(|e: String| self.at(at, e))?;
                        let definition = super::key_stores::definition(self, value)?;
                        config.key_stores.insert(name, definition);
                    }
                }
                other => {
                    return Err(self.at(
                        key.span().start,
                        format!("there is no setting {other:?} here: there is key_set_dir, and the tables [log], [audit], [serve], [daemon], [verify], [broker], [key_sets.NAME] and [key_stores.NAME]"),
                    ));
                }
            }
        }
        Ok(config)
    }

    fn key_set(&self, name: &Name, mut value: Spanned<DeValue<'a>>) -> Result<Definition, Error> {
        let policy = super::policy::take(&mut value);
        let previous = match value.get_mut() {
            DeValue::Table(table) => table.remove("previous"),
            _ => None,
        };
        let mut definition = self.source(name, value)?;
        super::policy::apply(self, &mut definition.policy, policy)?;
        definition.previous = match previous {
            // It has neither a policy of its own nor anything before it.
            Some(previous) => Some(Box::new(self.source(name, previous)?)),
            None => None,
        };
        Ok(definition)
    }

    /// The key set but for what all providers have.
    fn source(&self, name: &Name, value: Spanned<DeValue<'a>>) -> Result<Definition, Error> {
        let at = value.span().start;
        let provider = value
            .get_ref()
            .as_table()
            .ok_or_else(|| self.at(at, "a key set is a table: [key_sets.NAME]"))?
            .get("provider");
        let Some(provider) = provider else {
            return Err(self.at(
                at,
                format!(
                    "key set {name:?} names no provider: add provider = \"file\"",
                    name = name.as_str()
                ),
            ));
        };
        match provider.get_ref().as_str() {
            #[cfg(feature = "broker")]
            Some(kms::broker::BrokerProvider::NAME) => {
                super::broker_key_set::definition(self, value)
            }
            Some(kms::file::FileProvider::NAME) => {
                let set: FileKeySet = self.table(value)?;
                let source = Source::File {
                    path: set
                        .key_file
                        .map_or_else(|| kms::file::DEFAULT_PATH.into(), PathBuf::from),
                };
                let version = match set.version {
                    Some(version) if version.get_ref() != "latest" => {
                        Some(self.file_version(&version)?)
                    }
                    _ => None,
                };
                Ok(Definition::new(source, version))
            }
            #[cfg(feature = "azure-keyvault")]
            Some(kms::azure::AzureProvider::NAME) => super::azure::definition(self, value),
            #[cfg(feature = "gcp-kms")]
            Some(kms::gcp::GcpProvider::NAME) => super::gcp::definition(self, value),
            #[cfg(feature = "aws-kms")]
            Some(kms::aws::AwsProvider::NAME) => super::aws::definition(self, value),
            #[cfg(feature = "k8s-kms")]
            Some(kms::k8s::K8sProvider::NAME) => super::k8s::definition(self, value),
            Some(kms::kmip::KmipProvider::NAME) => super::kmip::definition(self, value),
            #[cfg(feature = "pkcs11")]
            Some(kms::pkcs11::Pkcs11Provider::NAME) => super::pkcs11::definition(self, value),
            Some(kms::vault::VaultProvider::NAME) => super::vault::definition(self, value),
            Some(other) => Err(self.at(provider.span().start, no_provider(other))),
            None => Err(self.at(provider.span().start, "the provider is a name in quotes")),
        }
    }

    fn file_version(&self, text: &Spanned<String>) -> Result<String, Error> {
        let version: Result<kms::file::VersionId, String> = text.get_ref().parse();
        version
            .map(|version| version.to_string())
            .map_err(|why| self.at(text.span().start, format!("{why}, or \"latest\"")))
    }

    fn entries(&self, value: Spanned<DeValue<'a>>, what: &str) -> Result<DeTable<'a>, Error> {
        let at = value.span().start;
        match value.into_inner() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.at(at, what)),
        }
    }

    pub(super) fn table<T: DeserializeOwned>(
        &self,
        value: Spanned<DeValue<'a>>,
    ) -> Result<T, Error> {
        T::deserialize(ValueDeserializer::from(value)).map_err(|e| self.toml(&e))
    }

    fn toml(&self, error: &toml::de::Error) -> Error {
        let message: Vec<&str> = error.message().lines().collect();
        self.at(
            error.span().map_or(0, |span| span.start),
            message.join(", "),
        )
    }

    pub(super) fn at(&self, offset: usize, message: impl Into<String>) -> Error {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Error::File {
            path: self.path.into(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        }
    }
}

/// What is wrong with naming a provider that this sealblk does not have.
fn no_provider(name: &str) -> String {
    if kms::PROVIDERS.iter().any(|(known, _)| *known == name) {
        return format!(
            "this sealblk was built without the provider {name:?}: build it with `cargo build --release --features {name}`"
        );
    }
    let built = kms::PROVIDERS.iter().filter(|(_, built)| *built);
    let names: Vec<String> = built.map(|(name, _)| format!("{name:?}")).collect();
    format!(
        "there is no provider {name:?}: this sealblk has {}",
        names.join(", ")
    )
}
