//! `sealblk volume …` as people and scripts use it: from making a volume to
//! the rescue of its data with cryptsetup alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "volume_commands/backups.rs"]
mod backups;
#[path = "volume_commands/under_way.rs"]
mod under_way;
mod volume_support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use sealblk::secret::{Dek, Secret};
use sealblk::volume::{Access, Location, Volume};
use serde_json::Value;
use volume_support::*;

/// A host with a platform key.
struct Host {
    place: Place,
}

/// What a command did.
#[derive(Debug)]
struct Done {
    status: i32,
    out: String,
    errors: String,
}

impl Host {
    fn new() -> Self {
        let host = Host {
            place: Place::new(),
        };
        // The host's own state is none of a test.
        let directory = host.place.dir.path().display();
        let config = format!(
            "[daemon]\nstate_dir = \"{directory}/state\"\n[audit]\npath = \"{directory}/audit.jsonl\"\n"
        );
        fs::write(host.place.path("sealblk.toml"), config).unwrap();
        host.ok(&["key", "init"]);
        host
    }

    fn run(&self, arguments: &[&str]) -> Done {
        let output = Command::new(env!("CARGO_BIN_EXE_sealblk"))
            .arg("--config")
            .arg(self.place.path("sealblk.toml"))
            .arg("--key-file")
            .arg(self.place.path("platform.key"))
            .args(arguments)
            .current_dir(self.place.dir.path())
            .output()
            .unwrap();
        Done {
            status: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.status, 0, "{arguments:?}: {done:?}");
        done.out
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Runs what must fail, and returns the error and the help line.
    fn fails(&self, status: i32, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.status, status, "{arguments:?}: {done:?}");
        let error = done
            .errors
            .lines()
            .position(|line| line.starts_with("error: "));
        assert!(
            error.is_some() && done.errors.contains("\nhelp: "),
            "{done:?}"
        );
        done.errors
    }

    fn location(&self) -> Location {
        Location {
            data: self.place.path("disk.img"),
            header: None,
        }
    }

    fn write(&self, name: &str, bytes: &[u8], offset: u64) {
        let file = File::options().write(true).open(self.place.path(name));
        file.unwrap().write_all_at(bytes, offset).unwrap();
    }
}

#[test]
fn a_volume_is_made_shown_and_verified() {
    let host = Host::new();
    let made = host.ok(&[
        "volume", "create", "--size", "8M", "--label", "web 1", "disk.img",
    ]);
    assert!(made.contains("8 MiB for the guest"), "{made}");
    assert!(made.contains("backup-header disk.img"), "{made}");
    let info = host.json(&["volume", "info", "--json", "disk.img"]);
    let expected = [
        ("label", Value::from("web 1")),
        ("size", (8 * MIB).into()),
        ("sector_size", 512.into()),
        ("zero_units", false.into()),
        ("data_offset", (16 * MIB).into()),
        ("data_length", (24 * MIB).into()),
        ("key_set", "default".into()),
        ("header", Value::Null),
        ("in_use", false.into()),
    ];
    for (name, value) in expected {
        assert_eq!(info[name], value, "{name}");
    }
    assert_eq!(info["header_copies"]["primary"], "good");
    assert_eq!(info["wraps"][0]["provider"], "file");
    let shown = host.ok(&["volume", "info", "disk.img"]);
    for text in [
        info["uuid"].as_str().unwrap(),
        "label          web 1\n",
        "size           8 MiB (8388608 bytes)\n",
        "aes-xts-plain64, 512-byte sectors",
        "primary good, secondary good, update 1\n",
        "in use         no\n",
    ] {
        assert!(shown.contains(text), "{text} not in:\n{shown}");
    }
    let verdict = host.json(&["volume", "verify-header", "--json", "disk.img"]);
    assert_eq!(verdict["usable"], true);
    assert_eq!(verdict["problems"], serde_json::json!([]));

    let made = host.json(&[
        "volume",
        "create",
        "--size",
        "8M",
        "--sector-size",
        "4096",
        "--zero-units",
        "--json",
        "--header",
        "d.hdr",
        "d.img",
    ]);
    assert_eq!(made["sector_size"], 4096);
    assert_eq!(made["data_offset"], 0);
    assert_eq!(made["zero_units"], true);
    let info = host.json(&["volume", "info", "--json", "--header", "d.hdr", "d.img"]);
    assert_eq!(info["uuid"], made["uuid"]);
    assert_eq!(info["header"], "d.hdr");
}

