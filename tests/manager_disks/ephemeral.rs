//! Disks whose key is in their worker alone.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use sealblk::error::Kind;
use sealblk::manager::disks::Disks;
use sealblk::manager::model::{Attach, DiskInfo, DiskState, NewSize};
use serde_json::Value;

use super::lab::{BY_FORCE, Lab, detach_unused, ephemeral, kill, run, until, until_running, us};
use super::memory_search::{Sample, has_key, process_has_key, without_secret_memory};
use super::process::ManagerProcess;
use super::support::front_end::FrontEnd;
use super::support::home::SIZE;
use super::support::request::{Range, Request, S_IOERR, S_OK};

fn request(lab: &Lab, name: &str) -> Attach {
    ephemeral(lab.home.directory(), name, SIZE)
}

/// The files without a name that a process has open in `directory`.
fn nameless(pid: u32, directory: &Path) -> Vec<File> {
    let directory = directory.to_str().unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let here = descriptors.flatten().filter(|entry| {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_string_lossy().into_owned();
        target.starts_with(directory) && target.ends_with("(deleted)")
    });
    here.map(|entry| File::open(entry.path()).unwrap())
        .collect()
}

/// Bytes that a file takes on its file system.
fn taken(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

/// What a guest notices of a disk whose contents are lost.
fn assert_serves_nothing(front: &mut FrontEnd) {
    tokio::task::block_in_place(|| {
        assert_eq!(front.config().unwrap().capacity, SIZE / 512);
        for request in [
            Request::read(0, 4096),
            Request::write(8, &[1; 4096]),
            Request::flush(),
            Request::write_zeroes(&[Range::new(0, 8)]),
        ] {
            let kind = request.kind;
            assert_eq!(front.run(0, request).status, S_IOERR, "type {kind}");
        }
        // It is still that disk.
        assert_eq!(front.run(0, Request::get_id()).status, S_OK);
    });
}

async fn until_lost(disks: &Disks, name: &str) -> DiskInfo {
    let info = until(disks, name, "it is told that all is lost", |info| {
        info.state == DiskState::Failed && info.pid.is_some()
    })
    .await;
    let problem = info.last_error.clone().unwrap();
    assert!(problem.message.contains("is lost"), "{problem:?}");
    assert!(problem.help.unwrap().contains("detach"));
    info
}

#[test]
fn an_ephemeral_disk_begins_empty_and_leaves_nothing() {
    let lab = Lab::with_space();
    let (name, space) = (lab.name("tmp"), lab.path("space"));
    // It needs no key of anybody.
    lab.hide_key();
    run(async {
        let disks = lab.open().await;
        let info = disks.attach(&us(), request(&lab, "tmp")).await.unwrap();
        assert_eq!((info.state, info.size), (DiskState::Running, Some(SIZE)));
        assert!(info.ephemeral && info.key_set.is_none() && info.key_id.is_none());
        assert_eq!(info.sector_size, Some(4096));
        // Another one may have space in the same directory.
        let other = disks.attach(&us(), request(&lab, "other")).await.unwrap();
        assert_ne!(other.uuid, info.uuid);
        let worker = info.pid.unwrap();
        let file = nameless(worker, &space).remove(0);
        assert_eq!(
            (taken(&file), std::fs::read_dir(&space).unwrap().count()),
            (0, 0)
        );

        let pattern = b"what a guest keeps to itself ...".repeat(2048);
        let mut front = lab.connect("tmp").await;
        tokio::task::block_in_place(|| {
            assert!(front.read(0, 65536) == [0; 65536], "it begins empty");
            front.write(0, &pattern);
            front.write(1024, &pattern);
            front.flush();
            assert!(front.read(1024, pattern.len()) == pattern);
            assert!(taken(&file) >= 2 * pattern.len() as u64);
            let mut stored = vec![0; SIZE as usize];
            file.read_exact_at(&mut stored, 0).unwrap();
            assert!(stored[..512] != [0; 512]);
            let shown = stored.windows(32).any(|part| part == &pattern[..32]);
            assert!(!shown, "the file has plaintext");
            // Given back as the guest gives it back.
            front.discard(&[Range::new(1024, 128)]);
            assert!(front.read(1024, 4096) == [0; 4096]);
            assert!(taken(&file) < 2 * pattern.len() as u64);
        });
        drop(front);

        // It has no header that anything could be done with.
        let larger = NewSize {
            size: Some(2 * SIZE),
            preallocate: false,
        };
        let failure = disks.resize(&us(), &name, larger).await.unwrap_err();
        assert!(failure.to_string().contains("ephemeral"), "{failure}");
        let failure = disks.with_volume(&name, |_| ()).await.unwrap_err();
        assert!(failure.to_string().contains("ephemeral"), "{failure}");

        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        // Though we still have the file open.
        assert_eq!(taken(&file), 0);
        drop(file);
        detach_unused(&disks, &lab.name("other")).await;
        let left = |directory: &str| std::fs::read_dir(lab.path(directory)).unwrap().count();
        assert_eq!(
            (left("space"), left("state/disks"), left("run/workers")),
            (0, 0, 0)
        );
        assert!(nameless(std::process::id(), &space).is_empty());

        disks.attach(&us(), request(&lab, "tmp")).await.unwrap();
        let mut front = lab.connect("tmp").await;
        tokio::task::block_in_place(|| assert!(front.read(0, 4096) == [0; 4096]));
        drop(front);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// With keys in memory that can be searched, and a search that finds that of a
/// volume in the same managers.
#[test]
fn the_key_is_in_the_worker_and_nowhere_else() {
    let lab = Lab::with_space();
    lab.home.create("a.img", &["--sector-size", "4096"]);
    let directory = lab.home.directory();
    let mut manager = ManagerProcess::start_changed(directory, without_secret_memory);
    assert_eq!(manager.ask("attach a.img").as_deref(), Some("ok"));
    let volumes = lab.workers()[0];
    assert_eq!(manager.ask("scratch tmp").as_deref(), Some("ok"));
    let worker = lab.workers().into_iter().find(|pid| *pid != volumes);
    let worker = worker.unwrap();
    let stored = |file: &File, offset: u64| {
        let mut stored = [0; 16];
        file.read_exact_at(&mut stored, offset).unwrap();
        stored
    };
    run(async {
        for disk in ["a.img", "tmp"] {
            let mut front = lab.connect(disk).await;
            tokio::task::block_in_place(|| {
                front.write(0, &[0x5a; 4096]);
                front.flush();
            });
        }
    });
    let file = nameless(worker, &lab.path("space")).remove(0);
    let image = File::open(lab.path("a.img")).unwrap();
    let plain = [0x5a; 16];
    let ephemeral = Sample {
        plain,
        stored: stored(&file, 0),
    };
    let volume = Sample {
        plain,
        stored: stored(&image, 16 << 20),
    };
    assert!(
        process_has_key(manager.pid(), &volume),
        "the search finds nothing"
    );
    assert!(!process_has_key(manager.pid(), &ephemeral));
    assert!(!process_has_key(volumes, &ephemeral));

    // Nor does a next manager get it.
    manager.kill();
    let mut manager = ManagerProcess::start_changed(directory, without_secret_memory);
    assert!(process_has_key(manager.pid(), &volume), "that was adopted");
    assert!(!process_has_key(manager.pid(), &ephemeral));
    for entry in std::fs::read_dir(lab.path("state/disks"))
        .unwrap()
        .flatten()
    {
        assert!(!has_key(&std::fs::read(entry.path()).unwrap(), &ephemeral));
    }
    for disk in ["a.img", "tmp"] {
        assert_eq!(
            manager.ask(&format!("detach {disk}")).as_deref(),
            Some("ok")
        );
    }
}

#[test]
fn with_its_worker_all_is_lost_and_nobody_takes_an_empty_disk_for_it() {
    let lab = Lab::with_space();
    let name = lab.name("tmp");
    run(async {
        let disks = lab.open().await;
        let info = disks.attach(&us(), request(&lab, "tmp")).await.unwrap();
        let file = nameless(info.pid.unwrap(), &lab.path("space")).remove(0);
        let mut front = lab.connect("tmp").await;
        tokio::task::block_in_place(|| {
            front.write(0, &[1; 65536]);
            front.flush();
        });
        drop(front);
        kill(info.pid.unwrap());
        until_lost(&disks, &name).await;
        assert_eq!(taken(&file), 0, "nobody can read it any more");
        assert_serves_nothing(&mut lab.connect("tmp").await);
        // Whatever dies next.
        kill(lab.workers()[0]);
        until(&disks, &name, "another worker is there", |info| {
            info.restarts == 2 && info.pid.is_some()
        })
        .await;
        until_lost(&disks, &name).await;
        assert_serves_nothing(&mut lab.connect("tmp").await);
        disks.close().await;
        drop(disks);
        let disks = lab.open().await;
        until_lost(&disks, &name).await;
        assert_serves_nothing(&mut lab.connect("tmp").await);

        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        let info = disks.attach(&us(), request(&lab, "tmp")).await.unwrap();
        assert_eq!((info.state, info.last_error), (DiskState::Running, None));
        let mut front = lab.connect("tmp").await;
        tokio::task::block_in_place(|| {
            assert!(front.read(0, 4096) == [0; 4096]);
            front.write(0, &[2; 4096]);
            front.flush();
        });
        drop(front);
        disks.detach(&us(), &name, BY_FORCE).await.unwrap();
    });
}

/// Its data stays through a manager's end; with the worker gone as well, the boot
/// of the host decides.
#[test]
fn it_outlives_its_manager_and_begins_anew_with_the_host() {
    for (reboot, kill_worker) in [(false, false), (false, true), (true, true)] {
        let lab = Lab::with_space();
        let name = lab.name("tmp");
        let mut manager = ManagerProcess::start(lab.home.directory());
        assert_eq!(manager.ask("scratch tmp").as_deref(), Some("ok"));
        let worker = lab.workers()[0];
        run(async {
            let mut front = lab.connect("tmp").await;
            tokio::task::block_in_place(|| front.write(0, &[3; 4096]));
            manager.kill();
            tokio::task::block_in_place(|| assert!(front.read(0, 4096) == [3; 4096]));
            drop(front);
            if kill_worker {
                kill(worker);
            }
            if reboot {
                another_boot(&lab.path(&format!("state/disks/{name}.json")));
            }
            let disks = lab.open().await;
            match (reboot, kill_worker) {
                (false, false) => {
                    let info = until_running(&disks, &name).await;
                    assert_eq!(info.pid, Some(worker));
                    assert!(info.ephemeral && info.key_set.is_none());
                    let mut front = lab.connect("tmp").await;
                    tokio::task::block_in_place(|| assert!(front.read(0, 4096) == [3; 4096]));
                }
                (false, true) => {
                    until_lost(&disks, &name).await;
                    assert_serves_nothing(&mut lab.connect("tmp").await);
                }
                (true, _) => {
                    until_running(&disks, &name).await;
                    let mut front = lab.connect("tmp").await;
                    tokio::task::block_in_place(|| {
                        assert!(front.read(0, 4096) == [0; 4096]);
                        front.write(0, &[4; 4096]);
                    });
                    drop(front);
                    // From then on it is of this boot.
                    kill(lab.workers()[0]);
                    disks.close().await;
                    drop(disks);
                    let disks = lab.open().await;
                    until_lost(&disks, &name).await;
                    disks.detach(&us(), &name, BY_FORCE).await.unwrap();
                    return;
                }
            }
            disks.detach(&us(), &name, BY_FORCE).await.unwrap();
        });
    }
}

/// As if the record had been written before the host was started.
fn another_boot(record: &Path) {
    let text = std::fs::read_to_string(record).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let boot = json["ephemeral"]["served_in"].as_str().unwrap();
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(boot, id.trim());
    json["ephemeral"]["served_in"] = "00000000-0000-4000-8000-000000000000".into();
    std::fs::write(record, json.to_string()).unwrap();
}

#[test]
fn a_crash_while_attaching_leaves_a_disk_that_is_found_and_taken_away() {
    for (step, found) in [
        ("Opened", false),
        ("Recorded", true),
        ("Spawned", true),
        ("Told", true),
        ("Serving", true),
    ] {
        let lab = Lab::with_space();
        let name = lab.name("tmp");
        let mut manager = ManagerProcess::start(lab.home.directory());
        manager.ask(&format!("die {step}"));
        assert_eq!(manager.ask("scratch tmp"), None, "it goes on after {step}");
        manager.was_killed();
        run(async {
            let disks = lab.open().await;
            assert_eq!(disks.get(&name).is_some(), found, "after {step}");
            if found {
                until(&disks, &name, "it has a worker", |info| info.pid.is_some()).await;
                detach_unused(&disks, &name).await;
            }
            disks.attach(&us(), request(&lab, "tmp")).await.unwrap();
            detach_unused(&disks, &name).await;
            assert!(lab.workers().is_empty());
            let left = |directory: &str| std::fs::read_dir(lab.path(directory)).unwrap().count();
            assert_eq!(
                (left("space"), left("state/disks"), left("run/workers")),
                (0, 0, 0)
            );
        });
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let lab = Lab::with_space();
    lab.home.create("a.img", &[]);
    let good = request(&lab, "tmp");
    let sized = |size| ephemeral(lab.home.directory(), "tmp", size);
    let wrong = [
        (sized(SIZE + 512), Kind::Usage, "not a number of sectors"),
        (sized(0), Kind::Usage, "at least one sector"),
        (
            Attach {
                header: Some("/h".into()),
                ..good.clone()
            },
            Kind::Usage,
            "no use for a header",
        ),
        (
            Attach {
                break_glass: true,
                ..good.clone()
            },
            Kind::Usage,
            "no use for break-glass",
        ),
        (
            Attach {
                volume: lab.path("a.img"),
                ..good.clone()
            },
            Kind::Usage,
            "neither a directory nor a block device",
        ),
        (
            Attach {
                volume: lab.path("nowhere"),
                ..good.clone()
            },
            Kind::NotFound,
            "nowhere",
        ),
    ];
    let image = std::fs::read(lab.path("a.img")).unwrap();
    run(async {
        let disks = lab.open().await;
        for (request, kind, cause) in wrong {
            let failure = disks.attach(&us(), request).await.unwrap_err();
            assert_eq!(failure.kind(), kind, "{failure}");
            assert!(failure.to_string().contains(cause), "{failure}");
        }
        assert!(disks.list().is_empty());
    });
    assert!(std::fs::read(lab.path("a.img")).unwrap() == image);
}
