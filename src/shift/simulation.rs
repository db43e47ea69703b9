//! A disk is moved on storage that loses power at every write and sync: what was
//! written and not synced is there or not, sector by sector, and in any order.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use uuid::Uuid;

use super::*;
use crate::crypt::{Engine, Params, SectorCipher};
use crate::platter::{Disk, Kept, SECTOR};
use crate::random::Random;
use crate::rekey::{Facts, Kind, Medium};
use crate::secret::Dek;
use crate::units::{Sector, SectorSize};

/// The length of the room: small, so that there are many steps.
const BY: u64 = 16 << 10;
const SIZE: u64 = (100 << 10) + 512 * 8;

/// The power of all media together.
struct Power {
    /// So many more writes and syncs, or one cut off.
    left: u64,
    random: Random,
}

struct Storage<'p> {
    power: &'p Mutex<Power>,
    disk: Mutex<Disk>,
}

impl<'p> Storage<'p> {
    fn new(power: &'p Mutex<Power>, bytes: Vec<u8>) -> Self {
        let mut disk = Disk::new(bytes.len());
        disk.write(&bytes, 0);
        disk.sync();
        Storage {
            power,
            disk: Mutex::new(disk),
        }
    }

    /// Whether there is power for one more.
    fn lives(&self) -> bool {
        let mut power = self.power.lock().unwrap();
        power.left = power.left.saturating_sub(1);
        power.left > 0
    }

    /// What is there when it is read.
    fn now(&self) -> Vec<u8> {
        bytes(&self.disk.lock().unwrap())
    }

    /// What is there after the power was cut: of each sector that was not synced,
    /// what was there before, or anything written to it since.
    fn after_cut(&self) -> Vec<u8> {
        let mut disk = self.disk.lock().unwrap().clone();
        let mut power = self.power.lock().unwrap();
        disk.lose_power(&mut power.random, |_| Kept::Any);
        bytes(&disk)
    }
}

fn bytes(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.sectors() * SECTOR];
    disk.read(&mut bytes, 0);
    bytes
}

impl Medium for Storage<'_> {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.lock().unwrap().read(buffer, offset);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let lives = self.lives();
        // The last one is under way.
        self.disk.lock().unwrap().write(bytes, offset);
        match lives {
            true => Ok(()),
            false => Err(io::Error::other("no power")),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if !self.lives() {
            return Err(io::Error::other("no power"));
        }
        self.disk.lock().unwrap().sync();
        Ok(())
    }
}

impl Land for Storage<'_> {}

struct Case {
    way: Way,
    cipher: SectorCipher,
    key: Key,
    id: Uuid,
    /// The disk as a guest reads it.
    plain: Vec<u8>,
}

impl Case {
    fn new(way: Way, zero_units: bool, sector_size: SectorSize) -> Self {
        let dek = Dek::generate().unwrap();
        let params = Params {
            sector_size,
            iv_tweak: 0,
            zero_units,
        };
        let id = Uuid::new_v4();
        let facts = Facts {
            id,
            kind: match way {
                Way::Up => Kind::Encrypt,
                Way::Down => Kind::Decrypt,
            },
            binding: vec![1],
            data_offset: BY,
            size: SIZE,
        };
        let mut plain: Vec<u8> = (0..SIZE)
            .map(|at| (at / 512 * 7 + at % 251) as u8)
            .collect();
        plain[3 * 4096..5 * 4096].fill(0);
        Case {
            way,
            cipher: SectorCipher::new(Engine::Portable, &dek, params).unwrap(),
            key: Key::derive(&facts, &dek),
            id,
            plain,
        }
    }

    fn stored(&self) -> Vec<u8> {
        let params = self.cipher.params();
        let mut stored = self.plain.clone();
        for (index, unit) in stored.chunks_mut(params.sector_size.bytes()).enumerate() {
            if !params.zero_units || unit.iter().any(|&byte| byte != 0) {
                let first = index as u64 * params.sector_size.sectors();
                self.cipher.encrypt_in_place(Sector(first), unit);
            }
        }
        stored
    }

    /// The file before anything was moved.
    fn before(&self) -> Vec<u8> {
        let mut file = match self.way {
            Way::Up => self.plain.clone(),
            Way::Down => [vec![0; BY as usize], self.stored()].concat(),
        };
        file.resize((BY + SIZE) as usize, 0);
        file
    }

    fn assert_done(&self, file: &[u8], what: &str) {
        match self.way {
            Way::Up => {
                assert!(file[BY as usize..] == self.stored(), "{what}");
                let room = &file[SECTOR..BY as usize];
                assert!(room.iter().all(|&byte| byte == 0), "{what}: left in plain");
            }
            Way::Down => assert!(file[..SIZE as usize] == self.plain, "{what}"),
        }
    }

