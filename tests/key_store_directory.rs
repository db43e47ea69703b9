//! Wrapped keys in a directory: moved out and in again, and what becomes of
//! hostile, damaged, foreign and missing entries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod key_store_support;
mod support;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::process::{Command, Stdio};

use key_store_support::{Host, VOLUME, assert_absent};
use sealblk::volume::{Access, Volume};
use serde_json::{Value, json};
use support::front_end::{FrontEnd, Options};
use support::home::{Guard, refused};
use support::server::{eventually, succeed};

/// Runs cryptsetup, which has to succeed, on the volume.
fn cryptsetup(host: &Host, arguments: &[&str]) -> String {
    let mut command = Command::new("cryptsetup");
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    succeed(command.args(arguments).arg(host.home.path(VOLUME)))
}

#[test]
fn keys_are_moved_out_and_in_again() {
    let host = Host::with_volume();
    let (dek, wraps) = (host.dek(), host.description().token.wraps);
    let image = fs::read(host.home.path(VOLUME)).unwrap();
    assert!(
        image
            .windows(wraps[0].key_id.len())
            .any(|part| part == wraps[0].key_id.as_bytes())
    );

    let told = host.move_keys("shared");
    assert!(
        told.contains("from the header of the volume to key store \"shared\""),
        "{told}"
    );
    host.assert_no_trace(&wraps);
    let uuid = host.description().uuid;
    assert_eq!(host.names("shared"), [format!("{uuid}.json")]);
    let meta = host.entry("shared").metadata().unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600);
    let entry: Value = serde_json::from_slice(&fs::read(host.entry("shared")).unwrap()).unwrap();
    assert_eq!(
        (&entry["volume"], &entry["key_set"], &entry["generation"]),
        (&json!(uuid), &json!("default"), &json!(1))
    );
    assert_eq!(host.dek(), dek);
    let dump = cryptsetup(&host, &["luksDump"]);
    assert!(dump.contains("sealblk"), "{dump}");
    let token = cryptsetup(&host, &["token", "export", "--token-id", "0"]);
    let token: Value = serde_json::from_str(&token).unwrap();
    assert_eq!(
        token,
        json!({
            "type": "sealblk", "keyslots": [], "version": 2, "key_set": "default",
            "key_store": "shared", "zero_units": false,
        })
    );

    let info = host.info();
    assert_eq!(info["key_store"]["name"], "shared");
    assert_eq!(
        info["key_store"]["place"],
        host.entry("shared").to_str().unwrap()
    );
    assert_eq!(
        (&info["wraps"], &info["copy_in"]),
        (&json!([]), &Value::Null)
    );
    let shown = succeed(&mut host.sealblk(&["volume", "info", VOLUME]));
    assert!(
        shown.contains("wrapped keys   in key store \"shared\": /"),
        "{shown}"
    );
    assert!(!shown.contains("erased"), "{shown}");

    // To where they are: nothing is done.
    let again = host.json(&["volume", "move-keys", VOLUME, "--to", "shared"]);
    assert_eq!(
        (&again["moved"], &again["from"]),
        (&json!(false), &json!("shared"))
    );
    let moved = host.json(&["volume", "move-keys", VOLUME, "--to", "header"]);
    assert_eq!(
        (
            &moved["moved"],
            &moved["from"],
            &moved["to"],
            &moved["wraps"]
        ),
        (&json!(true), &json!("shared"), &json!("header"), &json!(1))
    );
    assert_eq!(host.names("shared"), [] as [&str; 0]);
    let token = host.description().token;
    assert_eq!(
        (token.version, &token.wraps, &token.copy_in),
        (1, &wraps, &None)
    );
    assert_eq!(host.dek(), dek);

    let moves = host.audit("keys_moved");
    let places: Vec<_> = moves
        .iter()
        .map(|line| (&line["from"], &line["to"]))
        .collect();
    assert_eq!(
        places,
        [
            (&json!("header"), &json!("shared")),
            (&json!("shared"), &json!("header"))
        ]
    );
    for (event, count) in [("key_store_write", 1), ("key_store_purge", 1)] {
        let lines = host.audit(event);
        assert_eq!(lines.len(), count, "{event}");
        assert_eq!(lines[0]["outcome"], "ok");
        assert_eq!(lines[0]["key_store"], "shared");
        assert_eq!(lines[0]["volume"], json!(uuid));
    }
    // Read back, opened, and moved in.
    assert!(host.audit("key_store_read").len() >= 3);
    succeed(&mut host.sealblk(&["audit", "verify"]));
}

