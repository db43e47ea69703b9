//! The bill of materials: valid by the standard's own schema, true by the lock
//! file, and the same each time.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::lock::{Crate, Lock, read_toml};
use crate::project;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn bill() -> Vec<u8> {
    let done = Command::new("python3")
        .arg(project("scripts/releaselib/sbom.py"))
        .args(["--cargo", env!("CARGO"), "--manifest"])
        .arg(project("Cargo.toml"))
        .args(["--triple", "x86_64-unknown-linux-gnu"])
        .args(["--commit", COMMIT, "--epoch", "1700000000"])
        .env("CARGO_NET_OFFLINE", "true")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(done.status.success());
    done.stdout
}

fn names(component: &Value) -> Crate {
    let text = |name: &str| component[name].as_str().unwrap().to_owned();
    (text("name"), text("version"))
}

#[test]
fn the_bill_of_materials_is_valid_and_true() {
    let stated = bill();
    assert!(stated == bill(), "it differs from one time to the next");
    judge(&stated);
    let said: Value = serde_json::from_slice(&stated).unwrap();
    assert_eq!(said["metadata"]["timestamp"], "2023-11-14T22:13:20Z");

    let lock = Lock::read("Cargo.lock", &["sealblk"]);
    let (mut linked, mut all) = (BTreeSet::new(), BTreeSet::new());
    for component in said["components"].as_array().unwrap() {
        let key = names(component);
        let digest = &component["hashes"][0];
        assert_eq!(digest["alg"], "SHA-256");
        assert_eq!(digest["content"], lock.checksums[&key].as_str(), "{key:?}");
        let licence = component["licenses"][0]["expression"].as_str().unwrap();
        assert!(!licence.is_empty() && !licence.contains('/'), "{key:?}");
        match component["scope"].as_str().unwrap() {
            "required" => assert!(linked.insert(key.clone()), "{key:?} twice"),
            "excluded" => {}
            other => panic!("{key:?} is '{other}'"),
        }
        assert!(all.insert(key.clone()), "{key:?} twice");
    }
    what_must_be_linked_is(&linked, &all);
    whoever_is_named_is_reached(&said, &all);
}

/// Each dependency of ours that a release has is linked, unless it is a macro;
/// none that only tests use is.
fn what_must_be_linked_is(linked: &BTreeSet<Crate>, all: &BTreeSet<Crate>) {
    let manifest = read_toml("Cargo.toml");
    let off = ["aws-lc-sys", "aws-lc-fips-sys"];
    let has = |set: &BTreeSet<Crate>, name: &str| set.iter().any(|key| key.0 == name);
    for name in manifest["dependencies"].as_table().unwrap().keys() {
        let wanted = !off.contains(&name.as_str()) && name != "async-trait";
        assert_eq!(has(linked, name), wanted, "{name}");
    }
    assert!(has(all, "async-trait") && has(all, "serde_derive") && has(all, "cc"));
    for name in [
        "criterion",
        "openssl",
        "openssl-sys",
        "proptest",
        "virtio-driver",
    ] {
        assert!(!has(all, name), "{name} is only for tests");
    }
}

/// Following the bill's own graph from the program, one meets each component.
fn whoever_is_named_is_reached(said: &Value, all: &BTreeSet<Crate>) {
    let depends = |name: &str| -> Vec<String> {
        let rows = said["dependencies"].as_array().unwrap();
        let row = rows.iter().find(|row| row["ref"] == name).expect(name);
        let on = row["dependsOn"].as_array().unwrap().iter();
        on.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let root = said["metadata"]["component"]["bom-ref"].as_str().unwrap();
    let (mut seen, mut open) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(name) = open.pop() {
        if seen.insert(name.clone()) {
            open.extend(depends(&name));
        }
    }
    assert_eq!(seen.len(), all.len() + 1, "some are not reached");
}

/// The schema of CycloneDX itself, by its own library.
fn judge(stated: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bill.json");
    std::fs::write(&file, stated).unwrap();
    assert_eq!(validate(&file), Ok(()));
    // The judge can tell.
    let broken = String::from_utf8_lossy(stated).replace("\"SHA-256\"", "\"SHA-257\"");
    std::fs::write(&file, broken).unwrap();
    assert!(validate(&file).is_err());
}

fn validate(file: &Path) -> Result<(), String> {
    const CODE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(None if fault is None else str(fault)[:2000])
";
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let python = target.join("cyclonedx/bin/python3");
    assert!(python.exists(), "run scripts/install-deps test");
    let done = Command::new(python).args(["-c", CODE]).arg(file).output();
    let done = done.unwrap();
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    }
}
