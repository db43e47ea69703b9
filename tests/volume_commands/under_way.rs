//! What all other commands say of a volume whose data is being re-encrypted, and
//! of one that is plain.

use std::fs;
use std::os::unix::fs::FileExt as _;

use sealblk::config::{Config, Overrides};
use sealblk::keys::Context;
use sealblk::rekey::Kind;
use sealblk::secret::Dek;
use sealblk::volume::{Volume, token};

use super::*;

const DISK: &str = "disk.img";

/// A host with a volume of which `kind` is under way, as far as its header says.
fn under_way(kind: Kind) -> Host {
    let host = Host::new();
    host.ok(&[
        "volume",
        "create",
        "--size",
        "1M",
        "--header-area",
        "1M",
        DISK,
    ]);
    let mut volume = open(&host);
    let facts = volume.facts_to_begin(kind).unwrap();
    let area = volume.journal_area().unwrap();
    let record = [&b"SBLKJRNL"[..], &[0; 8], facts.id.as_bytes()].concat();
    let written = volume.journal_file().write_all_at(&record, area.start);
    written.unwrap();
    match kind {
        Kind::Decrypt => volume.begin_decrypt(&facts).unwrap(),
        _ => {
            let dek = Dek::generate().unwrap();
            let (wraps, previous) = (vec![wrap("default")], vec![0x7e; token::PREVIOUS_BYTES]);
            volume.begin_rekey(&facts, &dek, wraps, previous).unwrap();
        }
    }
    host
}

/// A host with a volume that was decrypted.
fn plain() -> Host {
    let host = under_way(Kind::Decrypt);
    open(&host).finish_decrypt().unwrap();
    host
}

fn open(host: &Host) -> Volume {
    Volume::open(&host.location(), Access::ReadWrite).unwrap()
}

fn header(host: &Host) -> Vec<u8> {
    fs::read(host.place.path(DISK)).unwrap()[..MIB as usize].to_vec()
}

#[test]
fn a_volume_under_way_says_so_and_stays_whole() {
    let host = under_way(Kind::Decrypt);
    let before = header(&host);
    let info = host.json(&["volume", "info", "--json", DISK]);
    assert_eq!(info["rekey"]["kind"], "decrypt", "{info}");
    assert!(info["rekey"]["since"].is_string(), "{info}");
    assert_eq!(info["plain"], Value::Null);
    let text = host.ok(&["volume", "info", DISK]);
    assert!(
        text.contains("under way      its data is being decrypted since"),
        "{text}"
    );
    host.ok(&["volume", "verify-header", DISK]);
    host.ok(&["volume", "repair", DISK]);
    for (command, what) in [
        (&["volume", "resize", DISK, "2M"][..], "resize"),
        (
            &["volume", "resize", DISK, "512K", "--shrink", "--force"],
            "resize",
        ),
        (&["volume", "clone", DISK, "copy.img"], "copy"),
    ] {
        let errors = host.fails(6, command);
        assert!(
            errors.contains(&format!(
                "cannot {what} {DISK} now: it is being decrypted since"
            )),
            "{errors}"
        );
        assert!(errors.contains("sealblk volume decrypt"), "{errors}");
        assert!(header(&host) == before, "{command:?}");
    }
    assert!(!host.place.path("copy.img").exists());
    assert_eq!(
        host.place.path(DISK).metadata().unwrap().len(),
        2 * MIB,
        "it was made longer"
    );
    let errors = host.fails(13, &["verify", DISK]);
    assert!(errors.contains("which part is which"), "{errors}");
    assert!(errors.contains("let it end"), "{errors}");
    assert!(header(&host) == before);
}

