//! The worker of a disk is replaced under load, and the front end keeps its connection.

use std::fs::File;
use std::time::{Duration, Instant};

use sealblk::byte_lock;
use sealblk::manager::disks::Pace;
use sealblk::manager::model::{DiskState, PaceChange, RekeyChange, RekeyState, UpgradeDisk};

use super::lab::{BY_FORCE, Lab, connect, ephemeral, kill, run, until, until_running, us};
use super::rekey::slow;
use super::support::history::{Dice, Load, seed, spread};
use super::support::home::SIZE;
use super::support::request::{Request, S_OK};
use super::support::server::DEADLINE;

/// How many upgrades: `SEALBLK_UPGRADES`, or so many.
fn upgrades(default: u32) -> u32 {
    std::env::var("SEALBLK_UPGRADES").map_or(default, |text| text.parse().unwrap())
}

#[test]
fn a_guest_does_not_notice_that_its_worker_is_upgraded_again_and_again() {
    let lab = Lab::new();
    lab.home.create("a.img", &[]);
    let name = lab.name("a.img");
    let (upgrades, seed) = (upgrades(8), seed());
    run(async {
        let disks = lab.open().await;
        let mut request = lab.request("a.img");
        request.options = toml::from_str("queues = 2").unwrap();
        let first = disks.attach(&us(), request).await.unwrap();
        let socket = lab.path("a.img.sock");
        let (mut dice, mut pauses) = (Dice(seed), vec![]);
        let start = Instant::now();
        let mut load = tokio::task::block_in_place(|| Load::start(&socket, seed));
        let mut before = first.pid;
        for _ in 0..upgrades {
            let upgrading = {
                let (disks, name) = (disks.clone(), name.clone());
                tokio::spawn(
                    async move { disks.upgrade(&us(), &name, UpgradeDisk::default()).await },
                )
            };
            tokio::task::block_in_place(|| {
                while !upgrading.is_finished() {
                    load.run(Duration::from_micros(dice.below(2_000)));
                }
                load.until_answered();
            });
            let upgraded = upgrading.await.unwrap().unwrap();
            pauses.push(Duration::from_micros(upgraded.pause_us.unwrap()));
            let seen = (upgraded.disk.state, upgraded.disk.front_end);
            assert_eq!(seen, (DiskState::Running, true));
            assert_ne!(upgraded.disk.pid, before, "another process");
            before = upgraded.disk.pid;
            assert_eq!(lab.workers(), [before.unwrap()], "and no more than that");
            assert!(has_turn(before.unwrap()), "nobody else may serve");
        }
        tokio::task::block_in_place(|| load.finish());
        let (least, median, worst) = spread(pauses);
        println!(
            "{upgrades} upgrades in {:.1?}, {} requests; pauses {least:.1?}, {median:.1?}, \
             {worst:.1?} (least, median, worst)",
            start.elapsed(),
            load.answered,
        );
        assert_eq!(load.reconnects, 0, "the connection is the same");
        let info = until_running(&disks, &name).await;
        assert_eq!((info.restarts, info.front_end), (0, true));
        drop(load);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// Whether somebody has the lock that says who serves a disk, of which that process
/// is a worker.
fn has_turn(worker: u32) -> bool {
    let memo = std::fs::read_dir(format!("/proc/{worker}/fd"))
        .unwrap()
        .map(|fd| fd.unwrap().path())
        .find(|fd| {
            let target = std::fs::read_link(fd).unwrap();
            target.to_string_lossy().starts_with("/memfd:sealblk-memo")
        });
    // In a description of our own.
    let memo = File::options().read(true).write(true).open(memo.unwrap());
    !byte_lock::take(memo.unwrap(), byte_lock::SERVER).unwrap()
}

/// Whom to end in the middle of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Old,
    New,
    Both,
    Manager,
    ManagerAndOld,
    ManagerAndNew,
}

const VICTIMS: [Victim; 6] = [
    Victim::Old,
    Victim::New,
    Victim::Both,
    Victim::Manager,
    Victim::ManagerAndOld,
    Victim::ManagerAndNew,
];

/// At instants that follow no rule, in which a hand-over is at any of its steps.
#[test]
fn whoever_dies_in_the_middle_one_serves_and_nothing_is_lost() {
    let lab = Lab::new();
    lab.home.create("a.img", &[]);
    let name = lab.name("a.img");
    let rounds = std::env::var("SEALBLK_UPGRADE_KILLS").map_or(12, |text| text.parse().unwrap());
    let seed = seed();
    run(async {
        let mut settings = lab.settings();
        settings.restart = Pace {
            first: Duration::from_millis(20),
            most: Duration::from_millis(50),
        };
        let mut disks = lab.open_with(settings.clone()).await;
        let mut request = lab.request("a.img");
        request.options = toml::from_str("queues = 2").unwrap();
        disks.attach(&us(), request).await.unwrap();
        let mut dice = Dice(seed);
        let socket = lab.path("a.img.sock");
        let mut load = tokio::task::block_in_place(|| Load::start(&socket, seed));
        let (mut went_on, mut stayed, mut kept) = (0, 0, 0);
        for round in 0..rounds {
            // After the last death, the front end is there again.
            let start = Instant::now();
            let old = loop {
                tokio::task::block_in_place(|| load.run(Duration::from_millis(1)));
                let info = disks.get(&name).unwrap();
                if info.state == DiskState::Running && info.front_end {
                    break info.pid.unwrap();
                }
                assert!(start.elapsed() < DEADLINE, "{info:?}");
                tokio::task::yield_now().await;
            };
            let victim = VICTIMS[dice.below(VICTIMS.len() as u64) as usize];
            let reconnects = load.reconnects;
            let upgrading = {
                let (disks, name) = (disks.clone(), name.clone());
                tokio::spawn(
                    async move { disks.upgrade(&us(), &name, UpgradeDisk::default()).await },
                )
            };
            // The new process is there; then any instant of what follows.
            let start = Instant::now();
            let new = tokio::task::block_in_place(|| {
                loop {
                    load.run(Duration::from_micros(100));
                    let new = lab.workers().into_iter().find(|pid| *pid != old);
                    if new.is_some() || start.elapsed() > DEADLINE {
                        break new.unwrap();
                    }
                }
            });
            tokio::task::block_in_place(|| load.run(Duration::from_micros(dice.below(50_000))));
            let manager = matches!(
                victim,
                Victim::Manager | Victim::ManagerAndOld | Victim::ManagerAndNew
            );
            if matches!(victim, Victim::Old | Victim::Both | Victim::ManagerAndOld) {
                kill(old);
            }
            if matches!(victim, Victim::New | Victim::Both | Victim::ManagerAndNew) {
                kill(new);
            }
            if manager {
                // All that it has is closed, as if it had been killed.
                disks.close().await;
            }
            let outcome = upgrading.await.unwrap();
            if manager {
                drop(disks);
                disks = lab.open_with(settings.clone()).await;
            }
            until_running(&disks, &name).await;
            tokio::task::block_in_place(|| load.until_answered());
            // Who was killed may be listed still, or may not be known to be gone.
            let start = Instant::now();
            let (info, serving) = loop {
                tokio::task::block_in_place(|| load.run(Duration::from_millis(1)));
                let (info, workers) = (disks.get(&name).unwrap(), lab.workers());
                match (info.pid, &workers[..]) {
                    (Some(shown), [one]) if shown == *one => break (info, shown),
                    _ => assert!(start.elapsed() < DEADLINE, "{workers:?}, {info:?}"),
                }
                tokio::task::yield_now().await;
            };
            assert_eq!(info.state, DiskState::Running, "{round}: {victim:?}");
            went_on += u32::from(serving == new);
            stayed += u32::from(serving == old);
            let same = load.reconnects == reconnects;
            kept += u32::from(same);
            // Nobody who served was ended.
            if victim == Victim::Manager {
                assert!(same, "{round}: {outcome:?}");
                assert!(serving == old || serving == new);
            }
        }
        tokio::task::block_in_place(|| load.finish());
        println!(
            "{rounds} hand-overs with a death: {went_on} went on, {stayed} stayed, {kept} kept \
             the connection; {} requests, {} taken over",
            load.answered, load.taken_over
        );
        drop(load);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

fn program(path: &str) -> UpgradeDisk {
    UpgradeDisk {
        binary: Some(path.into()),
        ..UpgradeDisk::default()
    }
}

#[test]
fn a_program_that_does_not_go_on_leaves_the_disk_as_it_is() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let first = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        disks.close().await;
        drop(disks);
        // For what is not to start: it takes all of that.
        let mut settings = lab.settings();
        settings.start_timeout = Duration::from_secs(1);
        let disks = lab.open_with(settings).await;
        let mut front = lab.connect("a.img").await;
        tokio::task::block_in_place(|| {
            assert_eq!(front.run(0, Request::write(8, &[7; 4096])).status, S_OK);
        });
        // No program, one that ends, and one that says nothing.
        for path in ["/does/not/exist", "/bin/true", "/bin/cat"] {
            let refused = disks.upgrade(&us(), &name, program(path)).await;
            let refused = refused.unwrap_err();
            println!("{path}: {refused}");
            let info = disks.get(&name).unwrap();
            assert_eq!((info.pid, info.state), (first.pid, DiskState::Running));
            assert_eq!(lab.workers(), [first.pid.unwrap()]);
            tokio::task::block_in_place(|| {
                let read = front.run(0, Request::read(8, 4096));
                assert!(read.data == [7; 4096]);
            });
        }
        drop(front);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

#[test]
fn a_disk_that_is_frozen_stays_so_and_one_without_a_guest_is_upgraded_too() {
    let lab = Lab::with_volume("a.img");
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        // Nobody is connected.
        let upgraded = disks.upgrade(&us(), &name, UpgradeDisk::default()).await;
        assert!(!upgraded.unwrap().disk.front_end);
        let mut front = lab.connect("a.img").await;
        let minute = Duration::from_secs(60);
        disks.freeze(&us(), &name, minute).await.unwrap();
        let upgraded = disks.upgrade(&us(), &name, UpgradeDisk::default()).await;
        let upgraded = upgraded.unwrap();
        // What is in flight is nothing, and the new worker finds that out.
        until(&disks, &name, "it is frozen", |info| {
            info.state == DiskState::Frozen
        })
        .await;
        assert_eq!(lab.workers(), [upgraded.disk.pid.unwrap()]);
        let start = Instant::now();
        let thawing = {
            let (disks, name) = (disks.clone(), name.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                disks.thaw(&us(), &name).await
            })
        };
        tokio::task::block_in_place(|| {
            assert_eq!(front.run(0, Request::write(8, &[7; 4096])).status, S_OK);
        });
        assert!(
            start.elapsed() >= Duration::from_millis(50),
            "it was not frozen"
        );
        thawing.await.unwrap().unwrap();
        drop(front);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

#[test]
fn an_ephemeral_disk_keeps_what_is_on_it() {
    let lab = Lab::with_space();
    let name = lab.name("e");
    run(async {
        let disks = lab.open().await;
        let wanted = ephemeral(lab.home.directory(), "e", SIZE);
        let socket = wanted.socket.clone();
        disks.attach(&us(), wanted).await.unwrap();
        let mut front = connect(&socket).await;
        tokio::task::block_in_place(|| {
            assert_eq!(front.run(0, Request::write(8, &[7; 4096])).status, S_OK);
        });
        for _ in 0..2 {
            let upgraded = disks.upgrade(&us(), &name, UpgradeDisk::default()).await;
            assert_eq!(upgraded.unwrap().disk.state, DiskState::Running);
            tokio::task::block_in_place(|| {
                assert!(front.run(0, Request::read(8, 4096)).data == [7; 4096]);
            });
        }
        drop(front);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

#[test]
fn a_disk_whose_key_changes_goes_on_with_that() {
    let lab = Lab::new();
    lab.home.create("a.img", &[]);
    let name = lab.name("a.img");
    let seed = seed();
    run(async {
        let disks = lab.open().await;
        let mut request = lab.request("a.img");
        request.options = toml::from_str("queues = 2").unwrap();
        disks.attach(&us(), request).await.unwrap();
        let socket = lab.path("a.img.sock");
        let mut load = tokio::task::block_in_place(|| Load::start(&socket, seed));
        let names = [name.clone()];
        disks.rekey(&us(), slow(&names)).await.unwrap();
        for _ in 0..3 {
            let before = until(&disks, &name, "data is moved", |info| {
                info.rekey
                    .as_ref()
                    .is_some_and(|rekey| rekey.state == RekeyState::Moving)
            });
            before.await;
            let upgrading = {
                let (disks, name) = (disks.clone(), name.clone());
                tokio::spawn(
                    async move { disks.upgrade(&us(), &name, UpgradeDisk::default()).await },
                )
            };
            tokio::task::block_in_place(|| {
                while !upgrading.is_finished() {
                    load.run(Duration::from_millis(1));
                }
            });
            upgrading.await.unwrap().unwrap();
        }
        let faster = RekeyChange {
            go: None,
            pace: PaceChange {
                limit: Some(0),
                ..PaceChange::default()
            },
        };
        disks.change_rekey(&us(), &name, faster).await.unwrap();
        until(&disks, &name, "all was moved", |info| info.rekey.is_none()).await;
        tokio::task::block_in_place(|| load.finish());
        assert_eq!(load.reconnects, 0);
        drop(load);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}
