//! How key sets are shown.

use std::fmt::Write as _;

use crate::cli::{print, print_json};
use crate::error::{Failure, Kind};
use crate::manager::model::KeySetInfo;

pub fn list(all: &[KeySetInfo], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&all);
    }
    let width = |what: fn(&KeySetInfo) -> usize| all.iter().map(what).max().unwrap_or(0);
    let names = width(|set| set.name.len()).max("KEY SET".len());
    let providers = width(|set| set.provider.len()).max("PROVIDER".len());
    let mut text = format!("{:names$}  {:providers$}  KEY\n", "KEY SET", "PROVIDER");
    for set in all {
        let key = set.key.as_deref().unwrap_or("its only key");
        let (name, provider) = (&set.name, &set.provider);
        let _ = writeln!(text, "{name:names$}  {provider:providers$}  {key}");
    }
    print(text)
}

pub fn one(set: &KeySetInfo, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(set);
    }
    let place = match &set.defined_in {
        Some(path) => path.display().to_string(),
        None => "built in".into(),
    };
    let settings = toml::to_string(&set.definition)
        .map_err(|error| Failure::new(Kind::Internal, error.to_string(), None))?;
    print(format_args!("# key set {}, {place}\n{settings}", set.name))
}
