//! A mover at work, a guest beside it, and crashes at every write and sync.

use std::io;
use std::sync::{Mutex, MutexGuard};

use super::case::{AREA, Case};
use super::disk::{Kept, SECTOR};
use super::guest::{Gate, Guest};
use super::machine::{Crash, Machine, power_failed};
use super::random::Random;
use crate::rekey::rules::Rules;
use crate::rekey::{Direction, Fence, Handle, Medium, Position};

/// How closely every cut is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Care {
    /// So many crashes at each write and sync, of which each sector's fate is random.
    pub random: u64,
    /// So many power losses, at most, in the recoveries of one crash.
    pub again: u64,
    /// Whether recovery is cut at every write and sync as well.
    pub every: bool,
}

/// What somebody orders at some write or sync of the mover.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Turn(Direction),
    Rest,
    /// The fence lets it close nothing, this once.
    Hold,
}

pub struct World {
    pub case: Case,
    pub machine: Machine,
    pub guest: Guest,
    pub gate: Gate,
    pub random: Random,
    pub rules: Rules,
    /// None: nothing is looked at, but for a fuse.
    pub care: Option<Care>,
    pub orders: Vec<(u64, Order)>,
    pub handle: Option<Handle>,
    /// This write or sync fails, and the next one works again.
    pub error_at: Option<u64>,
    hold: bool,
    /// What was found to be wrong first.
    pub wrong: Option<String>,
    /// How many crashes were survived.
    pub crashes: u64,
}

impl World {
    pub fn new(case: &Case, machine: Machine, guest: Guest, position: Position, seed: u64) -> Self {
        World {
            case: case.clone(),
            machine,
            guest,
            gate: Gate {
                direction: position.direction,
                boundary: position.boundary,
                writing: 0,
                reading: 0,
            },
            random: Random(seed),
            rules: Rules::default(),
            care: None,
            orders: Vec::new(),
            handle: None,
            error_at: None,
            hold: false,
            wrong: None,
            crashes: 0,
        }
    }

    fn blame(&mut self, result: Result<(), String>) {
        if let (Err(why), None) = (result, &self.wrong) {
            self.wrong = Some(why);
        }
    }

    /// The guest does a thing or two, or nothing.
    fn guest_acts(&mut self) {
        for _ in 0..self.random.below(3) {
            let disk = &mut self.machine.disks[self.case.data_disk()];
            let result = self
                .guest
                .act(&self.case, disk, &self.gate, &mut self.random);
            self.blame(result);
        }
    }

    fn guest_goes_on(&mut self) {
        let disk = &mut self.machine.disks[self.case.data_disk()];
        self.guest.go_on(&self.case, disk, &self.gate);
    }

    fn give_orders(&mut self) {
        while let Some((at, order)) = self.orders.first().copied()
            && at <= self.machine.count
        {
            self.orders.remove(0);
            match (&self.handle, order) {
                (_, Order::Hold) => self.hold = true,
                (Some(handle), Order::Turn(direction)) => handle.turn(direction),
                (Some(handle), Order::Rest) => handle.rest(),
                (None, _) => {}
            }
        }
    }

    /// Crashes here, in many ways, and looks at what is left.
    fn look(&mut self, at: &str) {
        let Some(care) = self.care else { return };
        if self.wrong.is_some() {
            return;
        }
        use Kept::{Any, Everything, Nothing};
        let mut crashes = vec![
            Crash::Kill,
            Crash::Power(Nothing, Nothing),
            Crash::Power(Everything, Everything),
            Crash::Power(Nothing, Everything),
            Crash::Power(Everything, Nothing),
        ];
        crashes.extend((0..care.random).map(|_| Crash::Power(Any, Any)));
        let whole = self.machine.journal_is_durable();
        for crash in crashes {
            for damaged in [None, Some(0), Some(1)] {
                if damaged.is_some() && !(whole && matches!(crash, Crash::Power(..))) {
                    continue;
                }
                let mut machine = self.machine.clone();
                machine.crash(crash, &mut self.random);
                if let Some(slot) = damaged {
                    machine.damage(slot, &mut self.random);
                }
                let result = self.survive(machine, crash, care);
                self.crashes += 1;
                if let Err(why) = result {
                    let slot = damaged.map_or("no", |slot| ["the even", "the odd"][slot]);
                    self.wrong = Some(format!(
                        "{crash:?} at {} {at}, {slot} slot damaged: {why}",
                        self.machine.count
                    ));
                    return;
                }
            }
        }
    }

    fn survive(&mut self, machine: Machine, crash: Crash, care: Care) -> Result<(), String> {
        if care.every {
            for fuse in 0.. {
                let mut machine = machine.clone();
                machine.fuse = Some(fuse);
                let (mut machine, result) = machine.recover(&self.case, self.rules);
                if result.is_ok() {
                    break;
                }
                if !machine.blown {
                    return result.map(drop);
                }
                let again = Crash::any(&mut self.random);
                machine.crash(again, &mut self.random);
                let lost = crash != Crash::Kill || again != Crash::Kill;
                recovered(
                    &self.case,
                    &self.guest,
                    self.rules,
                    machine,
                    lost,
                    Vec::new(),
                    &mut self.random,
                )
                .map_err(|why| format!("then {again:?} at {fuse} of recovery: {why}"))?;
            }
        }
        let fuses = (0..self.random.below(care.again + 1))
            .map(|_| self.random.below(9))
            .collect();
        let lost = crash != Crash::Kill;
        recovered(
            &self.case,
            &self.guest,
            self.rules,
            machine,
            lost,
            fuses,
            &mut self.random,
        )
        .map(drop)
    }
}

