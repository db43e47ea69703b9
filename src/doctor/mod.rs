//! Diagnosis: does this host have what it takes, and does each key set work,
//! with the identity that is configured?
//!
//! Nothing is taken for granted that can be tried: rings are set up, servers
//! are connected to, random bytes are wrapped and unwrapped. No volume and no
//! key of one is touched. `docs/doctor.md` lists the checks.
//!
//! - `host`: the kernel, the CPU and the limits of the process,
//! - `ways`: the ways to the key of a key set: what a provider has to be
//!   examined, and all that a new one has to be added to,
//! - `network`: name, connection, certificate,
//! - `endpoint`: one way, from its address to a key that was unwrapped;
//!   `trial`: wrapping and unwrapping; `verdict`: what answers mean,
//! - `key_set`: all of them, and what they have to do with each other,
//! - `stores`: where wrapped keys are kept apart from their volumes,
//! - `placement`: whether a disk would need itself to be attached.

mod check;
mod endpoint;
pub mod host;
mod key_set;
mod network;
mod placement;
mod stores;
mod trial;
mod verdict;
mod ways;

pub use check::{Check, Status};

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::error::Failure;
use crate::key_store;
use crate::keys::{DEFAULT, Definition, Name, Source};
use crate::runtime::block_on;

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether no check failed. Some may have warned.
    pub ok: bool,
    /// Of this host.
    pub host: Vec<Check>,
    /// Of each key set that was examined.
    pub key_sets: Vec<KeySet>,
    /// Of each key store that was examined.
    pub key_stores: Vec<KeyStore>,
    /// Of the broker that is configured, if there is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub broker: Vec<Check>,
}

/// What was found of one key set.
#[derive(Debug, Serialize)]
pub struct KeySet {
    /// Its name.
    pub name: String,
    /// Its provider.
    pub provider: &'static str,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

/// What was found of one key store.
#[derive(Debug, Serialize)]
pub struct KeyStore {
    /// Its name.
    pub name: String,
    /// What kind it is.
    pub kind: &'static str,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

/// The key stores to examine.
#[derive(Clone, Debug, Default)]
pub struct KeyStores {
    /// By name.
    pub definitions: BTreeMap<key_store::Name, key_store::Definition>,
    /// Whether an entry of no volume is written there and destroyed again.
    pub write: bool,
}

/// Examines this host, these key sets and these key stores.
///
/// # Errors
/// When not even a look is possible, for want of file descriptors for example.
pub fn examine(
    key_sets: &BTreeMap<Name, Definition>,
    key_stores: &KeyStores,
) -> io::Result<Report> {
    let host = host::examine();
    let mut found = Vec::new();
    for (name, definition) in key_sets {
        let checks = match &definition.source {
            Source::File { path } if key_sets.len() > 1 && is_unused(name, path) => {
                vec![unused(path)]
            }
            _ => block_on(key_set::examine(definition))?,
        };
        found.push(KeySet {
            name: name.to_string(),
            provider: definition.source.provider(),
            checks,
        });
    }
    let mut stores = Vec::new();
    for (name, definition) in &key_stores.definitions {
        stores.push(KeyStore {
            name: name.to_string(),
            kind: definition.kind(),
            checks: block_on(self::stores::examine(definition, key_stores.write))?,
        });
    }
    let mut report = Report {
        ok: true,
        host,
        key_sets: found,
        key_stores: stores,
        broker: Vec::new(),
    };
    report.ok = report.failure().is_none();
    Ok(report)
}

/// Whether it is the platform key that every host is configured to have, and
/// this one has not.
fn is_unused(name: &Name, path: &Path) -> bool {
    name.as_str() == DEFAULT && !path.exists()
}

/// With other key sets at hand, that is nothing wrong by itself.
fn unused(path: &Path) -> Check {
    Check::warn(
        "configuration",
        format!("there is no platform key file {}", path.display()),
        "leave it so if no volume of this host is in this key set; else restore the file from its backup",
    )
}

impl Report {
    /// The same with what was found of a broker that is to serve them.
    #[must_use]
    pub fn with_broker(mut self, checks: Vec<Check>) -> Self {
        self.broker = checks;
        self.ok = self.failure().is_none();
        self
    }

    /// Every check, with the key set or key store that it is about.
    fn all(&self) -> impl Iterator<Item = (Option<(&str, &str)>, &Check)> {
        let here = self.host.iter().chain(&self.broker);
        let here = here.map(|check| (None, check));
        let sets = self.key_sets.iter().flat_map(|set| {
            let of = Some(("key set", set.name.as_str()));
            set.checks.iter().map(move |check| (of, check))
        });
        let stores = self.key_stores.iter().flat_map(|store| {
            let of = Some(("key store", store.name.as_str()));
            store.checks.iter().map(move |check| (of, check))
        });
        here.chain(sets).chain(stores)
    }

    /// The first check that failed, as a command fails with it.
    pub fn failure(&self) -> Option<Failure> {
        let mut failures = self.all().filter_map(|(of, check)| {
            let failure = check.failure()?;
            let place = of.map_or_else(
                || "this host".into(),
                |(what, name)| format!("{what} {name:?}"),
            );
            let at = check.endpoint.iter().map(|at| format!(" at {at}"));
            let at: String = at.collect();
            let message = format!("{place}: {}{at}: {failure}", check.name);
            let help = failure.help().map(str::to_owned);
            Some(Failure::new(failure.kind(), message, help))
        });
        failures.next()
    }
}

/// Each check on its line, below the endpoint that it is about.
fn write_checks(f: &mut fmt::Formatter<'_>, checks: &[Check]) -> fmt::Result {
    let mut endpoint = None;
    for check in checks {
        if check.endpoint.is_some() && check.endpoint != endpoint {
            writeln!(f, " at {}", check.endpoint.as_deref().unwrap_or_default())?;
        }
        endpoint.clone_from(&check.endpoint);
        write!(f, "{check}")?;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "this host")?;
        self.host.iter().try_for_each(|check| check.fmt(f))?;
        if !self.broker.is_empty() {
            writeln!(f, "\nbroker")?;
            self.broker.iter().try_for_each(|check| check.fmt(f))?;
        }
        for set in &self.key_sets {
            writeln!(f, "\nkey set {} (provider {})", set.name, set.provider)?;
            write_checks(f, &set.checks)?;
        }
        for store in &self.key_stores {
            writeln!(f, "\nkey store {} ({})", store.name, store.kind)?;
            write_checks(f, &store.checks)?;
        }
        let count = |status| {
            self.all()
                .filter(|(_, check)| check.status == status)
                .count()
        };
        writeln!(
            f,
            "\n{} ok, {} to be looked at, {} failed, {} left out",
            count(Status::Ok),
            count(Status::Warn),
            count(Status::Fail),
            count(Status::Skip)
        )
    }
}
