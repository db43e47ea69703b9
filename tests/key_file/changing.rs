//! Rotation, disabling and removal.

use std::io::{Read, Seek};
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::crash;
use crate::program::{Place, Said, mode};

#[test]
fn a_version_goes_through_its_life() {
    let place = Place::with_key();
    let first = &place.versions()[0];
    place.good(&["add-version"]);
    let second = &place.versions()[1];
    let states = || {
        let list = place.list();
        let states: Vec<String> = (list["versions"].as_array().unwrap().iter())
            .map(|version| version["state"].as_str().unwrap().into())
            .collect();
        (list["latest"].as_str().map(String::from), states)
    };
    let latest = |id: &str| Some(id.to_string());
    assert_eq!(
        states(),
        (latest(second), vec!["enabled".into(), "enabled".into()])
    );

    place.bad(&["remove-version", first], 6, "destroys every volume");
    place.bad(
        &["remove-version", first, "--destroy-key"],
        6,
        "is still enabled",
    );
    place.good(&["disable", first]);
    place.bad(&["remove-version", first], 6, "destroys every volume");
    assert_eq!(
        states(),
        (latest(second), vec!["disabled".into(), "enabled".into()])
    );
    place.good(&["enable", first]);
    place.good(&["enable", first]);
    place.good(&["disable", first]);
    place.good(&["remove-version", first, "--destroy-key"]);
    assert_eq!(
        states(),
        (latest(second), vec!["removed".into(), "enabled".into()])
    );
    for args in [&["enable", first][..], &["disable", first]] {
        place.bad(args, 8, "its key is gone");
    }
    place.bad(&["enable", "00000000"], 3, "it has no version 00000000");
    place.good(&["disable", second]);
    place.good(&["remove-version", second, "--destroy-key"]);
    assert_eq!(states().0, None);
    place.good(&["add-version"]);
    assert_eq!(states().1, ["removed", "removed", "enabled"]);
}

#[test]
fn a_change_keeps_mode_and_owner() {
    let place = Place::with_key();
    place.chmod(0o400);
    place.good(&["add-version"]);
    assert_eq!(mode(&place.key), 0o400);
    assert_eq!(place.versions().len(), 2);
    // A group has no rights in it, and is kept all the same.
    if chown(&place.key, None, Some(12345)).is_ok() {
        place.good(&["add-version"]);
        assert_eq!(std::fs::metadata(&place.key).unwrap().gid(), 12345);
    }
}

#[test]
fn changes_at_once_are_all_there_or_refused() {
    let place = Place::with_key();
    let children: Vec<_> = (0..12)
        .map(|_| {
            let mut command = place.command(&["add-version"]);
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut expected = place.versions();
    expected.truncate(1);
    for child in children {
        let said = Said::from(child.wait_with_output().unwrap());
        match said.status {
            0 => {
                let (_, rest) = said.out.split_once("added version ").unwrap();
                expected.push(rest[..8].into());
            }
            _ => said.refused(5, "another sealblk is changing it now"),
        }
    }
    assert!(expected.len() > 1);
    let mut found = place.versions();
    assert_eq!(found.len(), expected.len());
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_crash_before_the_rename_changes_nothing() {
    for syscall in crash::POINTS {
        let place = Place::with_key();
        let before = place.bytes();
        crash::at(place.command(&["add-version"]), syscall);
        assert_eq!(place.bytes(), before);
        assert!(
            place.files().contains(&".platform.key.new".into()),
            "it got that far"
        );
        place.good(&["add-version"]);
        assert_eq!(place.versions().len(), 2);
        assert_eq!(place.files(), ["platform.key"]);
    }
}

#[test]
fn killed_at_any_moment_it_is_the_old_or_the_new() {
    let place = Place::with_key();
    let mut count = 1;
    let (mut kept, mut changed) = (0, 0);
    // Killed a little later each time, from before its start to after its end.
    const STEPS: u32 = 60;
    for step in 0..=STEPS {
        let mut child = place
            .command(&["add-version"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_micros(200) * step;
        // However slow this machine is, the last one is left alone.
        while (step == STEPS || Instant::now() < until) && child.try_wait().unwrap().is_none() {
            std::hint::spin_loop();
        }
        // It may have ended already.
        let _ = child.kill();
        child.wait().unwrap();
        match place.versions().len() - count {
            0 => kept += 1,
            1 => changed += 1,
            more => panic!("{more} versions came at once"),
        }
        count = place.versions().len();
    }
    assert!(kept > 0 && changed > 0, "kept {kept}, changed {changed}");
}

#[test]
fn a_removed_key_is_overwritten_where_it_was() {
    let place = Place::with_key();
    let first = &place.versions()[0];
    place.good(&["add-version"]);
    place.good(&["disable", first]);

    // As someone who looks at the blocks would see it.
    let mut old = std::fs::File::open(&place.key).unwrap();
    let length = old.metadata().unwrap().len();
    place.good(&["remove-version", first, "--destroy-key"]);
    let mut found = Vec::new();
    old.read_to_end(&mut found).unwrap();
    assert_eq!(found.len() as u64, length);
    assert!(found.iter().all(|byte| *byte == 0));

    // Not so when only more was added: a reader may be in the middle of it.
    let mut old = std::fs::File::open(&place.key).unwrap();
    place.good(&["add-version"]);
    found.clear();
    old.rewind().unwrap();
    old.read_to_end(&mut found).unwrap();
    assert!(found.iter().any(|byte| *byte != 0));
}

#[test]
fn a_backup_by_hard_link_survives_removal() {
    let place = Place::with_key();
    let first = &place.versions()[0];
    place.good(&["disable", first]);
    let backup = place.directory.path().join("backup.key");
    std::fs::hard_link(&place.key, &backup).unwrap();
    let before = place.bytes();
    let said = place.run(&["remove-version", first, "--destroy-key"]);
    assert_eq!(said.status, 0);
    assert!(said.err.contains("it has another hard link"), "{said:?}");
    assert_eq!(std::fs::read(&backup).unwrap(), before);
}
