//! The loop that moves the data, region after region (`docs/rekey.md`).

mod plan;
mod steps;

use std::thread;
use std::time::{Duration, Instant};

use crate::rekey::handle::{Handle, Pace, Phase, Progress};
use crate::rekey::keys::SectorTag;
use crate::rekey::pace::{Lengths, Meter};
use crate::rekey::region::{Data, Region};
use crate::rekey::rules::{Rule, Rules};
use crate::rekey::{Direction, Error, Fence, Geometry, Journal, Medium, Position, Transforms};

/// It may be so far ahead of its limit before it waits. It rests then, since what
/// is closed is closed to guests; and to rest costs syncs, so not after each region.
const AHEAD: Duration = Duration::from_millis(50);
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
    pub(in crate::rekey) data: Data<D>,
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
