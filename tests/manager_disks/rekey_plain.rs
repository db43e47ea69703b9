//! Plain disks that are encrypted while they are served, and encrypted ones that
//! become plain.

use std::sync::Arc;
use std::time::Duration;

use sealblk::keys::ledger::{Known, Ledger};
use sealblk::manager::disks::{Disks, Settings};
use sealblk::manager::model::{Attach, PaceChange, RekeyChange, RekeyState, StartRekey};
use sealblk::plane::moving::Go;
use sealblk::rekey::{Direction, Geometry, Journal, Keys, Kind};
use sealblk::secret::Dek;
use sealblk::timestamp::Timestamp;
use sealblk::units::Bytes;
use sealblk::volume::{CreateOptions, Inspection, Location, PlainPlan, Volume};
use uuid::Uuid;

use super::lab::{Lab, detach_unused, kill, run, until, us};
use super::rekey::{dek, load, location, proven, start, under_way, until_ended, until_state, work};
use super::rekey_kills::number;
use super::support::home::SIZE;
use super::support::registers::{Dice, Registers, stored};
use super::support::server::eventually;

/// A plain disk that holds something everywhere.
fn plain() -> Vec<u8> {
    (0..SIZE / 512)
        .flat_map(|sector| stored(sector, 1))
        .collect()
}

/// Makes a header for it, as a disk that is being encrypted and of which nothing
/// is yet.
async fn prepare(lab: &Lab) -> Uuid {
    let location = Location {
        data: lab.path("a.img"),
        header: Some(lab.path("a.header")),
    };
    let options = CreateOptions {
        header_area: Bytes(64 << 10),
        zero_units: true,
        ..CreateOptions::default()
    };
    let unit = options.sector_size;
    let plan = PlainPlan::new(&location, options, 0).unwrap();
    let dek = Dek::generate().unwrap();
    let binding = plan.binding().bytes();
    let wraps = lab
        .keys()
        .wrap(&us(), "default", &dek, &binding)
        .await
        .unwrap();
    let (facts, uuid) = (plan.facts(), plan.binding().uuid);
    plan.write(
        &dek,
        "default",
        wraps,
        |file, area| -> Result<(), sealblk::error::Failure> {
            let keys = Keys::derive(&facts, None, Some(&dek))?;
            let geometry = Geometry::new(&facts, unit)?;
            Journal::new(file, area, keys, geometry)?.create()?;
            Ok(())
        },
    )
    .unwrap();
    uuid
}

fn request(lab: &Lab) -> Attach {
    Attach {
        header: Some(lab.path("a.header")),
        ..lab.request("a.img")
    }
}

fn pace(limit: u64) -> RekeyChange {
    RekeyChange {
        go: Some(Go::Run),
        pace: PaceChange {
            limit: Some(limit),
            ..PaceChange::default()
        },
    }
}

fn loaded(lab: &Lab, seed: u64) -> Registers {
    let mut load = load(lab, seed);
    load.assume(0, 1, SIZE / 512);
    load
}

/// Makes a header for it, and attaches it to a manager that knows that it is to go
/// slowly: it would be encrypted before anybody could say so.
async fn attach_slowly(lab: &Lab, name: &str) -> Arc<Disks> {
    let uuid = prepare(lab).await;
    let job = serde_json::json!({
        "version": 1, "kind": "encrypt", "begun": true, "turn": 0,
        "pace": { "limit": 64 << 10 }, "asked": Timestamp::now(),
    });
    let jobs = lab.path("state/rekeys");
    std::fs::create_dir_all(&jobs).unwrap();
    std::fs::write(jobs.join(format!("{uuid}.json")), job.to_string()).unwrap();
    let disks = lab.open().await;
    disks.attach(&us(), request(lab)).await.unwrap();
    let info = until(&disks, name, "it is known", |info| info.rekey.is_some()).await;
    assert_eq!(info.rekey.unwrap().pace.limit, Some(64 << 10));
    disks
}

#[test]
fn a_plain_disk_is_encrypted_under_load_whatever_dies() {
    let lab = Lab::new();
    let name = lab.name("a.img");
    std::fs::write(lab.path("a.img"), plain()).unwrap();
    run(async {
        let disks = attach_slowly(&lab, &name).await;
        let mut load = loaded(&lab, 11);
        work(&mut load, 100);
        for round in 1..4 {
            if under_way(&lab).is_none() {
                break;
            }
            load.fill();
            kill(disks.get(&name).unwrap().pid.unwrap());
            load.leave();
            until(&disks, &name, "another worker", |info| {
                info.restarts == round && info.pid.is_some()
            })
            .await;
            eventually("a front end connects", || {
                load.connect(&lab.path("a.img.sock")).ok()
            });
            work(&mut load, 100);
        }
        disks.change_rekey(&us(), &name, pace(0)).await.unwrap();
        until_ended(&disks, &name).await;
        assert_eq!(under_way(&lab), None);
        work(&mut load, 100);
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        detach_unused(&disks, &name).await;
        proven(&lab, &mut load).await;
        // Nothing of it is as it was.
        let raw = std::fs::read(lab.path("a.img")).unwrap();
        assert_eq!(raw.len() as u64, SIZE);
        let was = plain();
        let same = raw.chunks(512).zip(was.chunks(512)).filter(|(a, b)| a == b);
        assert_eq!(same.count(), 0);
    });
}

