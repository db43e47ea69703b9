//! Disks that get another key while they are served.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sealblk::error::Kind as ErrorKind;
use sealblk::manager::disks::{Disks, Pace, Settings, Step};
use sealblk::manager::model::{
    DiskInfo, DiskState, PaceChange, RekeyChange, RekeyState, StartRekey,
};
use sealblk::plane::moving::Go;
use sealblk::prepare::{self, Opening};
use sealblk::rekey::{Direction, Kind};
use sealblk::secret::Dek;
use sealblk::volume::{Access, Files, Inspection, Location, Volume};

use super::judge;
use super::lab::{BY_FORCE, Lab, detach_unused, kill, run, until, until_running, us};
use super::memory_search::{Sample, process_has_key, without_secret_memory};
use super::process::ManagerProcess;
use super::support::home::SIZE;
use super::support::registers::Registers;

const PATIENCE: Duration = Duration::from_secs(20);

pub fn start(names: &[String]) -> StartRekey {
    StartRekey {
        disks: names.to_vec(),
        key_set: None,
        kind: Kind::Rekey,
        confirm: None,
        pace: PaceChange::default(),
    }
}

/// So slow that it does not end by itself.
pub fn slow(names: &[String]) -> StartRekey {
    StartRekey {
        pace: PaceChange {
            limit: Some(64 << 10),
            ..PaceChange::default()
        },
        ..start(names)
    }
}

pub fn go(go: Go) -> RekeyChange {
    RekeyChange {
        go: Some(go),
        pace: PaceChange::default(),
    }
}

fn faster() -> RekeyChange {
    RekeyChange {
        go: None,
        pace: PaceChange {
            limit: Some(0),
            ..PaceChange::default()
        },
    }
}

pub fn location(lab: &Lab) -> Location {
    let header = lab.path("a.header");
    Location {
        data: lab.path("a.img"),
        header: header.exists().then_some(header),
    }
}

/// What the header says, of a volume that may be locked.
pub fn under_way(lab: &Lab) -> Option<Kind> {
    let inspection = Inspection::of(&location(lab)).unwrap();
    let token = inspection.description().unwrap().token;
    token.rekey.map(|rekey| rekey.kind)
}

/// The volume of a disk that is attached: its files are opened once more.
fn volume(lab: &Lab) -> Volume {
    let location = location(lab);
    let open = |path: &PathBuf| std::fs::File::open(path).unwrap();
    let files = Files {
        data: open(&location.data),
        header: location.header.as_ref().map(open),
        location,
    };
    Volume::of_files(files, Access::ReadOnly).unwrap()
}

/// The main key of the volume, as its header has it.
pub async fn dek(lab: &Lab) -> Dek {
    let volume = volume(lab);
    let opened = prepare::unwrap(&lab.keys(), &us(), &volume, &Opening::default()).await;
    let dek = opened.unwrap().dek;
    volume.verify_dek(&dek).unwrap();
    dek
}

/// What all of the disk holds, by that key alone, and as cryptsetup and OpenSSL
/// read it.
pub fn decrypted(lab: &Lab, dek: &Dek) -> Vec<u8> {
    let zero_units = volume(lab).layout().zero_units;
    let Location { data, header } = location(lab);
    let header = header.as_ref().unwrap_or(&data);
    judge::opened(header, &data, SIZE, dek.bytes(), zero_units)
}

/// Whether the disk holds what `load` says, all with one key, which is the one that
/// cryptsetup takes for its own: nothing is in flight, and no operation under way.
pub async fn proven(lab: &Lab, load: &mut Registers) {
    let dek = dek(lab).await;
    tokio::task::block_in_place(|| {
        load.drain();
        let Location { data, header } = location(lab);
        let header = header.as_ref().unwrap_or(&data);
        judge::proves(header, dek.bytes(), lab.home.directory());
        load.check_bytes(&decrypted(lab, &dek));
    });
}

pub async fn until_ended(disks: &Disks, name: &str) -> DiskInfo {
    until(disks, name, "all was moved", |info| {
        info.rekey.is_none() && info.state == DiskState::Running
    })
    .await
}

