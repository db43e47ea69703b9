//! The real commands are killed at random instants, again and again, and gone on
//! with. `SEALBLK_KILLS` says how many times; the seed of a run is printed, and
//! `SEALBLK_SEED` repeats it as far as instants can be repeated.

use std::process::Stdio;
use std::time::{Duration, Instant};

use sealblk::units::SectorSize;

use crate::lab::{Lab, Random, decrypted, disk};

const SIZE: usize = 24 << 20;

pub fn kills() -> u64 {
    let count = std::env::var("SEALBLK_KILLS").ok();
    count.map_or(4, |count| count.parse().unwrap())
}

pub fn seed(what: &str) -> Random {
    let given = std::env::var("SEALBLK_SEED").ok();
    let seed = given.map_or_else(
        || {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).unwrap();
            u64::from_ne_bytes(bytes) | 1
        },
        |seed| seed.parse().unwrap(),
    );
    println!("{what}: SEALBLK_SEED={seed}");
    Random(seed)
}

/// How a command ended.
#[derive(PartialEq)]
pub enum End {
    Killed,
    Whole,
}

/// Runs a command, and kills it after that time unless it ends before.
pub fn killed_after(lab: &Lab, arguments: &[&str], time: Duration) -> End {
    let mut command = lab.command(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let output = child.wait_with_output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(status.success(), "{arguments:?}: {status}: {errors}");
            return End::Whole;
        }
        if start.elapsed() >= time {
            child.kill().unwrap();
            child.wait().unwrap();
            return End::Killed;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Repeats a command until it is done, killed at most so many times on the way, and
/// returns how often it was. `arguments` are those of the next run, by how often it was
/// killed; none if it was done when it was killed last.
pub fn campaign(
    lab: &Lab,
    arguments: &mut dyn FnMut(u64) -> Option<Vec<String>>,
    random: &mut Random,
    took: Duration,
) -> u64 {
    let mut count = 0;
    while let Some(arguments) = arguments(count) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if count >= kills() {
            lab.ok(&arguments);
            break;
        }
        let most = took.as_micros() as u64 / 2;
        let time = Duration::from_micros(random.next() % most.max(1));
        if killed_after(lab, &arguments, time) == End::Whole {
            break;
        }
        count += 1;
    }
    count
}

/// How long a command takes that is not killed.
pub fn time_of(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

pub fn strings(arguments: &[&str]) -> Vec<String> {
    arguments
        .iter()
        .map(|&argument| argument.to_owned())
        .collect()
}

#[test]
fn a_rekey_that_is_killed_anywhere_goes_on_and_ends_either_way() {
    let mut random = seed("rekey");
    let lab = Lab::new();
    lab.ok(&["volume", "create", "disk.img", "--size", "24M"]);
    let plain = lab.read("disk.img", 16 << 20, SIZE);
    let plain = decrypted(&lab.dek(&["disk.img"]), SectorSize::B512, false, &plain);
    let took = time_of(|| drop(lab.ok(&["volume", "rekey", "disk.img"])));
    let mut total = 0;
    while total < kills() {
        let before = lab.dek(&["disk.img"]);
        let back = random.next().is_multiple_of(2);
        let turn = random.next() % 4;
        let mut arguments = |count| {
            let mut arguments = strings(&["volume", "rekey", "disk.img"]);
            // Back from somewhere, once it has begun.
            let begun = lab.json(&["volume", "info", "--json", "disk.img"])["rekey"].is_object();
            if back && count >= turn && begun {
                arguments.push("--back".into());
            }
            Some(arguments)
        };
        total += 1 + campaign(&lab, &mut arguments, &mut random, took);
        let info = lab.json(&["volume", "info", "--json", "disk.img"]);
        assert!(!info["rekey"].is_object(), "{info}");
        let after = lab.dek(&["disk.img"]);
        let stored = lab.read("disk.img", 16 << 20, SIZE);
        let found = decrypted(&after, SectorSize::B512, false, &stored);
        let bad = found
            .chunks(512)
            .zip(plain.chunks(512))
            .position(|(a, b)| a != b);
        assert_eq!(bad, None, "a sector is not what it was");
        lab.cryptsetup_proves("disk.img", &after);
        if !back {
            assert_ne!(before, after);
        }
    }
}

#[test]
fn a_disk_that_is_killed_on_its_way_to_be_encrypted_or_plain_is_whole_in_the_end() {
    let mut random = seed("encrypt and decrypt");
    let lab = Lab::new();
    let plain = disk(SIZE, random.next());
    lab.write("disk.img", &plain, 0);
    let names = ["disk.img", "--header", "h"];
    let encrypt = [&["volume", "encrypt"][..], &names, &["--header-area", "1M"]].concat();
    let encrypt = [&encrypt[..], &["--zero-units"]].concat();
    // What is killed after its end has ended.
    let info = || {
        let done = lab.run(&[&["volume", "info", "--json"][..], &names].concat());
        serde_json::from_str::<serde_json::Value>(&done.out).unwrap_or_default()
    };
    let mut took = Duration::from_millis(500);
    let mut total = 0;
    while total < kills() {
        let mut arguments = |_| {
            let info = info();
            let done = info["uuid"].is_string() && !info["rekey"].is_object();
            (!done).then(|| strings(&encrypt))
        };
        let time = time_of(|| total += 1 + campaign(&lab, &mut arguments, &mut random, took));
        took = took.min(time);
        let dek = lab.dek(&names);
        let stored = lab.read("disk.img", 0, SIZE);
        assert!(decrypted(&dek, SectorSize::B512, true, &stored) == plain);
        lab.cryptsetup_proves("h", &dek);
        let uuid = info()["uuid"].as_str().unwrap().to_owned();
        let decrypt = [&["volume", "decrypt"][..], &names, &["--confirm", &uuid]].concat();
        let mut arguments = |_| {
            let done = info()["plain"].is_object();
            (!done).then(|| strings(&decrypt))
        };
        total += 1 + campaign(&lab, &mut arguments, &mut random, took);
        assert!(lab.read("disk.img", 0, SIZE) == plain);
        std::fs::remove_file(lab.path("h")).unwrap();
    }
}
