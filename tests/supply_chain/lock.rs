//! The lock file: which crates there are, and what each stands on.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use crate::project;

/// A crate by name and version.
pub type Crate = (String, String);

pub struct Lock {
    /// Those from crates.io, with their checksums.
    pub checksums: BTreeMap<Crate, String>,
    depends: BTreeMap<Crate, Vec<String>>,
}

impl Lock {
    /// Reads the lock file at `path`, in which all but the packages named in
    /// `own` must be from crates.io.
    pub fn read(path: &str, own: &[&str]) -> Lock {
        let mut lock = Lock {
            checksums: BTreeMap::new(),
            depends: BTreeMap::new(),
        };
        for package in read_toml(path)["package"].as_array().unwrap() {
            let name = text(package, "name").unwrap();
            let key = (name.clone(), text(package, "version").unwrap());
            match text(package, "source") {
                Some(source) => {
                    let registry = "registry+https://github.com/rust-lang/crates.io-index";
                    assert_eq!(source, registry, "{key:?} is from elsewhere");
                    let checksum = text(package, "checksum").unwrap();
                    assert_eq!(checksum.len(), 64, "{key:?}");
                    lock.checksums.insert(key.clone(), checksum);
                }
                None => assert!(own.contains(&name.as_str()), "{key:?} has no source"),
            }
            let depends = package.get("dependencies").and_then(Value::as_array);
            let depends = depends.into_iter().flatten();
            lock.depends.insert(
                key,
                depends.map(|word| word.as_str().unwrap().into()).collect(),
            );
        }
        lock
    }

    /// What a crate names as dependencies, on any system, for any feature that
    /// is in use.
    pub fn dependencies(&self, of: &Crate) -> BTreeSet<Crate> {
        let words = self.depends.get(of).unwrap_or_else(|| panic!("{of:?}"));
        words.iter().map(|word| self.find(word)).collect()
    }

    /// Cargo names a version only where there are several.
    fn find(&self, word: &str) -> Crate {
        let (name, version) = match word.split_once(' ') {
            Some((name, rest)) => (name, rest.split(' ').next()),
            None => (word, None),
        };
        let mut found = self
            .depends
            .keys()
            .filter(|key| key.0 == name && version.is_none_or(|version| key.1 == version));
        let one = found.next().unwrap_or_else(|| panic!("no {word}")).clone();
        assert!(found.next().is_none(), "several {word}");
        one
    }
}

pub fn read_toml(path: &str) -> toml::Table {
    let text = std::fs::read_to_string(project(path)).unwrap();
    text.parse()
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn text(value: &Value, name: &str) -> Option<String> {
    value.get(name).and_then(Value::as_str).map(str::to_owned)
}