#[test]
fn the_wraps_of_a_volume_under_way_change_and_stay_in_its_header() {
    let host = under_way(Kind::Decrypt);
    let facts = open(&host).rekey_facts();
    host.ok(&["key", "new-recovery-key", "--to", "recovery.key"]);
    host.ok(&[
        "volume",
        "add-wrap",
        DISK,
        "--recovery-key-file",
        "recovery.key",
    ]);
    let volume = open(&host);
    assert_eq!(volume.token().wraps.len(), 2);
    assert_eq!((volume.rekey_facts(), volume.token().version), (facts, 3));
    drop(volume);

    let directory = host.place.path("keys");
    fs::create_dir(&directory).unwrap();
    let mut config = fs::read_to_string(host.place.path("sealblk.toml")).unwrap();
    config += &format!("[key_stores.beside]\nkind = \"directory\"\npath = {directory:?}\n");
    fs::write(host.place.path("sealblk.toml"), config).unwrap();
    let before = header(&host);
    let errors = host.fails(6, &["volume", "move-keys", DISK, "--to", "beside"]);
    assert!(
        errors.contains("cannot move the wrapped keys of"),
        "{errors}"
    );
    assert!(header(&host) == before);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

#[test]
fn the_key_of_a_volume_under_way_is_handed_out_as_what_it_is() {
    let host = under_way(Kind::Decrypt);
    let export = [
        "volume",
        "export-dek",
        DISK,
        "--to",
        "dek",
        "--i-understand-that-this-key-decrypts-the-disk",
    ];
    let told = host.ok(&export);
    assert!(
        told.contains("main key") && told.contains("a part of its data"),
        "{told}"
    );
    assert_eq!(fs::read(host.place.path("dek")).unwrap().len(), 64);
    let host = plain();
    let errors = host.fails(8, &export);
    assert!(errors.contains("plain since"), "{errors}");
    assert!(!host.place.path("dek").exists());
}

#[test]
fn a_backup_of_a_volume_under_way_says_what_it_is_good_for() {
    let host = under_way(Kind::Rekey);
    let told = host.ok(&["volume", "backup-header", DISK, "--to", "during"]);
    assert!(told.contains("is being re-encrypted now"), "{told}");
    let mut volume = open(&host);
    volume.finish_rekey().unwrap();
    drop(volume);
    let restore = [
        "volume",
        "restore-header",
        DISK,
        "--from",
        "during",
        "--no-check",
    ];
    let errors = host.fails(6, &restore);
    assert!(errors.contains("has ended since"), "{errors}");
    let told = host.ok(&[&restore[..], &["--force"]].concat());
    assert!(told.contains("warning: it was made while"), "{told}");
    assert!(open(&host).rekey().is_some());
}

#[test]
fn erasing_a_volume_that_is_re_encrypted_destroys_both_keys_and_the_journal() {
    let host = under_way(Kind::Rekey);
    let previous = open(&host).rekey().unwrap().previous.clone().unwrap();
    let text = base64(&previous);
    let has = |needle: &[u8]| {
        header(&host)
            .windows(needle.len())
            .any(|part| part == needle)
    };
    assert!(has(text.as_bytes()) && has(b"SBLKJRNL"));
    let told = host.ok(&["volume", "erase", DISK, "--yes"]);
    assert!(!told.contains("STILL READABLE"), "{told}");
    assert!(!has(text.as_bytes()), "the previous key is there");
    assert!(!has(b"SBLKJRNL"), "the journal is there");
    assert!(!has(b"sealblk-rekey-v1"));
    let volume = open(&host);
    let token = volume.token();
    assert!(
        token
            .erased
            .as_ref()
            .is_some_and(|erased| erased.finished && !erased.partly_plain)
    );
    assert_eq!((token.version, &token.rekey), (1, &None));
}

#[test]
fn erasing_does_not_pretend_that_plain_data_is_gone() {
    let host = under_way(Kind::Decrypt);
    let before = header(&host);
    let errors = host.fails(6, &["volume", "erase", DISK, "--yes", "--force"]);
    assert!(errors.contains("leave that part readable"), "{errors}");
    assert!(errors.contains("--leave-plain"), "{errors}");
    assert!(header(&host) == before);
    let audit = || fs::read_to_string(host.place.path("audit.jsonl")).unwrap();
    assert!(!audit().contains("volume_erasing"), "{}", audit());

    let told = host.ok(&["volume", "erase", DISK, "--yes", "--leave-plain"]);
    assert!(told.contains("STILL READABLE"), "{told}");
    assert!(audit().contains("\"leave_plain\":true"), "{}", audit());
    let info = host.json(&["volume", "info", "--json", DISK]);
    assert_eq!(info["erased"]["partly_plain"], true, "{info}");
    let text = host.ok(&["volume", "info", DISK]);
    assert!(text.contains("still legible"), "{text}");
    // What finishes it does not forget that.
    let again = host.json(&["volume", "erase", DISK, "--yes", "--json"]);
    assert_eq!(again["partly_plain"], true, "{again}");
}

#[test]
fn a_volume_that_was_decrypted_says_what_to_do_with_it() {
    let host = plain();
    let before = header(&host);
    let info = host.json(&["volume", "info", "--json", DISK]);
    assert!(info["plain"]["since"].is_string(), "{info}");
    assert_eq!(info["wraps"], serde_json::json!([]));
    let text = host.ok(&["volume", "info", DISK]);
    assert!(text.contains("plain          since"), "{text}");
    assert!(text.contains("byte 1048576"), "{text}");
    assert!(!text.contains("erased"), "{text}");
    for command in [
        &["serve", DISK, "--socket", "disk.sock"][..],
        &["volume", "clone", DISK, "copy.img"],
        &["volume", "resize", DISK, "2M"],
        &["volume", "move-keys", DISK, "--to", "header"],
        &["volume", "remove-wrap", DISK, "--key-set", "other"],
    ] {
        let errors = host.fails(8, command);
        assert!(errors.contains("plain since"), "{errors}");
        assert!(errors.contains("as a raw disk"), "{errors}");
    }
    let errors = host.fails(6, &["volume", "erase", DISK, "--yes", "--leave-plain"]);
    assert!(errors.contains("no key of it to be destroyed"), "{errors}");
    let errors = host.fails(12, &["verify", DISK]);
    assert!(errors.contains("has been plain since"), "{errors}");
    assert!(header(&host) == before);
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// With both keys somebody who has to can read all of the data by hand.
#[test]
fn both_keys_of_a_volume_that_is_re_encrypted_can_be_had() {
    let host = Host::new();
    host.ok(&["volume", "create", "--size", "1M", DISK]);
    let overrides = Overrides {
        key_file: Some(host.place.path("platform.key")),
        ..Overrides::default()
    };
    let config = Config::load(Some(&host.place.path("sealblk.toml")), overrides).unwrap();
    let keys = config.key_sets();
    let mut volume = open(&host);
    let context = Context::local(Some(volume.uuid()));
    let binding = volume.binding();
    let (old, new) = (
        sealblk::runtime::block_on(keys.unwrap(
            &context,
            volume.token(),
            &binding,
            sealblk::keys::Access::OwnKeySet,
        )),
        Dek::generate().unwrap(),
    );
    let old = old.unwrap().unwrap().dek;
    let wraps = sealblk::runtime::block_on(keys.wrap(&context, "default", &new, &binding));
    let facts = volume.facts_to_begin(Kind::Rekey).unwrap();
    let previous = sealblk::rekey::seal_previous(&facts, &new, &old).unwrap();
    let wraps = wraps.unwrap().unwrap();
    volume.begin_rekey(&facts, &new, wraps, previous).unwrap();
    drop(volume);

    let export = |to: &str, more: &[&str]| {
        let export = ["volume", "export-dek", DISK, "--to", to];
        let sure = ["--i-understand-that-this-key-decrypts-the-disk"];
        let told = host.ok(&[&export[..], &sure, more].concat());
        (told, fs::read(host.place.path(to)).unwrap())
    };
    let (told, main) = export("main", &[]);
    assert!(told.contains("the main key"), "{told}");
    let (told, previous) = export("previous", &["--previous"]);
    assert!(told.contains("the previous key"), "{told}");
    assert!(main == new.bytes() && previous == old.bytes());
    open(&host).finish_rekey().unwrap();
    let errors = host.fails(
        2,
        &[
            "volume",
            "export-dek",
            DISK,
            "--to",
            "none",
            "--previous",
            "--i-understand-that-this-key-decrypts-the-disk",
        ],
    );
    assert!(errors.contains("no previous key"), "{errors}");
    assert!(!host.place.path("none").exists());
}