#[test]
fn keys_are_moved_from_one_store_to_another() {
    let host = Host::with_volume();
    let dek = host.dek();
    host.move_keys("shared");
    host.move_keys("other");
    assert_eq!(host.names("shared"), [] as [&str; 0]);
    assert_eq!(host.names("other").len(), 1);
    assert_eq!(host.dek(), dek);
    let token = host.description().token;
    assert_eq!(
        (token.key_store.as_deref(), token.copy_in),
        (Some("other"), None)
    );
}

/// To destroy what is at the old place would destroy what is at the new one.
#[test]
fn two_names_for_one_place_lose_nothing() {
    let host = Host::with_volume();
    let dek = host.dek();
    host.move_keys("shared");
    let config = host.home.path("sealblk.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace(
        host.store("other").to_str().unwrap(),
        host.store("shared").to_str().unwrap(),
    );
    fs::write(&config, text).unwrap();
    host.move_keys("other");
    assert_eq!(host.dek(), dek);
    assert_eq!(host.description().token.copy_in, None);
    // Also as what a crash between switching and destroying leaves.
    let mut volume = Volume::open(&host.location(), Access::ReadWrite).unwrap();
    let token = volume.token().clone().with_copy_in(Some("shared".into()));
    volume.set_token(token).unwrap();
    drop(volume);
    host.move_keys("other");
    assert_eq!(host.dek(), dek);
    host.move_keys("header");
    assert_eq!(host.dek(), dek);
}

#[test]
fn a_volume_is_made_with_its_key_in_a_store() {
    let host = Host::new();
    let made = host.create(&["--key-store", "shared", "--json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(made["key_store"], "shared");
    let entry = fs::read(host.entry("shared")).unwrap();
    let entry: Value = serde_json::from_slice(&entry).unwrap();
    let wrap: sealblk::volume::Wrap = serde_json::from_value(entry["wraps"][0].clone()).unwrap();
    host.assert_no_trace(&[wrap]);
    host.dek();

    // One that cannot be written takes its entry back.
    let taken = [
        "volume",
        "create",
        VOLUME,
        "--size",
        "1M",
        "--key-store",
        "shared",
    ];
    host.refused(&taken).expect(6, &["holds"], "--force");
    let none = [
        "volume",
        "create",
        "other.img",
        "--size",
        "1M",
        "--key-store",
        "nowhere",
    ];
    host.refused(&none).expect(
        3,
        &["no key store \"nowhere\"", "other, shared"],
        "[key_stores.NAME]",
    );
    assert!(!host.home.path("other.img").exists());
    assert_eq!(host.names("shared").len(), 1);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -f 16; trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_sealblk"))
        .args(["--config", "sealblk.toml", "--key-file"])
        .arg(support::server::key_file(host.home.directory()))
        .args([
            "volume",
            "create",
            "full.img",
            "--size",
            "1M",
            "--key-store",
            "shared",
        ])
        .current_dir(host.home.directory());
    refused(&mut command).expect(10, &["full.img"], "");
    assert_eq!(
        host.names("shared").len(),
        1,
        "the entry of no volume stays"
    );
}

#[test]
fn a_key_set_can_say_where_the_keys_of_its_volumes_go() {
    let host = Host::with(
        "[key_sets.apart]\nprovider = \"file\"\nkey_store = \"shared\"\nbreak_glass = \"default\"\n\
         key_file = \"KEY\"\n",
    );
    let config = host.home.path("sealblk.toml");
    let key = support::server::key_file(host.home.directory());
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"KEY\"", &format!("{key:?}"))).unwrap();
    host.create(&["--key-set", "apart"]);
    let token = host.description().token;
    assert_eq!(
        (token.key_store.as_deref(), token.wraps.len()),
        (Some("shared"), 0)
    );
    // The wrap for break-glass access is there as well.
    let entry: Value = serde_json::from_slice(&fs::read(host.entry("shared")).unwrap()).unwrap();
    let sets: Vec<&Value> = entry["wraps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|wrap| &wrap["key_set"])
        .collect();
    assert_eq!(sets, [&json!("apart"), &json!("default")]);
    host.dek();
    fs::remove_file(host.home.path(VOLUME)).unwrap();
    host.create(&["--key-set", "apart", "--key-store", "header"]);
    assert_eq!(host.description().token.wraps.len(), 2);

    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("key_store = \"shared\"", "key_store = \"none\""),
    )
    .unwrap();
    host.refused(&["volume", "info", VOLUME]).expect(
        2,
        &["\"apart\"", "\"none\", which is not defined"],
        "[key_stores.NAME]",
    );
}

