//! The loop that moves the data, region after region (`docs/rekey.md`).

use std::thread;
use std::time::{Duration, Instant};

use super::handle::{Handle, Pace, Phase, Progress};
use super::keys::SectorTag;
use super::pace::{Lengths, Meter};
use super::region::{Data, Region};
use super::rules::{Rule, Rules};
use super::{Direction, Error, Fence, Geometry, Journal, Medium, Position, Transforms};

/// It may be so far ahead of its limit before it waits. It rests then, since what
/// is closed is closed to guests; and to rest costs syncs, so not after each region.
const AHEAD: Duration = Duration::from_millis(50);
/// A hole is stepped over, instead of moved, if it is so many regions long.
const JUMP: u64 = 4;

/// How a mover goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The length of the shortest region, in bytes. Rounded up to 4096.
    pub region_least: u64,
    /// The length of the longest, if the journal has room for two of them.
    pub region_most: u64,
    /// So many threads share the work on a region.
    pub threads: usize,
    /// How fast it is to be at first.
    pub pace: Pace,
}

impl Default for Options {
    /// For a disk that a guest uses.
    fn default() -> Self {
        Options {
            region_least: 64 << 10,
            region_most: 1 << 20,
            threads: 1,
            pace: Pace::default(),
        }
    }
}

/// Why a mover has stopped. It is at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is nothing left to be moved in its direction.
    Done,
    /// It was told to, by its handle.
    Rested,
    /// The fence does not let it go on now.
    Held,
}

/// Moves the data of one operation.
pub struct Mover<J, D, F> {
    journal: Journal<J>,
    pub(super) data: Data<D>,
    fence: F,
    handle: Handle,
    position: Position,
    lengths: Lengths,
    meter: Meter,
    /// What is next: closed for writing, and covered.
    current: Option<Region>,
    /// Memory for another region.
    spare: Option<Region>,
    /// Whether the last two records are at rest here, and nothing is closed.
    at_rest: bool,
    /// The current region is being written, or was when something failed.
    writing: bool,
    /// The data could not be made durable: nothing is certain any more.
    lost: bool,
}

/// What came of a step.
enum Step {
    /// The region was moved; the next one is closed for writing and covered.
    Moved(Option<Region>),
    /// The fence did not let it.
    Held,
}

impl<J: Medium, D: Medium, F: Fence> Mover<J, D, F> {
    /// A mover at rest. `position` is what `recover` found, with this journal,
    /// or what `Journal::create` began with.
    ///
    /// # Errors
    /// When the parts do not belong together.
    pub fn new(
        journal: Journal<J>,
        data: D,
        fence: F,
        geometry: Geometry,
        transforms: Transforms,
        position: Position,
        options: Options,
    ) -> Result<Self, Error> {
        transforms.check(geometry)?;
        if journal.sequence() == 0 || position.boundary > geometry.size() {
            return Err(Error::Unfit("its journal was not recovered"));
        }
        let most = options.region_most.min(journal.capacity() / 2) & !4095;
        let most = most.max(4096);
        let least = options.region_least.clamp(1, most).next_multiple_of(4096);
        let lengths = Lengths::new(least, most);
        let progress = Progress {
            position,
            size: geometry.size(),
            moved: 0,
            rate: 0,
            region: most,
            phase: Phase::Resting,
            sequence: journal.sequence(),
        };
        Ok(Mover {
            handle: Handle::new(progress, options.pace),
            journal,
            data: Data {
                medium: data,
                geometry,
                transforms,
                threads: options.threads.max(1),
                rules: Rules::default(),
            },
            fence,
            position,
            lengths,
            meter: Meter::default(),
            current: None,
            spare: None,
            at_rest: true,
            writing: false,
            lost: false,
        })
    }

    /// The way to it while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// How far it is.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The journal, to be wiped when all is over.
    pub fn into_journal(self) -> Journal<J> {
        self.journal
    }