#[test]
fn a_volume_in_use_can_be_looked_at_and_backed_up_and_nothing_else() {
    let host = Host::new();
    host.ok(&["volume", "create", "--size", "1M", "disk.img"]);
    let volume = Volume::open(&host.location(), Access::ReadWrite).unwrap();
    let info = host.json(&["volume", "info", "--json", "disk.img"]);
    assert_eq!(info["in_use"], true);
    assert_eq!(info["in_use_by"], std::process::id());
    host.ok(&["volume", "verify-header", "disk.img"]);
    host.ok(&["volume", "backup-header", "disk.img", "--to", "backup"]);
    let pid = format!("in use by process {}", std::process::id());
    for arguments in [
        &["volume", "repair", "disk.img"][..],
        &[
            "volume",
            "restore-header",
            "disk.img",
            "--from",
            "backup",
            "--force",
        ],
        &["volume", "create", "disk.img", "--force"],
    ] {
        let errors = host.fails(5, arguments);
        assert!(errors.contains(&pid), "{errors}");
    }
    drop(volume);
    host.ok(&["volume", "repair", "disk.img"]);
}

#[test]
fn damage_is_reported_repaired_and_restored() {
    let host = Host::new();
    host.ok(&["volume", "create", "--size", "1M", "disk.img"]);
    host.ok(&["volume", "backup-header", "disk.img", "--to", "backup"]);
    host.write("disk.img", b"damage", 4200);
    let done = host.run(&["volume", "verify-header", "--json", "disk.img"]);
    assert_eq!(done.status, 7, "{done:?}");
    let verdict: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(verdict["usable"], true);
    assert_eq!(
        verdict["header_copies"]["primary"],
        "damaged (wrong checksum)"
    );
    assert!(
        host.fails(7, &["volume", "verify-header", "disk.img"])
            .contains("volume repair")
    );
    let repaired = host.ok(&["volume", "repair", "disk.img"]);
    assert!(repaired.contains("rewrote the primary"), "{repaired}");
    let nothing = host.ok(&["volume", "repair", "disk.img"]);
    assert!(nothing.contains("nothing to repair"), "{nothing}");

    host.write("disk.img", b"damage", 4200);
    host.write("disk.img", b"damage", 69736);
    for command in ["info", "verify-header", "repair"] {
        let errors = host.fails(7, &["volume", command, "disk.img"]);
        assert!(errors.contains("restore-header"), "{errors}");
    }
    let restored = host.ok(&["volume", "restore-header", "disk.img", "--from", "backup"]);
    assert!(restored.contains("now update 2"), "{restored}");
    host.ok(&["volume", "verify-header", "disk.img"]);
}

#[test]
fn a_truncated_volume_is_shown_with_what_is_missing() {
    let host = Host::new();
    host.ok(&["volume", "create", "--size", "1M", "disk.img"]);
    let file = File::options()
        .write(true)
        .open(host.place.path("disk.img"));
    file.unwrap().set_len(16 * MIB).unwrap();
    for command in ["info", "verify-header"] {
        let errors = host.fails(7, &["volume", command, "disk.img"]);
        assert!(errors.contains("1 MiB are missing at the end"), "{errors}");
    }
    let done = host.run(&["volume", "info", "--json", "disk.img"]);
    let info: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(info["data_length"], Value::Null);
}