#[test]
fn a_volume_that_is_served_keeps_its_keys_where_they_are() {
    let host = Host::with_volume();
    host.move_keys("shared");
    let serve = host.sealblk(&["serve", VOLUME, "--socket", "disk.sock"]);
    let mut server = host.home.start("disk.sock", serve);
    let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    front_end.write(0, &[7; 4096]);
    host.move_refused("header")
        .expect(5, &["is in use by process"], "detach it first");
    assert_eq!(front_end.read(0, 4096), [7; 4096]);
    drop(front_end);
    assert!(server.terminate().success());
    host.move_keys("header");
}

#[test]
fn what_is_missing_and_what_has_been_put_in_its_place_is_told() {
    let host = Host::with_volume();
    host.move_keys("shared");
    let (entry, place) = (
        host.entry("shared"),
        host.entry("shared").display().to_string(),
    );
    let good = fs::read_to_string(&entry).unwrap();
    let put = |text: &str| {
        let _ = fs::remove_file(&entry);
        fs::write(&entry, text).unwrap();
        host.chmod(&entry, 0o600);
    };

    fs::remove_file(&entry).unwrap();
    host.opening_refused()
        .expect(3, &["key store \"shared\" has no entry", &place], "mounted");
    // Of another volume, as it is and edited.
    let other = good.replace(
        &host.description().uuid.to_string(),
        "00112233-4455-6677-8899-aabbccddeeff",
    );
    put(&other);
    host.opening_refused().expect(
        7,
        &[
            &place,
            "is the entry of volume 00112233-4455-6677-8899-aabbccddeeff",
        ],
        "right entry",
    );
    for (text, told) in [
        (&good[..good.len() / 2], "is damaged"),
        ("", "is damaged"),
        ("[1, 2]", "its type is another one"),
        (&"[".repeat(100_000), "is damaged"),
        (&" ".repeat(300 << 10), "longer than 256 KiB"),
        (
            &good.replace("\"wraps\": [", "\"wraps\": [], \"x\": ["),
            "it has no wraps",
        ),
    ] {
        put(text);
        host.opening_refused()
            .expect(7, &[&place, told], "backup of the key store");
    }
    put(&good.replace("\"version\": 1", "\"version\": 2"));
    host.opening_refused()
        .expect(11, &["has version 2"], "upgrade");
    // More than any entry, without being read.
    let huge = File::create(&entry).unwrap();
    huge.set_len(1 << 40).unwrap();
    host.opening_refused()
        .expect(7, &["longer than 256 KiB"], "");

    put(&good);
    host.dek();
    // A wrap of another volume under this one's name: the binding tells.
    fs::rename(host.home.path(VOLUME), host.home.path("first.img")).unwrap();
    host.create(&["--key-store", "shared"]);
    let stolen = fs::read_to_string(host.entry("shared")).unwrap();
    fs::rename(host.home.path("first.img"), host.home.path(VOLUME)).unwrap();
    let second: Value = serde_json::from_str(&stolen).unwrap();
    put(&stolen.replace(
        second["volume"].as_str().unwrap(),
        &host.description().uuid.to_string(),
    ));
    host.opening_refused()
        .expect(8, &["belongs to another volume"], "");
}

#[test]
fn what_others_could_have_changed_is_not_believed() {
    let host = Host::with_volume();
    let store = host.store("shared");
    let told = |causes: &[&str], next: &str| host.opening_refused().expect(4, causes, next);
    host.move_keys("shared");
    let entry = host.entry("shared");
    host.chmod(&entry, 0o604);
    told(&["mode 0604", "read by others"], "chmod 0600");
    host.chmod(&entry, 0o660);
    told(&["mode 0660", "changed by others"], "chmod 0600");
    host.chmod(&entry, 0o640);
    host.dek();
    for mode in [0o770, 0o702, 0o1777] {
        host.chmod(&store, mode);
        told(&["shared has mode", "changed by others"], "chmod 0700");
    }
    host.chmod(&store, 0o755);
    host.dek();

    // Links, and what is no file.
    let aside = host.home.path("aside");
    fs::rename(&entry, &aside).unwrap();
    symlink(&aside, &entry).unwrap();
    told(&["is a symbolic link"], "the file itself");
    fs::remove_file(&entry).unwrap();
    let fifo = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &entry, rustix::fs::FileType::Fifo, fifo, 0).unwrap();
    told(&["is a FIFO"], "");
    fs::remove_file(&entry).unwrap();
    fs::rename(&aside, &entry).unwrap();
    fs::rename(&store, &aside).unwrap();
    symlink(&aside, &store).unwrap();
    told(
        &["is not a directory, or a symbolic link"],
        "the directory itself",
    );
    fs::remove_file(&store).unwrap();
    // As where the file system is not mounted: it may come yet.
    host.opening_refused()
        .expect(9, &["there is no directory"], "mount");
    fs::rename(&aside, &store).unwrap();
    host.dek();
}

