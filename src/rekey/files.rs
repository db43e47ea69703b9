//! The mover on real files, with threads, holes and O_DIRECT.

use std::fs::{File, OpenOptions};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::*;
use crate::crypt::{Engine, Params, SectorCipher, Transform};
use crate::secret::Dek;
use crate::units::{Sector, SectorSize};

const HEADER: u64 = 1 << 20;

/// A volume that is being given another key.
struct Volume {
    geometry: Geometry,
    transforms: Transforms,
    keys: Arc<Keys>,
    header: File,
}

impl Volume {
    fn new(size: u64, unit: SectorSize) -> Self {
        let facts = Facts {
            id: Uuid::new_v4(),
            kind: Kind::Rekey,
            binding: Vec::new(),
            data_offset: 4096,
            size,
        };
        let (old, new) = (Dek::generate().unwrap(), Dek::generate().unwrap());
        let params = Params {
            sector_size: unit,
            iv_tweak: 0,
            zero_units: true,
        };
        let cipher = |dek| {
            let cipher = SectorCipher::new(Engine::best(), dek, params).unwrap();
            Arc::new(Transform::Cipher(cipher))
        };
        let header = tempfile::tempfile().unwrap();
        header.set_len(HEADER).unwrap();
        Volume {
            geometry: Geometry::new(&facts, unit).unwrap(),
            keys: Keys::derive(&facts, Some(&old), Some(&new)).unwrap().into(),
            transforms: Transforms {
                old: cipher(&old),
                new: cipher(&new),
            },
            header,
        }
    }

    fn journal(&self) -> Journal<&File> {
        let area = 32 << 10..HEADER;
        Journal::new(&self.header, area, self.keys.clone(), self.geometry).unwrap()
    }

    fn begin<'a, F: Fence>(
        &'a self,
        data: &'a File,
        fence: F,
        options: Options,
    ) -> Mover<&'a File, &'a File, F> {
        let mut journal = self.journal();
        let position = journal.create().unwrap().position;
        let (geometry, transforms) = (self.geometry, self.transforms.clone());
        Mover::new(
            journal, data, fence, geometry, transforms, position, options,
        )
        .unwrap()
    }

    /// Stores `plain` at a byte of the disk, as it was before.
    fn store(&self, data: &File, position: u64, plain: &[u8]) {
        let mut stored = plain.to_vec();
        let first = Sector(position / 512);
        self.transforms.old.encrypt_in_place(first, &mut stored);
        data.write_all_at(&stored, self.geometry.in_file(position))
            .unwrap();
    }

    fn load(&self, data: &File, state: &Transform, position: u64, length: usize) -> Vec<u8> {
        let mut stored = vec![0; length];
        data.read_exact_at(&mut stored, self.geometry.in_file(position))
            .unwrap();
        state.decrypt_in_place(Sector(position / 512), &mut stored);
        stored
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i / 13) as u8 ^ seed | 1).collect()
}

fn options(threads: usize) -> Options {
    Options {
        region_least: 64 << 10,
        region_most: 2 << 20,
        threads,
        pace: Pace::default(),
    }
}

#[test]
fn data_is_moved_by_threads_and_holes_stay_holes() {
    for (unit, threads) in [(SectorSize::B512, 3), (SectorSize::B4096, 1)] {
        let size = (40 << 20) + 3 * 4096;
        let volume = Volume::new(size, unit);
        let data = tempfile::tempfile().unwrap();
        data.set_len(4096 + size).unwrap();
        // Ends of the disk, much in one place, and a unit alone in a hole.
        let pieces: Vec<(u64, Vec<u8>)> = [
            (0, 5 * 4096),
            (6 << 20, 3 << 20),
            (30 << 20, 4096),
            (size - 4096, 4096),
        ]
        .into_iter()
        .map(|(at, length)| (at, pattern(length, at as u8)))
        .collect();
        for (at, plain) in &pieces {
            volume.store(&data, *at, plain);
        }
        data.sync_all().unwrap();
        let blocks = data.metadata().unwrap().blocks();
        for direction in [Direction::Forward, Direction::Back] {
            let mut mover = match direction {
                Direction::Forward => volume.begin(&data, Alone, options(threads)),
                Direction::Back => {
                    let mut journal = volume.journal();
                    let (geometry, transforms) = (volume.geometry, volume.transforms.clone());
                    let position = recover(&mut journal, &data, geometry, &transforms, 1).unwrap();
                    assert_eq!(position.boundary, size);
                    let options = options(threads);
                    let fence = Alone;
                    Mover::new(
                        journal, &data, fence, geometry, transforms, position, options,
                    )
                    .unwrap()
                }
            };
            mover.handle().turn(direction);
            assert_eq!(mover.run().unwrap(), Outcome::Done);
            let progress = mover.handle().progress();
            assert_eq!((progress.moved, progress.left()), (size, 0));
            assert_eq!(progress.phase, Phase::Resting);
            let (_, state) = volume.transforms.along(direction);
            for (at, plain) in &pieces {
                assert!(
                    volume.load(&data, state, *at, plain.len()) == *plain,
                    "{at}"
                );
            }
            let hole = volume.load(&data, state, 12 << 20, 1 << 20);
            assert!(hole.iter().all(|byte| *byte == 0));
            assert_eq!(data.metadata().unwrap().blocks(), blocks);
            // Not every region of the holes had a record.
            assert!(progress.sequence < 120, "{}", progress.sequence);
        }
    }
}