pub async fn until_state(disks: &Disks, name: &str, state: RekeyState) -> DiskInfo {
    until(disks, name, state.as_str(), |info| {
        info.rekey
            .as_ref()
            .is_some_and(|rekey| rekey.state == state)
    })
    .await
}

/// A volume whose journal makes regions small.
pub fn lab() -> Lab {
    let lab = Lab::new();
    lab.home
        .create("a.img", &["--header-area", "64K", "--zero-units"]);
    lab
}

pub fn load(lab: &Lab, seed: u64) -> Registers {
    let mut load = Registers::new(SIZE, 1, true, seed);
    tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
    load
}

pub fn work(load: &mut Registers, requests: u64) {
    tokio::task::block_in_place(|| assert!(load.run(requests, PATIENCE), "nothing is answered"));
}

#[test]
fn a_served_disk_gets_another_key_under_load() {
    let lab = lab();
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let old = dek(&lab).await;
        let mut load = load(&lab, 1);
        work(&mut load, 300);
        let started = disks
            .rekey(&us(), slow(std::slice::from_ref(&name)))
            .await
            .unwrap();
        assert!(started.disks[0].begun, "{started:?}");
        assert_eq!(under_way(&lab), Some(Kind::Rekey));
        work(&mut load, 300);
        // Once more makes no sense.
        let again = disks
            .rekey(&us(), start(std::slice::from_ref(&name)))
            .await
            .unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Busy, "{again}");
        // It rests, and goes on.
        disks
            .change_rekey(&us(), &name, go(Go::Pause))
            .await
            .unwrap();
        let paused = until_state(&disks, &name, RekeyState::Paused).await;
        let first = decrypted(&lab, &old);
        work(&mut load, 200);
        let rekey = disks.get(&name).unwrap().rekey.unwrap();
        assert_eq!(rekey.boundary, paused.rekey.unwrap().boundary);
        assert!(rekey.boundary < SIZE, "it was paused before its end");
        assert!(first != decrypted(&lab, &old), "the guest went on");
        disks.change_rekey(&us(), &name, go(Go::Run)).await.unwrap();
        disks.change_rekey(&us(), &name, faster()).await.unwrap();
        work(&mut load, 200);
        until_ended(&disks, &name).await;
        assert_eq!(under_way(&lab), None);
        let new = dek(&lab).await;
        assert!(new != old);
        work(&mut load, 200);
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        detach_unused(&disks, &name).await;
        load.check_bytes(&decrypted(&lab, &new));
        assert!(!lab.path("state/rekeys").read_dir().unwrap().any(|_| true));
        // By itself it opens as every volume does.
        let volume = Volume::open(&location(&lab), Access::ReadOnly).unwrap();
        volume.verify_dek(&new).unwrap();
    });
}

#[test]
fn a_rekey_goes_back_and_the_disk_is_as_it_was() {
    let lab = lab();
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let old = dek(&lab).await;
        let mut load = load(&lab, 2);
        work(&mut load, 300);
        disks
            .rekey(&us(), slow(std::slice::from_ref(&name)))
            .await
            .unwrap();
        until(&disks, &name, "something was moved", |info| {
            info.rekey.as_ref().is_some_and(|rekey| rekey.boundary > 0)
        })
        .await;
        work(&mut load, 100);
        disks
            .turn_rekey(&us(), &name, Direction::Back)
            .await
            .unwrap();
        disks.change_rekey(&us(), &name, faster()).await.unwrap();
        work(&mut load, 100);
        until_ended(&disks, &name).await;
        let back = dek(&lab).await;
        assert!(back == old, "it has its old key");
        // Its worker has it, and comes back with it.
        kill(lab.workers()[0]);
        load.leave();
        until(&disks, &name, "another worker", |info| info.restarts == 1).await;
        until_running(&disks, &name).await;
        tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        detach_unused(&disks, &name).await;
        load.check_bytes(&decrypted(&lab, &old));
    });
}

