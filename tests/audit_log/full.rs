//! Where nothing can be written, nothing is handed out, and nothing is broken.

use std::fs;
use std::io;
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};
use sealblk::audit::{Cause, Log, Settings};
use sealblk::error::{Explain, Kind};

use super::lab::{Lab, Process, given_path, note, try_note};

/// The error of the first record that fails.
fn fill(log: &Log) -> sealblk::audit::Error {
    (0..100_000)
        .find_map(|number| try_note(log, "fill", number).err())
        .expect("it is never full")
}

#[test]
fn a_limit_on_file_sizes_fails_the_record_and_breaks_no_line() {
    let lab = Lab::new();
    Process::run("full::write_to_the_limit", &lab, &[]).assert_success();
    let report = lab.assert_sound();
    assert!(report.torn.is_empty(), "what was begun is taken back");
    // With room again, it goes on.
    note(&lab.log(), 1);
    assert_eq!(lab.assert_sound().lines, report.lines + 1);
}

#[test]
#[ignore = "another test runs it, in a process with a limit"]
fn write_to_the_limit() {
    let Some(path) = given_path() else { return };
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default()).unwrap();
    let limit = Rlimit {
        current: Some(10_000),
        maximum: None,
    };
    setrlimit(Resource::Fsize, limit).unwrap();
    let log = Log::new(Settings {
        path,
        ..Settings::default()
    });
    let error = fill(&log);
    assert_eq!(error.kind(), Kind::Io);
    assert!(
        error.help().unwrap().contains("ulimit -f"),
        "{:?}",
        error.help()
    );
    // Still, and the same.
    try_note(&log, "again", 0).unwrap_err();
}

struct Mounted<'a>(&'a std::path::Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
#[ignore = "needs root, to mount"]
fn a_full_file_system_fails_the_record_and_breaks_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"])
        .arg(directory.path())
        .status();
    assert!(mount.unwrap().success());
    let _mounted = Mounted(directory.path());
    let settings = Settings {
        path: directory.path().join("audit.jsonl"),
        ..Settings::default()
    };
    let log = Log::new(settings.clone());
    let error = fill(&log);
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.help().unwrap().contains("free some space"));
    assert!(
        matches!(&error.cause, Cause::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull)
    );
    let verify = || {
        let files = sealblk::audit::Files::of(&settings.path).unwrap();
        sealblk::audit::verify(&files, None, false).unwrap()
    };
    let report = verify();
    assert!(report.ok && report.torn.is_empty(), "{report:?}");
    drop(log);

    // Nor when the file has to be rotated.
    let rotating = Log::new(Settings {
        max_size: 20_000,
        ..settings.clone()
    });
    let ballast = fs::read_dir(directory.path()).unwrap().count();
    try_note(&rotating, "rotate", 0).unwrap_err();
    assert!(verify().ok);
    assert!(fs::read_dir(directory.path()).unwrap().count() >= ballast);
}