#[test]
fn files_that_bypass_the_cache_are_moved_as_well() {
    // Not every file system that has temporary files can do it.
    let open = |folder: &Path| {
        let path = folder.join(format!("sealblk-{}", Uuid::new_v4()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path);
        let _ = std::fs::remove_file(&path);
        file.ok()
    };
    let folders = [
        &std::env::temp_dir(),
        Path::new("/var/tmp"),
        Path::new(env!("CARGO_MANIFEST_DIR")),
    ]
    .map(Path::to_path_buf);
    let data = folders.iter().find_map(|folder| open(folder)).unwrap();
    let size = (3 << 20) + 4096;
    let volume = Volume::new(size, SectorSize::B512);
    data.set_len(4096 + size).unwrap();
    let plain = pattern(1 << 20, 3);
    let mut stored = Buffer::zeroed(plain.len());
    stored.copy_from_slice(&plain);
    volume
        .transforms
        .old
        .encrypt_in_place(Sector(2048), &mut stored);
    data.write_all_at(&stored, 4096 + (1 << 20)).unwrap();
    assert_eq!(
        volume.begin(&data, Alone, options(2)).run().unwrap(),
        Outcome::Done
    );
    data.read_exact_at(&mut stored, 4096 + (1 << 20)).unwrap();
    volume
        .transforms
        .new
        .decrypt_in_place(Sector(2048), &mut stored);
    assert!(stored[..] == plain[..]);
}

/// Somebody who lets nothing through until it is permitted, and counts.
#[derive(Default)]
struct Watcher {
    /// How many times something may still be closed.
    permits: AtomicU64,
    /// So many bytes are closed for writing and for reading.
    closed: Mutex<(u64, u64)>,
    waited: AtomicU64,
    lengths: Mutex<Vec<u64>>,
}

impl Fence for Watcher {
    fn close_for_writing(&self, _: Direction, bytes: u64) -> bool {
        let take = |permits: u64| permits.checked_sub(1);
        let order = Ordering::Relaxed;
        if self.permits.fetch_update(order, order, take).is_err() {
            return false;
        }
        self.closed.lock().unwrap().0 = bytes;
        true
    }

    fn close_for_reading(&self, _: Direction, bytes: u64) -> bool {
        let mut closed = self.closed.lock().unwrap();
        assert!(bytes <= closed.0, "closed for writing before");
        closed.1 = bytes;
        true
    }

    fn advance(&self, _: Direction, bytes: u64) {
        let mut closed = self.closed.lock().unwrap();
        assert_eq!(closed.1, bytes, "nothing is moved that is open");
        *closed = (closed.0 - bytes, 0);
        self.lengths.lock().unwrap().push(bytes);
    }

    fn open(&self) {
        *self.closed.lock().unwrap() = (0, 0);
    }

    fn longest_wait(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }
}

#[test]
fn a_mover_rests_when_it_is_told_or_held_and_adapts_to_guests() {
    let size = 32 << 20;
    let volume = Volume::new(size, SectorSize::B512);
    let data = tempfile::tempfile().unwrap();
    data.set_len(4096 + size).unwrap();
    volume.store(&data, 0, &pattern(size as usize, 1));
    let fence = Watcher::default();
    let mut mover = volume.begin(&data, &fence, options(1));
    let handle = mover.handle();
    let at_rest = |boundary: u64| {
        let state = volume.journal().read().unwrap();
        assert_eq!((state.position.boundary, state.covered), (boundary, 0));
        assert_eq!(*fence.closed.lock().unwrap(), (0, 0));
    };

    assert_eq!(mover.run().unwrap(), Outcome::Held);
    at_rest(0);
    fence.permits.store(3, Ordering::Relaxed);
    assert_eq!(mover.run().unwrap(), Outcome::Held);
    // Three were closed, and the third one was not begun.
    at_rest(4 << 20);
    fence.permits.store(u64::MAX, Ordering::Relaxed);
    handle.rest();
    assert_eq!(mover.run().unwrap(), Outcome::Rested);
    at_rest(4 << 20);

    handle.go_on();
    // Guests wait for too long: regions become as short as they may.
    fence.waited.store(9000, Ordering::Relaxed);
    handle.set_pace(Pace {
        latency: Some(Duration::from_millis(5)),
        ..Pace::default()
    });
    assert_eq!(mover.run().unwrap(), Outcome::Done);
    at_rest(size);
    assert_eq!(
        fence.lengths.lock().unwrap().iter().min(),
        Some(&(64 << 10))
    );
    assert_eq!(handle.progress().region, 64 << 10);
    // And they grow again, all the way back.
    fence.waited.store(0, Ordering::Relaxed);
    handle.turn(Direction::Back);
    assert_eq!(mover.run().unwrap(), Outcome::Done);
    at_rest(0);
    assert!(handle.progress().region > 64 << 10);
    let state = &volume.transforms.old;
    assert!(volume.load(&data, state, 0, size as usize) == pattern(size as usize, 1));
}

#[test]
fn a_limit_is_kept_and_orders_end_the_wait() {
    let size = 4 << 20;
    let volume = Volume::new(size, SectorSize::B512);
    let data = tempfile::tempfile().unwrap();
    data.set_len(4096 + size).unwrap();
    volume.store(&data, 0, &pattern(size as usize, 1));
    let limited = Options {
        region_most: 64 << 10,
        pace: Pace {
            // A region takes a quarter of an hour.
            bytes_per_second: NonZeroU64::new(64),
            latency: None,
        },
        ..options(1)
    };
    let mut mover = volume.begin(&data, Alone, limited);
    let handle = mover.handle();
    std::thread::scope(|scope| {
        let run = scope.spawn(move || (mover.run(), mover));
        let deadline = Instant::now() + Duration::from_secs(10);
        while handle.progress().phase != Phase::Waiting {
            assert!(Instant::now() < deadline, "it never waited");
            std::thread::yield_now();
        }
        // It waits at rest, after one region.
        let state = volume.journal().read().unwrap();
        assert_eq!((state.position.boundary, state.covered), (64 << 10, 0));
        handle.rest();
        let (result, mut mover) = run.join().unwrap();
        assert_eq!(result.unwrap(), Outcome::Rested);
        assert_eq!(handle.progress().moved, 64 << 10);
        handle.go_on();
        handle.set_pace(Pace::default());
        assert_eq!(mover.run().unwrap(), Outcome::Done);
    });
    let state = &volume.transforms.new;
    assert!(volume.load(&data, state, 0, size as usize) == pattern(size as usize, 1));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let volume = Volume::new(1 << 20, SectorSize::B512);
    let data = tempfile::tempfile().unwrap();
    let position = Position {
        direction: Direction::Forward,
        boundary: 0,
    };
    let mover = |journal, transforms, position| {
        let options = Options::default();
        Mover::new(
            journal,
            &data,
            Alone,
            volume.geometry,
            transforms,
            position,
            options,
        )
        .err()
    };
    let unread = mover(volume.journal(), volume.transforms.clone(), position);
    assert!(matches!(unread, Some(Error::Unfit(_))));
    let created = || {
        let mut journal = volume.journal();
        journal.create().unwrap();
        journal
    };
    let beyond = Position {
        boundary: (1 << 20) + 512,
        ..position
    };
    assert!(mover(created(), volume.transforms.clone(), beyond).is_some());
    let other = Volume::new(1 << 20, SectorSize::B4096).transforms;
    assert!(mover(created(), other, position).is_some());
    assert!(mover(created(), volume.transforms.clone(), position).is_none());
}
