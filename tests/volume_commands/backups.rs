//! Backups of headers: the ledger knows them, and what each needs; and one
//! that would not open its volume is not restored by chance.

use std::fs;

use sealblk::keys::ledger::{Backup, Ledger};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Host;

const VOLUME: &str = "disk.img";

impl Host {
    fn with_volume() -> Host {
        let host = Host::new();
        host.ok(&["volume", "create", "--size", "1M", VOLUME]);
        host
    }

    fn back_up(&self, to: &str) -> String {
        self.ok(&["volume", "backup-header", VOLUME, "--to", to])
    }

    fn uuid(&self) -> Uuid {
        let info = self.json(&["volume", "info", "--json", VOLUME]);
        info["uuid"].as_str().unwrap().parse().unwrap()
    }

    fn ledger(&self) -> Ledger {
        Ledger::below(&self.place.path("state"))
    }

    fn known(&self) -> Vec<Backup> {
        self.ledger().backups(self.uuid()).unwrap()
    }

    /// The version of the platform key that wraps now.
    fn version(&self) -> String {
        let keys = self.json(&["key", "list", "--json"]);
        let current = keys["latest"].as_str();
        current.unwrap_or_else(|| panic!("{keys}")).to_owned()
    }

    /// Overwrites both copies of the header.
    fn lose_header(&self) {
        self.write(VOLUME, &[0xa5; 128 << 10], 0);
    }

    const RESTORE: [&str; 5] = ["volume", "restore-header", VOLUME, "--from", "backup"];
}

#[test]
fn the_ledger_knows_every_backup_and_what_it_needs() {
    let host = Host::with_volume();
    let first = host.version();
    let told = host.back_up("one");
    assert!(!told.contains("warning"), "{told}");
    host.ok(&["key", "add-version"]);
    host.back_up("two");
    let backups = host.known();
    let names: Vec<_> = backups.iter().map(|backup| backup.path.clone()).collect();
    assert_eq!(names, [host.place.path("one"), host.place.path("two")]);
    for backup in &backups {
        assert_eq!(backup.update, 1);
        let need = &backup.needs[0];
        assert_eq!(
            (&*need.key_set, &*need.by.provider, &*need.by.key_version),
            ("default", "file", &*first),
            "the wrap is of the old version, whenever the backup was made"
        );
    }
    let needing = host.ledger().backups_needing("default").unwrap();
    assert_eq!(needing.len(), 2);
    assert!(needing.iter().all(|(volume, _)| *volume == host.uuid()));

    let listed = host.json(&["volume", "backups", "--json", VOLUME]);
    assert_eq!(listed[0]["needs"][0]["key_version"], first);
    assert_eq!(listed[1]["present"], true);
    let uuid = host.uuid().to_string();
    assert_eq!(listed, host.json(&["volume", "backups", "--json", &uuid]));
    let text = host.ok(&["volume", "backups"]);
    assert!(text.contains(&format!("version {first}")), "{text}");
    host.fails(3, &["volume", "backups", "other.img"]);
    host.ok(&["key", "disable", &first]);
}

#[test]
fn a_backup_is_forgotten_when_it_was_destroyed() {
    let host = Host::with_volume();
    host.back_up("one");
    host.back_up("two");
    let errors = host.fails(6, &["volume", "forget-backup", "one"]);
    assert!(errors.contains("still there"), "{errors}");
    assert_eq!(host.known().len(), 2);
    fs::remove_file(host.place.path("one")).unwrap();
    let listed = host.json(&["volume", "backups", "--json"]);
    let present: Vec<&Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["present"])
        .collect();
    assert_eq!(present, [&json!(false), &json!(true)]);
    host.ok(&["volume", "forget-backup", "one"]);
    host.ok(&["volume", "forget-backup", "--force", "two"]);
    assert_eq!(host.known(), []);
    host.fails(3, &["volume", "forget-backup", "one"]);
}

