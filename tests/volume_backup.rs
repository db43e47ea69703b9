//! Header backups: they bring a volume back, and are no way to go back to
//! keys that were removed or to another volume's header unnoticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod volume_support;

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use sealblk::error::{Explain as _, Kind};
use sealblk::rekey;
use sealblk::secret::Dek;
use sealblk::units::Bytes;
use sealblk::volume::luks2::{Metadata, copies};
use sealblk::volume::{self, Access, CreateOptions, Error, Inspection, Location, Volume, token};
use volume_support::*;

fn open(location: &Location) -> Volume {
    Volume::open(location, Access::ReadWrite).unwrap()
}

fn add_wrap(location: &Location) {
    let mut volume = open(location);
    let mut token = volume.token().clone();
    token.wraps.push(wrap("more"));
    volume.set_token(token).unwrap();
}

fn damage(path: &Path, range: std::ops::Range<u64>) {
    let file = File::options().write(true).open(path).unwrap();
    let length = (range.end - range.start) as usize;
    file.write_all_at(&vec![0; length], range.start).unwrap();
}

fn refused(location: &Location, backup: &Path) -> String {
    let path = location.header.as_ref().unwrap_or(&location.data);
    let before = fs::read(path).unwrap();
    let error = volume::restore(location, backup, false).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert!(error.help().unwrap().contains("--force"));
    assert!(fs::read(path).unwrap() == before, "it wrote all the same");
    error.to_string()
}

#[test]
fn a_lost_header_comes_back() {
    for detached in [false, true] {
        let place = Place::new();
        let location = place.location(detached);
        let (volume, dek) = create(&location, MIB);
        let facts = (volume.uuid(), volume.layout(), volume.token().clone());
        let backup = place.path("backup");
        // The volume may be in use.
        volume::backup(&location, &backup).unwrap();
        drop(volume);
        let meta = backup.metadata().unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert!(meta.blocks() * 512 < MIB, "a backup is sparse");

        let path = location.header.as_ref().unwrap_or(&location.data);
        for lost in [0..MIB, 4200..4300, 0..16 * MIB] {
            damage(path, lost.clone());
            if lost.start > 0 {
                damage(path, lost.start + 65536..lost.end + 65536);
            }
            Volume::open(&location, Access::ReadWrite).unwrap_err();
            drop(volume::restore(&location, &backup, false).unwrap());
            let volume = open(&location);
            assert_eq!(
                (volume.uuid(), volume.layout(), volume.token().clone()),
                facts
            );
            volume.verify_dek(&dek).unwrap();
            drop(volume);
            assert!(Inspection::of(&location).unwrap().found().is_whole());
        }
        if let Some(header) = &location.header {
            fs::remove_file(header).unwrap();
            volume::restore(&location, &backup, false).unwrap();
            open(&location).verify_dek(&dek).unwrap();
        }
    }
}

#[test]
fn a_backup_of_a_half_damaged_header_is_whole() {
    let place = Place::new();
    let location = place.location(false);
    drop(create(&location, MIB));
    damage(&location.data, 0..4096);
    let backup = place.path("backup");
    volume::backup(&location, &backup).unwrap();
    let as_header = Location {
        header: Some(backup),
        ..location
    };
    assert!(Inspection::of(&as_header).unwrap().found().is_whole());
}

#[test]
fn an_older_backup_needs_force_and_does_not_lower_the_update_number() {
    let place = Place::new();
    let location = place.location(false);
    drop(create(&location, MIB));
    let backup = place.path("backup");
    volume::backup(&location, &backup).unwrap();
    add_wrap(&location);
    add_wrap(&location);
    let message = refused(&location, &backup);
    assert!(message.contains("older (update 1)"), "{message}");

    let volume = volume::restore(&location, &backup, true).unwrap().volume;
    assert_eq!(volume.token().wraps.len(), 1);
    assert_eq!(volume.description().seqid, 4);
    drop(volume);
    assert_eq!(open(&location).description().seqid, 4);
}

