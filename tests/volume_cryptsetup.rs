//! cryptsetup, which shares no code with sealblk, accepts our volumes, proves
//! their keys, decrypts all of their data, and may change their headers.
//!
//! Needs `cryptsetup` (Debian: cryptsetup-bin) and fails without it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod volume_support;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use sealblk::error::{Explain as _, Kind};
use sealblk::secret::{Dek, Secret};
use sealblk::units::{Bytes, SectorSize};
use sealblk::volume::{self, Access, CreateOptions, Error, Location, Token, Volume};
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