    /// Moves data until it is done, told to rest, or not let. Then everything is
    /// durable, and nothing is closed. May be called again.
    ///
    /// # Errors
    /// When a device fails. What was about to be moved is still closed to guests
    /// then. Calling it again finds out what was moved, and goes on; but after
    /// [`Error::NotDurable`] only `recover` in another process does.
    pub fn run(&mut self) -> Result<Outcome, Error> {
        let result = self.go();
        self.lost |= matches!(result, Err(Error::NotDurable(_)));
        self.handle.update(|progress| {
            progress.rate = 0;
            progress.phase = match result {
                Ok(_) => Phase::Resting,
                Err(_) => Phase::Failed,
            };
        });
        result
    }

    fn go(&mut self) -> Result<Outcome, Error> {
        if self.lost {
            let earlier = std::io::Error::other("an earlier attempt failed");
            return Err(Error::NotDurable(earlier));
        }
        self.meter.start(Instant::now());
        if self.writing {
            self.mend()?;
        }
        loop {
            let orders = self.handle.orders();
            if orders.direction != self.position.direction {
                self.rest_towards(orders.direction)?;
                continue;
            }
            let done = self.data.geometry.left(self.position) == 0;
            if done || orders.rest {
                self.rest()?;
                return Ok(if done { Outcome::Done } else { Outcome::Rested });
            }
            let now = Instant::now();
            if let Some(due) = self.meter.wait(now, &orders.pace)
                && due - now > AHEAD
            {
                self.rest()?;
                self.handle
                    .update(|progress| progress.phase = Phase::Waiting);
                self.handle.wait_until(due, &orders);
                continue;
            }
            self.handle
                .update(|progress| progress.phase = Phase::Moving);
            if self.current.is_none() {
                self.rest()?;
            }
            if !self.step(&orders.pace)? {
                self.rest()?;
                return Ok(Outcome::Held);
            }
        }
    }

    /// One region further, if the fence lets it.
    fn step(&mut self, pace: &Pace) -> Result<bool, Error> {
        let Some(mut region) = self.current.take() else {
            return self.begin();
        };
        let length = region.length();
        let step = if self.data.transforms.distinct(self.position.direction)
            || !self.data.rules.keep(Rule::RecordPlain)
        {
            self.overlapped(&mut region)
        } else {
            self.recorded(&mut region)
        };
        match step {
            Ok(Step::Moved(next)) => {
                self.current = next;
                self.spare = Some(region);
                self.account(length, pace);
                Ok(true)
            }
            Ok(Step::Held) => Ok(false),
            Err(error) => {
                // Its tags are what it takes to find out how far it was written.
                self.current = Some(region);
                Err(error)
            }
        }
    }

    /// From rest: covers the first region, or steps over a hole.
    fn begin(&mut self) -> Result<bool, Error> {
        let hole = self.hole(0)?;
        if hole > 0 {
            return self.jump(hole);
        }
        let length = self.length(0)?;
        let direction = self.position.direction;
        if !self.fence.close_for_writing(direction, length) {
            return Ok(false);
        }
        self.at_rest = false;
        let Some(region) = self.load_and_sync(0, length)? else {
            return Ok(false);
        };
        self.record(self.position, Some(&region), None)?;
        if !self.data.transforms.distinct(direction) {
            // Here no other record follows before it is written.
            self.record(self.position, Some(&region), None)?;
        }
        self.current = Some(region);
        Ok(true)
    }

    /// Moves a region and opens it at once, the next one being covered as well:
    /// what a guest writes there is told from what was there by its tag.
    fn overlapped(&mut self, region: &mut Region) -> Result<Step, Error> {
        let (direction, length) = (self.position.direction, region.length());
        let ahead = self.length(length)?;
        if ahead > 0 && !self.fence.close_for_writing(direction, length + ahead) {
            return Ok(Step::Held);
        }
        let next = self.load_and_sync(length, ahead)?;
        let covered = next
            .as_ref()
            .filter(|_| self.data.rules.keep(Rule::CoverTwo));
        if self.data.rules.keep(Rule::RecordFirst) {
            self.record(self.position, Some(region), covered)?;
        }
        if !self.fence.close_for_reading(direction, length) {
            return Ok(Step::Held);
        }
        self.writing = true;
        self.data.store(region, direction)?;
        if !self.data.rules.keep(Rule::RecordFirst) {
            self.record(self.position, Some(region), covered)?;
        }
        self.writing = false;
        self.position = self.position.beyond(length);
        self.fence.advance(direction, length);
        Ok(Step::Moved(next))
    }