    /// Runs on what is there. Whether it came to its end before the power was gone.
    fn run(&self, disk: &Storage<'_>, beside: &Storage<'_>, stop: bool) -> bool {
        let area = 0..AREA_BYTES;
        let (mut journal, boundary) = Journal::open(beside, &area, &self.key).unwrap();
        let (stop, progress) = (AtomicBool::new(stop), Progress::default());
        let shift = Shift {
            disk,
            id: self.id,
            way: self.way,
            by: BY,
            size: SIZE,
            cipher: &self.cipher,
            threads: 1,
            progress: &progress,
        };
        let pace = Pace {
            limit: None,
            stop: &stop,
        };
        match shift.run(&mut journal, boundary, pace) {
            Ok(ended) => ended == Ended::Done,
            Err(Error::Io { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

fn begun(case: &Case) -> (Vec<u8>, Vec<u8>) {
    let power = Mutex::new(Power {
        left: u64::MAX,
        random: Random(1),
    });
    let beside = Storage::new(&power, vec![0; AREA_BYTES as usize]);
    let start = match case.way {
        Way::Up => SIZE,
        Way::Down => 0,
    };
    Journal::create(&beside, &(0..AREA_BYTES), &case.key, start).unwrap();
    (case.before(), beside.after_cut())
}

#[test]
fn power_that_fails_at_each_write_and_sync_loses_nothing() {
    let cases = [
        (Way::Up, false, SectorSize::B512),
        (Way::Up, true, SectorSize::B4096),
        (Way::Down, false, SectorSize::B4096),
        (Way::Down, true, SectorSize::B512),
    ];
    for (way, zero_units, sector_size) in cases {
        let case = Case::new(way, zero_units, sector_size);
        let (file, beside) = begun(&case);
        let mut cuts = 0;
        loop {
            cuts += 1;
            let what = format!("{way:?} cut off at {cuts}");
            let (mut file, mut beside) = (file.clone(), beside.clone());
            // The first cut is where the loop is; those after it come anywhere.
            let mut random = Random(0x9e37_79b9 + cuts);
            let mut left = cuts;
            let mut first = None;
            for _ in 0..1000 {
                let power = Mutex::new(Power {
                    left,
                    random: Random(random.next() | 1),
                });
                let disk = Storage::new(&power, file);
                let medium = Storage::new(&power, beside);
                let done = case.run(&disk, &medium, false);
                first.get_or_insert(done);
                file = disk.after_cut();
                beside = medium.after_cut();
                if done {
                    break;
                }
                left = 1 + random.next() % 60;
            }
            case.assert_done(&file, &what);
            if first == Some(true) {
                break;
            }
        }
        assert!(cuts > 30, "{cuts}");
    }
}

#[test]
fn as_long_as_it_is_in_pieces_nobody_finds_a_disk_there() {
    for way in [Way::Up, Way::Down] {
        let case = Case::new(way, false, SectorSize::B512);
        let (file, beside) = begun(&case);
        let power = Mutex::new(Power {
            left: 12,
            random: Random(3),
        });
        let (disk, medium) = (Storage::new(&power, file), Storage::new(&power, beside));
        assert!(!case.run(&disk, &medium, false));
        let file = disk.now();
        assert!(file.starts_with(b"SEALBLK MOVING "));
        let command = match way {
            Way::Up => "sealblk volume encrypt",
            Way::Down => "sealblk volume decrypt",
        };
        assert!(String::from_utf8_lossy(&file[..512]).contains(command));
        assert!(file[512..4096].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn what_is_stopped_goes_on_from_there() {
    let case = Case::new(Way::Up, false, SectorSize::B512);
    let (file, beside) = begun(&case);
    let power = Mutex::new(Power {
        left: u64::MAX,
        random: Random(5),
    });
    let (disk, medium) = (Storage::new(&power, file), Storage::new(&power, beside));
    assert!(!case.run(&disk, &medium, true));
    assert!(case.run(&disk, &medium, false));
    case.assert_done(&disk.now(), "stopped");
}

#[test]
fn another_disk_or_a_strange_boundary_is_refused() {
    for way in [Way::Up, Way::Down] {
        let case = Case::new(way, false, SectorSize::B512);
        let (file, beside) = begun(&case);
        let power = Mutex::new(Power {
            left: u64::MAX,
            random: Random(7),
        });
        let (disk, medium) = (Storage::new(&power, file), Storage::new(&power, beside));
        let (mut journal, _) = Journal::open(&medium, &(0..AREA_BYTES), &case.key).unwrap();
        let (stop, progress) = (AtomicBool::new(false), Progress::default());
        let shift = Shift {
            disk: &disk,
            id: case.id,
            way,
            by: BY,
            size: SIZE,
            cipher: &case.cipher,
            threads: 1,
            progress: &progress,
        };
        let pace = Pace {
            limit: None,
            stop: &stop,
        };
        // It has no mark, and something was moved, as the journal says.
        for boundary in [BY, SIZE + 512, 100] {
            let error = shift.run(&mut journal, boundary, pace).unwrap_err();
            assert!(matches!(error, Error::Impossible(_)), "{error}");
        }
        assert!(disk.now() == case.before(), "written to");
        let other = Case::new(way, false, SectorSize::B512);
        let opened = Journal::open(&medium, &(0..AREA_BYTES), &other.key);
        assert!(matches!(opened, Err(Error::NoRecord)));
        assert!(is_journal(&medium, &(0..AREA_BYTES)).unwrap());
    }
}
