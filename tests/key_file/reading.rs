//! When a key file is not read.

use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::program::Place;

#[test]
fn others_must_have_no_rights() {
    let place = Place::with_key();
    for mode in [0o600, 0o400] {
        place.chmod(mode);
        place.good(&["list"]);
    }
    for mode in [
        0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o660, 0o666, 0o700, 0o500, 0o4600,
        0o2600, 0o1600,
    ] {
        place.chmod(mode);
        place.bad(&["list"], 4, &format!("its mode is {mode:04o}"));
        place.bad(&["add-version"], 4, &format!("its mode is {mode:04o}"));
    }
}

#[test]
fn the_owner_must_be_us_or_root() {
    // Only root can give a file away. The same check is tested beside the
    // code with whatever user runs the tests.
    let place = Place::with_key();
    if chown(&place.key, Some(12345), None).is_ok() {
        place.bad(&["list"], 4, "its owner is user 12345, and must be user 0");
    } else {
        place.good(&["list"]);
    }
}

#[test]
fn a_link_is_not_followed_to_a_key() {
    let place = Place::with_key();
    let real = place.directory.path().join("real.key");
    std::fs::rename(&place.key, &real).unwrap();
    symlink(&real, &place.key).unwrap();
    for args in [&["list"][..], &["add-version"]] {
        place.bad(args, 4, "it is a symbolic link");
    }
    assert!(place.key.is_symlink(), "nor replaced");
    // Directories on the way may be links, as /run and /var are.
    let mut place = Place::with_key();
    let link = place.directory.path().join("link");
    symlink(place.directory.path(), &link).unwrap();
    place.key = link.join("platform.key");
    place.good(&["list"]);
}

#[test]
fn only_regular_files_are_read() {
    let mut place = Place::empty();
    std::fs::create_dir(&place.key).unwrap();
    place.bad(&["list"], 4, "it is a directory");
    std::fs::remove_dir(&place.key).unwrap();

    let made = Command::new("mkfifo")
        .args(["-m", "0600"])
        .arg(&place.key)
        .status()
        .unwrap();
    assert!(made.success());
    place.bad(&["list"], 4, "it is a FIFO");
    std::fs::remove_file(&place.key).unwrap();

    let _socket = UnixListener::bind(&place.key).unwrap();
    place.bad(&["list"], 4, "it is a socket");

    place.key = "/dev/zero".into();
    place.bad(&["list"], 4, "it is a device");
}

#[test]
fn what_is_missing_is_said_to_be() {
    let place = Place::empty();
    for args in [&["list"][..], &["add-version"], &["disable", "00000000"]] {
        place.bad(args, 3, "it does not exist");
    }
    assert_eq!(place.files(), Vec::<String>::new());
}

#[test]
fn damage_is_told_from_other_faults() {
    let place = Place::with_key();
    let whole = place.bytes();
    for length in [0, 1, 20, whole.len() / 2, whole.len() - 3] {
        std::fs::write(&place.key, &whole[..length]).unwrap();
        place.bad(&["list"], 7, "it is damaged");
        place.bad(&["add-version"], 7, "it is damaged");
        assert_eq!(
            place.bytes(),
            &whole[..length],
            "left for the operator to look at"
        );
    }
    let text = String::from_utf8(whole.clone()).unwrap();
    std::fs::write(&place.key, text.replace("enabled", "disabled")).unwrap();
    place.bad(&["list"], 7, "its checksum does not match");
    std::fs::write(&place.key, text.replace("\"created\"", "\"expires\"")).unwrap();
    place.bad(&["list"], 7, "is not as it was written");
    std::fs::write(&place.key, vec![b' '; 65 * 1024]).unwrap();
    place.bad(&["list"], 7, "it is larger than 64 KiB");
    std::fs::write(&place.key, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    place.bad(&["list"], 11, "made by a newer sealblk");
    std::fs::write(&place.key, &whole).unwrap();
    place.good(&["list"]);
}