/// Detached in the middle, attached again: it goes on, or rests as it was.
#[test]
fn what_is_wanted_of_a_rekey_outlives_detaching_and_managers() {
    let lab = lab();
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut load = load(&lab, 3);
        work(&mut load, 200);
        disks
            .rekey(&us(), slow(std::slice::from_ref(&name)))
            .await
            .unwrap();
        disks
            .change_rekey(&us(), &name, go(Go::Pause))
            .await
            .unwrap();
        until_state(&disks, &name, RekeyState::Paused).await;
        load.leave();
        detach_unused(&disks, &name).await;
        disks.close().await;
        drop(disks);

        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let info = until_state(&disks, &name, RekeyState::Paused).await;
        assert_eq!(info.rekey.unwrap().pace.limit, Some(64 << 10));
        tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
        work(&mut load, 200);
        // The next manager finds a worker that moves data.
        disks.change_rekey(&us(), &name, go(Go::Run)).await.unwrap();
        until_state(&disks, &name, RekeyState::Moving).await;
        disks.close().await;
        drop(disks);
        let disks = lab.open().await;
        until_state(&disks, &name, RekeyState::Moving).await;
        work(&mut load, 100);
        disks.change_rekey(&us(), &name, faster()).await.unwrap();
        until_ended(&disks, &name).await;
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        let dek = dek(&lab).await;
        load.check_bytes(&decrypted(&lab, &dek));
    });
}

#[test]
fn a_freeze_lets_the_moving_of_data_rest() {
    let lab = lab();
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut load = load(&lab, 4);
        work(&mut load, 200);
        disks
            .rekey(&us(), slow(std::slice::from_ref(&name)))
            .await
            .unwrap();
        let minute = Duration::from_secs(60);
        disks.freeze(&us(), &name, minute).await.unwrap();
        let frozen = std::fs::read(lab.path("a.img")).unwrap();
        let info = until_state(&disks, &name, RekeyState::Held).await;
        assert_eq!(info.state, DiskState::Frozen);
        disks.change_rekey(&us(), &name, faster()).await.unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(
            frozen == std::fs::read(lab.path("a.img")).unwrap(),
            "it is quiet"
        );
        // Nothing begins on a disk that is frozen.
        disks.thaw(&us(), &name).await.unwrap();
        work(&mut load, 100);
        until_ended(&disks, &name).await;
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        detach_unused(&disks, &name).await;
        std::fs::write(lab.path("b.img"), frozen).unwrap();
        // This host remembers how far the volume has come since.
        let refused = disks.attach(&us(), lab.request("b.img")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
        disks.close().await;
        drop(disks);
        std::fs::remove_dir_all(lab.path("state/marks")).unwrap();
        // Elsewhere the snapshot is a volume under way, which goes on by itself.
        let disks = lab.open().await;
        disks.attach(&us(), lab.request("b.img")).await.unwrap();
        until_ended(&disks, &lab.name("b.img")).await;
        detach_unused(&disks, &lab.name("b.img")).await;
    });
}

#[test]
fn disks_wait_for_their_turn_and_one_can_be_taken_out() {
    let lab = Lab::new();
    let files = ["a.img", "b.img", "c.img"];
    for file in files {
        lab.home.create(file, &["--header-area", "64K"]);
    }
    let names = files.map(|file| lab.name(file));
    run(async {
        let disks = lab.open().await;
        for file in files {
            disks.attach(&us(), lab.request(file)).await.unwrap();
        }
        let started = disks.rekey(&us(), slow(&names)).await.unwrap();
        let begun: Vec<bool> = started.disks.iter().map(|disk| disk.begun).collect();
        assert_eq!(begun, [true, false, false]);
        for name in &names[1..] {
            until_state(&disks, name, RekeyState::Queued).await;
        }
        // The queue outlives the manager.
        disks.close().await;
        drop(disks);
        let disks = lab.open().await;
        for name in &names[1..] {
            until_state(&disks, name, RekeyState::Queued).await;
        }
        disks
            .turn_rekey(&us(), &names[1], Direction::Back)
            .await
            .unwrap();
        assert_eq!(disks.get(&names[1]).unwrap().rekey, None);
        // One that rests leaves its place to the next.
        disks
            .change_rekey(&us(), &names[0], go(Go::Pause))
            .await
            .unwrap();
        until_state(&disks, &names[2], RekeyState::Moving).await;
        for name in [&names[0], &names[2]] {
            disks.change_rekey(&us(), name, faster()).await.unwrap();
        }
        until_ended(&disks, &names[2]).await;
        disks
            .change_rekey(&us(), &names[0], go(Go::Run))
            .await
            .unwrap();
        until_ended(&disks, &names[0]).await;
        for name in &names {
            detach_unused(&disks, name).await;
        }
    });
}

