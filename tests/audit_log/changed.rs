//! Whatever is changed in a log is found, and where.

use std::fs;

use super::lab::{Lab, Saved, forge, note};

#[test]
fn every_byte_that_is_changed_is_found() {
    let (lab, lines) = Lab::with_lines(4);
    let good = lab.assert_sound();
    assert_eq!((good.lines, good.first_seq), (4, Some(1)));
    let bytes = lines.concat();
    for at in 0..bytes.len() {
        for change in [0x01, 0x20, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            fs::write(lab.path(), &changed).unwrap();
            let report = lab.verify();
            assert!(!report.ok, "byte {at} changed by {change:#x}");
        }
    }
    fs::write(lab.path(), bytes).unwrap();
    lab.assert_sound();
}

#[test]
fn the_line_that_was_changed_is_named() {
    let (lab, lines) = Lab::with_lines(5);
    let mut changed = lines.clone();
    let text = String::from_utf8(lines[2].clone()).unwrap();
    changed[2] = text.replace("\"uid\":", "\"uid\":1").into_bytes();
    lab.write(&changed);
    lab.assert_problem(Some(3), "its hash does not match");
    // Also by someone who knows how hashes are made.
    changed[2] = forge(&lines[2], |body| body.replace("\"uid\":", "\"uid\":1"));
    lab.write(&changed);
    lab.assert_problem(Some(4), "that one was replaced");
    // One that is no line at all any more.
    changed[2] = b"{}\n".to_vec();
    lab.write(&changed);
    lab.assert_problem(Some(3), "not a whole line");
}

#[test]
fn lines_that_are_removed_moved_repeated_or_inserted_are_found() {
    let (lab, lines) = Lab::with_lines(6);
    let check = |order: &[usize], line, what| {
        lab.write(
            &order
                .iter()
                .map(|&at| lines[at].clone())
                .collect::<Vec<_>>(),
        );
        lab.assert_problem(line, what);
    };
    check(
        &[0, 1, 3, 4, 5],
        Some(3),
        "line number 3, which belongs before it",
    );
    check(&[0, 1, 4, 5], Some(3), "lines number 3 to 4");
    check(&[0, 2, 1, 3, 4, 5], Some(2), "line number 2");
    check(
        &[0, 1, 1, 2, 3, 4, 5],
        Some(3),
        "moved, repeated or inserted",
    );
    check(
        &[0, 1, 2, 1, 3, 4, 5],
        Some(4),
        "moved, repeated or inserted",
    );
    check(&[1, 2, 3, 4, 5], None, "begins with line number 2");

    let mut inserted = lines.clone();
    inserted.insert(
        3,
        forge(&lines[3], |body| body.replace("\"test\"", "\"evil\"")),
    );
    lab.write(&inserted);
    lab.assert_problem(Some(5), "moved, repeated or inserted");
}

#[test]
fn lines_cut_off_the_end_are_found_by_the_head() {
    let (lab, lines) = Lab::with_lines(5);
    let head = lab.assert_sound().head.unwrap().to_string();
    lab.write(&lines[..3]);
    lab.assert_problem(None, "ends with line number 3, and had 5 lines");
    // All of it, and a new one.
    fs::write(lab.path(), "").unwrap();
    lab.assert_problem(None, "ends with line number 0, and had 5 lines");

    // Somebody who knows of the file beside it.
    lab.write(&lines[..3]);
    fs::remove_file(lab.beside("head")).unwrap();
    assert!(lab.verify().ok, "nothing on this host tells");
    for expect in ["4", "5", &head, head.split_once(':').unwrap().1] {
        let problem = lab.verify_with(Some(expect), false).problem.unwrap();
        assert_eq!(problem.line, None);
        assert!(problem.what.contains("expected"), "{expect}: {problem:?}");
    }
    for expect in ["3", "1"] {
        assert!(lab.verify_with(Some(expect), false).ok);
    }
}

