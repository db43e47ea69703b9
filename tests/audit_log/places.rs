//! A log is written only where nobody else can change it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use sealblk::audit::{Log, Settings};
use sealblk::error::{Explain, Failure, Kind};

use super::lab::{Lab, note, try_note, write_private};

/// Both ways refuse it alike, and change nothing.
fn refused(lab: &Lab, kind: Kind, next: &str) {
    let open = Log::open(lab.settings()).unwrap_err();
    let record = try_note(&lab.log(), "test", 1).unwrap_err();
    for error in [open, record] {
        assert_eq!(error.kind(), kind, "{error}");
        let help = error.help().unwrap();
        assert!(help.contains(next), "{error}: {help}");
        let path = lab.path().display().to_string();
        assert!(Failure::from(error).to_string().contains(&path));
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn files_are_private_and_the_directory_is_made() {
    let lab = Lab::new();
    let settings = Settings {
        path: lab.path().with_file_name("new").join("audit.jsonl"),
        ..lab.settings()
    };
    let log = Log::open(settings.clone()).unwrap();
    note(&log, 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&settings.path), 0o600);
    assert_eq!(
        mode(&settings.path.with_file_name("audit.jsonl.head")),
        0o600
    );
    assert_eq!(mode(settings.path.parent().unwrap()), 0o700);
    let deep = Settings {
        path: lab.path().with_file_name("a").join("b/audit.jsonl"),
        ..settings
    };
    let error = Log::open(deep).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.help().unwrap().contains("mkdir -p"));
}

#[test]
fn what_others_can_read_or_change_is_refused() {
    let (lab, _) = Lab::with_lines(3);
    for mode in [0o644, 0o620, 0o602, 0o606] {
        chmod(&lab.path(), mode);
        refused(&lab, Kind::Permission, "chmod 0600");
    }
    // A group may read it.
    chmod(&lab.path(), 0o640);
    note(&lab.log(), 1);
    let directory = lab.path().parent().unwrap().to_owned();
    for mode in [0o770, 0o777, 0o1777] {
        chmod(&directory, mode);
        refused(&lab, Kind::Permission, "chmod go-w");
    }
    chmod(&directory, 0o755);
    note(&lab.log(), 1);
    lab.assert_sound();
}

#[test]
fn a_group_that_may_read_it_may_read_what_follows() {
    let lab = Lab::new();
    note(&lab.log(), 1);
    chmod(&lab.path(), 0o640);
    let small = Settings {
        max_size: 500,
        ..lab.settings()
    };
    note(&Log::new(small.clone()), 2);
    assert!(lab.beside("000001").exists());
    assert_eq!(fs::metadata(lab.path()).unwrap().mode() & 0o777, 0o640);
    // A mode that is not safe is not taken over.
    chmod(&lab.beside("000001"), 0o600);
    chmod(&lab.path(), 0o600);
    note(&Log::new(small), 3);
    assert_eq!(fs::metadata(lab.path()).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn links_and_other_things_are_refused() {
    let lab = Lab::new();
    let target = lab.beside("target");
    write_private(&target, b"");
    symlink(&target, lab.path()).unwrap();
    refused(&lab, Kind::Permission, "a file of its own");
    assert_eq!(fs::read(&target).unwrap(), b"");
    fs::remove_file(lab.path()).unwrap();

    fs::create_dir(lab.path()).unwrap();
    refused(&lab, Kind::Permission, "a file of its own");
    fs::remove_dir(lab.path()).unwrap();

    let fifo = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        lab.path(),
        rustix::fs::FileType::Fifo,
        fifo,
        0,
    )
    .unwrap();
    refused(&lab, Kind::Permission, "a file of its own");
    fs::remove_file(lab.path()).unwrap();

    // The notes of somebody.
    for other in [&b"root:x:0:0\n"[..], b"{}\n", b"{\"a\":1}\n{\"v\":1}\n"] {
        write_private(&lab.path(), other);
        refused(&lab, Kind::Corrupt, "a file of its own");
        assert_eq!(lab.bytes(), other);
    }
}

#[test]
fn a_head_file_that_is_a_link_is_not_followed() {
    let lab = Lab::new();
    let target = lab.beside("target");
    write_private(&target, b"precious");
    symlink(&target, lab.beside("head")).unwrap();
    try_note(&lab.log(), "test", 1).unwrap_err();
    assert_eq!(fs::read(&target).unwrap(), b"precious");
}

#[test]
#[ignore = "needs root, to give a file away"]
fn a_stranger_s_file_is_refused() {
    let (lab, _) = Lab::with_lines(2);
    chown(lab.path(), Some(12345), None).unwrap();
    refused(&lab, Kind::Permission, "chown 0");
    chown(lab.path(), Some(0), None).unwrap();
    let directory = lab.path().parent().unwrap().to_owned();
    chown(&directory, Some(12345), None).unwrap();
    refused(&lab, Kind::Permission, "chown 0");
}
