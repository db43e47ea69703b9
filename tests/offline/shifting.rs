//! Commands that move a disk, to make room for its header or over the one that it
//! had.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sealblk::config::{Config, Overrides};
use sealblk::conversion::{Shifting, Speed};
use sealblk::keys::Context;
use sealblk::prepare::Opening;
use sealblk::shift::Progress;
use sealblk::units::SectorSize;
use sealblk::volume::{Access, Location, Volume};

use crate::kills::{campaign, kills, seed, strings, time_of};
use crate::lab::{Lab, decrypted, disk};

const SIZE: usize = 5 << 20;

fn length(lab: &Lab, name: &str) -> u64 {
    fs::metadata(lab.path(name)).unwrap().len()
}

#[test]
fn a_disk_gets_a_header_before_it_and_loses_it_again() {
    for (unit, area, zero_units) in [
        (SectorSize::B512, 1 << 20, false),
        (SectorSize::B4096, 48 << 10, true),
        // More room than there is data.
        (SectorSize::B512, 16 << 20, true),
    ] {
        let lab = Lab::new();
        let plain = disk(SIZE, 19);
        lab.write("disk.img", &plain, 0);
        let (unit_flag, area_flag) = (unit.to_string(), area.to_string());
        let mut encrypt = vec!["volume", "encrypt", "disk.img", "--json"];
        encrypt.extend(["--sector-size", &unit_flag, "--header-area", &area_flag]);
        encrypt.extend(zero_units.then_some("--zero-units"));
        let done = lab.json(&encrypt);
        assert_eq!((&done["state"], &done["left"]), (&"done".into(), &0.into()));
        assert_eq!(length(&lab, "disk.img"), (SIZE + area) as u64);
        assert!(!lab.path("disk.img.sealblk-moving").exists());
        let dek = lab.dek(&["disk.img"]);
        lab.cryptsetup_proves("disk.img", &dek);
        let stored = lab.read("disk.img", area as u64, SIZE);
        assert!(
            decrypted(&dek, unit, zero_units, &stored) == plain,
            "{unit}"
        );
        // Nothing of it is left as it was, wherever.
        let file = fs::read(lab.path("disk.img")).unwrap();
        let found: HashSet<&[u8]> = file.chunks(512).collect();
        let mut sectors = plain.chunks(512).filter(|sector| *sector != [0; 512]);
        assert!(
            !sectors.any(|sector| found.contains(sector)),
            "left in plain"
        );
        lab.fails(6, &encrypt);
        assert_eq!(
            lab.json(&["volume", "verify-header", "--json", "disk.img"])["usable"],
            true
        );

        let decrypt = ["volume", "decrypt", "disk.img"];
        let refused = lab.fails(6, &decrypt);
        let uuid = done["uuid"].as_str().unwrap();
        assert!(refused.contains(&format!("--confirm {uuid}")), "{refused}");
        lab.ok(&[&decrypt[..], &["--confirm", uuid]].concat());
        assert!(fs::read(lab.path("disk.img")).unwrap() == plain);
        assert!(!lab.path("disk.img.sealblk-moving").exists());
        assert_eq!(lab.actions(), ["begin", "finish", "begin", "finish"]);
    }
}