#[test]
fn the_exported_key_rescues_the_data_without_sealblk() {
    let host = Host::new();
    host.ok(&["volume", "create", "--size", "1M", "disk.img"]);
    let export = ["volume", "export-dek", "disk.img", "--to", "dek"];
    let confirmation = "--i-understand-that-this-key-decrypts-the-disk";
    let errors = host.fails(6, &export);
    assert!(errors.contains(confirmation), "{errors}");
    assert!(!host.place.path("dek").exists());
    let export = [&export[..], &[confirmation]].concat();
    host.ok(&export);
    let dek = host.place.path("dek");
    let meta = dek.metadata().unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (64, 0o600));
    let prove = [
        "open",
        "--test-passphrase",
        "--key-size",
        "512",
        "--volume-key-file",
    ];
    let image = host.place.path("disk.img");
    ok(
        "cryptsetup",
        &[&prove[..], &[text(&dek), text(&image)]].concat(),
    );
    // Never over something that is there, whatever it is.
    let before = (fs::read(&dek).unwrap(), meta.ino());
    assert!(host.fails(6, &export).contains("does not exist yet"));
    assert_eq!(
        (fs::read(&dek).unwrap(), dek.metadata().unwrap().ino()),
        before
    );
}

#[test]
fn the_wrong_platform_key_exports_and_makes_nothing() {
    let host = Host::new();
    host.ok(&["volume", "create", "--size", "1M", "disk.img"]);
    fs::remove_file(host.place.path("platform.key")).unwrap();
    let create = ["volume", "create", "--size", "1M", "other.img"];
    host.fails(3, &create);
    assert!(!host.place.path("other.img").exists());
    host.ok(&["key", "init"]);
    let confirmation = "--i-understand-that-this-key-decrypts-the-disk";
    host.fails(
        8,
        &[
            "volume",
            "export-dek",
            "disk.img",
            "--to",
            "dek",
            confirmation,
        ],
    );
    assert!(!host.place.path("dek").exists());
    host.fails(
        3,
        &[
            "volume",
            "create",
            "--key-set",
            "nobody",
            "--size",
            "1M",
            "other.img",
        ],
    );
    assert!(!host.place.path("other.img").exists());
}

#[test]
fn a_header_edited_to_read_zeroes_yields_no_key() {
    use sealblk::volume::luks2::{Metadata, copies};
    let host = Host::new();
    host.ok(&["volume", "create", "--size", "1M", "disk.img"]);
    let mut image = fs::read(host.place.path("disk.img")).unwrap();
    let original = image.clone();
    let confirmation = "--i-understand-that-this-key-decrypts-the-disk";
    let edits = [
        ("/tokens/0/zero_units", Value::from(true)),
        ("/segments/0/iv_tweak", "8".into()),
        ("/segments/0/sector_size", 4096.into()),
    ];
    for (pointer, value) in edits {
        let mut header = copies::read(&original).unwrap().header;
        let mut document = Value::Object(header.metadata.document().clone());
        *document.pointer_mut(pointer).unwrap() = value;
        let json = document.to_string() + "\0";
        header.metadata = Metadata::parse(json.as_bytes()).unwrap();
        copies::create(&mut image, &header).unwrap();
        fs::write(host.place.path("disk.img"), &image).unwrap();
        // The checksums are right, and it looks like a fine volume.
        host.ok(&["volume", "verify-header", "disk.img"]);
        host.fails(
            8,
            &[
                "volume",
                "export-dek",
                "disk.img",
                "--to",
                "dek",
                confirmation,
            ],
        );
        assert!(!host.place.path("dek").exists(), "{pointer}");
    }
    fs::write(host.place.path("disk.img"), &original).unwrap();
    host.ok(&[
        "volume",
        "export-dek",
        "disk.img",
        "--to",
        "dek",
        confirmation,
    ]);
}

/// `ulimit -f` makes writes beyond it fail, as a quota or a small file system does.
#[test]
fn a_limit_on_file_sizes_leaves_nothing_behind() {
    let host = Host::new();
    let command = format!(
        "trap '' XFSZ; ulimit -f 2048; exec {} --key-file platform.key volume create --size 8M disk.img",
        env!("CARGO_BIN_EXE_sealblk")
    );
    let output = Command::new("sh")
        .args(["-c", &command])
        .current_dir(host.place.dir.path())
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(10), "{errors}");
    assert!(errors.contains("ulimit"), "{errors}");
    assert!(!host.place.path("disk.img").exists());
}