/// Only root can give a file away, and only to others than root.
#[test]
fn a_foreign_owner_is_refused() {
    let host = Host::with_volume();
    host.move_keys("shared");
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for path in [host.entry("shared"), host.store("shared")] {
        chown(&path, Some(12345), None).unwrap();
        host.opening_refused()
            .expect(4, &["belongs to user 12345"], "NFS");
        chown(&path, Some(0), None).unwrap();
    }
    host.dek();
}

#[test]
fn an_entry_with_other_keys_is_not_overwritten_by_chance() {
    let host = Host::with_volume();
    let backup = ["volume", "backup-header", VOLUME, "--to", "old.hdr"];
    succeed(&mut host.sealblk(&backup));
    host.move_keys("shared");
    // As a later rotation of the wrapping key would have it.
    let entry = host.entry("shared");
    let mut changed: Value = serde_json::from_slice(&fs::read(&entry).unwrap()).unwrap();
    changed["wraps"][0]["note"] = json!("newer");
    fs::write(&entry, changed.to_string()).unwrap();
    let newer = ["volume", "backup-header", VOLUME, "--to", "new.hdr"];
    let told = succeed(&mut host.sealblk(&newer));
    assert!(
        told.contains("in key store \"shared\", and not in this backup"),
        "{told}"
    );
    for wrap in &host.description().token.wraps {
        assert_absent(&fs::read(host.home.path("new.hdr")).unwrap(), wrap);
    }

    let restore = ["volume", "restore-header", VOLUME, "--from", "old.hdr"];
    host.refused(&restore)
        .expect(6, &["it is older"], "--force");
    let told = succeed(host.sealblk(&restore).arg("--force"));
    assert!(
        told.contains("in the header again") && told.contains("\"shared\" keeps its own"),
        "{told}"
    );
    host.dek();
    host.move_refused("shared").expect(
        6,
        &[
            "generation 1",
            "other wrapped keys than the header of the volume",
        ],
        "--force",
    );
    let token = host.description().token;
    assert_eq!(
        (token.wraps.len(), token.copy_in),
        (1, None),
        "nothing was begun"
    );
    succeed(host.move_command("shared").arg("--force"));
    let now: Value = serde_json::from_slice(&fs::read(&entry).unwrap()).unwrap();
    assert_eq!(
        (&now["generation"], &now["wraps"][0]["note"]),
        (&json!(2), &Value::Null)
    );
    host.dek();
    let told = succeed(
        host.sealblk(&[
            "volume",
            "restore-header",
            VOLUME,
            "--from",
            "new.hdr",
            "--force",
        ])
        .args([] as [&str; 0]),
    );
    assert!(
        told.contains("in key store \"shared\", and not in this backup"),
        "{told}"
    );
    host.dek();
}

#[test]
fn a_full_disk_leaves_the_keys_where_they_were() {
    let host = Host::with_volume();
    let wraps = host.description().token.wraps;
    let unchanged = |told: &str| {
        let token = host.description().token;
        assert_eq!((&token.wraps, token.version), (&wraps, 1), "{told}");
        host.dek();
    };
    // A file system of one page, which is taken, in a namespace of its own.
    let script = "mount -t tmpfs -o size=4k,mode=700 none shared && \
                  head -c 4096 /dev/zero >shared/filler && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(env!("CARGO_BIN_EXE_sealblk"))
        .args(["--config", "sealblk.toml"])
        .args(["volume", "move-keys", VOLUME, "--to", "shared"])
        .current_dir(host.home.directory());
    refused(&mut command).expect(
        10,
        &["key store \"shared\"", "No space left"],
        "free some space",
    );
    unchanged("ENOSPC");

    // The one call that gives the entry its name.
    for (error, told) in [("EDQUOT", "quota"), ("EIO", "Input/output error")] {
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-o", "trace", "-e", "trace=renameat2"])
            .args(["-e", &format!("inject=renameat2:error={error}")])
            .arg(env!("CARGO_BIN_EXE_sealblk"))
            .args(["--config", "sealblk.toml"])
            .args(["volume", "move-keys", VOLUME, "--to", "shared"])
            .current_dir(host.home.directory());
        refused(&mut command).expect(10, &["cannot name", told], "");
        unchanged(error);
        assert_eq!(host.names("shared"), [] as [&str; 0]);
    }
    host.move_keys("shared");
    host.assert_no_trace(&wraps);
}

