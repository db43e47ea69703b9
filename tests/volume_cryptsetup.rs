//! cryptsetup, which shares no code with sealblk, accepts our volumes, proves
//! their keys, decrypts all of their data, and may change their headers.
//!
//! Needs `cryptsetup` (Debian: cryptsetup-bin) and fails without it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod volume_support;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sealblk::error::{Explain as _, Kind};
use sealblk::rekey;
use sealblk::secret::{Dek, Secret};
use sealblk::units::{Bytes, SectorSize};
use sealblk::volume::{
    self, Access, CreateOptions, Error, Location, PlainPlan, Token, Volume, token,
};
use volume_support::*;

const SIZE: u64 = 3 * MIB + 8192;

/// A volume and what cryptsetup needs to be told about it.
struct Case {
    place: Place,
    location: Location,
    dek: Dek,
    dek_file: PathBuf,
    sector_size: SectorSize,
}

impl Case {
    fn new(detached: bool, sector_size: SectorSize, header_area: u64) -> Self {
        let place = Place::new();
        let location = place.location(detached);
        let options = CreateOptions {
            sector_size,
            header_area: Bytes(header_area),
            label: "first".into(),
            ..options(SIZE)
        };
        let (_, dek) = create_with(&location, options);
        let dek_file = place.path("dek");
        fs::write(&dek_file, dek.bytes()).unwrap();
        Case {
            place,
            location,
            dek,
            dek_file,
            sector_size,
        }
    }

    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for detached in [false, true] {
            for sector_size in [SectorSize::B512, SectorSize::B4096] {
                cases.push(Case::new(detached, sector_size, 16 * MIB));
            }
        }
        cases
    }

    /// An inline and a detached one, with the two sizes of sectors.
    fn two() -> Vec<Self> {
        vec![
            Case::new(false, SectorSize::B4096, MIB),
            Case::new(true, SectorSize::B512, MIB),
        ]
    }

    fn header(&self) -> &str {
        text(self.location.header.as_ref().unwrap_or(&self.location.data))
    }

    fn data(&self) -> &str {
        text(&self.location.data)
    }

    /// `--header` where it is needed, and the volume.
    fn names(&self) -> Vec<&str> {
        match &self.location.header {
            Some(header) => vec!["--header", text(header), self.data()],
            None => vec![self.data()],
        }
    }

    fn cryptsetup(&self, arguments: &[&str]) -> String {
        ok("cryptsetup", arguments)
    }

    /// The exit status of proving a key: 0 right, 2 wrong.
    fn proof(&self, key: &str) -> i32 {
        let mut arguments = vec!["open", "--test-passphrase", "--key-size", "512"];
        arguments.extend(["--volume-key-file", key]);
        arguments.extend(self.names());
        run("cryptsetup", &arguments).status.code().unwrap()
    }

    /// Adds a passphrase keyslot and returns the passphrase file.
    fn add_passphrase(&self) -> PathBuf {
        let file = self.place.path("passphrase");
        fs::write(&file, "correct horse battery staple").unwrap();
        let mut arguments = vec!["luksAddKey", "--batch-mode", "--pbkdf", "pbkdf2"];
        arguments.extend(["--pbkdf-force-iterations", "1000", "--key-size", "512"]);
        arguments.extend(["--volume-key-file", text(&self.dek_file)]);
        arguments.extend(self.names());
        arguments.push(text(&file));
        self.cryptsetup(&arguments);
        file
    }

    fn open(&self) -> Volume {
        Volume::open(&self.location, Access::ReadWrite).unwrap()
    }
}

