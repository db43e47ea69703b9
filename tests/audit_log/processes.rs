//! Several processes, each with several threads, append to one log.

use std::collections::HashMap;
use std::fs;

use sealblk::audit::{Files, Log, Settings};

use super::lab::{Lab, Process, given_number, given_path, try_note};

const PROCESSES: u64 = 4;
const THREADS: u64 = 2;
const LINES: u64 = 40;

fn run(lab: &Lab, max_size: &str, keep: &str) {
    let processes: Vec<Process> = (0..PROCESSES)
        .map(|process| {
            let variables = [
                ("FIRST", &*(process * 1000).to_string()),
                ("MAX_SIZE", max_size),
                ("KEEP", keep),
            ];
            Process::run("processes::append", lab, &variables)
        })
        .collect();
    processes.into_iter().for_each(Process::assert_success);
}

#[test]
#[ignore = "other tests run it, in processes of their own"]
fn append() {
    let Some(path) = given_path() else { return };
    let first = given_number("FIRST");
    let log = Log::new(Settings {
        path,
        max_size: given_number("MAX_SIZE"),
        keep: u32::try_from(given_number("KEEP"))
            .ok()
            .filter(|&keep| keep > 0),
    });
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (log, first) = (&log, first + thread * 100);
            scope.spawn(move || {
                (first..first + LINES).for_each(|n| try_note(log, "many", n).unwrap());
            });
        }
    });
}

/// How often each number was recorded.
fn recorded(lab: &Lab) -> HashMap<u64, u32> {
    let mut counts = HashMap::new();
    for segment in Files::of(&lab.path()).unwrap().segments {
        for line in fs::read_to_string(&segment.path).unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            if line["event"] == "role_refused" {
                let number = line["operation"].as_str().unwrap().parse().unwrap();
                *counts.entry(number).or_default() += 1;
            }
        }
    }
    counts
}

fn assert_each_once(lab: &Lab) {
    let counts = recorded(lab);
    assert_eq!(counts.len() as u64, PROCESSES * THREADS * LINES);
    assert!(counts.values().all(|&count| count == 1));
}

#[test]
fn each_line_of_four_processes_is_there_once() {
    let lab = Lab::new();
    run(&lab, "1000000", "0");
    let report = lab.assert_sound();
    assert_eq!(report.files.len(), 1);
    assert_eq!(report.lines, PROCESSES * THREADS * LINES + 1);
    assert!(report.torn.is_empty());
    assert_each_once(&lab);
}

#[test]
fn rotation_under_four_processes_loses_nothing() {
    let lab = Lab::new();
    run(&lab, "4000", "0");
    let report = lab.assert_sound();
    assert!(report.files.len() > 10, "{}", report.files.len());
    assert!(report.torn.is_empty());
    assert_each_once(&lab);
}

#[test]
fn old_files_are_removed_under_four_processes() {
    let lab = Lab::new();
    run(&lab, "4000", "3");
    let report = lab.assert_sound();
    assert_eq!(report.files.len(), 4);
    assert_eq!(
        report.removed_through,
        report.first_seq.map(|first| first - 1)
    );
}
