//! Workers and managers that are killed at any time while a disk gets another key,
//! under a load of which every sector has a history.
//!
//! `SEALBLK_REKEY_KILLS` says how many kills there are, `SEALBLK_REKEY_SEED` where
//! the numbers begin.

use std::time::{Duration, Instant};

use super::lab::{Lab, detach_unused, kill, run, until};
use super::process::ManagerProcess;
use super::rekey::{decrypted, dek, lab, location, proven, under_way};
use super::support::home::SIZE;
use super::support::registers::{Dice, Registers};
use super::support::server::{DEADLINE, eventually};

use sealblk::manager::model::DiskState;
use sealblk::volume::{Access, Volume};

const PATIENCE: Duration = Duration::from_secs(20);

pub fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().unwrap())
}

/// Connects to whichever worker serves next.
fn connect(load: &mut Registers, lab: &Lab) {
    let socket = lab.path("a.img.sock");
    eventually("a front end connects", || load.connect(&socket).ok());
}

fn ask(manager: &mut ManagerProcess, command: &str) -> String {
    manager.ask(command).unwrap_or_else(|| panic!("{command}"))
}

/// Starts what is to be killed: an operation, or its way back; slowly, so that it
/// rests between regions, or as fast as can be.
fn stir(manager: &mut ManagerProcess, dice: &mut Dice, moving: &str) {
    let command = match (moving, dice.below(12)) {
        ("none", 0..4) => "rekey a.img",
        ("none", _) => "slow a.img",
        (_, 0) => "pause a.img",
        ("moving" | "paused" | "held" | "waiting", 1..3) => "turn a.img",
        ("moving" | "paused" | "held" | "waiting", 3..6) => "resume a.img",
        _ => return,
    };
    // It may make no sense now.
    let _ = ask(manager, command);
}

/// Whether no operation is under way, and none will be before somebody wants one.
fn rests(lab: &Lab) -> bool {
    let wanted = lab.path("state/rekeys").read_dir();
    under_way(lab).is_none() && !wanted.is_ok_and(|mut wanted| wanted.any(|_| true))
}

#[test]
fn no_kill_loses_what_a_guest_was_told_while_its_disk_gets_another_key() {
    let kills = number("SEALBLK_REKEY_KILLS", 12);
    let seed = number("SEALBLK_REKEY_SEED", u64::from(std::process::id()));
    println!("SEALBLK_REKEY_SEED={seed} SEALBLK_REKEY_KILLS={kills}");
    let mut dice = Dice::new(seed);
    let lab = lab();
    let directory = lab.home.directory();
    let mut manager = ManagerProcess::start(directory);
    assert_eq!(ask(&mut manager, "attach a.img"), "ok");
    let mut load = Registers::new(SIZE, 1, true, seed);
    connect(&mut load, &lab);
    let mut seen = [0u64; 2];
    let mut counts = (0, 0);
    // Since all was last read by others, and how often that was.
    let (mut moved, mut proofs) = (false, 0);
    for _ in 0..kills {
        let moving = ask(&mut manager, "is a.img");
        seen[usize::from(moving != "none")] += 1;
        moved |= moving != "none";
        if moved && moving == "none" && rests(&lab) {
            run(proven(&lab, &mut load));
            (moved, proofs) = (false, proofs + 1);
        }
        stir(&mut manager, &mut dice, &moving);
        let requests = dice.below(100);
        assert!(load.run(1 + requests, PATIENCE), "nothing is answered");
        let worker = dice.below(3) > 0;
        let both = dice.below(8) == 0;
        if !worker || both {
            manager.kill();
            counts.1 += 1;
            load.fill();
            // Its worker may die while nobody is there.
            if both {
                lab.workers().into_iter().for_each(kill);
            }
            manager = ManagerProcess::start(directory);
        }
        if worker || both {
            load.fill();
            let pids = lab.workers();
            pids.iter().copied().for_each(kill);
            counts.0 += pids.len();
            eventually("they are gone", || {
                let left = lab.workers();
                pids.iter().all(|pid| !left.contains(pid)).then_some(())
            });
            connect(&mut load, &lab);
        }
    }
    println!(
        "{} workers and {} managers were killed; {seen:?}; in between, OpenSSL read all of \
         the disk {proofs} times",
        counts.0, counts.1
    );
    assert!(
        kills < 10 || seen[1] > 0,
        "nothing was moved when they were killed"
    );
    let name = lab.name("a.img");
    let start = Instant::now();
    // A manager that has just begun does not know yet.
    loop {
        let moving = ask(&mut manager, "is a.img");
        if moving == "none" && rests(&lab) {
            break;
        }
        let resumed = ask(&mut manager, "resume a.img");
        assert!(
            start.elapsed() < DEADLINE,
            "it does not end: {moving}, {resumed}; in the header: {:?}; wanted: {:?}",
            under_way(&lab),
            lab.path("state/rekeys")
                .read_dir()
                .map(|files| files.count())
        );
        assert!(load.run(20, PATIENCE), "nothing is answered");
    }
    manager.kill();
    run(async {
        let disks = lab.open().await;
        until(&disks, &name, "it is done", |info| {
            info.rekey.is_none() && info.state == DiskState::Running
        })
        .await;
        tokio::task::block_in_place(|| load.check_all());
        proven(&lab, &mut load).await;
        load.leave();
        detach_unused(&disks, &name).await;
        let dek = dek(&lab).await;
        load.check_bytes(&decrypted(&lab, &dek));
        let volume = Volume::open(&location(&lab), Access::ReadWrite).unwrap();
        volume.verify_dek(&dek).unwrap();
        assert!(volume.rekey().is_none());
    });
}