#[test]
fn cryptsetup_accepts_and_shows_a_volume() {
    for case in Case::all() {
        case.cryptsetup(&["isLuks", "--type", "luks2", case.header()]);
        let dump = case.cryptsetup(&["luksDump", case.header()]);
        for expected in ["sealblk", "first", "aes-xts-plain64", "pbkdf2"] {
            assert!(dump.contains(expected), "{expected} not in {dump}");
        }
        let volume = case.open();
        let json = case.cryptsetup(&["luksDump", "--dump-json-metadata", case.header()]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let segment = &json["segments"]["0"];
        assert_eq!(segment["sector_size"], case.sector_size.bytes());
        assert_eq!(segment["size"], SIZE.to_string());
        assert_eq!(segment["offset"], volume.layout().data_offset.to_string());
        let uuid = case.cryptsetup(&["luksUUID", case.header()]);
        assert_eq!(uuid.trim(), volume.uuid().to_string());
        let token = ["token", "export", "--token-id", "0", case.header()];
        let token: serde_json::Value = serde_json::from_str(&case.cryptsetup(&token)).unwrap();
        assert_eq!(&Token::from_json(&token).unwrap(), volume.token());
    }
}

#[test]
fn cryptsetup_proves_the_key_and_refuses_another() {
    let mut cases = Case::all();
    // The smallest headers, with no room for passphrases.
    cases.push(Case::new(false, SectorSize::B512, 32 << 10));
    cases.push(Case::new(true, SectorSize::B4096, 32 << 10));
    for case in cases {
        assert_eq!(case.proof(text(&case.dek_file)), 0);
        let mut wrong = case.dek.bytes().to_vec();
        wrong[63] ^= 1;
        let wrong_file = case.place.path("wrong");
        fs::write(&wrong_file, &wrong).unwrap();
        assert_eq!(case.proof(text(&wrong_file)), 2);
        let volume = case.open();
        volume.verify_dek(&case.dek).unwrap();
        let wrong = Dek::try_from(Secret::copy_of(&wrong).unwrap()).unwrap();
        let error = volume.verify_dek(&wrong).unwrap_err();
        assert!(matches!(error, Error::WrongKey { .. }));
        assert_eq!(error.kind(), Kind::Key);
    }
}

#[test]
fn cryptsetup_decrypts_all_data_of_a_volume() {
    let mut cases = Case::all();
    cases.push(Case::new(false, SectorSize::B512, MIB));
    for case in cases {
        let plain = random(SIZE as usize);
        let volume = case.open();
        let cipher = encrypt(&case.dek, case.sector_size, &plain);
        let offset = volume.layout().data_offset;
        volume.data_file().write_all_at(&cipher, offset).unwrap();
        drop(volume);

        let passphrase = case.add_passphrase();
        let new_header = case.place.path("new-header");
        let header = case.location.header.as_ref().unwrap_or(&new_header);
        let mut arguments = vec!["reencrypt", "--decrypt", "--force-offline-reencrypt"];
        arguments.extend(["--batch-mode", "--header", text(header)]);
        arguments.extend(["--key-file", text(&passphrase), case.data()]);
        case.cryptsetup(&arguments);
        let result = fs::read(&case.location.data).unwrap();
        assert!(result[..SIZE as usize] == plain, "the plaintext differs");
    }
}

#[test]
fn what_cryptsetup_changes_is_kept_and_keeps_our_token() {
    for case in Case::all() {
        let before = case.open().token().clone();
        let seqid = case.open().description().seqid;
        case.cryptsetup(&["config", "--label", "second", case.header()]);
        let foreign = case.place.path("foreign.json");
        let json = r#"{"type":"other-tool","keyslots":[],"note":"keep me"}"#;
        fs::write(&foreign, json).unwrap();
        let import = ["token", "import", "--token-id", "5"];
        let import = [&import[..], &["--json-file", text(&foreign), case.header()]].concat();
        case.cryptsetup(&import);
        let passphrase = case.add_passphrase();

        let mut volume = case.open();
        assert!(volume.description().seqid > seqid);
        assert_eq!(volume.label(), "second");
        assert_eq!(volume.token(), &before);
        assert_eq!(volume.description().keyslots, 1);
        let mut token = before;
        token.wraps.push(wrap("break-glass"));
        volume.set_token(token.clone()).unwrap();
        drop(volume);

        let export = |id| {
            let json = case.cryptsetup(&["token", "export", "--token-id", id, case.header()]);
            serde_json::from_str::<serde_json::Value>(&json).unwrap()
        };
        assert_eq!(Token::from_json(&export("0")).unwrap(), token);
        assert_eq!(export("5")["note"], "keep me");
        let dump = case.cryptsetup(&["luksDump", case.header()]);
        assert!(dump.contains("second"), "{dump}");
        let mut arguments = vec!["open", "--test-passphrase"];
        arguments.extend(["--key-file", text(&passphrase)]);
        arguments.extend(case.names());
        case.cryptsetup(&arguments);
    }
}

#[test]
fn a_label_set_by_cryptsetup_while_the_volume_is_open_survives() {
    let case = Case::new(false, SectorSize::B512, 16 * MIB);
    let mut volume = case.open();
    case.cryptsetup(&["config", "--label", "meanwhile", case.header()]);
    let mut token = volume.token().clone();
    token.wraps.push(wrap("second"));
    volume.set_token(token).unwrap();
    assert_eq!(volume.label(), "meanwhile");
    drop(volume);
    assert_eq!(case.open().label(), "meanwhile");
    assert_eq!(case.open().token().wraps.len(), 2);
}

#[test]
fn a_reencryption_begun_by_cryptsetup_keeps_us_off() {
    let case = Case::new(false, SectorSize::B512, 16 * MIB);
    let passphrase = case.add_passphrase();
    let mut arguments = vec!["reencrypt", "--init-only", "--force-offline-reencrypt"];
    arguments.extend([
        "--batch-mode",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
    ]);
    arguments.extend(["--key-file", text(&passphrase), case.data()]);
    case.cryptsetup(&arguments);
    let error = Volume::open(&case.location, Access::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("online-reencrypt"), "{error}");
}

#[test]
fn cryptsetup_reads_the_secondary_copy_and_we_repair_what_is_left() {
    for case in Case::all() {
        let file = fs::File::options().write(true).open(case.header()).unwrap();
        file.write_all_at(&[0xff; 4096], 0).unwrap();
        let volume = case.open();
        assert!(volume.repaired().is_some());
        drop(volume);
        file.write_all_at(&[0xff; 4096], 64 << 10).unwrap();
        // cryptsetup repairs it as well, from our primary copy.
        case.cryptsetup(&["luksDump", case.header()]);
        file.write_all_at(&[0xff; 4096], 0).unwrap();
        case.cryptsetup(&["luksDump", case.header()]);
        assert_eq!(case.proof(text(&case.dek_file)), 0);
        let volume = case.open();
        assert_eq!(volume.token().key_set, "set");
    }
}

#[test]
fn header_backups_go_both_ways() {
    let case = Case::new(false, SectorSize::B512, 16 * MIB);
    let passphrase = case.add_passphrase();
    let (ours, theirs) = (case.place.path("ours"), case.place.path("theirs"));
    volume::backup(&case.location, &ours).unwrap();
    let to = ["--header-backup-file", text(&theirs), case.data()];
    case.cryptsetup(&[&["luksHeaderBackup"], &to[..]].concat());

    let destroy = || {
        let file = fs::File::options().write(true).open(case.data()).unwrap();
        file.write_all_at(&vec![0; 16 * MIB as usize], 0).unwrap();
    };
    let check = || {
        case.open().verify_dek(&case.dek).unwrap();
        let key_file = ["--key-file", text(&passphrase), case.data()];
        case.cryptsetup(&[&["open", "--test-passphrase"], &key_file[..]].concat());
    };
    destroy();
    let from = [
        "--batch-mode",
        "--header-backup-file",
        text(&ours),
        case.data(),
    ];
    case.cryptsetup(&[&["luksHeaderRestore"], &from[..]].concat());
    check();
    destroy();
    volume::restore(&case.location, &theirs, false).unwrap();
    check();
    // A backup is a detached header, too.
    case.cryptsetup(&[
        "open",
        "--test-passphrase",
        "--key-file",
        text(&passphrase),
        "--header",
        text(&ours),
        case.data(),
    ]);
    let detached = Location {
        header: Some(ours.clone()),
        ..case.location.clone()
    };
    let volume = Volume::open(&detached, Access::ReadOnly).unwrap();
    assert_eq!(volume.layout().data_offset, 16 * MIB);
}

#[test]
fn cryptsetup_reads_a_volume_that_was_resized() {
    for case in Case::all() {
        let larger = SIZE + MIB;
        let mut volume = case.open();
        let offset = volume.layout().data_offset;
        volume.extend(larger, false).unwrap();
        // Between the steps, too, it is what it was.
        let segment = || {
            let json = case.cryptsetup(&["luksDump", "--dump-json-metadata", case.header()]);
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            json["segments"]["0"].clone()
        };
        let before = segment();
        assert_eq!(before["size"], SIZE.to_string());
        volume.set_size(larger).unwrap();
        let mut after = segment();
        assert_eq!(after["size"], larger.to_string());
        // And nothing else of it has changed.
        after["size"] = before["size"].clone();
        assert_eq!(after, before);
        assert_eq!(case.proof(text(&case.dek_file)), 0);

        let plain = random(larger as usize);
        let cipher = encrypt(&case.dek, case.sector_size, &plain);
        volume.data_file().write_all_at(&cipher, offset).unwrap();
        volume.set_size(SIZE).unwrap();
        assert_eq!(volume.cut_off().unwrap(), MIB);
        drop(volume);
        assert_eq!(segment(), before);
        let passphrase = case.add_passphrase();
        let new_header = case.place.path("new-header");
        let header = case.location.header.as_ref().unwrap_or(&new_header);
        let mut arguments = vec!["reencrypt", "--decrypt", "--force-offline-reencrypt"];
        arguments.extend(["--batch-mode", "--header", text(header)]);
        arguments.extend(["--key-file", text(&passphrase), case.data()]);
        case.cryptsetup(&arguments);
        let result = fs::read(&case.location.data).unwrap();
        assert!(result[..SIZE as usize] == plain[..SIZE as usize]);
    }
}

/// Says in the header of a volume that it is being re-encrypted, and returns the
/// file with the new key. All of its data is under that key already.
fn begin(case: &Case, plain: &[u8]) -> (Dek, PathBuf) {
    let dek = Dek::generate().unwrap();
    let file = case.place.path("new-dek");
    fs::write(&file, dek.bytes()).unwrap();
    let mut volume = case.open();
    let facts = volume.facts_to_begin(rekey::Kind::Rekey).unwrap();
    let area = volume.journal_area().unwrap();
    let journal = [&b"SBLKJRNL"[..], &[0; 8], facts.id.as_bytes()].concat();
    let written = volume.journal_file().write_all_at(&journal, area.start);
    written.unwrap();
    let (wraps, previous) = (vec![wrap("set")], vec![1; token::PREVIOUS_BYTES]);
    volume.begin_rekey(&facts, &dek, wraps, previous).unwrap();
    let cipher = encrypt(&dek, case.sector_size, plain);
    let offset = volume.layout().data_offset;
    volume.data_file().write_all_at(&cipher, offset).unwrap();
    (dek, file)
}

/// Nothing of cryptsetup's that goes by the requirements of a header.
fn assert_kept_off(case: &Case, key: &Path) {
    let passphrase = case.place.path("passphrase");
    fs::write(&passphrase, "correct horse battery staple").unwrap();
    let names = case.names();
    let add = ["luksAddKey", "--batch-mode", "--key-size", "512"];
    let with_key = ["--volume-key-file", text(key)];
    let commands: [Vec<&str>; 3] = [
        [&add[..], &with_key, &names, &[text(&passphrase)]].concat(),
        vec!["token", "remove", "--token-id", "0", case.header()],
        vec!["config", "--label", "other", case.header()],
    ];
    let before = fs::read(case.header()).unwrap();
    for command in commands {
        let output = run("cryptsetup", &command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{command:?}");
        assert!(
            said.contains("Unmet LUKS2 requirements"),
            "{command:?}: {said}"
        );
        assert!(fs::read(case.header()).unwrap() == before, "{command:?}");
    }
    let dump = case.cryptsetup(&["luksDump", case.header()]);
    assert!(dump.contains("sealblk-rekey-v1"), "{dump}");
}

#[test]
fn cryptsetup_keeps_off_what_is_under_way_and_opens_what_is_done() {
    for case in Case::two() {
        let plain = random(SIZE as usize);
        let (dek, file) = begin(&case, &plain);
        assert_kept_off(&case, &file);
        // The digest is that of the main key; testing it opens nothing.
        assert_eq!(case.proof(text(&file)), 0);
        assert_eq!(case.proof(text(&case.dek_file)), 2);

        case.open().finish_rekey().unwrap();
        let dump = case.cryptsetup(&["luksDump", case.header()]);
        assert!(!dump.contains("sealblk-rekey-v1"), "{dump}");
        assert_eq!(case.proof(text(&file)), 0);
        assert_eq!(case.proof(text(&case.dek_file)), 2);
        case.cryptsetup(&["config", "--label", "second", case.header()]);
        assert_eq!(case.open().label(), "second");
        // The finish is right by cryptsetup's own reading of the data.
        let case = Case {
            dek,
            dek_file: file,
            ..case
        };
        let passphrase = case.add_passphrase();
        let new_header = case.place.path("new-header");
        let header = case.location.header.as_ref().unwrap_or(&new_header);
        let mut arguments = vec!["reencrypt", "--decrypt", "--force-offline-reencrypt"];
        arguments.extend(["--batch-mode", "--header", text(header)]);
        arguments.extend(["--key-file", text(&passphrase), case.data()]);
        case.cryptsetup(&arguments);
        let result = fs::read(&case.location.data).unwrap();
        assert!(result[..SIZE as usize] == plain[..]);
    }
}

#[test]
fn cryptsetup_opens_what_was_taken_back_and_nothing_of_what_is_plain() {
    for case in Case::two() {
        let (dek, file) = begin(&case, &random(SIZE as usize));
        let mut volume = case.open();
        volume.finish_back(&case.dek, vec![wrap("set")]).unwrap();
        drop(volume);
        assert_eq!(case.proof(text(&case.dek_file)), 0);
        assert_eq!(case.proof(text(&file)), 2);
        drop(dek);

        let mut volume = case.open();
        let facts = volume.facts_to_begin(rekey::Kind::Decrypt).unwrap();
        volume.begin_decrypt(&facts).unwrap();
        assert_kept_off(&case, &case.dek_file);
        volume.finish_decrypt().unwrap();
        drop(volume);
        case.cryptsetup(&["isLuks", "--type", "luks2", case.header()]);
        case.cryptsetup(&["luksDump", case.header()]);
        assert_eq!(case.proof(text(&case.dek_file)), 2);
    }
}

#[test]
fn cryptsetup_opens_a_disk_that_was_encrypted_in_place() {
    for sector_size in [SectorSize::B512, SectorSize::B4096] {
        let place = Place::new();
        let location = place.location(true);
        let plain = random(SIZE as usize);
        fs::write(&location.data, &plain).unwrap();
        let dek = Dek::generate().unwrap();
        let dek_file = place.path("dek");
        fs::write(&dek_file, dek.bytes()).unwrap();
        let options = CreateOptions {
            sector_size,
            header_area: Bytes(MIB),
            ..CreateOptions::default()
        };
        let plan = PlainPlan::new(&location, options, 0).unwrap();
        let mut volume = plan
            .write::<Error>(&dek, "set", vec![wrap("set")], |_, _| Ok(()))
            .unwrap();
        let case = Case {
            place,
            location,
            dek,
            dek_file,
            sector_size,
        };
        assert_kept_off(&case, &case.dek_file);
        let cipher = encrypt(&case.dek, sector_size, &plain);
        volume.data_file().write_all_at(&cipher, 0).unwrap();
        volume.finish_rekey().unwrap();
        drop(volume);
        assert_eq!(case.proof(text(&case.dek_file)), 0);
        let passphrase = case.add_passphrase();
        let header = case.header();
        let mut arguments = vec!["reencrypt", "--decrypt", "--force-offline-reencrypt"];
        arguments.extend(["--batch-mode", "--header", header]);
        arguments.extend(["--key-file", text(&passphrase), case.data()]);
        case.cryptsetup(&arguments);
        assert!(fs::read(&case.location.data).unwrap() == plain);
    }
}

/// A backup that cryptsetup makes has the journal in it, as it was then.
#[test]
fn a_journal_does_not_come_back_with_a_backup_of_cryptsetup() {
    for case in Case::two() {
        let (_, file) = begin(&case, &random(SIZE as usize));
        let backup = case.place.path("during");
        let make = ["luksHeaderBackup", "--header-backup-file", text(&backup)];
        case.cryptsetup(&[&make[..], &[case.header()]].concat());
        let area = case.open().journal_area().unwrap();
        let in_backup = fs::read(&backup).unwrap();
        assert!(in_backup[area.start as usize..].starts_with(b"SBLKJRNL"));
        // It goes on, and both copies of the header are lost.
        let volume = case.open();
        let record = volume.rekey().unwrap().id;
        let journal = volume.journal_file();
        journal.write_all_at(&[0xab; 512], area.start + 64).unwrap();
        drop(volume);
        let device = fs::File::options().write(true).open(case.header()).unwrap();
        device.write_all_at(&[0; 256], 4096).unwrap();
        device
            .write_all_at(&[0; 256], 4096 + area.start / 2)
            .unwrap();
        let journal = || {
            let all = fs::read(case.header()).unwrap();
            all[area.start as usize..area.end as usize].to_vec()
        };
        let before = journal();
        let restored = volume::restore(&case.location, &backup, false).unwrap();
        assert_eq!(restored.volume.rekey().unwrap().id, record);
        assert!(journal() == before, "the journal is that of the backup");
        drop(restored);
        assert_eq!(case.proof(text(&file)), 0);
    }
}