    /// Moves a region, and opens it when it is recorded that it was moved.
    fn recorded(&mut self, region: &mut Region) -> Result<Step, Error> {
        let (direction, length) = (self.position.direction, region.length());
        if !self.fence.close_for_reading(direction, length) {
            return Ok(Step::Held);
        }
        self.writing = true;
        self.data.store(region, direction)?;
        let mut ahead = self.length(length)?;
        if ahead > 0 && !self.fence.close_for_writing(direction, length + ahead) {
            ahead = 0;
        }
        let next = self.load_and_sync(length, ahead)?;
        let beyond = self.position.beyond(length);
        self.record(beyond, next.as_ref(), None)?;
        self.record(beyond, next.as_ref(), None)?;
        self.writing = false;
        self.position = beyond;
        self.fence.advance(direction, length);
        if next.is_none() {
            self.fence.open();
            self.at_rest = true;
        }
        Ok(Step::Moved(next))
    }

    /// From rest: a hole is zeroes with both keys, and nothing is to be moved.
    fn jump(&mut self, hole: u64) -> Result<bool, Error> {
        let direction = self.position.direction;
        self.at_rest = false;
        if !self.fence.close_for_writing(direction, hole)
            || !self.fence.close_for_reading(direction, hole)
        {
            return Ok(false);
        }
        // Before it was closed, a guest may have written there.
        if self.hole(0)? < hole {
            return Ok(true);
        }
        self.data.sync()?;
        let beyond = self.position.beyond(hole);
        self.journal.rest(beyond)?;
        self.position = beyond;
        self.fence.advance(direction, hole);
        self.fence.open();
        self.at_rest = true;
        self.report(hole, None);
        Ok(true)
    }

    /// Comes to rest, in the direction that it has.
    fn rest(&mut self) -> Result<(), Error> {
        if self.at_rest {
            return Ok(());
        }
        self.rest_towards(self.position.direction)
    }

    /// Comes to rest, to go on in that direction.
    fn rest_towards(&mut self, direction: Direction) -> Result<(), Error> {
        if self.data.rules.keep(Rule::SyncBeforeRest) {
            self.data.sync()?;
        }
        if !self.data.rules.keep(Rule::RestFirst) {
            self.fence.open();
        }
        let position = Position {
            direction,
            ..self.position
        };
        if self.data.rules.keep(Rule::RestTwice) {
            self.journal.rest(position)?;
        } else {
            self.journal.write(position, 0, &[])?;
        }
        self.position = position;
        self.spare = self.current.take().or(self.spare.take());
        self.at_rest = true;
        self.fence.open();
        self.report(0, None);
        Ok(())
    }

    /// Finishes a region that was being written when something failed.
    fn mend(&mut self) -> Result<(), Error> {
        let Some(region) = &self.current else {
            self.writing = false;
            return Ok(());
        };
        let (direction, length) = (self.position.direction, region.length());
        self.data
            .mend(self.journal.keys(), region.start, &region.tags, direction)?;
        self.data.sync()?;
        let beyond = self.position.beyond(length);
        self.journal.rest(beyond)?;
        self.writing = false;
        self.position = beyond;
        self.spare = self.current.take();
        self.fence.advance(direction, length);
        self.fence.open();
        self.at_rest = true;
        self.report(length, None);
        Ok(())
    }

    /// One durable record, of one region or two.
    fn record(
        &mut self,
        position: Position,
        region: Option<&Region>,
        next: Option<&Region>,
    ) -> Result<(), Error> {
        fn tags(region: Option<&Region>) -> &[SectorTag] {
            region.map_or(&[], |region| &region.tags)
        }
        let covered = [region, next].into_iter().flatten().map(Region::length);
        // By their position: going back, what is next is below.
        let tags = match position.direction {
            Direction::Forward => [tags(region), tags(next)],
            Direction::Back => [tags(next), tags(region)],
        };
        self.journal.write(position, covered.sum(), &tags)?;
        Ok(())
    }