#[test]
fn while_a_disk_is_in_pieces_nobody_takes_it_for_one() {
    let lab = Lab::new();
    let plain = disk(SIZE, 23);
    lab.write("disk.img", &plain, 0);
    let encrypt = ["volume", "encrypt", "disk.img", "--header-area", "64K"];
    let child = lab
        .command(&[&encrypt[..], &["--limit", "256K"]].concat())
        .spawn();
    let mut child = child.unwrap();
    let start = std::time::Instant::now();
    while !lab.read("disk.img", 0, 8).starts_with(b"SEALBLK ") {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "it has not begun"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let busy = lab.fails(5, &encrypt);
    assert!(busy.contains("in use by process"), "{busy}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(child.wait().unwrap().success(), "it is paused");

    let refused = lab.fails(11, &["volume", "info", "disk.img"]);
    assert!(refused.contains("a disk in pieces"), "{refused}");
    for command in [
        &["volume", "import", "disk.img", "v.img"][..],
        &["volume", "encrypt", "disk.img", "--header", "h"],
        &["volume", "create", "disk.img", "--header-area", "64K"],
    ] {
        let refused = lab.run(command);
        let is_told = refused.errors.contains("in pieces");
        assert!(refused.status != 0 && is_told, "{command:?}: {refused:?}");
    }
    let begin = lab.read("disk.img", 0, 4096);
    assert!(String::from_utf8_lossy(&begin).contains("sealblk volume encrypt"));
    let serve = ["serve", "disk.img", "--header", "disk.img.sealblk-moving"];
    let served = lab.fails(6, &[&serve[..], &["--socket", "s"]].concat());
    assert!(
        served.contains("in pieces") && served.contains("sealblk volume encrypt"),
        "{served}"
    );
    let other = lab.run(&["volume", "decrypt", "disk.img"]);
    assert!(
        other.status != 0 && other.errors.contains("being encrypted"),
        "{other:?}"
    );
    // Another disk in its place is not touched.
    fs::rename(lab.path("disk.img"), lab.path("away")).unwrap();
    lab.write("disk.img", &plain, 0);
    lab.fails(7, &encrypt);
    assert!(lab.read("disk.img", 0, SIZE) == plain);
    fs::rename(lab.path("away"), lab.path("disk.img")).unwrap();
    lab.ok(&encrypt);
    let dek = lab.dek(&["disk.img"]);
    let stored = lab.read("disk.img", 64 << 10, SIZE);
    assert!(decrypted(&dek, SectorSize::B512, false, &stored) == plain);
    assert_eq!(
        lab.actions(),
        ["begin", "pause", "resume", "pause", "resume", "finish"]
    );
}

#[test]
fn a_disk_that_is_killed_while_it_is_moved_is_whole_in_the_end() {
    let mut random = seed("move");
    let lab = Lab::new();
    let plain = disk(16 << 20, random.next());
    lab.write("disk.img", &plain, 0);
    let encrypt = ["volume", "encrypt", "disk.img", "--header-area", "256K"];
    let encrypt = [&encrypt[..], &["--zero-units"]].concat();
    let beside = lab.path("disk.img.sealblk-moving");
    let info = || {
        let done = lab.run(&["volume", "info", "--json", "disk.img"]);
        serde_json::from_str::<serde_json::Value>(&done.out).unwrap_or_default()
    };
    let mut took = Duration::from_millis(500);
    let mut total = 0;
    while total < kills() {
        let mut arguments = |_| {
            let done = info()["uuid"].is_string() && !beside.exists();
            (!done).then(|| strings(&encrypt))
        };
        let time = time_of(|| total += 1 + campaign(&lab, &mut arguments, &mut random, took));
        took = took.min(time);
        assert_eq!(length(&lab, "disk.img"), (256 << 10) + (16 << 20));
        let dek = lab.dek(&["disk.img"]);
        let stored = lab.read("disk.img", 256 << 10, 16 << 20);
        assert!(decrypted(&dek, SectorSize::B512, true, &stored) == plain);
        lab.cryptsetup_proves("disk.img", &dek);
        let uuid = info()["uuid"].as_str().unwrap().to_owned();
        let decrypt = strings(&["volume", "decrypt", "disk.img", "--confirm", &uuid]);
        let mut arguments = |_| {
            let done = !info()["uuid"].is_string() && !beside.exists();
            (!done).then(|| decrypt.clone())
        };
        total += 1 + campaign(&lab, &mut arguments, &mut random, took);
        assert!(fs::read(lab.path("disk.img")).unwrap() == plain);
    }
}

#[test]
fn the_ledger_knows_that_a_disk_without_its_header_needs_no_key() {
    let lab = Lab::new();
    let ledger = lab.ledger();
    lab.write("disk.img", &disk(SIZE, 31), 0);
    let encrypt = ["volume", "encrypt", "disk.img", "--header-area", "64K"];
    let done = lab.json(&[&encrypt[..], &["--json"]].concat());
    let uuid = done["uuid"].as_str().unwrap();
    let known = ledger.find(uuid.parse().unwrap()).unwrap().unwrap();
    assert_eq!((known.header.as_ref(), known.wraps.len()), (None, 1));
    let decrypt = ["volume", "decrypt", "disk.img", "--confirm", uuid];
    lab.ok(&decrypt);
    assert_eq!(ledger.find(known.uuid).unwrap(), None);
    // One that is cut off before it tells the ledger.
    let done = lab.json(&[&encrypt[..], &["--json"]].concat());
    let uuid = done["uuid"].as_str().unwrap();
    all_but_removed(&lab);
    let known = ledger.needing("default").unwrap();
    assert_eq!(known[0].uuid.to_string(), uuid);
    lab.ok(&["volume", "decrypt", "disk.img", "--confirm", uuid]);
    assert!(!lab.path("disk.img.sealblk-moving").exists());
    assert_eq!(ledger.find(known[0].uuid).unwrap(), None);
}

/// Decrypts `disk.img`, and leaves the file beside it.
fn all_but_removed(lab: &Lab) {
    let overrides = Overrides {
        key_file: Some(lab.path("platform.key")),
        ..Overrides::default()
    };
    let config = Config::load(Some(&lab.path("sealblk.toml")), overrides).unwrap();
    let location = Location {
        data: lab.path("disk.img"),
        header: None,
    };
    let volume = Volume::open(&location, Access::ReadWrite).unwrap();
    let context = Context::local(Some(volume.uuid()));
    let beside = Shifting::beside(&location.data, None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (keys, opening) = (config.key_sets(), Opening::default());
    let begun = Shifting::begin_down(&keys, &context, volume, &beside, &opening);
    let shifting = runtime.block_on(begun).unwrap();
    let speed = Speed { limit: None };
    assert!(
        shifting
            .run(speed, &AtomicBool::new(false), &Progress::default())
            .unwrap()
    );
    drop(shifting.finish().unwrap());
}
