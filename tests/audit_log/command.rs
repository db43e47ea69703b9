//! `sealblk audit verify` and `tail`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use sealblk::audit::{Log, Settings};
use serde_json::Value;

use super::lab::{Lab, note};

fn sealblk(arguments: &[&str], lab: &Lab) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sealblk"))
        .arg("audit")
        .args(arguments)
        .arg(lab.path())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn verify_shows_the_head_and_takes_it_back() {
    let (lab, lines) = Lab::with_lines(4);
    let output = sealblk(&["verify"], &lab);
    assert!(output.status.success());
    let shown = text(&output.stdout);
    assert!(
        shown.contains("4 lines in 1 files, number 1 to 4"),
        "{shown}"
    );
    let head = shown
        .lines()
        .find_map(|line| line.strip_prefix("head "))
        .unwrap();
    assert!(
        sealblk(&["verify", "--expect", head], &lab)
            .status
            .success()
    );

    let json = sealblk(&["verify", "--json"], &lab);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["lines"], 4);
    assert_eq!(
        head,
        format!(
            "{}:{}",
            json["head"]["seq"],
            json["head"]["hash"].as_str().unwrap()
        )
    );

    lab.write(&[&lines[..1], &lines[2..]].concat());
    let output = sealblk(&["verify"], &lab);
    assert_eq!(output.status.code(), Some(7));
    let place = format!("{}:2: ", lab.path().display());
    assert!(
        text(&output.stderr).contains(&place),
        "{}",
        text(&output.stderr)
    );
    assert!(text(&output.stderr).contains("help: "));
    let json = sealblk(&["verify", "--json"], &lab);
    assert_eq!(json.status.code(), Some(7));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&json["ok"], &json["problem"]["line"]),
        (&false.into(), &2.into())
    );

    let absent = Lab::new();
    assert_eq!(sealblk(&["verify"], &absent).status.code(), Some(3));
    assert_eq!(
        sealblk(&["verify", "--expect", "x"], &lab).status.code(),
        Some(2)
    );
}

#[test]
fn the_configuration_says_where_the_log_is() {
    let (lab, _) = Lab::with_lines(2);
    let config = lab.beside("toml");
    std::fs::write(&config, format!("[audit]\npath = {:?}\n", lab.path())).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sealblk"))
        .args(["audit", "verify", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(text(&output.stdout).contains("2 lines"), "{output:?}");
}

#[test]
fn tail_shows_the_last_lines_of_all_files() {
    let lab = Lab::new();
    let log = Log::new(Settings {
        max_size: 1500,
        ..lab.settings()
    });
    (0..20).for_each(|n| note(&log, n));
    let output = sealblk(&["tail", "-n", "9", "--json"], &lab);
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 9);
    assert!(
        lines
            .windows(2)
            .all(|w| w[0]["seq"].as_u64().unwrap() + 1 == w[1]["seq"])
    );
    assert_eq!(lines[8]["operation"], "19");
    let plain = sealblk(&["tail", "-n", "1"], &lab);
    let plain = text(&plain.stdout);
    assert!(
        plain.contains(" role_refused denied ") && plain.contains("operation=19"),
        "{plain}"
    );
    for filter in [
        ["--key-set", "absent"],
        ["--volume", "00000000-0000-0000-0000-000000000001"],
    ] {
        let output = sealblk(&[&["tail"][..], &filter].concat(), &lab);
        assert!(output.status.success() && output.stdout.is_empty());
    }
}

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn tail_follows_through_rotations_until_nobody_reads() {
    let lab = Lab::new();
    let log = Log::new(Settings {
        max_size: 1500,
        ..lab.settings()
    });
    note(&log, 0);
    let child = Command::new(env!("CARGO_BIN_EXE_sealblk"))
        .args(["audit", "tail", "--follow", "--json", "-n", "1"])
        .arg(lab.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Guard(child);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["operation"], "0");
    let first = 3;
    (1..30).for_each(|n| note(&log, n));
    assert!(lab.beside("000003").exists());
    let mut seq = first;
    loop {
        let line = next();
        assert_eq!(line["seq"], seq);
        seq += 1;
        if line["operation"] == "29" {
            break;
        }
    }
    // The reader goes away.
    drop(lines);
    assert!(child.0.wait().unwrap().success());
}