#[test]
fn a_backup_that_fails_is_not_known_and_forgets_none() {
    let host = Host::with_volume();
    host.fails(
        3,
        &["volume", "backup-header", VOLUME, "--to", "nowhere/backup"],
    );
    assert_eq!(host.known(), []);
    host.back_up("one");
    // The file of an earlier one is refused, and stays known.
    host.fails(10, &["volume", "backup-header", VOLUME, "--to", "one"]);
    assert_eq!(host.known().len(), 1);
}

#[test]
fn a_backup_without_a_ledger_is_made_with_a_warning() {
    let host = Host::with_volume();
    // Not even root makes a directory there.
    let config = "[daemon]\nstate_dir = \"/proc/none\"\n";
    fs::write(host.place.path("sealblk.toml"), config).unwrap();
    let told = host.back_up("backup");
    assert!(told.contains("warning: the ledger"), "{told}");
    assert!(host.place.path("backup").exists());
}

#[test]
fn restoring_makes_a_backup_known() {
    let host = Host::with_volume();
    host.back_up("backup");
    fs::remove_dir_all(host.place.path("state")).unwrap();
    host.lose_header();
    host.ok(&Host::RESTORE);
    assert_eq!(host.known()[0].path, host.place.path("backup"));
    // And is no other one, for being restored twice.
    host.ok(&Host::RESTORE);
    assert_eq!(host.known().len(), 1);
    assert_eq!(host.known()[0].update, 1, "as it was made");
}

#[test]
fn a_backup_of_an_older_key_version_is_told_of_and_refused_once_it_opens_nothing() {
    let host = Host::with_volume();
    let first = host.version();
    host.back_up("backup");
    host.ok(&["key", "add-version"]);
    let second = host.version();
    assert_ne!(first, second);
    host.lose_header();
    let told = host.ok(&Host::RESTORE);
    assert!(
        told.contains(&format!("by version {first}")) && told.contains(&second),
        "{told}"
    );

    host.ok(&["key", "disable", &first]);
    host.lose_header();
    let lost = fs::read(host.place.path(VOLUME)).unwrap();
    let errors = host.fails(6, &Host::RESTORE);
    assert!(errors.contains("would not open"), "{errors}");
    assert!(errors.contains(&first), "{errors}");
    assert!(
        fs::read(host.place.path(VOLUME)).unwrap() == lost,
        "nothing was written"
    );
    let told = host.ok(&[&Host::RESTORE[..], &["--force"]].concat());
    assert!(
        told.contains("warning: the volume does not open now"),
        "{told}"
    );
    host.lose_header();
    let told = host.ok(&[&Host::RESTORE[..], &["--no-check"]].concat());
    assert!(!told.contains("warning"), "{told}");
    host.ok(&["volume", "verify-header", VOLUME]);
}

#[test]
fn a_backup_is_restored_where_its_keys_cannot_be_asked_for() {
    let host = Host::new();
    let config = host.place.path("sealblk.toml");
    let without = fs::read_to_string(&config).unwrap();
    let key = host.place.path("platform.key");
    let with = format!("{without}[key_sets.prod]\nprovider = \"file\"\nkey_file = {key:?}\n");
    fs::write(&config, with).unwrap();
    host.ok(&[
        "volume",
        "create",
        "--size",
        "1M",
        "--key-set",
        "prod",
        VOLUME,
    ]);
    host.back_up("backup");
    // As another host may have it, or one that is being set up again.
    fs::write(&config, without).unwrap();
    host.lose_header();
    let told = host.ok(&Host::RESTORE);
    assert!(told.contains("could not be tried"), "{told}");
}

#[test]
fn a_backup_is_not_restored_where_its_key_is_gone() {
    let host = Host::with_volume();
    host.back_up("backup");
    host.lose_header();
    fs::remove_file(host.place.path("platform.key")).unwrap();
    let errors = host.fails(6, &Host::RESTORE);
    assert!(
        errors.contains("would not open") && errors.contains("platform.key"),
        "{errors}"
    );
    host.ok(&[&Host::RESTORE[..], &["--no-check"]].concat());
}
