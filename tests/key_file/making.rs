//! `sealblk key init`.

use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Stdio;

use crate::crash;
use crate::program::{Place, Said, mode};

#[test]
fn the_key_file_is_for_its_owner_alone_whatever_the_umask() {
    for umask in ["0000", "0022", "0777"] {
        let place = Place::empty();
        let said = place
            .command_after(&format!("umask {umask}"), &["init"])
            .output()
            .unwrap();
        assert_eq!(Said::from(said).status, 0);
        assert_eq!(mode(&place.key), 0o600, "umask {umask}");
        let us = std::fs::metadata("/proc/self").unwrap().uid();
        assert_eq!(std::fs::metadata(&place.key).unwrap().uid(), us);
        assert_eq!(place.files(), ["platform.key"], "nothing else is left");
        assert_eq!(place.versions().len(), 1);
    }
}

#[test]
fn two_keys_have_nothing_in_common() {
    let (a, b) = (Place::with_key(), Place::with_key());
    assert_ne!(a.list()["key_id"], b.list()["key_id"]);
    assert_ne!(a.versions(), b.versions());
}

#[test]
fn whatever_is_there_is_never_overwritten() {
    let place = Place::with_key();
    let before = place.bytes();
    place.bad(&["init"], 6, "never overwritten");
    assert_eq!(place.bytes(), before);

    // Also what is no key file.
    std::fs::write(&place.key, "precious").unwrap();
    place.bad(&["init"], 6, "never overwritten");
    assert_eq!(place.bytes(), b"precious");
    std::fs::remove_file(&place.key).unwrap();
    std::fs::create_dir(&place.key).unwrap();
    place.bad(&["init"], 6, "never overwritten");
    std::fs::remove_dir(&place.key).unwrap();

    // A link is not followed to a place where a file could be made.
    let target = place.directory.path().join("target");
    symlink(&target, &place.key).unwrap();
    place.bad(&["init"], 6, "never overwritten");
    assert!(!target.exists());
}

#[test]
fn of_many_at_once_one_makes_it() {
    for _ in 0..5 {
        let place = Place::empty();
        let children: Vec<_> = (0..8)
            .map(|_| {
                let mut command = place.command(&["init"]);
                command
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let said: Vec<Said> = children
            .into_iter()
            .map(|child| child.wait_with_output().unwrap().into())
            .collect();
        let made: Vec<&Said> = said.iter().filter(|said| said.status == 0).collect();
        assert_eq!(made.len(), 1, "{said:?}");
        // It exists, or somebody is making it.
        assert!(
            said.iter().all(|said| [0, 5, 6].contains(&said.status)),
            "{said:?}"
        );
        assert!(
            made[0]
                .out
                .contains(place.list()["key_id"].as_str().unwrap())
        );
        assert_eq!(place.files(), ["platform.key"]);
    }
}

#[test]
fn one_missing_directory_is_made_and_no_more() {
    let mut place = Place::empty();
    place.key = place.directory.path().join("a/platform.key");
    place.good(&["init"]);
    assert_eq!(place.versions().len(), 1);
    place.key = place.directory.path().join("b/c/platform.key");
    place.bad(&["init"], 3, "its directory does not exist");
    place.key = place.directory.path().join("a/platform.key/platform.key");
    place.bad(&["init"], 3, "its directory does not exist");
}

#[test]
fn a_crash_leaves_no_key_file() {
    for syscall in crash::POINTS {
        let place = Place::empty();
        crash::at(place.command(&["init"]), syscall);
        assert!(!place.key.exists());
        assert_eq!(place.files(), [".platform.key.new"], "it got that far");
        // What it left is in nobody's way.
        place.good(&["init"]);
        assert_eq!(place.files(), ["platform.key"]);
        assert_eq!(place.versions().len(), 1);
    }
}

#[test]
fn a_failed_write_leaves_nothing() {
    let place = Place::empty();
    // No file may have a byte.
    let setup = "trap '' XFSZ; ulimit -f 0";
    let said = Said::from(place.command_after(setup, &["init"]).output().unwrap());
    said.refused(10, "cannot write it");
    assert_eq!(place.files(), Vec::<String>::new());
}