#[test]
fn the_backup_of_another_volume_is_refused() {
    let place = Place::new();
    let location = place.location(false);
    let other = Location {
        data: place.path("other"),
        header: None,
    };
    drop(create(&location, MIB));
    drop(create(&other, MIB));
    let backup = place.path("backup");
    volume::backup(&other, &backup).unwrap();
    assert!(refused(&location, &backup).contains("it is of volume"));
    // Also when all that is left is the UUID in two damaged copies.
    damage(&location.data, 4200..5200);
    damage(&location.data, 69736..70736);
    assert!(refused(&location, &backup).contains("what is left of the header"));
}

#[test]
fn a_backup_with_another_key_is_refused() {
    let place = Place::new();
    let location = place.location(false);
    let uuid = "01234567-89ab-4cde-8f01-23456789abcd".parse().unwrap();
    let same_uuid = |size| CreateOptions {
        uuid: Some(uuid),
        force: true,
        ..options(size)
    };
    drop(create_with(&location, same_uuid(MIB)));
    let backup = place.path("backup");
    volume::backup(&location, &backup).unwrap();
    drop(create_with(&location, same_uuid(MIB)));
    assert!(refused(&location, &backup).contains("key is another one"));
}

#[test]
fn a_backup_that_describes_other_data_is_refused() {
    let place = Place::new();
    let location = place.location(false);
    drop(create(&location, MIB));
    let backup = place.path("backup");
    volume::backup(&location, &backup).unwrap();
    let mut image = fs::read(&backup).unwrap();
    let mut header = copies::read(&image).unwrap().header;
    let mut document = serde_json::Value::Object(header.metadata.document().clone());
    document["segments"]["0"]["size"] = "512".into();
    let text = document.to_string() + "\0";
    header.metadata = Metadata::parse(text.as_bytes()).unwrap();
    copies::create(&mut image, &header).unwrap();
    fs::write(&backup, &image).unwrap();
    assert!(refused(&location, &backup).contains("other data"));
}

#[test]
fn a_backup_never_hides_that_data_is_missing() {
    let place = Place::new();
    let location = place.location(false);
    drop(create(&location, 2 * MIB));
    let backup = place.path("backup");
    volume::backup(&location, &backup).unwrap();
    let file = File::options().write(true).open(&location.data).unwrap();
    file.set_len(17 * MIB).unwrap();
    for force in [false, true] {
        let error = volume::restore(&location, &backup, force).unwrap_err();
        assert!(matches!(error, Error::Shorter { .. }), "{error}");
    }
}

#[test]
fn a_backup_is_not_written_over_something_else() {
    let place = Place::new();
    let location = place.location(false);
    drop(create(&location, 64 * MIB));
    let backup = place.path("backup");
    volume::backup(&location, &backup).unwrap();
    damage(&location.data, 0..MIB);
    ok("mkfs.ext4", &["-q", "-F", text(&location.data)]);
    assert!(refused(&location, &backup).contains("ext4"));
    volume::restore(&location, &backup, true).unwrap();
    open(&location);
}

#[test]
fn a_backup_with_another_geometry_is_restored_with_force() {
    let place = Place::new();
    let location = place.location(true);
    let small = CreateOptions {
        header_area: Bytes(32 << 10),
        ..options(MIB)
    };
    let (volume, dek) = create_with(&location, small);
    let backup = place.path("backup");
    volume::backup(&location, &backup).unwrap();
    drop(volume);
    let again = CreateOptions {
        force: true,
        ..options(MIB)
    };
    drop(create_with(&location, again));
    assert!(refused(&location, &backup).contains("it is of volume"));
    volume::restore(&location, &backup, true).unwrap();
    open(&location).verify_dek(&dek).unwrap();
    assert!(Inspection::of(&location).unwrap().found().is_whole());
}