    /// Loads the region that follows `skip` bytes next to the boundary, which is
    /// closed for writing, if there is one; and makes durable what is in it, and
    /// what was moved before.
    fn load_and_sync(&mut self, skip: u64, length: u64) -> Result<Option<Region>, Error> {
        let spare = self.spare.take();
        let start = self.position.next(skip, length);
        let (data, keys) = (&self.data, self.journal.keys());
        let load = || {
            (length > 0)
                .then(|| data.load(keys, start, length, spare))
                .transpose()
        };
        if !data.rules.keep(Rule::SyncFirst) {
            return load();
        }
        if data.threads == 1 {
            let region = load()?;
            data.sync()?;
            return Ok(region);
        }
        // What is read does not change meanwhile: so at once.
        thread::scope(|scope| {
            let sync = scope.spawn(|| data.sync());
            let region = load();
            sync.join().unwrap_or(Err(Error::Panicked))?;
            region
        })
    }

    /// How long the region is that follows `skip` bytes next to the boundary: 0
    /// if there is none, or a hole that is better stepped over.
    fn length(&self, skip: u64) -> Result<u64, Error> {
        let left = self.data.geometry.left(self.position) - skip;
        if left == 0 || self.hole(skip)? > 0 {
            return Ok(0);
        }
        let length = self.lengths.now();
        if length >= left {
            return Ok(left);
        }
        // Up to a whole block of the disk, from wherever this starts.
        let odd = match self.position.direction {
            Direction::Forward => (self.position.boundary + skip + length) % 4096,
            Direction::Back => (4096 - (self.position.boundary - skip - length) % 4096) % 4096,
        };
        Ok(if odd < length { length - odd } else { length })
    }

    /// How long the hole is that follows `skip` bytes next to the boundary, if
    /// stepping over it is better than moving it; else 0.
    fn hole(&self, skip: u64) -> Result<u64, Error> {
        if !self.data.transforms.zero_stays() {
            return Ok(0);
        }
        let geometry = self.data.geometry;
        let left = geometry.left(self.position) - skip;
        let least = JUMP * self.lengths.now();
        if left < least {
            return Ok(0);
        }
        let data_from = |position: u64| -> Result<u64, Error> {
            let (from, end) = (
                geometry.in_file(position),
                geometry.in_file(geometry.size()),
            );
            let data = self.data.medium.data_from(from, end);
            data.map(|data| data - geometry.in_file(0))
                .map_err(Error::io("look for holes"))
        };
        let from = self.position.next(skip, 0);
        let hole = match self.position.direction {
            Direction::Forward => match data_from(from)? - from {
                hole if hole == left => left,
                hole => hole & !4095,
            },
            Direction::Back => {
                // Files are asked upwards only: so ever larger pieces are tried.
                let mut hole = 0;
                let mut tried = least & !4095;
                while tried <= left && data_from(from - tried)? >= from {
                    hole = tried;
                    tried = if tried < left {
                        (tried * 2).min(left)
                    } else {
                        break;
                    };
                }
                hole
            }
        };
        Ok(if hole >= least { hole } else { 0 })
    }

    /// A region was moved: how long may the next one be, and when.
    fn account(&mut self, length: u64, pace: &Pace) {
        let waited = Duration::from_micros(self.fence.longest_wait());
        self.lengths.learn(waited, pace.latency);
        let rate = self.meter.moved(Instant::now(), length, pace);
        self.report(length, Some(rate));
    }

    fn report(&self, moved: u64, rate: Option<u64>) {
        self.handle.update(|progress| {
            progress.position = self.position;
            progress.moved += moved;
            progress.rate = rate.unwrap_or(progress.rate);
            progress.region = self.lengths.now();
            progress.sequence = self.journal.sequence();
        });
    }
}