/// What is left of a crash, at rest again.
pub struct Survived {
    pub machine: Machine,
    pub position: Position,
    /// What each sector has.
    pub found: Vec<Option<u32>>,
    pub power_lost: bool,
}

/// Recovers what is left of a crash, with more crashes at these writes and syncs
/// of it, and judges what the guest finds then.
pub fn recovered(
    case: &Case,
    guest: &Guest,
    rules: Rules,
    mut machine: Machine,
    mut power_lost: bool,
    mut fuses: Vec<u64>,
    random: &mut Random,
) -> Result<Survived, String> {
    loop {
        machine.fuse = fuses.pop();
        let (found, result) = machine.recover(case, rules);
        machine = found;
        match result {
            Ok(position) => {
                machine.fuse = None;
                let disk = &machine.disks[case.data_disk()];
                let found = guest.judge(case, disk, position.boundary, power_lost)?;
                let state = machine.state(case)?;
                if state.position != position || state.covered != 0 {
                    return Err(format!("recovered to {position:?}, and recorded {state:?}"));
                }
                return Ok(Survived {
                    machine,
                    position,
                    found,
                    power_lost,
                });
            }
            Err(_) if machine.blown => {
                let crash = Crash::any(random);
                power_lost |= crash != Crash::Kill;
                machine.crash(crash, random);
            }
            Err(why) => return Err(why),
        }
    }
}

/// The world as the mover sees it.
pub struct Ports<'a>(pub &'a Mutex<World>);

/// One of its disks.
pub struct Port<'a> {
    pub world: &'a Mutex<World>,
    pub disk: usize,
}

impl Port<'_> {
    fn begin(&self) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.world.lock().unwrap();
        world.give_orders();
        world.guest_acts();
        if world.wrong.is_some() || world.machine.blown {
            return Err(power_failed());
        }
        Ok(world)
    }
}

impl Medium for Port<'_> {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.begin()?.machine.disks[self.disk].read(buffer, offset);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut world = self.begin()?;
        if world.error_at.is_some_and(|at| at <= world.machine.count) {
            // Some of it is written, and nobody is told how much.
            world.error_at = None;
            let most = bytes.len() as u64 / SECTOR as u64;
            let part = world.random.below(most) as usize * SECTOR;
            world.machine.disks[self.disk].write(&bytes[..part], offset);
            return Err(io::Error::from_raw_os_error(5));
        }
        let in_journal = self.disk == 0 && offset < AREA.end;
        if !in_journal {
            let first = (offset - world.case.geometry.in_file(0)) as usize / SECTOR;
            let sectors = first..first + bytes.len() / SECTOR;
            let gate = &world.gate;
            if !sectors
                .clone()
                .all(|sector| gate.covers(gate.reading, sector))
            {
                let why = format!("{sectors:?} are written, and not closed: {gate:?}");
                world.blame(Err(why));
                return Err(power_failed());
            }
        }
        let (done, ok) = world.machine.tick();
        if done {
            world.machine.disks[self.disk].write(bytes, offset);
            world.look(if in_journal { "(a record)" } else { "(data)" });
        }
        if ok { Ok(()) } else { Err(power_failed()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.begin()?;
        if world.error_at.is_some_and(|at| at <= world.machine.count) {
            world.error_at = None;
            return Err(io::Error::from_raw_os_error(5));
        }
        // What the guest did just before may be lost with what the mover did.
        world.look("(before a sync)");
        let (_, ok) = world.machine.tick();
        if !ok {
            return Err(power_failed());
        }
        world.machine.disks[self.disk].sync();
        world.look("(after a sync)");
        Ok(())
    }

    fn data_from(&self, offset: u64, end: u64) -> io::Result<u64> {
        // Holes are blocks of zeroes.
        let world = self.world.lock().unwrap();
        let disk = &world.machine.disks[self.disk];
        let is_hole = |block: u64| {
            let first = block as usize * 8;
            (first..(first + 8).min(end as usize / SECTOR))
                .all(|sector| *disk.sector(sector) == [0; SECTOR])
        };
        let mut at = offset;
        while at < end && is_hole(at / 4096) {
            at = (at / 4096 + 1) * 4096;
        }
        Ok(at.min(end))
    }
}

impl Fence for Ports<'_> {
    fn close_for_writing(&self, direction: Direction, bytes: u64) -> bool {
        let mut world = self.0.lock().unwrap();
        world.guest_acts();
        if std::mem::take(&mut world.hold) {
            return false;
        }
        world.gate.direction = direction;
        world.gate.writing = world.gate.writing.max(bytes);
        true
    }

    fn close_for_reading(&self, direction: Direction, bytes: u64) -> bool {
        let mut world = self.0.lock().unwrap();
        world.guest_acts();
        if std::mem::take(&mut world.hold) {
            return false;
        }
        world.gate.direction = direction;
        world.gate.reading = bytes;
        true
    }

    fn advance(&self, direction: Direction, bytes: u64) {
        let mut world = self.0.lock().unwrap();
        match direction {
            Direction::Forward => world.gate.boundary += bytes,
            Direction::Back => world.gate.boundary -= bytes,
        }
        world.gate.writing -= bytes;
        world.gate.reading = 0;
        world.guest_goes_on();
        world.guest_acts();
    }

    fn open(&self) {
        let mut world = self.0.lock().unwrap();
        (world.gate.writing, world.gate.reading) = (0, 0);
        world.guest_goes_on();
        world.guest_acts();
    }

    fn longest_wait(&self) -> u64 {
        // Sometimes too long, so that regions are of many lengths.
        self.0.lock().unwrap().random.below(3)
    }
}