#[test]
fn what_has_no_key_of_its_own_or_cannot_be_written_is_refused() {
    let lab = Lab::with_space();
    lab.home.create("a.img", &[]);
    run(async {
        let disks = lab.open().await;
        let scratch = super::lab::ephemeral(lab.home.directory(), "s.img", SIZE);
        disks.attach(&us(), scratch).await.unwrap();
        let mut request = lab.request("a.img");
        request.options = toml::from_str("read_only = true").unwrap();
        disks.attach(&us(), request).await.unwrap();
        for (file, kind, said) in [
            ("s.img", ErrorKind::Usage, "ephemeral"),
            ("a.img", ErrorKind::Usage, "read-only"),
            ("x.img", ErrorKind::NotFound, "no disk"),
        ] {
            let refused = disks
                .rekey(&us(), start(&[lab.name(file)]))
                .await
                .unwrap_err();
            assert_eq!(refused.kind(), kind, "{refused}");
            assert!(refused.to_string().contains(said), "{refused}");
            assert!(refused.help().is_some());
        }
        let name = lab.name("a.img");
        let nothing = disks
            .change_rekey(&us(), &name, go(Go::Pause))
            .await
            .unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::Usage, "{nothing}");
        // To decrypt takes the name once more.
        for confirm in [None, Some("another".to_owned())] {
            let wanted = StartRekey {
                kind: Kind::Decrypt,
                confirm,
                ..start(std::slice::from_ref(&name))
            };
            let refused = disks.rekey(&us(), wanted).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
        }
        let fast = StartRekey {
            pace: PaceChange {
                limit: Some(1000),
                ..PaceChange::default()
            },
            ..start(std::slice::from_ref(&name))
        };
        let refused = disks.rekey(&us(), fast).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Usage, "{refused}");
    });
}

/// A manager that ends between any two steps leaves what the next one finishes.
#[test]
fn a_manager_that_ends_at_any_step_leaves_what_the_next_one_finishes() {
    for (step, known) in [
        ("JournalMade", None),
        ("RekeyBegun", Some(Kind::Rekey)),
        ("RekeyTold", Some(Kind::Rekey)),
        ("RekeyFinished", None),
        ("RekeyForgotten", None),
    ] {
        let lab = lab();
        let name = lab.name("a.img");
        let mut manager = ManagerProcess::start(lab.home.directory());
        assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
        let mut load = Registers::new(SIZE, 1, true, 5);
        load.connect(&lab.path("a.img.sock")).unwrap();
        assert!(load.run(100, PATIENCE));
        manager.ask(&format!("die {step}"));
        let _ = manager.ask("rekey a.img");
        manager.was_killed();
        // Its worker goes on without it.
        assert!(load.run(100, PATIENCE), "after {step}");
        assert_eq!(under_way(&lab), known, "after {step}");
        run(async {
            let before = dek(&lab).await;
            let disks = lab.open().await;
            // What had a place in the queue has it still.
            until(&disks, &name, "it is done", |info| {
                let left = lab.path("state/rekeys").read_dir().unwrap().count();
                left == 0 && info.rekey.is_none() && info.state == DiskState::Running
            })
            .await;
            let again = step == "JournalMade";
            assert_eq!(dek(&lab).await == before, !again, "after {step}");
            assert_eq!(under_way(&lab), None, "after {step}");
            let new = dek(&lab).await;
            work(&mut load, 100);
            // And the next worker serves it, too.
            load.leave();
            kill(disks.get(&name).unwrap().pid.unwrap());
            until(&disks, &name, "another worker", |info| info.restarts == 1).await;
            until_running(&disks, &name).await;
            tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
            tokio::task::block_in_place(|| load.check_all());
            load.leave();
            disks.detach(&us(), &name, BY_FORCE).await.unwrap();
            load.check_bytes(&decrypted(&lab, &new));
        });
    }
}

