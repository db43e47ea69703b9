//! What is left in the files of the volume, and what others make of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::process::Command;

use serde_json::json;

use super::key_store_support::{Host, VOLUME};
use super::support::server::succeed;
use super::{Before, assert_erased, erase, erase_refused};

fn cryptsetup(host: &Host, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new("cryptsetup");
    command.args(arguments).current_dir(host.home.directory());
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    command.env("PATH", path).output().unwrap()
}

/// With a keyslot and a token that cryptsetup put there, which both hold a
/// wrapped key that sealblk knows nothing of.
#[test]
fn nothing_of_a_key_is_left_in_the_volume() {
    let host = Host::new();
    let create = [
        "volume",
        "create",
        VOLUME,
        "--size",
        "1M",
        "--header-area",
        "2M",
    ];
    succeed(&mut host.sealblk(&create));
    let before = Before::of(&host);
    fs::write(host.home.path("dek"), &before.dek).unwrap();
    fs::write(host.home.path("pass"), "a passphrase").unwrap();
    let add = [
        "luksAddKey",
        "--key-size",
        "512",
        "--volume-key-file",
        "dek",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
        VOLUME,
        "pass",
    ];
    assert!(cryptsetup(&host, &add).status.success());
    fs::write(
        host.home.path("token"),
        json!({"type": "theirs", "keyslots": ["0"], "blob": "d3JhcHBlZCBieSBzb21lYm9keSBlbHNl"})
            .to_string(),
    )
    .unwrap();
    let import = ["token", "import", "--json-file", "token", VOLUME];
    assert!(cryptsetup(&host, &import).status.success());
    let volume = host.home.path(VOLUME);
    // Whatever a later sealblk may have put behind the copies.
    let image = File::options().write(true).open(&volume).unwrap();
    let mark = b"something between header and data";
    image.write_all_at(mark, (1 << 20) + 12345).unwrap();
    image.write_all_at(b"data of the guest", 2 << 20).unwrap();
    let (length, blocks) = (
        volume.metadata().unwrap().len(),
        volume.metadata().unwrap().blocks(),
    );
    assert_eq!(host.info()["keyslots"], 1);
    let slot = fs::read(&volume).unwrap()[256 << 10..][..4096].to_vec();
    assert!(
        slot.iter().any(|&byte| byte != 0),
        "the keyslot is not where it was looked for"
    );

    let erased = erase(&host, &[]);
    assert_eq!(
        (&erased["wraps"], &erased["finished"]),
        (&json!(1), &json!(true))
    );
    assert_eq!(erased["uuid"], host.info()["uuid"]);
    before.assert_absent(&volume);
    let after = fs::read(&volume).unwrap();
    let text = String::from_utf8_lossy(&after[..2 << 20]).into_owned();
    for needle in [
        "theirs",
        "d3JhcHBlZCBieSBzb21lYm9keSBlbHNl",
        "pbkdf-force",
        "something between",
    ] {
        assert!(!text.contains(needle), "{needle}");
    }
    assert!(
        !text.contains(r#""kdf""#),
        "the salt of the keyslot is there"
    );
    let copies = 128 << 10;
    assert!(after[copies..2 << 20].iter().all(|&byte| byte == 0));
    // The data is noise, and stays.
    assert_eq!(&after[2 << 20..][..17], b"data of the guest");
    assert_eq!(volume.metadata().unwrap().len(), length);
    assert!(
        volume.metadata().unwrap().blocks() <= blocks + 16,
        "holes were filled"
    );
    assert_erased(&host);

    // cryptsetup takes it for a header, and opens nothing.
    let dump = cryptsetup(&host, &["luksDump", VOLUME]);
    assert!(dump.status.success(), "{dump:?}");
    let dump = String::from_utf8(dump.stdout).unwrap();
    assert!(
        dump.contains("sealblk") && !dump.contains("theirs"),
        "{dump}"
    );
    let open = [
        "open",
        "--test-passphrase",
        "--key-size",
        "512",
        "--volume-key-file",
        "dek",
        VOLUME,
    ];
    assert_eq!(cryptsetup(&host, &open).status.code(), Some(2));
    let open = ["open", "--test-passphrase", "--key-file", "pass", VOLUME];
    assert!(!cryptsetup(&host, &open).status.success());

    // Once more does no harm, and says since when.
    let again = erase(&host, &["--discard"]);
    assert_eq!(
        (&again["since"], &again["wraps"]),
        (&erased["since"], &json!(0))
    );
    assert_eq!(again["discarded"], true);
    let empty = fs::read(&volume).unwrap();
    assert!(empty[2 << 20..].iter().all(|&byte| byte == 0));
    assert_eq!(empty.len() as u64, length);
    assert_erased(&host);
}

#[test]
fn a_detached_header_is_erased_and_the_data_is_not_touched() {
    let host = Host::new();
    let create = [
        "volume",
        "create",
        "data.img",
        "--header",
        VOLUME,
        "--size",
        "1M",
        "--header-area",
        "64K",
    ];
    succeed(&mut host.sealblk(&create));
    // The header is what the helpers look at.
    let wraps = host.description().token.wraps;
    let data = fs::read(host.home.path("data.img")).unwrap();
    host.refused(&["volume", "erase", VOLUME, "--yes"]).expect(
        2,
        &["is a detached header"],
        "--header",
    );
    let erase = ["volume", "erase", "data.img", "--header", VOLUME, "--yes"];
    let said = succeed(&mut host.sealblk(&erase));
    assert!(said.contains("erased volume"), "{said}");
    host.assert_no_trace(&wraps);
    assert_eq!(fs::read(host.home.path("data.img")).unwrap(), data);
    let serve = [
        "serve",
        "data.img",
        "--header",
        VOLUME,
        "--socket",
        "refused.sock",
    ];
    host.refused(&serve)
        .expect(8, &["was erased on"], "restore");
}

#[test]
fn nothing_is_destroyed_that_was_not_confirmed_or_is_in_use_or_is_no_volume() {
    let host = Host::with_volume();
    let before = fs::read(host.home.path(VOLUME)).unwrap();
    let uuid = host.description().uuid.to_string();
    let not_confirmed = ["volume", "erase", VOLUME, "--force", "--discard"];
    host.refused(&not_confirmed)
        .expect(6, &[&uuid, "for ever"], "add --yes");
    let serve = host.sealblk(&["serve", VOLUME, "--socket", "disk.sock"]);
    let mut server = host.home.start("disk.sock", serve);
    for force in [&[][..], &["--force"]] {
        erase_refused(&host, force).expect(5, &["is in use by process"], "nothing was destroyed");
    }
    assert!(server.terminate().success());
    for (name, content) in [
        ("text", "no volume".repeat(10_000)),
        ("empty", String::new()),
    ] {
        fs::write(host.home.path(name), &content).unwrap();
        host.refused(&["volume", "erase", name, "--yes", "--force"])
            .expect(11, &["is not a volume"], "");
        assert_eq!(fs::read(host.home.path(name)).unwrap(), content.as_bytes());
    }
    assert_eq!(fs::read(host.home.path(VOLUME)).unwrap(), before);
    assert_eq!(host.dek().len(), 64);
    assert!(host.audit("volume_erasing").is_empty());
}

/// What cannot be recorded is not done.
#[test]
fn nothing_is_destroyed_before_it_is_on_record() {
    let host = Host::with_volume();
    let log = host.home.path("audit.jsonl");
    let kept = fs::read(&log).unwrap();
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    let refusal = erase_refused(&host, &[]);
    assert!(refusal.error.contains("audit"), "{refusal:?}");
    fs::remove_dir(&log).unwrap();
    fs::write(&log, kept).unwrap();
    host.chmod(&log, 0o600);
    host.dek();
    let uuid = host.description().uuid.to_string();
    erase(&host, &[]);
    let begun = host.audit("volume_erasing");
    let ended = host.audit("volume_erased");
    assert_eq!((begun.len(), ended.len()), (1, 1));
    for line in [&begun[0], &ended[0]] {
        assert_eq!(
            (&line["volume"], &line["outcome"]),
            (&json!(uuid), &json!("ok"))
        );
    }
    assert!(begun[0]["seq"].as_u64() < ended[0]["seq"].as_u64());
}

/// That a backup is told to be dangerous is honest: it opens the volume.
#[test]
fn a_backup_is_listed_because_it_opens_the_volume() {
    let host = Host::with_volume();
    let dek = host.dek();
    let backup = |name: &str| {
        succeed(&mut host.sealblk(&["volume", "backup-header", VOLUME, "--to", name]));
        host.home.path(name)
    };
    let (kept, gone) = (backup("kept.header"), backup("gone.header"));
    host.move_keys("shared");
    let bare = backup("bare.header");
    fs::remove_file(&gone).unwrap();
    let said = succeed(&mut host.sealblk(&["volume", "erase", VOLUME, "--yes"]));
    let told = said.split_once("STILL DANGEROUS").expect(&said).1;
    for (path, state) in [
        (&kept, "has wrapped keys"),
        (&gone, "not there"),
        (&bare, "no wrapped keys"),
    ] {
        let line = told
            .lines()
            .find(|line| line.contains(path.to_str().unwrap()));
        assert!(line.is_some_and(|line| line.contains(state)), "{told}");
    }
    let again = erase(&host, &[]);
    let states = again["backups"].as_array().unwrap().iter();
    let states: BTreeSet<&str> = states
        .map(|backup| backup["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, BTreeSet::from(["has_keys", "not_found", "no_keys"]));
    assert_eq!(host.audit("volume_erased").last().unwrap()["backups"], 3);

    let restore = ["volume", "restore-header", VOLUME, "--from", "kept.header"];
    host.refused(&restore)
        .expect(6, &["was erased on", "would open again"], "--force");
    succeed(host.sealblk(&restore).arg("--force"));
    assert_eq!(
        host.dek(),
        dek,
        "the backup is as dangerous as it was said to be"
    );
}
