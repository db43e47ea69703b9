//! The mover itself, with its journal, under a load that checks every sector.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sealblk::crypt::{Engine, Params, SectorCipher, Transform};
use sealblk::engine::fence::Keeper;
use sealblk::engine::hold::Mode;
use sealblk::engine::throttle::{Lane, Limits};
use sealblk::rekey::{
    Direction, Facts, Geometry, Handle, Journal, Keys, Kind, Mover, Options, Outcome, Position,
    Transforms,
};
use sealblk::secret::Dek;
use sealblk::units::SectorSize;
use uuid::Uuid;

use crate::load::Load;
use crate::support::front_end::{self, FrontEnd};
use crate::support::in_process::{BYTES, OFFSET, Served};
use crate::support::server::eventually;

/// A disk that is moved to another key.
struct Moved {
    served: Served,
    new: Dek,
    handle: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
    outcomes: mpsc::Receiver<(Outcome, Position)>,
    go_on: mpsc::Sender<()>,
}

fn cipher(dek: &Dek, params: Params) -> Arc<Transform> {
    let cipher = SectorCipher::new(Engine::Portable, dek, params).unwrap();
    Arc::new(Transform::Cipher(cipher))
}

impl Moved {
    /// Begins. The mover waits to be told.
    fn new(served: Served, params: Params, most: u64) -> Moved {
        let new = Dek::generate().unwrap();
        let transforms = Transforms {
            old: cipher(served.dek(), params),
            new: cipher(&new, params),
        };
        let position = Position {
            direction: Direction::Forward,
            boundary: 0,
        };
        served
            .disk
            .begin_move(transforms.new.clone(), position)
            .unwrap();
        let facts = Facts {
            id: Uuid::new_v4(),
            kind: Kind::Rekey,
            binding: b"a test".to_vec(),
            data_offset: OFFSET,
            size: BYTES,
        };
        let geometry = Geometry::new(&facts, params.sector_size).unwrap();
        let keys = Keys::derive(&facts, Some(served.dek()), Some(&new)).unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(served.path("journal"))
            .unwrap();
        file.set_len(1 << 20).unwrap();
        let mut journal = Journal::new(file, 0..1 << 20, keys, geometry).unwrap();
        journal.create().unwrap();
        let direct = if served.disk.store().is_direct() {
            libc::O_DIRECT
        } else {
            0
        };
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(direct)
            .open(served.path("disk"))
            .unwrap();
        let keeper: Keeper = served.disk.fence().keeper().unwrap();
        let options = Options {
            region_least: 16 << 10,
            region_most: most,
            ..Options::default()
        };
        let keeper = Arc::new(keeper);
        let mut mover = Mover::new(
            journal,
            data,
            keeper.clone(),
            geometry,
            transforms,
            position,
            options,
        )
        .unwrap();
        let handle = mover.handle();
        let (outcome, outcomes) = mpsc::channel();
        let (go_on, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while told.recv().is_ok() {
                loop {
                    let result = mover.run().unwrap();
                    if result != Outcome::Held {
                        let _ = outcome.send((result, mover.position()));
                        break;
                    }
                    keeper.wait_to_go_on(Duration::from_secs(60));
                }
            }
        });
        Moved {
            served,
            new,
            handle,
            thread: Some(thread),
            outcomes,
            go_on,
        }
    }

    fn connect(&self) -> FrontEnd {
        let options = front_end::Options {
            queues: 2,
            queue_size: 256,
            memory: 64 << 20,
            ..front_end::Options::default()
        };
        FrontEnd::connect(&self.served.path("socket"), &options).unwrap()
    }

    fn boundary(&self) -> u64 {
        self.served.disk.fence().position().unwrap().boundary
    }

    /// What the file holds, by the reference cipher.
    fn judge(&self, load: &Load, boundary: u64) {
        let parts = [
            (boundary, Some(&self.new)),
            (BYTES, Some(self.served.dek())),
        ];
        let found = self.served.decrypted(&parts);
        let wrong = load
            .model
            .chunks(512)
            .zip(found.chunks(512))
            .position(|(a, b)| a != b);
        assert_eq!(wrong, None, "the boundary is {boundary}");
    }

    /// Lets it run, with load, until it says that it has come to rest; and what
    /// else happens when it has come so far.
    fn run(
        &self,
        load: &mut Load,
        front: &mut Option<FrontEnd>,
        depth: usize,
        mut also: impl FnMut(u64, &mut Load, &mut Option<FrontEnd>),
    ) -> (Outcome, Position) {
        let deadline = Instant::now() + Duration::from_secs(120);
        self.go_on.send(()).unwrap();
        loop {
            load.turn(front.as_mut().unwrap(), self.boundary(), depth);
            also(self.boundary(), load, front);
            if let Ok(outcome) = self.outcomes.try_recv() {
                return outcome;
            }
            assert!(Instant::now() < deadline, "it is at {}", self.boundary());
        }
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        self.handle.rest();
        self.served.disk.fence().halt();
        self.go_on = mpsc::channel().0;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the mover has panicked");
        }
    }
}

fn seed() -> u64 {
    let seed = std::env::var("SEALBLK_MOVING_SEED").map_or_else(
        |_| u64::from(std::process::id()),
        |seed| seed.parse().unwrap(),
    );
    println!("SEALBLK_MOVING_SEED={seed}");
    seed
}

fn params(sector_size: SectorSize) -> Params {
    Params {
        sector_size,
        zero_units: true,
        ..Params::default()
    }
}

