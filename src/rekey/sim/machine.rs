//! The devices of a volume when nothing but recovery uses them, and a fuse.

use std::io;
use std::sync::Mutex;

use super::case::{AREA, Case};
use super::disk::{Disk, Kept, SECTOR};
use super::random::Random;
use crate::rekey::rules::Rules;
use crate::rekey::{Medium, Position, State, recover};

#[derive(Clone)]
pub struct Machine {
    pub disks: Vec<Disk>,
    /// So many more writes and syncs are done before the power fails.
    pub fuse: Option<u64>,
    pub blown: bool,
    /// How many there were.
    pub count: u64,
}

/// How a run ended that was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process was killed: caches are still there, and still volatile.
    Kill,
    /// The power failed: what is left of the journal's part, and of the data.
    Power(Kept, Kept),
}

impl Crash {
    pub fn any(random: &mut Random) -> Crash {
        let kept = |random: &mut Random| match random.below(4) {
            0 => Kept::Nothing,
            1 => Kept::Everything,
            _ => Kept::Any,
        };
        match random.below(5) {
            0 => Crash::Kill,
            _ => Crash::Power(kept(random), kept(random)),
        }
    }
}

impl Machine {
    pub fn new(disks: Vec<Disk>) -> Self {
        Machine {
            disks,
            fuse: None,
            blown: false,
            count: 0,
        }
    }

    /// Whether a write or sync may be done; the one that the fuse blows at may
    /// have been done in part.
    pub fn tick(&mut self) -> (bool, bool) {
        if self.blown {
            return (false, false);
        }
        self.count += 1;
        match &mut self.fuse {
            Some(0) => {
                self.blown = true;
                (true, false)
            }
            Some(left) => {
                *left -= 1;
                (true, true)
            }
            None => (true, true),
        }
    }

    pub fn crash(&mut self, crash: Crash, random: &mut Random) {
        self.blown = false;
        self.fuse = None;
        let Crash::Power(journal, data) = crash else {
            return;
        };
        for (number, disk) in self.disks.iter_mut().enumerate() {
            let in_journal = |sector| number == 0 && sector < AREA.end as usize / SECTOR;
            disk.lose_power(
                random,
                |sector| {
                    if in_journal(sector) { journal } else { data }
                },
            );
        }
    }

    /// Whether all records are durable, so that one of them may be damaged.
    pub fn journal_is_durable(&self) -> bool {
        !self.disks[0].is_pending(0..AREA.end as usize / SECTOR)
    }

    /// A bit of the record in that slot is another one.
    pub fn damage(&mut self, slot: usize, random: &mut Random) {
        let sector = slot * AREA.end as usize / 2 / SECTOR;
        let mut bytes = *self.disks[0].sector(sector);
        // In what every record has: its head.
        bytes[random.below(64) as usize] ^= 1 << random.below(8);
        self.disks[0].put(sector, &bytes);
        self.disks[0].sync();
    }

    /// Runs the real recovery.
    pub fn recover(self, case: &Case, rules: Rules) -> (Self, Result<Position, String>) {
        let machine = Mutex::new(self);
        let port = |disk| Port {
            machine: &machine,
            disk,
        };
        let mut journal = case.journal(port(0));
        let result = recover::recover_by(
            rules,
            &mut journal,
            port(case.data_disk()),
            case.geometry,
            &case.transforms,
            1,
        );
        let result = result.map_err(|error| crate::error::chain(&error));
        drop(journal);
        (machine.into_inner().unwrap(), result)
    }

    /// What the journal says, without changing anything.
    pub fn state(&self, case: &Case) -> Result<State, String> {
        let machine = Mutex::new(self.clone());
        let port = Port {
            machine: &machine,
            disk: 0,
        };
        case.journal(port)
            .read()
            .map_err(|error| crate::error::chain(&error))
    }
}

pub struct Port<'a> {
    pub machine: &'a Mutex<Machine>,
    pub disk: usize,
}

pub fn power_failed() -> io::Error {
    io::Error::other("the power failed")
}

impl Medium for Port<'_> {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let machine = self.machine.lock().unwrap();
        machine.disks[self.disk].read(buffer, offset);
        if machine.blown {
            Err(power_failed())
        } else {
            Ok(())
        }
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut machine = self.machine.lock().unwrap();
        let (done, ok) = machine.tick();
        if done {
            machine.disks[self.disk].write(bytes, offset);
        }
        if ok { Ok(()) } else { Err(power_failed()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut machine = self.machine.lock().unwrap();
        let (_, ok) = machine.tick();
        if ok {
            machine.disks[self.disk].sync();
            Ok(())
        } else {
            Err(power_failed())
        }
    }
}
