//! The data path of a guest: at each time of what its disk was told, all that may
//! be left is compared with what the guest was told.
//!
//! Sectors are lost or kept each by itself, so that looking at each thing that each
//! sector may hold, at each time, is looking at all images that there may be.
//! Some are put together nevertheless, and opened as volumes.

use std::collections::HashMap;
use std::path::Path;

use openssl::symm::{Cipher, decrypt};
use sealblk::volume::Description;
use sealblk::volume::luks2::copies;

use crate::events::{Event, Node};
use crate::guest::{Guest, Habits, History};
use crate::lab::{Lab, count, cryptsetup_opens, dek, seed};
use crate::platter::SECTOR;
use crate::platters::{Change, Loss, Platters};
use crate::random::Random;
use crate::support::request::{F_CONFIG_WCE, F_FLUSH};

/// Bytes of a disk, and of what is in front of its data.
const SIZE: u64 = 1 << 20;
const AREA: u64 = 256 << 10;

/// A volume, and how it is served and used.
struct Case {
    what: &'static str,
    unit: usize,
    zero_units: bool,
    detached: bool,
    daemon: bool,
    serve: &'static [&'static str],
    habits: Habits,
}

const HABITS: Habits = Habits {
    queues: 2,
    unit: 1,
    discards: false,
    flush: 12,
    write_through: false,
    without: 0,
};

const PLAIN: Case = Case {
    what: "sectors of 512 bytes",
    unit: 512,
    zero_units: false,
    detached: false,
    daemon: false,
    serve: &[],
    habits: HABITS,
};

/// Reads what a volume stores, without any code of ours.
struct Reader {
    dek: Vec<u8>,
    unit: usize,
    zero_units: bool,
    /// Where the data begins.
    offset: usize,
    known: HashMap<(usize, [u8; SECTOR]), [u8; SECTOR]>,
}

impl Reader {
    /// A data unit, of which not all was written at once, if `torn`. The sectors
    /// of which nothing can be said are none.
    fn unit(&self, number: usize, stored: &[u8]) -> Vec<Option<Vec<u8>>> {
        let is_zero = |bytes: &[u8]| self.zero_units && bytes.iter().all(|byte| *byte == 0);
        if is_zero(stored) {
            return stored
                .chunks(SECTOR)
                .map(|bytes| Some(bytes.to_vec()))
                .collect();
        }
        let tweak = (number * (self.unit / SECTOR)) as u128;
        let plain = decrypt(
            Cipher::aes_256_xts(),
            &self.dek,
            Some(&tweak.to_le_bytes()),
            stored,
        );
        let plain = plain.unwrap();
        // A unit that was torn between zeroes and data is noise where it is zero.
        let sectors = stored.chunks(SECTOR).zip(plain.chunks(SECTOR));
        sectors
            .map(|(stored, plain)| (!is_zero(stored)).then(|| plain.to_vec()))
            .collect()
    }

    /// What a sector means that has these stored bytes, its unit being whole.
    fn sector(&mut self, sector: usize, stored: &[u8; SECTOR]) -> [u8; SECTOR] {
        if self.zero_units && stored.iter().all(|byte| *byte == 0) {
            return *stored;
        }
        if let Some(plain) = self.known.get(&(sector, *stored)) {
            return *plain;
        }
        // Ciphertext depends on the unit and the place in it alone.
        let per_unit = self.unit / SECTOR;
        let mut unit = vec![1; self.unit];
        let at = sector % per_unit * SECTOR;
        unit[at..at + SECTOR].copy_from_slice(stored);
        let plain = self.unit(sector / per_unit, &unit)[sector % per_unit].take();
        let plain: [u8; SECTOR] = plain.unwrap().try_into().unwrap();
        self.known.insert((sector, *stored), plain);
        plain
    }
}

/// What a campaign has looked at.
#[derive(Default, Debug)]
pub struct Seen {
    events: u64,
    /// Times at which the power was cut.
    cuts: u64,
    /// What sectors may have held, each looked at.
    sectors: u64,
    images: u64,
    writes: u64,
}

