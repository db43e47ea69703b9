//! A crash at any instant leaves a log that goes on.

use std::fs;
use std::time::{Duration, Instant};

use sealblk::audit::{Log, Settings};

use super::lab::{Lab, Process, Saved, given_path, note, try_note};

/// Puts the log back as it was after `lines` lines and `cut` bytes more.
fn cut(lab: &Lab, saved: &Saved, whole: &[u8], length: usize) {
    saved.restore(lab);
    fs::write(lab.path(), &whole[..length]).unwrap();
}

#[test]
fn a_line_cut_off_at_any_byte_is_kept_and_accounted_for() {
    let (lab, _) = Lab::with_lines(3);
    // As it was before the line that is cut off: with the head of then.
    let saved = Saved::of(&lab);
    let before = lab.bytes().len();
    note(&lab.log(), 7);
    let whole = lab.bytes();
    for length in before + 1..whole.len() {
        cut(&lab, &saved, &whole, length);
        let report = lab.verify();
        assert_eq!(report.problem, None);
        assert_eq!((report.torn.len(), report.torn[0].line), (1, 4));
        assert!(!report.torn[0].recovered);

        note(&lab.log(), 8);
        let report = lab.verify();
        assert_eq!(report.problem, None, "cut at {length}");
        assert!(
            lab.bytes().starts_with(&whole[..length]),
            "nothing is dropped"
        );
        let only_its_end = length == whole.len() - 1;
        if only_its_end {
            // Then it is a line.
            assert_eq!((report.lines, report.torn.len()), (5, 0));
        } else {
            assert_eq!(report.lines, 5, "with `recovered`");
            assert!(report.torn[0].recovered);
            assert_eq!(report.torn[0].bytes, (length - before) as u64 + 1);
        }
        if length % 40 == 0 || only_its_end {
            lab.assert_sound();
        }
    }
}

/// The line that accounts for a crash may itself be cut off, again and again.
#[test]
fn recovery_cut_off_at_any_byte_is_recovered_from() {
    let (lab, _) = Lab::with_lines(2);
    let saved = Saved::of(&lab);
    let before = lab.bytes().len();
    note(&lab.log(), 7);
    let first = before + 100;
    let whole = lab.bytes();
    cut(&lab, &saved, &whole, first);
    note(&lab.log(), 8);
    let recovered = lab.bytes();
    for length in first..recovered.len() {
        cut(&lab, &saved, &recovered, length);
        note(&lab.log(), 9);
        let report = lab.verify();
        assert_eq!(report.problem, None, "cut at {length}");
        assert!(lab.bytes().starts_with(&recovered[..length]));
        if length % 97 == 0 {
            lab.assert_sound();
            // And once more, in the middle of what that has written.
            let again = lab.bytes();
            cut(&lab, &saved, &again, length + 30);
            note(&lab.log(), 10);
            lab.assert_sound();
        }
    }
}

#[test]
fn a_rotation_cut_off_at_any_step_goes_on() {
    let lab = Lab::new();
    let settings = Settings {
        max_size: 1500,
        ..lab.settings()
    };
    let log = || Log::new(settings.clone());
    let mut number = 0;
    while !lab.beside("000001").exists() {
        note(&log(), number);
        number += 1;
    }
    let saved = Saved::of(&lab);
    let whole = lab.bytes();
    let heads = lab.lines();
    assert!(String::from_utf8_lossy(&heads[0]).contains("audit_rotated"));
    // Before the new file was there.
    saved.restore(&lab);
    fs::remove_file(lab.path()).unwrap();
    fs::remove_file(lab.beside("head")).unwrap();
    lab.assert_sound();
    note(&log(), 90);
    lab.assert_sound();
    // With any part of its first lines.
    for length in 0..whole.len() {
        cut(&lab, &saved, &whole, length);
        fs::remove_file(lab.beside("head")).unwrap();
        note(&log(), 91);
        let report = lab.verify();
        assert_eq!(report.problem, None, "cut at {length}");
        if length % 60 == 0 {
            lab.assert_sound();
        }
    }
    // The head file was made, and not yet written.
    saved.restore(&lab);
    fs::write(lab.beside("head"), "").unwrap();
    note(&log(), 92);
    lab.assert_sound();
}