#[test]
fn an_encryption_goes_back_and_the_disk_is_plain() {
    let lab = Lab::new();
    let name = lab.name("a.img");
    std::fs::write(lab.path("a.img"), plain()).unwrap();
    run(async {
        let disks = attach_slowly(&lab, &name).await;
        let mut load = loaded(&lab, 12);
        work(&mut load, 150);
        disks
            .turn_rekey(&us(), &name, Direction::Back)
            .await
            .unwrap();
        disks.change_rekey(&us(), &name, pace(0)).await.unwrap();
        until_state(&disks, &name, RekeyState::Plain).await;
        work(&mut load, 100);
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        let ledger = known(&lab, &disks, &name);
        detach_unused(&disks, &name).await;
        load.check_bytes(&std::fs::read(lab.path("a.img")).unwrap());
        assert_plain_header(&lab);
        assert_eq!(ledger.needing("default").unwrap(), []);
    });
}

/// Has the ledger know the volume of a disk, as whoever attaches it does.
fn known(lab: &Lab, disks: &Disks, name: &str) -> Ledger {
    let ledger = Ledger::below(&lab.path("state"));
    let uuid = disks.get(name).unwrap().uuid.unwrap();
    let place = (lab.path("a.img"), Some(lab.path("a.header")));
    ledger
        .note(&Known::new(uuid, place, "default", &[]))
        .unwrap();
    assert_eq!(ledger.needing("default").unwrap().len(), 1);
    ledger
}

fn assert_plain_header(lab: &Lab) {
    let inspection = Inspection::of(&location(lab)).unwrap();
    let token = inspection.description().unwrap().token;
    assert!(token.plain.is_some() && token.wraps.is_empty(), "{token:?}");
    for left in ["state/rekeys", "state/marks"] {
        let mut left = lab.path(left).read_dir().into_iter().flatten();
        assert!(left.next().is_none(), "something stays on record");
    }
}

#[test]
fn a_disk_is_decrypted_when_somebody_says_so_twice() {
    let lab = Lab::new();
    let header = [
        "--header",
        "a.header",
        "--header-area",
        "64K",
        "--zero-units",
    ];
    lab.home.create("a.img", &header);
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), request(&lab)).await.unwrap();
        let mut load = load(&lab, 13);
        work(&mut load, 200);
        let wanted = StartRekey {
            kind: Kind::Decrypt,
            confirm: Some(name.clone()),
            pace: PaceChange {
                limit: Some(64 << 10),
                ..PaceChange::default()
            },
            ..start(std::slice::from_ref(&name))
        };
        disks.rekey(&us(), wanted).await.unwrap();
        assert_eq!(under_way(&lab), Some(Kind::Decrypt));
        work(&mut load, 50);
        kill(disks.get(&name).unwrap().pid.unwrap());
        load.leave();
        until(&disks, &name, "another worker", |info| {
            info.restarts == 1 && info.pid.is_some()
        })
        .await;
        tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
        disks.change_rekey(&us(), &name, pace(0)).await.unwrap();
        until_state(&disks, &name, RekeyState::Plain).await;
        // It is served on, and a next worker serves it, too.
        work(&mut load, 100);
        kill(disks.get(&name).unwrap().pid.unwrap());
        load.leave();
        until(&disks, &name, "another worker", |info| {
            info.restarts == 2 && info.pid.is_some()
        })
        .await;
        until_state(&disks, &name, RekeyState::Plain).await;
        tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        let ledger = known(&lab, &disks, &name);
        detach_unused(&disks, &name).await;
        load.check_bytes(&std::fs::read(lab.path("a.img")).unwrap());
        assert_plain_header(&lab);
        assert_eq!(ledger.needing("default").unwrap(), []);
        let gone = disks.attach(&us(), request(&lab)).await.unwrap_err();
        assert!(gone.to_string().contains("plain"), "{gone}");
    });
}