fn run(case: &Case, requests: u64, seed: u64, seen: &mut Seen) {
    let mut random = Random(seed);
    let lab = Lab::new(random.next());
    let volume = lab.recorder.path("disk.img");
    let size = SIZE.to_string();
    let mut create = vec!["volume", "create", "disk/disk.img", "--size", &size];
    let area = AREA.to_string();
    create.extend([
        "--sector-size",
        if case.unit == 512 { "512" } else { "4096" },
    ]);
    create.extend(["--header-area", &area]);
    if case.zero_units {
        create.push("--zero-units");
    }
    if case.detached {
        create.extend(["--header", "disk/header"]);
    }
    lab.ok(&create);
    let header = if case.detached { "header" } else { "disk.img" };
    let reader = Reader {
        dek: lab.dek("disk/disk.img", case.detached.then_some("disk/header")),
        unit: case.unit,
        zero_units: case.zero_units,
        offset: if case.detached { 0 } else { AREA as usize },
        known: HashMap::new(),
    };
    assert!(volume.exists());
    let header_path = case.detached.then_some("disk/header");
    let history = lab.serve(
        "disk/disk.img",
        header_path,
        case.daemon,
        case.serve,
        |socket| {
            lab.recorder.shuffle(true);
            let sectors = SIZE / SECTOR as u64;
            let log = lab.recorder.log();
            let guest = Guest::start(socket, sectors, case.habits, log, Random(random.next()));
            let history = guest.run(requests);
            lab.recorder.shuffle(false);
            history
        },
    );
    let events = lab.recorder.log().events();
    let mut judge = Judge {
        case,
        reader,
        history,
        events: &events,
        seen,
    };
    let result = judge.each_sector();
    let result = result.and_then(|()| judge.some_images(&mut random, header));
    if let Err(why) = result {
        panic!("{}, SEALBLK_SEED={seed}: {why}", case.what);
    }
    seen.events += events.len() as u64;
}

struct Judge<'a> {
    case: &'a Case,
    reader: Reader,
    history: History,
    events: &'a [Event],
    seen: &'a mut Seen,
}

impl Judge<'_> {
    /// Looks at all that each sector may hold, at each time.
    fn each_sector(&mut self) -> Result<(), String> {
        let begun = self.history.begun_at;
        let mut platters = Platters::after(self.events, begun);
        let node = platters.find("disk.img").unwrap();
        let mut times = self.history.times().into_iter().peekable();
        let mut floors = self.history.floors(begun);
        let all = 0..self.history.sectors();
        self.look(&platters, node, all.clone(), &floors)?;
        for at in begun..self.events.len() {
            let first = self.reader.offset / SECTOR;
            if let Change::Written(of, sectors) = platters.step(self.events)
                && of == node
                && sectors.start >= first
            {
                let sectors = sectors.start - first..sectors.end - first;
                self.look(&platters, node, sectors, &floors)
                    .map_err(|why| format!("after event {at}, {why}"))?;
            }
            // The power fails after this event: who was told something by then?
            let now = at + 1;
            let is_due = |time: &usize| *time <= now;
            if times.next_if(is_due).is_some() {
                while times.next_if(is_due).is_some() {}
                let after = self.history.floors(now);
                let risen = all
                    .clone()
                    .filter(|sector| after[*sector] > floors[*sector]);
                let risen: Vec<usize> = risen.collect();
                floors = after;
                for sector in risen {
                    self.look(&platters, node, sector..sector + 1, &floors)
                        .map_err(|why| format!("after event {at}, {why}"))?;
                }
            }
            self.seen.cuts += 1;
        }
        self.seen.writes += self.history.writes;
        Ok(())
    }

    fn look(
        &mut self,
        platters: &Platters,
        node: Node,
        sectors: std::ops::Range<usize>,
        floors: &[usize],
    ) -> Result<(), String> {
        let first = self.reader.offset / SECTOR;
        for sector in sectors {
            for stored in platters.may_hold(node, first + sector) {
                let plain = self.reader.sector(sector, stored);
                self.history.judge(sector, &plain, floors[sector])?;
                self.seen.sectors += 1;
            }
        }
        Ok(())
    }

    /// Puts images together of what may be left at some times, and opens them.
    fn some_images(&mut self, random: &mut Random, header: &str) -> Result<(), String> {
        let (begun, end) = (self.history.begun_at, self.events.len());
        let mut cuts: Vec<usize> = (0..count(6) * 2)
            .map(|_| begun + random.below((end - begun) as u64 + 1) as usize)
            .collect();
        cuts.sort_unstable();
        let mut platters = Platters::after(self.events, begun);
        for (number, cut) in cuts.into_iter().enumerate() {
            platters.advance(self.events, cut);
            let floors = self.history.floors(cut);
            for _ in 0..3 {
                let block = if random.once_in(2) { 1 } else { 8 };
                let loss = Loss::any(random, block);
                let image = platters.lose_power(loss, random);
                let at = |why: String| format!("after {cut} events, {loss:?}: {why}");
                let header = image.bytes(header).ok_or("the header is gone")?;
                self.open_header(header).map_err(at)?;
                let data = image.bytes("disk.img").ok_or("the data is gone");
                let data = &data?[self.reader.offset..];
                self.image(data, &floors).map_err(at)?;
                if number == 0 {
                    cryptsetup_opens(header, &self.reader.dek);
                }
                self.seen.images += 1;
            }
        }
        Ok(())
    }

    fn open_header(&self, bytes: &[u8]) -> Result<(), String> {
        let found = copies::read(&bytes.to_vec()).map_err(|lost| format!("no header: {lost:?}"))?;
        let description = Description::of(&found.header, Path::new("image"));
        let description = description.map_err(|error| error.to_string())?;
        let dek = dek(&self.reader.dek);
        match description.digest.proves(&dek) && found.is_whole() {
            true => Ok(()),
            false => Err("the header is not what it was".into()),
        }
    }

    fn image(&mut self, data: &[u8], floors: &[usize]) -> Result<(), String> {
        let per_unit = self.case.unit / SECTOR;
        for (number, stored) in data.chunks(self.case.unit).enumerate() {
            let sectors = self.reader.unit(number, stored);
            for (sector, plain) in (number * per_unit..).zip(sectors) {
                if let Some(plain) = plain {
                    self.history.judge(sector, &plain, floors[sector])?;
                }
            }
        }
        Ok(())
    }
}

