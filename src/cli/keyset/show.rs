//! How key sets are shown.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::{print, print_json};
use crate::error::Failure;
use crate::manager::key_sets::Shown;

/// A key set in JSON. The names are part of the interface.
#[derive(Serialize)]
pub struct Info<'a> {
    name: &'a str,
    provider: &'static str,
    /// Its settings, as the table `[key_sets.NAME]` has them.
    definition: &'a toml::Table,
    /// None for the built-in one.
    defined_in: Option<&'a PathBuf>,
}

impl<'a> Info<'a> {
    pub fn of(shown: &'a Shown) -> Self {
        Info {
            name: shown.name.as_str(),
            provider: shown.definition.source.provider(),
            definition: &shown.settings,
            defined_in: shown.defined_in.as_ref(),
        }
    }
}

pub fn list(all: &[Shown], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&all.iter().map(Info::of).collect::<Vec<_>>());
    }
    let width = |what: fn(&Shown) -> usize| all.iter().map(what).max().unwrap_or(0);
    let names = width(|set| set.name.as_str().len()).max("KEY SET".len());
    let providers = width(|set| set.definition.source.provider().len()).max("PROVIDER".len());
    let mut text = format!("{:names$}  {:providers$}  KEY\n", "KEY SET", "PROVIDER");
    for set in all {
        let source = &set.definition.source;
        let _ = writeln!(
            text,
            "{:names$}  {:providers$}  {}",
            set.name.as_str(),
            source.provider(),
            source.key_id().unwrap_or_else(|| "its only key".into()),
        );
    }
    print(text)
}

pub fn one(set: &Shown, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&Info::of(set));
    }
    let place = match &set.defined_in {
        Some(path) => path.display().to_string(),
        None => "built in".into(),
    };
    print(format_args!(
        "# key set {}, {place}\n{}",
        set.name, set.settings
    ))
}