/// In the very first line, nothing is before it to go on after.
#[test]
fn a_first_line_cut_off_at_any_byte_is_accounted_for() {
    let lab = Lab::new();
    note(&lab.log(), 1);
    let whole = lab.bytes();
    let end = lab.lines()[0].len();
    for length in 0..end {
        fs::write(lab.path(), &whole[..length]).unwrap();
        fs::remove_file(lab.beside("head")).unwrap();
        note(&lab.log(), 2);
        let report = lab.verify();
        assert_eq!(report.problem, None, "cut at {length}");
        assert_eq!(
            report.torn.len(),
            usize::from(length > 0 && length < end - 1)
        );
    }
    lab.assert_sound();
}

#[test]
fn processes_killed_while_they_append_leave_a_sound_log() {
    let lab = Lab::new();
    let recorded = || {
        let head = fs::read_to_string(lab.beside("head")).unwrap_or_default();
        head.split(':')
            .next()
            .and_then(|seq| seq.parse().ok())
            .unwrap_or(0u64)
    };
    for round in 0..12 {
        let enough = recorded() + 10 + round * 3;
        let processes = [(), ()].map(|()| Process::run("crash::append_until_killed", &lab, &[]));
        let deadline = Instant::now() + Duration::from_secs(60);
        while recorded() < enough {
            assert!(Instant::now() < deadline, "nothing is appended");
            std::thread::yield_now();
        }
        processes.into_iter().for_each(Process::kill);
        lab.assert_sound();
    }
    note(&lab.log(), 0);
    assert!(lab.assert_sound().lines > 100);
}

#[test]
#[ignore = "other tests run it, in a process that they kill"]
fn append_until_killed() {
    let Some(path) = given_path() else { return };
    let log = Log::new(Settings {
        path,
        max_size: 20_000,
        keep: None,
    });
    let parent = std::os::unix::process::parent_id();
    for number in 0.. {
        if std::os::unix::process::parent_id() != parent {
            return;
        }
        try_note(&log, "killed", number).unwrap();
    }
}

/// The power fails when the length of the file has reached the disk, and of the
/// line any of its sectors: the others read as zeroes.
#[test]
fn a_line_of_which_sectors_are_missing_is_kept_and_accounted_for() {
    let (lab, _) = Lab::with_lines(3);
    let saved = Saved::of(&lab);
    let before = lab.bytes().len();
    note(&lab.log(), 7);
    let whole = lab.bytes();
    let boundary = before.next_multiple_of(512);
    assert!(boundary < whole.len() - 1, "the line is in two sectors");
    for missing in [before..boundary, boundary..whole.len(), before..whole.len()] {
        let mut torn = whole.clone();
        torn[missing.clone()].fill(0);
        saved.restore(&lab);
        fs::write(lab.path(), &torn).unwrap();
        assert_eq!(lab.verify().problem, None, "{missing:?}");
        note(&lab.log(), 8);
        let report = lab.verify();
        assert_eq!(report.problem, None, "{missing:?}");
        assert!(report.torn[0].recovered);
        assert!(lab.bytes().starts_with(&torn), "nothing is dropped");
        lab.assert_sound();
    }
    // A line that was there stays altered.
    let mut altered = whole;
    altered[before - 100] = 0;
    saved.restore(&lab);
    fs::write(lab.path(), &altered).unwrap();
    assert!(lab.verify().problem.is_some());
}

/// Nor is a log lost of which nothing has reached the disk but lengths.
#[test]
fn a_log_that_is_zeroes_after_a_power_failure_goes_on() {
    let lab = Lab::new();
    note(&lab.log(), 1);
    let length = lab.bytes().len();
    fs::write(lab.path(), vec![0; length]).unwrap();
    fs::write(lab.path().with_file_name("audit.jsonl.head"), [0; 86]).unwrap();
    note(&lab.log(), 2);
    let report = lab.verify();
    assert_eq!(report.problem, None);
    assert!(report.torn[0].recovered);
    lab.assert_sound();
}