#[test]
fn a_volume_is_resized_and_shrinks_only_with_consent() {
    let host = Host::new();
    host.ok(&[
        "volume",
        "create",
        "disk.img",
        "--size",
        "4M",
        "--zero-units",
    ]);
    let path = host.place.path("disk.img");
    const AREA: u64 = 16 * MIB;
    let assert_size = |size: u64| {
        let info = host.json(&["volume", "info", "--json", "disk.img"]);
        assert_eq!(info["size"], size);
        assert_eq!(fs::metadata(&path).unwrap().len(), AREA + size);
    };
    let resize = |arguments: &[&str]| {
        host.json(&[&["volume", "resize", "--json", "disk.img"], arguments].concat())
    };
    let done = resize(&["12M"]);
    assert_eq!(
        (&done["before"], &done["size"]),
        (&(4 * MIB).into(), &(12 * MIB).into())
    );
    assert_size(12 * MIB);
    // Something that a guest wrote, at 10 MiB.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[7; 1024], AREA + 10 * MIB).unwrap();

    let refused = |status: i32, arguments: &[&str], causes: &[&str]| {
        let errors = host.fails(
            status,
            &[&["volume", "resize", "disk.img"], arguments].concat(),
        );
        for cause in causes {
            assert!(errors.contains(cause), "{cause:?} is not in {errors}");
        }
        assert_size(12 * MIB);
    };
    refused(
        6,
        &["11M"],
        &[
            "would lose the last 1 MiB",
            "nothing is stored",
            "add --shrink",
        ],
    );
    let lost = ["the last 4 MiB", "1 KiB hold data"];
    refused(6, &["8M"], &[&lost[..], &["add --shrink"]].concat());
    refused(
        6,
        &["8M", "--shrink"],
        &[&lost[..], &["add --force"]].concat(),
    );
    let done = host.run(&["volume", "resize", "disk.img", "8M", "--force"]);
    assert_eq!(done.status, 2, "{done:?}");
    for (size, cause) in [("1000", "say 512 or 1024"), ("0", "at least one sector")] {
        let done = host.run(&["volume", "resize", "disk.img", size, "--shrink", "--force"]);
        assert_eq!(done.status, 2, "{done:?}");
        assert!(done.errors.contains(cause), "{done:?}");
    }
    assert_size(12 * MIB);

    let done = resize(&["11M", "--shrink"]);
    assert_eq!(
        (&done["size"], &done["lost"]),
        (&(11 * MIB).into(), &0.into())
    );
    assert_size(11 * MIB);
    let done = resize(&["8M", "--shrink", "--force"]);
    assert_eq!(done["lost"], 1024);
    assert_size(8 * MIB);
    // What a crash before the cut leaves, the same command cuts.
    file.set_len(AREA + 9 * MIB).unwrap();
    resize(&["8M", "--shrink"]);
    assert_size(8 * MIB);
    file.set_len(AREA + 9 * MIB + 100).unwrap();
    assert_eq!(resize(&["max"])["size"], 9 * MIB);
    resize(&["9M", "--shrink"]);
    assert_size(9 * MIB);

    // And not under somebody who has it.
    let volume = Volume::open(&host.location(), Access::ReadOnly).unwrap();
    let errors = host.fails(5, &["volume", "resize", "disk.img", "20M"]);
    assert!(errors.contains("`sealblk resize`"), "{errors}");
    drop(volume);
    assert_size(9 * MIB);
}

#[path = "key_file/crash.rs"]
#[allow(dead_code)]
mod crash;