fn forward_and_back(served: fn(Params, bool) -> Served, unit: SectorSize, most: u64, back: bool) {
    let moved = Moved::new(served(params(unit), true), params(unit), most);
    let mut load = Load::new(seed(), unit.bytes(), true);
    let mut front = Some(moved.connect());
    // Something to begin with.
    for _ in 0..200 {
        load.turn(front.as_mut().unwrap(), BYTES / 2, 16);
    }
    let disk = moved.served.disk.clone();
    let (mut frozen, mut limited) = (false, false);
    let end = moved.run(&mut load, &mut front, 24, |boundary, load, front| {
        let front = front.as_mut().unwrap();
        if boundary > BYTES / 2 && !frozen {
            frozen = true;
            load.drain(front);
            let freeze = disk.hold().freeze().unwrap();
            assert!(disk.hold().wait_until_quiet(freeze));
            assert!(disk.fence().is_at_rest());
            moved.judge(load, moved.boundary());
            // The same with requests in flight, which wait in the ring then.
            assert!(disk.hold().thaw());
            load.turn(front, boundary, 24);
            let freeze = disk.hold().freeze().unwrap();
            load.turn(front, boundary, 24);
            assert!(disk.hold().wait_until_quiet(freeze));
            assert!(disk.fence().is_at_rest());
            assert!(disk.hold().thaw());
        }
        if boundary > BYTES / 4 && !limited {
            limited = true;
            let limits: sealblk::config::Limits = toml::from_str("iops_total = 3000").unwrap();
            disk.throttle().set(&limits.resolve().unwrap());
        }
        if boundary > BYTES / 3 {
            disk.throttle().set(&Limits::default());
        }
    });
    assert!(frozen && limited);
    assert_eq!((end.0, end.1.boundary), (Outcome::Done, BYTES));
    load.drain(front.as_mut().unwrap());
    moved.judge(&load, BYTES);

    if back {
        // And back, a part of the way, and forward again.
        moved.handle.turn(Direction::Back);
        let mut turned = false;
        let end = moved.run(&mut load, &mut front, 32, |boundary, _, _| {
            if boundary < BYTES / 4 * 3 && !turned {
                turned = true;
                moved.handle.rest();
            }
        });
        assert_eq!(end.0, Outcome::Rested);
        load.drain(front.as_mut().unwrap());
        moved.judge(&load, end.1.boundary);
        moved.handle.turn(Direction::Forward);
        moved.handle.go_on();
        let end = moved.run(&mut load, &mut front, 32, |_, _, _| {});
        assert_eq!((end.0, end.1.boundary), (Outcome::Done, BYTES));
    }
    disk.end_move().unwrap();
    for _ in 0..100 {
        load.turn(front.as_mut().unwrap(), 0, 16);
    }
    load.drain(front.as_mut().unwrap());
    load.read_all(front.as_mut().unwrap());
    moved.judge(&load, BYTES);
    assert_eq!(load.failed, 0);
    let seen = moved.served.stats().snapshot();
    let parked = [Lane::Read, Lane::Write].map(|lane| *seen.parked(lane));
    println!("{} answered; parked: {parked:?}", load.answered);
    assert!(parked[1].requests > 0 && load.answered > 1000);
}

#[test]
fn a_disk_on_a_file_system_gets_another_key_under_load() {
    forward_and_back(Served::new, SectorSize::B4096, 256 << 10, false);
}

#[test]
fn a_disk_in_memory_gets_another_key_under_load() {
    forward_and_back(Served::in_memory, SectorSize::B512, 64 << 10, true);
}

/// Front ends come and go with requests in flight; and for a while everything
/// fails, as when a key is denied.
#[test]
fn sessions_end_and_requests_fail_while_data_is_moved() {
    let unit = SectorSize::B512;
    let moved = Moved::new(
        Served::in_memory(params(unit), true),
        params(unit),
        128 << 10,
    );
    let mut load = Load::new(seed(), unit.bytes(), true);
    let disk = moved.served.disk.clone();
    let (mut sessions, mut denials) = (0, 0);
    let mut front = Some(moved.connect());
    load.fill(front.as_mut().unwrap());
    let end = loop {
        let mut next = 0;
        let end = moved.run(&mut load, &mut front, 32, |boundary, load, front| {
            if boundary < next {
                return;
            }
            next = boundary + BYTES / 12;
            if sessions == denials {
                sessions += 1;
                // With requests in flight, parked and in the ring.
                *front = None;
                load.abandon();
                load.settle(front.insert(moved.connect()));
            } else {
                let front = front.as_mut().unwrap();
                denials += 1;
                disk.hold().set(Mode::Fail);
                let before = load.failed;
                eventually("requests fail", || {
                    load.turn(front, boundary, 32);
                    (load.failed > before).then_some(())
                });
                load.drain(front);
                disk.hold().set(Mode::Run);
                load.settle(front);
            }
        });
        if sessions >= 3 && denials >= 3 {
            break end;
        }
        // On a busy machine it can be done before there were enough: back, and again.
        moved.handle.turn(Direction::Back);
        moved.run(&mut load, &mut front, 32, |_, _, _| {});
        moved.handle.turn(Direction::Forward);
    };
    assert_eq!((end.0, end.1.boundary), (Outcome::Done, BYTES));
    load.settle(front.as_mut().unwrap());
    load.read_all(front.as_mut().unwrap());
    moved.judge(&load, BYTES);
    disk.end_move().unwrap();
    load.read_all(front.as_mut().unwrap());
}
