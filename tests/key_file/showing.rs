//! What the commands show, and never show.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use base64::Engine as _;

use crate::needles;
use crate::program::{BINARY, Place, Said};

/// The keys in a key file, read with nothing of sealblk.
fn keys(place: &Place) -> Vec<Vec<u8>> {
    let file: serde_json::Value = serde_json::from_slice(&place.bytes()).unwrap();
    let versions = file["versions"].as_array().unwrap().iter();
    versions
        .filter_map(|version| version["key"].as_str())
        .map(|text| {
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .unwrap()
        })
        .collect()
}

#[test]
fn no_command_shows_a_key() {
    let place = Place::empty();
    let mut secrets = Vec::new();
    let mut shown = Vec::new();
    let mut note = |place: &Place, args: &[&str], secrets: &mut Vec<Vec<u8>>| {
        let args = [args, &["--log-level", "trace"]].concat();
        let output = place.command(&args).output().unwrap();
        shown.extend_from_slice(&output.stdout);
        shown.extend_from_slice(&output.stderr);
        if place.key.is_file() {
            secrets.extend(keys(place));
        }
    };
    note(&place, &["init"], &mut secrets);
    note(&place, &["init"], &mut secrets);
    note(&place, &["add-version"], &mut secrets);
    let versions = place.versions();
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["disable", &versions[0]],
        &["list"],
        &["remove-version", &versions[1], "--destroy-key"],
        &["remove-version", &versions[0]],
        &["remove-version", &versions[0], "--destroy-key"],
        &["enable", &versions[0]],
        &["enable", "nonsense"],
        &["list", "--log-format", "json"],
    ] {
        note(&place, args, &mut secrets);
    }
    // A broken file is where an error would quote what it found.
    let text = String::from_utf8(place.bytes()).unwrap();
    let good_keys = keys(&place);
    for (from, to) in [
        ("\"key\": ", "\"kex\": "),
        ("\"key\": \"", "\"key\": [\""),
        ("\"state\": \"enabled\",", ""),
        ("=\"", "\""),
        ("\"format\"", "format"),
    ] {
        let broken = text.replace(from, to);
        assert_ne!(broken, text, "{from}");
        std::fs::write(&place.key, broken).unwrap();
        place.bad(&["list"], 7, "it is damaged");
        let output = place
            .command(&["list", "--log-level", "trace"])
            .output()
            .unwrap();
        needles_absent(&output.stderr, &good_keys);
        needles_absent(&output.stdout, &good_keys);
    }
    secrets.sort();
    secrets.dedup();
    assert_eq!(secrets.len(), 2);
    assert!(String::from_utf8_lossy(&shown).contains(&versions[0]));
    needles_absent(&shown, &secrets);
}

fn needles_absent(shown: &[u8], secrets: &[Vec<u8>]) {
    for secret in secrets {
        needles::assert_absent(shown, secret, "a command");
    }
}

/// So that the test above can fail.
#[test]
#[should_panic(expected = "shows a part of a secret")]
fn a_key_file_itself_would_be_noticed() {
    let place = Place::with_key();
    needles_absent(&place.bytes(), &keys(&place));
}

#[test]
fn list_shows_versions_for_people() {
    let place = Place::with_key();
    place.good(&["add-version"]);
    let versions = place.versions();
    let out = place.good(&["list"]).out;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert!(lines[0].contains(place.list()["key_id"].as_str().unwrap()));
    assert!(lines[2].starts_with(&versions[0]) && !lines[2].contains("latest"));
    assert!(lines[3].starts_with(&versions[1]) && lines[3].ends_with("latest: wraps"));
}

#[test]
fn a_reader_that_left_is_no_error_and_a_full_disk_is() {
    let place = Place::with_key();
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(ours);
    let mut command = place.command(&["list"]);
    let left = command
        .stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .output()
        .unwrap();
    assert_eq!(Said::from(left).status, 0);
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let said = Said::from(place.command(&["list"]).stdout(full).output().unwrap());
    assert_eq!(said.status, 10);
    assert!(
        said.err.contains("cannot write to standard output"),
        "{said:?}"
    );
}

#[test]
fn the_configuration_names_key_files() {
    let place = Place::empty();
    let path = place.directory.path().join("c.toml");
    let other = place.directory.path().join("other.key");
    let text = format!("[key_sets.other]\nprovider = \"file\"\nkey_file = {other:?}\n");
    std::fs::write(&path, text).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(BINARY);
        Said::from(
            command
                .arg("--config")
                .arg(&path)
                .args(args)
                .output()
                .unwrap(),
        )
    };
    assert_eq!(run(&["key", "init", "--key-set", "other"]).status, 0);
    assert!(other.is_file());
    run(&["key", "list", "--key-set", "third"]).refused(3, "there is no key set \"third\"");
    run(&["key", "list", "--key-set", "other", "--key-file", "x"])
        .refused(2, "both name a key file");

    std::fs::write(&path, "[serve]\nqueue = 1\n").unwrap();
    run(&["key", "list"]).refused(2, "c.toml:2:1: unknown field `queue`");
    assert_eq!(run(&["version"]).status, 0, "needs no configuration");
    std::fs::remove_file(&path).unwrap();
    run(&["key", "list"]).refused(3, "does not exist");
}