#[test]
fn movers_do_not_get_in_each_others_way() {
    let host = Host::with_volume();
    let dek = host.dek();
    for round in 0..6 {
        let to = ["shared", "other"];
        let mut movers: Vec<Guard> = to
            .iter()
            .chain(&to)
            .map(|to| {
                let mut command = host.move_command(to);
                command.stdout(Stdio::null()).stderr(Stdio::null());
                Guard(command.spawn().unwrap())
            })
            .collect();
        let mut succeeded = 0;
        for mover in &mut movers {
            let status = eventually("it has ended", || mover.0.try_wait().unwrap());
            // Done, or somebody else had the volume.
            assert!(matches!(status.code(), Some(0 | 5)), "{round}: {status}");
            succeeded += u32::from(status.success());
        }
        assert!(succeeded > 0);
        assert_eq!(host.dek(), dek, "round {round}");
        let token = host.description().token;
        assert_eq!(token.copy_in, None);
        let places = host.names("shared").len() + host.names("other").len();
        assert_eq!(places, 1, "{token:?}");
    }
}

#[test]
fn the_doctor_tries_the_store() {
    let host = Host::new();
    let checks = |more: &[&str]| -> Vec<(String, String)> {
        let output = host
            .sealblk(&["doctor", "--json"])
            .args(more)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let store = &report["key_stores"][1];
        assert_eq!(
            (&store["name"], &store["kind"]),
            (&json!("shared"), &json!("directory"))
        );
        let checks = store["checks"].as_array().unwrap();
        let text = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
        checks
            .iter()
            .map(|check| (text(check, "name"), text(check, "status")))
            .collect()
    };
    let status = |name: &str, status: &str| (name.to_owned(), status.to_owned());
    let good = [
        status("configuration", "ok"),
        status("read", "ok"),
        status("list", "ok"),
    ];
    assert_eq!(
        checks(&[]),
        [&good[..], &[status("write", "skip")]].concat()
    );
    assert_eq!(
        checks(&["--write-key-stores"]),
        [&good[..], &[status("write", "ok")]].concat()
    );
    assert_eq!(host.names("shared"), [] as [&str; 0]);
    host.chmod(&host.store("shared"), 0o777);
    assert_eq!(checks(&[])[1], status("read", "fail"));
}

#[test]
fn a_backup_whose_key_store_has_the_keys_no_more_is_refused() {
    let host = Host::with_volume();
    host.move_keys("shared");
    succeed(&mut host.sealblk(&["volume", "backup-header", VOLUME, "--to", "in-shared"]));
    host.move_keys("other");
    let image = host.home.path(VOLUME);
    let lose_header = || {
        let mut bytes = fs::read(&image).unwrap();
        bytes[..32 << 10].fill(0xa5);
        fs::write(&image, &bytes).unwrap();
        bytes
    };
    let lost = lose_header();
    let restore = ["volume", "restore-header", VOLUME, "--from", "in-shared"];
    host.refused(&restore)
        .expect(6, &["would not open", "\"shared\""], "later backup");
    assert!(fs::read(&image).unwrap() == lost, "nothing was written");
    let told = succeed(host.sealblk(&restore).arg("--force"));
    assert!(told.contains("does not open now"), "{told}");
    host.opening_refused().expect(3, &["\"shared\""], "");
    // Moved back there, it does open.
    let entry = fs::read(host.entry("other")).unwrap();
    fs::write(host.entry("shared"), entry).unwrap();
    host.chmod(&host.entry("shared"), 0o600);
    lose_header();
    let told = succeed(&mut host.sealblk(&restore));
    assert!(!told.contains("does not open"), "{told}");
    host.dek();
}