#[test]
fn a_head_that_was_remembered_is_found_later() {
    let (lab, _lines) = Lab::with_lines(3);
    let head = lab.verify().head.unwrap();
    note(&lab.log(), 9);
    for expect in [
        head.to_string(),
        head.hash.to_string(),
        head.seq.to_string(),
    ] {
        assert!(lab.verify_with(Some(&expect), false).ok, "{expect}");
    }
    // The right number with another hash.
    let other = format!("{}:{}", head.seq - 1, head.hash);
    assert!(!lab.verify_with(Some(&other), false).ok);
}

/// A writer does not make it good again that lines are gone.
#[test]
fn a_gap_stays_to_be_seen() {
    let (lab, lines) = Lab::with_lines(5);
    let saved = Saved::of(&lab);
    lab.write(&lines[..3]);
    note(&lab.log(), 9);
    let recovered = String::from_utf8(lab.lines()[3].clone()).unwrap();
    assert!(recovered.contains("\"lost_after\":3"), "{recovered}");
    lab.assert_problem(Some(4), "lines number 4 to 5");

    // The last line altered and sealed again, so that nothing is missing.
    saved.restore(&lab);
    let mut altered = lines.clone();
    altered[4] = forge(&lines[4], |body| body.replace("\"test\"", "\"evil\""));
    lab.write(&altered);
    lab.assert_problem(None, "another one now");
    note(&lab.log(), 9);
    lab.assert_problem(Some(6), "that one was replaced");

    // Altered without.
    saved.restore(&lab);
    altered[4] = lines[4].clone();
    altered[4][20] ^= 1;
    lab.write(&altered);
    note(&lab.log(), 9);
    lab.assert_problem(Some(5), "altered");

    // All gone, under a writer that has it open, and without a head.
    saved.restore(&lab);
    let log = lab.log();
    note(&log, 9);
    fs::remove_file(lab.path()).unwrap();
    fs::remove_file(lab.beside("head")).unwrap();
    note(&log, 10);
    lab.assert_problem(None, "begins with line number 7");
}

#[test]
fn rotated_files_belong_to_it() {
    let lab = Lab::new();
    let mut settings = lab.settings();
    settings.max_size = 2000;
    let log = sealblk::audit::Log::new(settings);
    (0..40).for_each(|n| note(&log, n));
    let report = lab.assert_sound();
    let count = report.files.len();
    assert!(count > 4, "{count}");
    let saved = Saved::of(&lab);
    for file in &report.files[..count - 1] {
        assert!(fs::metadata(file).unwrap().len() <= 2000);
        fs::remove_file(file).unwrap();
        assert!(!lab.verify().ok, "without {file:?}");
        // That the first one is missing is nothing that the chain shows.
        assert_eq!(lab.python().is_ok(), file == &report.files[0]);
        saved.restore(&lab);
    }
    // The oldest may have been moved elsewhere.
    fs::remove_file(&report.files[0]).unwrap();
    lab.assert_problem(None, "nothing says that those before were removed");
    assert!(lab.verify_with(None, true).ok);
    fs::remove_file(&report.files[2]).unwrap();
    assert!(!lab.verify_with(None, true).ok);
    saved.restore(&lab);
    // Two files swapped.
    fs::rename(&report.files[1], lab.beside("x")).unwrap();
    fs::rename(&report.files[2], &report.files[1]).unwrap();
    fs::rename(lab.beside("x"), &report.files[2]).unwrap();
    assert!(!lab.verify().ok);
}

#[test]
fn files_that_are_not_kept_are_accounted_for() {
    let lab = Lab::new();
    let mut settings = lab.settings();
    (settings.max_size, settings.keep) = (2000, Some(2));
    let log = sealblk::audit::Log::new(settings);
    (0..60).for_each(|n| note(&log, n));
    let report = lab.assert_sound();
    assert_eq!(report.files.len(), 3);
    let first = report.first_seq.unwrap();
    assert_eq!(report.removed_through, Some(first - 1));
    assert!(first > 20, "{first}");
    // Nobody else may do the same.
    fs::remove_file(&report.files[0]).unwrap();
    lab.assert_problem(None, "nothing says");
}