/// So does a manager whose worker dies with it: nobody is there whom the next one could
/// ask what has ended.
#[test]
fn nothing_is_wanted_any_more_when_all_die_as_a_rekey_ends() {
    for step in ["RekeyFinished", "RekeyForgotten"] {
        let lab = lab();
        let name = lab.name("a.img");
        let mut manager = ManagerProcess::start(lab.home.directory());
        assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
        manager.ask(&format!("die {step}"));
        let _ = manager.ask("rekey a.img");
        manager.was_killed();
        lab.workers().into_iter().for_each(kill);
        let wanted = || lab.path("state/rekeys").read_dir().unwrap().count();
        assert_eq!((under_way(&lab), wanted()), (None, 1), "after {step}");
        run(async {
            let disks = lab.open().await;
            until_running(&disks, &name).await;
            assert_eq!(wanted(), 0, "after {step}");
            disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        });
    }
}

/// The worker that dies once its header says that all is moved.
static LAST: AtomicU32 = AtomicU32::new(0);

/// The next worker is not told to move what was moved: its journal is destroyed by then.
#[test]
fn a_worker_that_dies_as_a_rekey_ends_is_replaced_at_once() {
    let lab = lab();
    let name = lab.name("a.img");
    run(async {
        let soon = Duration::from_millis(10);
        let settings = Settings {
            restart: Pace {
                first: soon,
                most: soon,
            },
            on_step: Some(|step| {
                if matches!(step, Step::RekeyFinished) {
                    kill(LAST.load(Ordering::SeqCst));
                    // As long as it takes a manager to notice.
                    std::thread::sleep(Duration::from_millis(300));
                }
            }),
            ..lab.settings()
        };
        let disks = lab.open_with(settings).await;
        let info = disks.attach(&us(), lab.request("a.img")).await.unwrap();
        LAST.store(info.pid.unwrap(), Ordering::SeqCst);
        let mut load = load(&lab, 30);
        work(&mut load, 100);
        load.leave();
        disks
            .rekey(&us(), start(std::slice::from_ref(&name)))
            .await
            .unwrap();
        let done = until(&disks, &name, "another worker serves", |info| {
            info.restarts > 0 && info.rekey.is_none() && info.state == DiskState::Running
        });
        let done = done.await;
        assert_eq!(done.restarts, 1);
        let error = done.last_error.unwrap().message;
        assert!(error.contains("signal 9"), "{error}");
        tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// Nobody keeps keys: a worker that dies in the middle gets both from the header.
#[test]
fn a_rekey_goes_on_where_keys_are_not_kept() {
    let lab = lab();
    let name = lab.name("a.img");
    run(async {
        let mut settings = lab.settings();
        settings.keep_deks = false;
        let disks = lab.open_with(settings).await;
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut load = load(&lab, 6);
        work(&mut load, 200);
        disks
            .rekey(&us(), slow(std::slice::from_ref(&name)))
            .await
            .unwrap();
        until(&disks, &name, "something was moved", |info| {
            info.rekey.as_ref().is_some_and(|rekey| rekey.boundary > 0)
        })
        .await;
        kill(disks.get(&name).unwrap().pid.unwrap());
        load.leave();
        until(&disks, &name, "another worker", |info| info.restarts == 1).await;
        until_state(&disks, &name, RekeyState::Moving).await;
        tokio::task::block_in_place(|| load.connect(&lab.path("a.img.sock")).unwrap());
        work(&mut load, 100);
        disks.change_rekey(&us(), &name, faster()).await.unwrap();
        until_ended(&disks, &name).await;
        tokio::task::block_in_place(|| load.check_all());
        load.leave();
        detach_unused(&disks, &name).await;
        let dek = dek(&lab).await;
        load.check_bytes(&decrypted(&lab, &dek));
    });
}

/// The first block of the disk as it is stored now, and as the guest has it.
fn sample(lab: &Lab, plain: &[u8]) -> Sample {
    let stored = std::fs::read(lab.path("a.img")).unwrap();
    let at = volume(lab).layout().data_offset as usize;
    Sample {
        plain: plain[..16].try_into().unwrap(),
        stored: stored[at..at + 16].try_into().unwrap(),
    }
}

/// When it is done the old key is nowhere: not in the worker, nor in the manager,
/// nor in the header and its journal.
#[test]
fn the_old_key_is_nowhere_when_a_rekey_is_done() {
    let lab = lab();
    let directory = lab.home.directory();
    let mut manager = ManagerProcess::start_changed(directory, without_secret_memory);
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    let worker = lab.workers()[0];
    let plain = [0x5a; 4096];
    let socket = lab.path("a.img.sock");
    let options = super::support::front_end::Options::default();
    let mut front = super::support::front_end::FrontEnd::connect(&socket, &options).unwrap();
    front.write(0, &plain);
    front.flush();
    let old = sample(&lab, &plain);
    assert!(
        process_has_key(manager.pid(), &old),
        "the search finds nothing"
    );
    assert_eq!(manager.ask("slow a.img").as_deref(), Some("ok"));
    assert_eq!(manager.ask("pause a.img").as_deref(), Some("ok"));
    assert_eq!(under_way(&lab), Some(Kind::Rekey));
    assert_eq!(manager.ask("resume a.img").as_deref(), Some("ok"));
    super::support::server::eventually("it is done", || {
        (manager.ask("is a.img").as_deref() == Some("none")).then_some(())
    });
    let new = sample(&lab, &plain);
    assert!(new.stored != old.stored);
    assert!(process_has_key(manager.pid(), &new), "it has the new one");
    assert!(!process_has_key(manager.pid(), &old), "the manager");
    assert!(!process_has_key(worker, &old), "the worker");
    let file = std::fs::read(lab.path("a.img")).unwrap();
    assert!(!super::memory_search::has_key(&file, &old), "the volume");
    let layout = volume(&lab).layout();
    let area = &file[..layout.data_offset as usize];
    assert!(
        area[32 << 10..].iter().all(|byte| *byte == 0),
        "the journal"
    );
    assert_eq!(front.read(0, 4096), plain);
}

/// Who puts an older header back is told so, and so is who has put back a snapshot
/// of all of it.
#[test]
fn an_older_header_is_refused_and_a_whole_snapshot_needs_a_word() {
    let lab = lab();
    let name = lab.name("a.img");
    run(async {
        let disks = lab.open().await;
        let before = std::fs::read(lab.path("a.img")).unwrap();
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        let mut load = load(&lab, 8);
        work(&mut load, 100);
        disks
            .rekey(&us(), slow(std::slice::from_ref(&name)))
            .await
            .unwrap();
        disks
            .change_rekey(&us(), &name, go(Go::Pause))
            .await
            .unwrap();
        until_state(&disks, &name, RekeyState::Paused).await;
        let middle = std::fs::read(lab.path("a.img")).unwrap();
        disks.change_rekey(&us(), &name, go(Go::Run)).await.unwrap();
        work(&mut load, 100);
        load.leave();
        until(&disks, &name, "more was moved", |info| {
            info.rekey
                .as_ref()
                .is_some_and(|rekey| rekey.boundary > 1 << 20)
        })
        .await;
        detach_unused(&disks, &name).await;
        // The journal from its middle, with a header that is the same.
        let last = std::fs::read(lab.path("a.img")).unwrap();
        let area = 64 << 10;
        let mut mixed = last.clone();
        mixed[..area].copy_from_slice(&middle[..area]);
        std::fs::write(lab.path("a.img"), &mixed).unwrap();
        let refused = disks.attach(&us(), lab.request("a.img")).await.unwrap_err();
        assert!(refused.to_string().contains("older header"), "{refused}");
        std::fs::write(lab.path("a.img"), &last).unwrap();
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        until(&disks, &name, "it is known", |info| info.rekey.is_some()).await;
        disks.change_rekey(&us(), &name, faster()).await.unwrap();
        until_ended(&disks, &name).await;
        detach_unused(&disks, &name).await;
        // The headers from before its end, and from before its beginning.
        let done = std::fs::read(lab.path("a.img")).unwrap();
        for old in [&last, &before] {
            let mut mixed = done.clone();
            mixed[..area].copy_from_slice(&old[..area]);
            std::fs::write(lab.path("a.img"), &mixed).unwrap();
            let refused = disks.attach(&us(), lab.request("a.img")).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
            assert!(
                refused.help().unwrap().contains("forget-volume"),
                "{refused}"
            );
        }
        std::fs::write(lab.path("a.img"), &done).unwrap();
        disks.attach(&us(), lab.request("a.img")).await.unwrap();
        detach_unused(&disks, &name).await;
    });
}
