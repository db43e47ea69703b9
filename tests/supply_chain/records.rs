//! Each crate of the lock file is on record, as vetted or as exempt; what sees
//! key material says more, and is found by what our own code does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::{Table, Value};

use crate::lock::{Crate, Lock, read_toml, text};
use crate::project;

const HELP: &str = "read the crate or make it exempt: docs/supply-chain.md says how";

fn lock() -> Lock {
    Lock::read("Cargo.lock", &["sealblk"])
}

/// Entries `[[section.NAME]]` of a file of cargo-vet, with their criteria.
fn entries(file: &Table, section: &str) -> BTreeMap<Crate, String> {
    let mut all = BTreeMap::new();
    for (name, versions) in file[section].as_table().unwrap() {
        for entry in versions.as_array().unwrap() {
            let key = (name.clone(), text(entry, "version").unwrap());
            let criteria = text(entry, "criteria").unwrap();
            assert!(all.insert(key, criteria).is_none(), "{name} twice");
        }
    }
    all
}

fn audits() -> BTreeMap<Crate, String> {
    entries(&read_toml("supply-chain/audits.toml"), "audits")
}

fn key_crates() -> (BTreeMap<Crate, Value>, BTreeSet<String>) {
    let file = read_toml("supply-chain/key-crates.toml");
    let crates = file["crate"].as_array().unwrap().iter().map(|entry| {
        let name = text(entry, "name").unwrap();
        ((name, text(entry, "version").unwrap()), entry.clone())
    });
    let bystanders = file["bystanders"].as_table().unwrap();
    for (name, reason) in bystanders {
        assert!(reason.as_str().unwrap().len() > 5, "{name} without reason");
    }
    (crates.collect(), bystanders.keys().cloned().collect())
}

#[test]
fn every_crate_is_vetted_or_said_not_to_be() {
    let vetted = audits();
    let exempt = entries(&read_toml("supply-chain/config.toml"), "exemptions");
    let locked: BTreeSet<Crate> = lock().checksums.into_keys().collect();
    let both: Vec<_> = vetted
        .keys()
        .filter(|key| exempt.contains_key(key))
        .collect();
    assert!(both.is_empty(), "vetted and exempt: {both:?}");
    let recorded: BTreeSet<Crate> = vetted.keys().chain(exempt.keys()).cloned().collect();
    let missing: Vec<_> = locked.difference(&recorded).collect();
    assert!(missing.is_empty(), "no record of {missing:?}; {HELP}");
    // Audits of old versions may stay: an exemption that is of no use may not.
    let idle: Vec<_> = exempt.keys().filter(|key| !locked.contains(key)).collect();
    assert!(idle.is_empty(), "exempt, but not in Cargo.lock: {idle:?}");
    for (key, criteria) in &exempt {
        assert_eq!(criteria, "safe-to-deploy", "{key:?}");
    }
}

#[test]
fn what_sees_keys_is_on_record_as_it_is_locked() {
    let (crates, _) = key_crates();
    let locked = lock().checksums;
    let vetted = audits();
    for (key, entry) in &crates {
        let locked = locked.get(key).unwrap_or_else(|| {
            panic!("{key:?} sees keys, and Cargo.lock has another version; {HELP}")
        });
        assert_eq!(text(entry, "checksum").as_ref(), Some(locked), "{key:?}");
        assert!(text(entry, "sees").is_some_and(|text| !text.is_empty()));
        let read = vetted.get(key).is_some_and(|what| what == "handles-keys");
        match text(entry, "looked-at").unwrap().as_str() {
            "read" => assert!(read, "{key:?} is said to have been read, without notes"),
            "partly" => assert!(!read && text(entry, "notes").is_some(), "{key:?}"),
            "measured" => assert!(!read && entry.get("lines").is_some(), "{key:?}"),
            other => panic!("{key:?} was looked at as '{other}'"),
        }
    }
    for (key, criteria) in &vetted {
        let known = criteria != "handles-keys" || crates.contains_key(key);
        assert!(
            known || !locked.contains_key(key),
            "{key:?} is not a key crate"
        );
    }
}

#[test]
fn what_computes_with_keys_stands_on_nothing_unknown() {
    let (crates, bystanders) = key_crates();
    let lock = lock();
    for (key, entry) in &crates {
        match text(entry, "kind").unwrap().as_str() {
            "carrier" => continue,
            "primitive" => {}
            other => panic!("{key:?} is of kind '{other}'"),
        }
        // What a macro is made of runs while we build, and sees no key.
        if key.0.ends_with("_derive") {
            continue;
        }
        for below in lock.dependencies(key) {
            let known = crates.contains_key(&below) || bystanders.contains(&below.0);
            assert!(known, "{below:?}, below {key:?}, is not on record; {HELP}");
        }
    }
}

#[test]
fn what_our_code_uses_where_keys_are_is_on_record() {
    let (crates, bystanders) = key_crates();
    let known: BTreeSet<&str> = crates.keys().map(|key| key.0.as_str()).collect();
    let manifest = read_toml("Cargo.toml");
    let direct: Vec<&String> = manifest["dependencies"]
        .as_table()
        .unwrap()
        .keys()
        .collect();
    let mut files = 0;
    each_source(&project("src"), &mut |path, code| {
        if !["Secret", "Dek", "Zeroizing"]
            .iter()
            .any(|word| code.contains(word))
        {
            return;
        }
        files += 1;
        for name in &direct {
            let used = code.contains(&format!("{}::", name.replace('-', "_")));
            let on_record = known.contains(name.as_str()) || bystanders.contains(name.as_str());
            assert!(!used || on_record, "{name}, in {}: {HELP}", path.display());
        }
    });
    assert!(files > 20, "only {files} files of ours deal with keys?");
}

/// Each source file, without comments and what only tests.
fn each_source(folder: &Path, see: &mut dyn FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            each_source(&path, see);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod").next().unwrap().lines();
            let code = code.filter(|line| !line.trim_start().starts_with("//"));
            see(&path, &code.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// What runs while sealblk is built: nothing new may without being looked at.
#[test]
fn what_is_fuzzed_has_only_known_sources_and_the_same_key_crates() {
    let fuzzed = Lock::read("fuzz/Cargo.lock", &["sealblk", "sealblk-fuzz"]);
    let (crates, _) = key_crates();
    for (key, checksum) in lock().checksums {
        if let Some(other) = fuzzed.checksums.get(&key) {
            assert_eq!(other, &checksum, "{key:?} has two checksums");
        }
    }
    for key in crates.keys().filter(|key| key.0 != "aws-lc-fips-sys") {
        let named = fuzzed.checksums.keys().any(|other| other.0 == key.0);
        let same = fuzzed.checksums.contains_key(key);
        assert!(!named || same, "{key:?} is fuzzed in another version");
    }
}