fn campaign(case: &Case) {
    let first = seed(case.what);
    let mut seen = Seen::default();
    for round in 0..count(1) {
        run(case, 250 + 50 * count(1).min(15), first + round, &mut seen);
    }
    println!("{}: {seen:?}", case.what);
    assert!(seen.cuts > 200 && seen.sectors > 10_000, "{seen:?}");
}

#[test]
fn what_was_flushed_is_there() {
    campaign(&PLAIN);
}

#[test]
fn what_was_flushed_is_there_in_large_units_with_discards() {
    campaign(&Case {
        what: "units of 4096 bytes with discards",
        unit: 4096,
        zero_units: true,
        serve: &["--discard", "pass", "--queues", "4"],
        habits: Habits {
            queues: 4,
            unit: 8,
            discards: true,
            ..HABITS
        },
        ..PLAIN
    });
}

#[test]
fn what_was_flushed_is_there_in_small_units_with_discards() {
    campaign(&Case {
        what: "sectors of 512 bytes with discards and a detached header",
        zero_units: true,
        detached: true,
        serve: &["--discard", "pass"],
        habits: Habits {
            discards: true,
            ..HABITS
        },
        ..PLAIN
    });
}

#[test]
fn what_was_written_is_there_without_a_cache() {
    campaign(&Case {
        what: "a disk without a cache",
        zero_units: true,
        serve: &["--cache", "writethrough", "--discard", "pass"],
        habits: Habits {
            discards: true,
            flush: 0,
            write_through: true,
            ..HABITS
        },
        ..PLAIN
    });
}

#[test]
fn what_was_written_is_there_for_a_guest_that_cannot_flush() {
    campaign(&Case {
        what: "a guest that cannot flush",
        habits: Habits {
            flush: 0,
            write_through: true,
            without: F_FLUSH | F_CONFIG_WCE,
            ..HABITS
        },
        ..PLAIN
    });
}

#[test]
fn what_was_flushed_is_there_through_the_page_cache() {
    campaign(&Case {
        what: "through the page cache",
        serve: &["--direct", "never"],
        ..PLAIN
    });
}

#[test]
fn what_was_flushed_is_there_with_a_manager_and_a_worker() {
    campaign(&Case {
        what: "a worker of a manager",
        zero_units: true,
        daemon: true,
        serve: &["--discard", "pass"],
        habits: Habits {
            discards: true,
            ..HABITS
        },
        ..PLAIN
    });
}
