//! Looking at a whole disk or a sample of it, with as many threads as one
//! wants, no faster than one wants, until somebody says that it is enough.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::error::Error;
use super::repeats::Repeats;
use super::sample::{Extent, ends};
use super::tally::{Look, Looker, Tally};

/// Bytes that a thread takes at once of a full scan: enough for any disk to
/// be read at its speed.
const PIECE: u64 = 2 << 20;

/// How long a thread waits at most before it looks whether it is to stop.
const NAP: Duration = Duration::from_millis(50);

/// Ends a verification, from anywhere.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Lets it end soon.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a verification may take.
#[derive(Clone, Debug)]
pub struct Means {
    /// How many threads.
    pub threads: usize,
    /// How many bytes are read per second, at most.
    pub rate: Option<u64>,
    /// Ends it.
    pub cancel: Cancel,
}

impl Means {
    /// All of this host.
    pub fn all() -> Self {
        Means {
            threads: thread::available_parallelism().map_or(1, usize::from),
            rate: None,
            cancel: Cancel::default(),
        }
    }
}

/// The units that are looked at, in pieces.
enum Pieces {
    All { units: u64, at_once: u64 },
    Some(Vec<(u64, u64)>),
}

impl Pieces {
    fn of(extent: Extent, units: u64, unit: usize) -> Self {
        let at_once = (PIECE / unit as u64).max(1);
        let Extent::Sample {
            units: wanted,
            seed,
        } = extent
        else {
            return Pieces::All { units, at_once };
        };
        let ends = ends(units, unit);
        let inside = |unit: &u64| {
            ends.iter()
                .any(|(first, count)| (*first..first + count).contains(unit))
        };
        let mut pieces: Vec<(u64, u64)> =
            ends.into_iter().filter(|(_, count)| *count > 0).collect();
        let positions = seed.positions(wanted, units).into_iter();
        pieces.extend(positions.filter(|unit| !inside(unit)).map(|unit| (unit, 1)));
        // Disks that turn like it in this order.
        pieces.sort_unstable();
        Pieces::Some(pieces)
    }

    fn get(&self, index: u64) -> Option<(u64, u64)> {
        match self {
            Pieces::All { units, at_once } => {
                let first = index.checked_mul(*at_once).filter(|first| first < units)?;
                Some((first, (*at_once).min(units - first)))
            }
            Pieces::Some(pieces) => pieces.get(usize::try_from(index).ok()?).copied(),
        }
    }

    /// The most units of a piece.
    fn largest(&self) -> u64 {
        match self {
            Pieces::All { units, at_once } => (*at_once).min(*units),
            Pieces::Some(pieces) => pieces.iter().map(|(_, count)| *count).max().unwrap_or(0),
        }
    }
}

/// Keeps reading to a rate.
struct Pace {
    rate: Option<u64>,
    /// When what was read so far may have been read, at that rate.
    next: Mutex<Instant>,
}

impl Pace {
    fn new(rate: Option<u64>) -> Self {
        Pace {
            rate,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits for as long as reading `bytes` takes, when others wait too.
    fn wait(&self, bytes: u64, stop: impl Fn() -> bool) {
        let Some(rate) = self.rate else {
            return;
        };
        let turn = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            *next = (*next).max(Instant::now()) + takes;
            *next
        };
        loop {
            let left = turn.saturating_duration_since(Instant::now());
            if left.is_zero() || stop() {
                return;
            }
            thread::sleep(left.min(NAP));
        }
    }
}

/// Looks at what `extent` says, and returns what was seen and which blocks came
/// twice.
///
/// # Errors
/// When something cannot be read, or it was to stop.
pub fn scan(look: &Look<'_>, extent: Extent, means: &Means) -> Result<(Tally, Repeats), Error> {
    let (units, unit) = (look.source.units(), look.source.unit());
    let pieces = Pieces::of(extent, units, unit);
    let repeats = match extent {
        Extent::Full => Repeats::new(units),
        Extent::Sample { units: some, .. } => {
            let [(_, first), (_, last)] = ends(units, unit);
            Repeats::new(some.saturating_add(first + last))
        }
    };
    let repeats = Mutex::new(repeats);
    let (turn, pace, failed) = (
        AtomicU64::new(0),
        Pace::new(means.rate),
        AtomicBool::new(false),
    );
    let stop = || means.cancel.is_set() || failed.load(Ordering::Relaxed);
    let work = || -> Result<Tally, Error> {
        let mut looker = Looker::new(look, pieces.largest());
        while let Some((first, count)) = pieces.get(turn.fetch_add(1, Ordering::Relaxed)) {
            if stop() {
                return Err(Error::Stopped);
            }
            let before = looker.tally.bytes;
            if let Err(error) = looker.look_at(first, count) {
                failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
            let mut repeats = repeats.lock().unwrap_or_else(PoisonError::into_inner);
            for &(unit, block) in &looker.firsts {
                repeats.note(unit, block);
            }
            drop(repeats);
            // Holes cost nothing.
            pace.wait(looker.tally.bytes - before, stop);
        }
        match means.cancel.is_set() {
            // Also after the last piece: nobody wants it any more.
            true => Err(Error::Stopped),
            false => Ok(looker.tally),
        }
    };
    let results: Vec<Result<Tally, Error>> = thread::scope(|scope| {
        let spawned: Vec<_> = (0..means.threads.max(1))
            .map(|_| {
                thread::Builder::new()
                    .name("verify".into())
                    .spawn_scoped(scope, work)
            })
            .collect();
        let ended = spawned.into_iter().map(|thread| match thread {
            Ok(thread) => thread.join().unwrap_or(Err(Error::Internal)),
            Err(source) => Err(Error::System {
                what: "cannot start a thread",
                source,
            }),
        });
        ended.collect()
    });
    let mut sum = Tally::default();
    let mut stopped = false;
    for result in results {
        match result {
            Ok(tally) => sum.add(&tally),
            // Because of another one, perhaps, whose reason counts.
            Err(Error::Stopped) => stopped = true,
            Err(error) => return Err(error),
        }
    }
    match stopped {
        true => Err(Error::Stopped),
        false => {
            let repeats = repeats.into_inner();
            Ok((sum, repeats.unwrap_or_else(PoisonError::into_inner)))
        }
    }
}
