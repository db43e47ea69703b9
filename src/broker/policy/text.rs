//! From the file of a policy to a [`Policy`].
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use toml::Spanned;

use super::times::Hours;
use super::{Host, Operation, Pattern, Policy, Rule, Times, Volumes};
use crate::config;
use crate::error::{Explain, Kind};
use crate::kms::broker::seal::PublicKey;
use crate::timestamp::Timestamp;

/// A policy that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("policy: {}", crate::error::chain(.0))]
    Read(config::Error),
    /// Something in it is not as it must be.
    #[error("{}:{line}:{column}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1, in characters.
        column: usize,
        /// What is wrong there.
        message: String,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Read(error) => error.kind(),
            Error::File { .. } => Kind::Usage,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Read(config::Error::Missing { path }) => format!(
                "put the policy of the broker there, or correct `policy` in [broker]: {}",
                path.display()
            ),
            Error::Read(error) => return error.help(),
            Error::File { path, line, .. } => format!("correct line {line} of {}", path.display()),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    hosts: Vec<HostTable>,
    #[serde(default)]
    rules: Vec<RuleTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostTable {
    name: Spanned<Parsed<HostName>>,
    certificates: Spanned<Vec<Parsed<Pattern>>>,
    keys: Spanned<Vec<Spanned<Parsed<PublicKey>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    hosts: Spanned<Vec<Parsed<Pattern>>>,
    key_sets: Spanned<Vec<Parsed<Pattern>>>,
    operations: Option<Spanned<Vec<Parsed<Operation>>>>,
    volumes: Option<Spanned<Vec<Parsed<Pattern>>>>,
    not_before: Option<Parsed<Timestamp>>,
    not_after: Option<Spanned<Parsed<Timestamp>>>,
    hours: Option<Parsed<Hours>>,
    #[serde(default)]
    deny: bool,
}

/// A value that is read from text.
struct Parsed<T>(T);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map(Parsed).map_err(D::Error::custom)
    }
}

/// The name of a host: what records and messages can hold.
struct HostName(String);

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        match (1..=128).contains(&text.len()) && text.bytes().all(good) {
            true => Ok(HostName(text.into())),
            false => Err(format!(
                "{text:?} is not a name for a host: use 1 to 128 letters, digits, '.', '-' and '_'"
            )),
        }
    }
}

/// Checks `text`, which was read from `path`.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(path: &Path, text: &str) -> Result<Policy, Error> {
    let reader = Reader { path, text };
    let file: File = toml::from_str(text).map_err(|error| {
        let message: Vec<&str> = error.message().lines().collect();
        let at = error.span().map_or(0, |span| span.start);
        reader.at(at, message.join(", "))
    })?;
    let mut policy = Policy::default();
    let mut owners: BTreeMap<PublicKey, String> = BTreeMap::new();
    for table in file.hosts {
        let at = table.name.span().start;
        let name = table.name.into_inner().0.0;
        if policy.host(&name).is_some() {
            return Err(reader.at(at, format!("there are two hosts {name:?}")));
        }
        let certificates = reader.list(table.certificates, "names no certificate")?;
        let mut keys = Vec::new();
        for key in reader.some(table.keys, "has no key")? {
            let at = key.span().start;
            let key = key.into_inner().0;
            if let Some(other) = owners.insert(key, name.clone()) {
                return Err(reader.at(
                    at,
                    match other == name {
                        true => "this key stands here twice".into(),
                        false => format!(
                            "this is a key of host {other:?} as well: each host has keys of its own"
                        ),
                    },
                ));
            }
            keys.push(key);
        }
        policy.hosts.push(Host {
            name,
            certificates,
            keys,
        });
    }
    for table in file.rules {
        policy.rules.push(reader.rule(table)?);
    }
    Ok(policy)
}

/// Knows the places of faults.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn rule(&self, table: RuleTable) -> Result<Rule, Error> {
        let operations = match table.operations {
            Some(list) => self.list(list, "is about no operation")?,
            None => Operation::ALL.into(),
        };
        let volumes = match table.volumes {
            Some(list) => self.list(list, "is about no volume")?,
            None => Pattern::from_str("*").into_iter().collect(),
        };
        let not_before = table.not_before.map(|time| time.0);
        let not_after = table.not_after.as_ref().map(|time| time.get_ref().0);
        if let (Some(from), Some(to), Some(given)) = (not_before, not_after, &table.not_after)
            && to < from
        {
            return Err(self.at(given.span().start, "not_after is before not_before"));
        }
        Ok(Rule {
            hosts: self.list(table.hosts, "is for no host")?,
            key_sets: self.list(table.key_sets, "is for no key set")?,
            operations,
            volumes: Volumes(volumes),
            times: Times {
                not_before,
                not_after,
                hours: table.hours.map(|hours| hours.0),
            },
            deny: table.deny,
        })
    }

    fn list<T>(&self, list: Spanned<Vec<Parsed<T>>>, empty: &str) -> Result<Vec<T>, Error> {
        let list = self.some(list, empty)?;
        Ok(list.into_iter().map(|item| item.0).collect())
    }

    /// A list that must have something in it.
    fn some<T>(&self, list: Spanned<Vec<T>>, empty: &str) -> Result<Vec<T>, Error> {
        let at = list.span().start;
        match list.into_inner() {
            list if list.is_empty() => Err(self.at(at, format!("the list is empty: it {empty}"))),
            list => Ok(list),
        }
    }

    fn at(&self, offset: usize, message: impl Into<String>) -> Error {
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