#[test]
fn a_clone_has_a_key_of_its_own_and_the_same_data() {
    let host = Host::new();
    host.ok(&[
        "volume",
        "create",
        "disk.img",
        "--size",
        "5M",
        "--zero-units",
    ]);
    host.ok(&[
        "volume",
        "create",
        "plain.img",
        "--size",
        "5M",
        "--sector-size",
        "4096",
    ]);
    for name in ["disk.img", "plain.img"] {
        let location = Location {
            data: host.place.path(name),
            header: None,
        };
        let dek_of = |volume: &str| {
            let file = host.place.path(&format!("{volume}.dek"));
            let mut export = vec!["volume", "export-dek", volume, "--to", text(&file)];
            export.push("--i-understand-that-this-key-decrypts-the-disk");
            host.ok(&export);
            let bytes = fs::read(&file).unwrap();
            Dek::try_from(Secret::copy_of(&bytes).unwrap()).unwrap()
        };
        let old = dek_of(name);
        let volume = Volume::open(&location, Access::ReadWrite).unwrap();
        let unit = volume.layout().sector_size;
        let plain = random(MIB as usize);
        let stored = encrypt(&old, unit, &plain);
        volume.data_file().write_all_at(&stored, 16 * MIB).unwrap();
        // Open for writing: somebody may be changing it.
        let clone = ["volume", "clone", "--json", name, "copy.img"];
        let errors = host.fails(5, &clone);
        assert!(errors.contains("detach it first"), "{errors}");
        assert!(!host.place.path("copy.img").exists());
        drop(volume);

        let done = host.json(&clone);
        let info = host.json(&["volume", "info", "--json", "copy.img"]);
        let before = host.json(&["volume", "info", "--json", name]);
        assert_eq!(
            (&done["uuid"], &done["source"]),
            (&info["uuid"], &before["uuid"])
        );
        assert_ne!(info["uuid"], before["uuid"]);
        for same in ["size", "sector_size", "zero_units", "label"] {
            assert_eq!(info[same], before[same], "{same}");
        }
        assert_eq!(done["written"], MIB);
        let new = dek_of("copy.img");
        assert!(new != old, "they share a key");
        let copy = File::open(host.place.path("copy.img")).unwrap();
        let mut there = vec![0; MIB as usize];
        copy.read_exact_at(&mut there, 16 * MIB).unwrap();
        assert!(there == encrypt(&new, unit, &plain), "the data differs");
        // As sparse as its source.
        assert!(copy.metadata().unwrap().blocks() * 512 < 3 * MIB);
        // Once more, only by force.
        let errors = host.fails(6, &clone);
        assert!(errors.contains("--force"), "{errors}");
        let again = [&clone[..], &["--force"]].concat();
        assert_ne!(host.json(&again)["uuid"], done["uuid"]);
        fs::remove_file(host.place.path("copy.img")).unwrap();
        fs::remove_file(host.place.path("copy.img.dek")).unwrap();
    }
}

#[test]
fn an_interrupted_clone_is_no_volume_and_is_repeated_by_force() {
    let host = Host::new();
    host.ok(&["volume", "create", "disk.img", "--size", "3M"]);
    let location = host.location();
    let volume = Volume::open(&location, Access::ReadWrite).unwrap();
    let bytes = random(MIB as usize);
    volume.data_file().write_all_at(&bytes, 16 * MIB).unwrap();
    drop(volume);
    let copy = host.place.path("copy.img");
    // Before anything was written, and before it is known to be durable.
    for syscall in [libc::SYS_pwrite64, libc::SYS_fsync] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command
            .arg("--key-file")
            .arg(host.place.path("platform.key"))
            .args(["volume", "clone", "disk.img", "copy.img"])
            .current_dir(host.place.dir.path());
        crash::at(command, syscall);
        let head = fs::read(&copy).unwrap();
        assert!(
            head[..MIB as usize].iter().all(|byte| *byte == 0),
            "a header"
        );
        let errors = host.fails(11, &["volume", "info", "copy.img"]);
        assert!(errors.contains("is not a volume"), "{errors}");
        if syscall == libc::SYS_fsync {
            let errors = host.fails(6, &["volume", "clone", "disk.img", "copy.img"]);
            assert!(errors.contains("data that is not zero"), "{errors}");
        }
        host.ok(&["volume", "clone", "disk.img", "copy.img", "--force"]);
        host.ok(&["volume", "verify-header", "copy.img"]);
        fs::remove_file(&copy).unwrap();
    }
}