#[test]
fn what_cannot_be_a_backup_is_named() {
    let place = Place::new();
    let location = place.location(false);
    let (volume, _) = create(&location, MIB);
    let backup = place.path("backup");
    volume::backup(&location, &backup).unwrap();
    let error = volume::backup(&location, &backup).unwrap_err();
    assert!(
        error.help().unwrap().contains("does not exist yet"),
        "{error}"
    );
    // In use.
    let error = volume::restore(&location, &backup, true).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(volume);
    assert!(refused(&location, &location.data).contains("itself"));
    let junk = place.path("junk");
    fs::write(&junk, "junk").unwrap();
    assert!(refused(&location, &junk).contains("not a LUKS2 header"));
    damage(&backup, 4200..4300);
    volume::restore(&location, &backup, false).unwrap();
    damage(&backup, 69736..69800);
    let error = volume::restore(&location, &backup, false).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
}

/// A volume with a backup from before an operation, one from during it, and what
/// is wrapped of its keys.
struct UnderWay {
    place: Place,
    location: Location,
    before: PathBuf,
    during: PathBuf,
    journal: Range<u64>,
}

impl UnderWay {
    fn new(detached: bool, kind: rekey::Kind) -> Self {
        let place = Place::new();
        let location = place.location(detached);
        let small = CreateOptions {
            header_area: Bytes(MIB),
            ..options(MIB)
        };
        drop(create_with(&location, small));
        let (before, during) = (place.path("before"), place.path("during"));
        volume::backup(&location, &before).unwrap();
        let mut volume = open(&location);
        let facts = volume.facts_to_begin(kind).unwrap();
        let journal = volume.journal_area().unwrap();
        let record = [&b"SBLKJRNL"[..], &[0; 8], facts.id.as_bytes(), &[7; 480]].concat();
        let file = volume.journal_file();
        file.write_all_at(&record, journal.start).unwrap();
        match kind {
            rekey::Kind::Decrypt => volume.begin_decrypt(&facts).unwrap(),
            _ => {
                let (new, wraps) = (Dek::generate().unwrap(), vec![wrap("new")]);
                let previous = vec![3; token::PREVIOUS_BYTES];
                volume.begin_rekey(&facts, &new, wraps, previous).unwrap();
            }
        }
        drop(volume);
        volume::backup(&location, &during).unwrap();
        UnderWay {
            place,
            location,
            before,
            during,
            journal,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        let kinds = [rekey::Kind::Rekey, rekey::Kind::Decrypt];
        let both = [false, true].into_iter();
        both.flat_map(move |detached| kinds.map(|kind| UnderWay::new(detached, kind)))
    }

    fn header(&self) -> &Path {
        self.location.header.as_ref().unwrap_or(&self.location.data)
    }

    fn journal(&self) -> Vec<u8> {
        let bytes = fs::read(self.header()).unwrap();
        bytes[self.journal.start as usize..self.journal.end as usize].to_vec()
    }

    /// Both copies become unreadable; the journal does not.
    fn lose_header(&self) {
        damage(self.header(), 4100..4300);
        let second = self.journal.start / 2;
        damage(self.header(), second + 4100..second + 4300);
        Volume::open(&self.location, Access::ReadWrite).unwrap_err();
    }
}

#[test]
fn a_backup_from_before_an_operation_is_refused_while_it_is_under_way() {
    for case in UnderWay::all() {
        let why = refused(&case.location, &case.before);
        assert!(why.contains("from another time"), "{why}");
        // Also when the header is lost: the journal behind it tells.
        case.lose_header();
        let why = refused(&case.location, &case.before);
        assert!(why.contains("the wrong key"), "{why}");
        let restored = volume::restore(&case.location, &case.before, true).unwrap();
        let against = restored.against.unwrap();
        assert!(against.contains("the wrong key"), "{against}");
        assert_eq!(restored.volume.rekey(), None);
    }
}

#[test]
fn a_backup_from_during_an_operation_brings_its_header_back_and_leaves_the_journal() {
    for case in UnderWay::all() {
        let journal = case.journal();
        assert!(journal.starts_with(b"SBLKJRNL"));
        // It has none in itself.
        let backup = fs::read(&case.during).unwrap();
        assert!(
            backup[case.journal.start as usize..]
                .iter()
                .all(|&byte| byte == 0)
        );
        let facts = open(&case.location).rekey_facts();
        assert!(facts.is_some());
        for _ in 0..2 {
            let restored = volume::restore(&case.location, &case.during, false).unwrap();
            assert_eq!(restored.volume.rekey_facts(), facts);
            drop(restored);
            assert!(case.journal() == journal, "the journal was touched");
            case.lose_header();
        }
        // With the journal gone, nobody could go on.
        damage(case.header(), case.journal.start..case.journal.end);
        let why = refused(&case.location, &case.during);
        assert!(why.contains("journal is not there"), "{why}");
        if case.location.header.is_some() {
            fs::remove_file(case.header()).unwrap();
            let error = volume::restore(&case.location, &case.during, false).unwrap_err();
            assert!(
                error.to_string().contains("journal is not there"),
                "{error}"
            );
            assert!(!case.header().exists(), "it was left behind");
        }
    }
}

#[test]
fn a_backup_from_another_operation_is_refused() {
    for kind in [rekey::Kind::Rekey, rekey::Kind::Decrypt] {
        let case = UnderWay::new(false, kind);
        let mut volume = open(&case.location);
        volume.finish_rekey().unwrap();
        assert!(case.journal().iter().all(|&byte| byte == 0));
        drop(volume);
        let why = refused(&case.location, &case.during);
        assert!(why.contains("has ended since"), "{why}");
        let mut volume = open(&case.location);
        let facts = volume.facts_to_begin(rekey::Kind::Decrypt).unwrap();
        volume.begin_decrypt(&facts).unwrap();
        drop(volume);
        let why = refused(&case.location, &case.during);
        assert!(why.contains("from another time"), "{why}");
    }
}

#[test]
fn a_backup_from_before_an_operation_is_refused_when_it_is_done() {
    let case = UnderWay::new(false, rekey::Kind::Rekey);
    open(&case.location).finish_rekey().unwrap();
    refused(&case.location, &case.before);
    // That it is older could be a matter of wraps alone; its key is not.
    let mut image = fs::read(&case.before).unwrap();
    let found = copies::read(&image).unwrap();
    let mut header = found.header.clone();
    header.binary.seqid = 100;
    copies::replace(&mut image, &found, &mut header).unwrap();
    fs::write(&case.before, image).unwrap();
    let why = refused(&case.location, &case.before);
    assert!(why.contains("key is another one"), "{why}");

    let case = UnderWay::new(true, rekey::Kind::Decrypt);
    open(&case.location).finish_decrypt().unwrap();
    for backup in [&case.before, &case.during] {
        let why = refused(&case.location, backup);
        assert!(
            why.contains("plain since") || why.contains("has ended"),
            "{why}"
        );
    }
    let plain = case.place.path("plain");
    volume::backup(&case.location, &plain).unwrap();
    drop(volume::restore(&case.location, &case.before, true).unwrap());
    let why = refused(&case.location, &plain);
    assert!(why.contains("has no key"), "{why}");
}

#[test]
fn a_backup_as_the_header_of_a_volume_with_another_key_of_its_own_is_refused() {
    for kind in [rekey::Kind::Rekey, rekey::Kind::Decrypt] {
        let case = UnderWay::new(false, kind);
        let beside = |backup: &Path| Location {
            header: Some(backup.to_owned()),
            ..case.location.clone()
        };
        let error = Volume::open(&beside(&case.before), Access::ReadWrite).unwrap_err();
        assert!(matches!(error, Error::StaleHeader { .. }), "{error}");
        assert!(error.help().unwrap().contains("--header"));
        open(&case.location).finish_rekey().unwrap();
        let result = Volume::open(&beside(&case.before), Access::ReadWrite);
        // A decryption that was taken back has changed nothing.
        assert_eq!(result.is_ok(), kind == rekey::Kind::Decrypt, "{result:?}");
        drop(result);
        let error = Volume::open(&beside(&case.during), Access::ReadWrite).unwrap_err();
        assert!(matches!(error, Error::StaleHeader { .. }), "{error}");
    }
}
