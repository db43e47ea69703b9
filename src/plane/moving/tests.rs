//! The thread alone, on files that fail.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::engine::Disk;
use crate::engine::hold::Mode;
use crate::engine::stats::Stats;
use crate::plane::{disk_of, sample_spec};
use crate::rekey::Facts;
use crate::store::{DirectMode, Store};

const SIZE: u64 = 1 << 20;
const AREA: u64 = 64 << 10;

struct Lab {
    directory: tempfile::TempDir,
    main: Dek,
    old: Dek,
    task: Task,
}

impl Lab {
    fn new() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let facts = Facts {
            id: uuid::Uuid::from_u128(5),
            kind: Kind::Rekey,
            binding: b"binding".into(),
            data_offset: 0,
            size: SIZE,
        };
        let lab = Lab {
            directory,
            main: Dek::generate().unwrap(),
            old: Dek::generate().unwrap(),
            task: Task {
                facts,
                journal: 0..AREA,
                pace: Pace::default(),
                go: Go::Run,
                direction: None,
                at_least: 0,
            },
        };
        let mut data = vec![0x77; SIZE as usize];
        let old = transform(&sample_spec(), Some(&lab.old)).unwrap();
        old.encrypt_in_place(crate::units::Sector(0), &mut data);
        std::fs::write(lab.path("data"), data).unwrap();
        std::fs::write(lab.path("journal"), vec![0; AREA as usize]).unwrap();
        let keys = Keys::derive(&lab.task.facts, Some(&lab.old), Some(&lab.main)).unwrap();
        let geometry = Geometry::new(&lab.task.facts, sample_spec().sector_size).unwrap();
        let file = writable(&lab.path("journal"));
        let mut journal = Journal::new(file, 0..AREA, keys, geometry).unwrap();
        journal.create().unwrap();
        lab
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn begin(&self, files: Files) -> (Arc<Disk>, Moving) {
        let spec = sample_spec();
        let mut ready = recover(&spec, &self.task, &self.main, Some(&self.old), files).unwrap();
        let data = writable(&self.path("data"));
        let access = (false, DirectMode::Never);
        let store = Store::open(data.as_fd(), (0, SIZE), spec.sector_size, access, 2).unwrap();
        let stats = Stats::private(spec.queues).unwrap();
        let disk = Arc::new(disk_of(&spec, store, ready.old_transform().unwrap(), stats));
        let moving = ready.begin(&disk, || {}).unwrap();
        (disk, moving)
    }

    fn files(&self) -> Files {
        Files {
            data: writable(&self.path("data")),
            journal: writable(&self.path("journal")),
        }
    }
}

fn writable(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn until(moving: &Moving, phase: Phase) -> Progress {
    let start = Instant::now();
    loop {
        let progress = moving.progress();
        if progress.phase == phase {
            return progress;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{progress:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn go(go: Go) -> Orders {
    Orders {
        go: Some(go),
        ..Orders::default()
    }
}

#[test]
fn what_is_done_stays_done_and_leaves_one_key() {
    let lab = Lab::new();
    let (disk, moving) = lab.begin(lab.files());
    assert_eq!(until(&moving, Phase::Done).boundary, SIZE);
    // Its header may be written at any time from now on.
    let back = Orders {
        direction: Some(Direction::Back),
        ..Orders::default()
    };
    assert!(matches!(moving.order(back), Err(Error::Over)));
    assert_eq!(moving.progress().direction, Direction::Forward);
    drop(moving);
    // Nor is it turned by what was wanted before.
    let mut again = Lab { ..lab };
    again.task.direction = Some(Direction::Back);
    drop(disk);
    let (disk, moving) = again.begin(again.files());
    until(&moving, Phase::Done);
    assert_eq!(
        moving.end().map_err(|_| ()).unwrap().direction,
        Direction::Forward
    );
    assert!(disk.fence().position().is_none());
    let mut data = std::fs::read(again.path("data")).unwrap();
    let new = transform(&sample_spec(), Some(&again.main)).unwrap();
    new.decrypt_in_place(crate::units::Sector(0), &mut data);
    assert!(data.iter().all(|byte| *byte == 0x77));
}

#[test]
fn it_is_not_ended_before_it_is_done() {
    let mut lab = Lab::new();
    lab.task.go = Go::Pause;
    let (_disk, moving) = lab.begin(lab.files());
    until(&moving, Phase::Paused);
    let Err((moving, Error::NotDone)) = moving.end() else {
        panic!("it ended");
    };
    moving.order(go(Go::Run)).unwrap();
    until(&moving, Phase::Done);
}

#[test]
fn it_rests_while_requests_are_held() {
    let mut lab = Lab::new();
    lab.task.pace.limit = Some(LEAST_LIMIT);
    let (disk, moving) = lab.begin(lab.files());
    disk.hold().set(Mode::Pause);
    let held = until(&moving, Phase::Held);
    assert!(disk.fence().is_at_rest());
    disk.hold().set(Mode::Run);
    let faster = Orders {
        pace: Some(Pace::default()),
        ..Orders::default()
    };
    moving.order(faster).unwrap();
    let done = until(&moving, Phase::Done);
    assert!(held.boundary < done.boundary);
}

/// The journal cannot be written: nothing is moved, and it is said why.
#[test]
fn a_disk_below_that_fails_stops_it_with_a_reason() {
    let lab = Lab::new();
    for broken in ["journal", "data"] {
        let read_only = File::open(lab.path(broken)).unwrap();
        let files = match broken {
            "journal" => Files {
                journal: read_only,
                ..lab.files()
            },
            _ => Files {
                data: read_only,
                ..lab.files()
            },
        };
        let (_disk, moving) = lab.begin(files);
        let failed = until(&moving, Phase::Failed);
        let fault = failed.fault.unwrap();
        assert!(fault.contains("cannot write the"), "{fault}");
        assert_eq!(failed.boundary, 0);
        drop(moving);
    }
    // What it left is found, and finished, when the disk below works again.
    let (_disk, moving) = lab.begin(lab.files());
    until(&moving, Phase::Done);
}

#[test]
fn why_it_rests_is_one_line_whoever_says_so() {
    let text = r#"{
        "id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "kind": "rekey", "direction": "forward",
        "phase": "failed", "boundary": 0, "size": 1, "moved": 0, "rate": 0, "region": 1,
        "sequence": 0, "go": "run", "pace": {}, "fault": "\u001b[2Jgone\n"
    }"#;
    let progress: Progress = serde_json::from_str(text).unwrap();
    assert_eq!(progress.fault.as_deref(), Some(" [2Jgone "));
}