/// Found on this host for the first time: it rests until somebody says so here.
#[test]
fn a_decryption_that_was_begun_elsewhere_rests() {
    let lab = Lab::new();
    let header = ["--header", "a.header", "--header-area", "64K"];
    lab.home.create("a.img", &header);
    let name = lab.name("a.img");
    run(async {
        let dek = dek(&lab).await;
        let at = sealblk::volume::Access::ReadWrite;
        let mut volume = Volume::open(&location(&lab), at).unwrap();
        let facts = volume.facts_to_begin(Kind::Decrypt).unwrap();
        let keys = Keys::derive(&facts, Some(&dek), None).unwrap();
        let geometry = Geometry::new(&facts, volume.layout().sector_size).unwrap();
        let area = volume.journal_area().unwrap();
        let mut journal = Journal::new(volume.journal_file(), area, keys, geometry).unwrap();
        journal.create().unwrap();
        drop(journal);
        volume.begin_decrypt(&facts).unwrap();
        drop(volume);
        let disks = lab.open().await;
        disks.attach(&us(), request(&lab)).await.unwrap();
        let info = until_state(&disks, &name, RekeyState::Paused).await;
        assert_eq!(info.rekey.unwrap().boundary, 0);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(disks.get(&name).unwrap().rekey.unwrap().boundary, 0);
        // It can be taken back as well, though nothing was moved.
        disks
            .turn_rekey(&us(), &name, Direction::Back)
            .await
            .unwrap();
        disks.change_rekey(&us(), &name, pace(0)).await.unwrap();
        until_ended(&disks, &name).await;
        assert_eq!(under_way(&lab), None);
        detach_unused(&disks, &name).await;
    });
}

/// Kills its worker, and has the load go on with the next one.
async fn replace(disks: &Disks, lab: &Lab, name: &str, load: &mut Registers) {
    load.fill();
    let before = disks.get(name).unwrap();
    kill(before.pid.unwrap());
    load.leave();
    until(disks, name, "another worker", |info| {
        info.restarts > before.restarts && info.pid.is_some_and(|pid| before.pid != Some(pid))
    })
    .await;
    eventually("a front end connects", || {
        load.connect(&lab.path("a.img.sock")).ok()
    });
}

/// `SEALBLK_REKEY_KILLS` says how many kills there are of each kind of operation,
/// `SEALBLK_REKEY_SEED` where the numbers begin.
#[test]
fn no_kill_loses_what_a_guest_was_told_while_its_disk_becomes_encrypted_and_plain() {
    let kills = number("SEALBLK_REKEY_KILLS", 3);
    let seed = number("SEALBLK_REKEY_SEED", u64::from(std::process::id()));
    println!("SEALBLK_REKEY_SEED={seed} SEALBLK_REKEY_KILLS={kills}");
    let mut dice = Dice::new(seed);
    let lab = Lab::new();
    let name = lab.name("a.img");
    std::fs::write(lab.path("a.img"), plain()).unwrap();
    let mut load = Registers::new(SIZE, 1, true, seed);
    load.assume(0, 1, SIZE / 512);
    // Of encryptions, and of decryptions.
    let (mut killed, mut moving, mut ends) = ([0u64; 2], [0u64; 2], [0u64; 2]);
    // A worker that is killed again and again is replaced at once all the same.
    let settings = || Settings {
        settled: Duration::ZERO,
        ..lab.settings()
    };
    run(async {
        let disks = lab.open_with(settings()).await;
        // At least one of all kills is in the middle, which all of a few may miss.
        while killed.iter().any(|killed| *killed < kills)
            || moving.iter().all(|moving| *moving == 0) && ends[0] < 20
        {
            // There, and back, and there again.
            for (at, kind) in [Kind::Encrypt, Kind::Decrypt].into_iter().enumerate() {
                let limit = [0, 256 << 10, 1 << 20][dice.below(3) as usize];
                if kind == Kind::Encrypt {
                    prepare(&lab).await;
                    disks.attach(&us(), request(&lab)).await.unwrap();
                    eventually("a front end connects", || {
                        load.connect(&lab.path("a.img.sock")).ok()
                    });
                } else {
                    let wanted = StartRekey {
                        kind,
                        confirm: Some(name.clone()),
                        ..start(std::slice::from_ref(&name))
                    };
                    disks.rekey(&us(), wanted).await.unwrap();
                }
                // It may have ended by now.
                let _ = disks.change_rekey(&us(), &name, pace(limit)).await;
                for _ in 0..1 + dice.below(6) {
                    work(&mut load, 1 + dice.below(60));
                    let info = disks.get(&name).unwrap();
                    let state = info.rekey.map(|rekey| rekey.state);
                    moving[at] += u64::from(state.is_some_and(|it| it != RekeyState::Plain));
                    replace(&disks, &lab, &name, &mut load).await;
                    killed[at] += 1;
                }
                let _ = disks.change_rekey(&us(), &name, pace(0)).await;
                match kind {
                    Kind::Encrypt => {
                        until_ended(&disks, &name).await;
                        proven(&lab, &mut load).await;
                    }
                    _ => drop(until_state(&disks, &name, RekeyState::Plain).await),
                }
                ends[at] += 1;
                work(&mut load, 20);
            }
            tokio::task::block_in_place(|| load.check_all());
            load.leave();
            detach_unused(&disks, &name).await;
            load.check_bytes(&std::fs::read(lab.path("a.img")).unwrap());
            assert_plain_header(&lab);
            std::fs::remove_file(lab.path("a.header")).unwrap();
        }
    });
    println!(
        "workers killed of encryptions and decryptions: {killed:?}, {moving:?} of them in the \
         middle; so many came to their end, and were read by others: {ends:?}"
    );
    let none = moving.iter().all(|moving| *moving == 0);
    assert!(!none, "nothing was moved when they were killed");
}
