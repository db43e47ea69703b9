//! Leaky buckets: how much was done lately, and when more may be.
//!
//! A bucket leaks at the permitted rate, and every request is poured into it as
//! it is let through. While there is more in it than it holds, requests wait.
//! So a request is never too large: it is followed by a longer pause.

use super::Tick;
use super::limits::{Cost, Lane, Limits, Rate, Rates};

/// What a bucket holds, in seconds of its rate, so that requests need not
/// arrive evenly: a tenth, as QEMU has it.
const SLACK: f64 = 0.1;

/// Requests that may begin within this time are let through together, at the
/// end of it: a thread is woken for them at most a thousand times a second.
const TOGETHER: f64 = 0.001;

/// When requests may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// How many of those that were offered, from the first one on: at least one.
    pub requests: usize,
    /// From when on.
    pub due: Tick,
}

#[derive(Clone, Debug)]
struct Bucket {
    /// Leaks so much per second.
    rate: f64,
    holds: f64,
    level: f64,
}

impl Bucket {
    fn leak(&mut self, seconds: f64) {
        self.level = (self.level - self.rate * seconds).max(0.0);
    }

    /// Seconds until a request may pass.
    fn wait(&self) -> f64 {
        ((self.level - self.holds) / self.rate).max(0.0)
    }
}

/// One limit: what is counted, of which requests.
#[derive(Clone, Debug)]
struct Limited {
    /// `None` is all of them.
    lane: Option<Lane>,
    /// Bytes, or else operations.
    bytes: bool,
    /// In the long run; and that a burst, too, has a rate.
    buckets: [Option<Bucket>; 2],
}

impl Limited {
    fn new(lane: Option<Lane>, bytes: bool, rate: &Rate) -> Self {
        let per_second = rate.per_second.max(1) as f64;
        let even = |rate: f64| Bucket {
            rate,
            holds: rate * SLACK,
            level: 0.0,
        };
        let mut long_run = even(per_second);
        let burst = rate.burst.map(|burst| {
            let most = (burst.per_second as f64).max(per_second);
            // What a burst brings in beyond what leaks.
            long_run.holds += (most - per_second) * burst.length().as_secs_f64();
            even(most)
        });
        Limited {
            lane,
            bytes,
            buckets: [Some(long_run), burst],
        }
    }

    fn concerns(&self, lane: Lane) -> bool {
        self.lane.is_none_or(|own| own == lane)
    }
}

/// All limits of a disk, and what was done lately.
#[derive(Clone, Debug)]
pub struct Buckets {
    limited: Vec<Limited>,
    operation_bytes: u64,
    /// Until when they have leaked.
    at: Tick,
}

impl Buckets {
    /// Empty buckets.
    pub fn new(limits: &Limits) -> Self {
        let of = |bytes: bool, rates: &Rates| {
            let each = [
                (None, rates.total),
                (Some(Lane::Read), rates.read),
                (Some(Lane::Write), rates.write),
            ];
            each.into_iter()
                .filter_map(move |(lane, rate)| Some(Limited::new(lane, bytes, &rate?)))
        };
        let operations = of(false, &limits.operations);
        Buckets {
            limited: operations.chain(of(true, &limits.bytes)).collect(),
            operation_bytes: limits.operation_bytes,
            at: Tick::default(),
        }
    }

    /// When the first of the requests that wait may begin, and how many of
    /// those behind it at about the same time. All of these are charged.
    pub fn turn(&mut self, lane: Lane, costs: impl Iterator<Item = Cost>, now: Tick) -> Turn {
        self.leak(now);
        let mut turn = Turn {
            requests: 0,
            due: now,
        };
        let mut latest = f64::INFINITY;
        for cost in costs {
            let wait = self.wait(lane);
            if wait > latest {
                break;
            }
            if turn.requests == 0 && wait > 0.0 {
                latest = wait + TOGETHER;
            } else if turn.requests == 0 {
                // What may go at once does not wait for what may not.
                latest = 0.0;
            }
            turn.due = Tick(now.0.saturating_add((wait * 1e9).ceil() as u64));
            turn.requests += 1;
            self.charge(lane, cost);
        }
        turn
    }

    /// Charges a request that is let through.
    pub fn charge(&mut self, lane: Lane, cost: Cost) {
        let operations = match self.operation_bytes {
            0 => 1.0,
            size => (cost.bytes as f64 / size as f64).max(1.0),
        };
        for limited in self.limited.iter_mut().filter(|it| it.concerns(lane)) {
            let amount = match limited.bytes {
                true => cost.bytes as f64,
                false => operations,
            };
            for bucket in limited.buckets.iter_mut().flatten() {
                bucket.level += amount;
            }
        }
    }

    fn leak(&mut self, now: Tick) {
        let seconds = now.0.saturating_sub(self.at.0) as f64 / 1e9;
        self.at = self.at.max(now);
        let buckets = self.limited.iter_mut().flat_map(|it| &mut it.buckets);
        buckets.flatten().for_each(|bucket| bucket.leak(seconds));
    }

    /// Seconds until a request of that kind may begin.
    fn wait(&self, lane: Lane) -> f64 {
        let limited = self.limited.iter().filter(|it| it.concerns(lane));
        let waits = limited.flat_map(|it| it.buckets.iter().flatten().map(Bucket::wait));
        waits.fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::Burst;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(per_second: u64, burst: Option<(u64, u64)>) -> Option<Rate> {
        Some(Rate {
            per_second,
            burst: burst.map(|(per_second, seconds)| Burst {
                per_second,
                seconds,
            }),
        })
    }

    fn operations(total: Option<Rate>) -> Limits {
        Limits {
            operations: Rates {
                total,
                ..Rates::default()
            },
            ..Limits::default()
        }
    }

    /// How many requests of that size begin in each of the first seconds, if
    /// there is always one more, on as many queues.
    fn through(limits: &Limits, lanes: &[Lane], bytes: u64, seconds: u64) -> Vec<Vec<u64>> {
        let mut buckets = Buckets::new(limits);
        let mut counts = vec![vec![0; seconds as usize]; lanes.len()];
        let mut next = vec![Tick(0); lanes.len()];
        loop {
            let queue = (0..lanes.len()).min_by_key(|queue| next[*queue]).unwrap();
            let now = next[queue];
            if now.0 >= seconds * SECOND {
                return counts;
            }
            let cost = std::iter::repeat_n(Cost { bytes }, 64);
            let turn = buckets.turn(lanes[queue], cost, now);
            assert!(turn.requests >= 1 && turn.due >= now);
            if let Some(count) = counts[queue].get_mut((turn.due.0 / SECOND) as usize) {
                *count += turn.requests as u64;
            }
            // A request takes its time, too.
            next[queue] = Tick(turn.due.0 + 1000);
        }
    }

    fn near(count: u64, expected: u64) -> bool {
        count.abs_diff(expected) <= expected / 50 + 2
    }

    #[test]
    fn a_rate_is_kept_in_the_long_run_at_any_height() {
        for per_second in [1, 3, 100, 5_000, 400_000] {
            let limits = operations(rate(per_second, None));
            let counts = through(&limits, &[Lane::Read], 4096, 10);
            let total: u64 = counts[0].iter().sum();
            // What the bucket holds comes on top, once.
            assert!(
                near(total, per_second * 10 + per_second / 10 + 1),
                "{per_second}: {counts:?}"
            );
            assert!(near(counts[0][5], per_second), "{per_second}: {counts:?}");
        }
    }

    #[test]
    fn a_burst_has_its_rate_and_its_length_and_comes_back_after_a_rest() {
        let limits = operations(rate(100, Some((1000, 3))));
        let counts = &through(&limits, &[Lane::Write], 512, 8)[0];
        // What the burst's own bucket holds comes first, and not on top.
        assert!(near(counts[0], 1100) && near(counts[1], 1000), "{counts:?}");
        assert!(near(counts[..3].iter().sum(), 3010), "{counts:?}");
        for count in &counts[4..] {
            assert!(near(*count, 100), "{counts:?}");
        }
        // Idle for as long as it takes to leak all of it.
        let mut buckets = Buckets::new(&limits);
        let full = |buckets: &mut Buckets, now: u64| {
            let mut count = 0;
            let one = || std::iter::once(Cost { bytes: 0 });
            let mut at = Tick(now);
            while at.0 < now + SECOND {
                at = buckets.turn(Lane::Write, one(), at).due;
                count += 1;
            }
            count
        };
        let first = full(&mut buckets, 0);
        for second in 1..6 {
            full(&mut buckets, second * SECOND);
        }
        assert!(near(full(&mut buckets, 6 * SECOND), 100));
        assert!(near(full(&mut buckets, 60 * SECOND), first));
    }

    #[test]
    fn reads_and_writes_have_limits_of_their_own() {
        let limits = Limits {
            operations: Rates {
                read: rate(1000, None),
                write: rate(50, None),
                total: None,
            },
            ..Limits::default()
        };
        let counts = through(&limits, &[Lane::Read, Lane::Write], 4096, 5);
        assert!(near(counts[0][3], 1000), "{counts:?}");
        assert!(near(counts[1][3], 50), "{counts:?}");
    }

    #[test]
    fn queues_take_turns_at_what_they_share() {
        for per_second in [20, 50_000] {
            let limits = operations(rate(per_second, None));
            let lanes = [Lane::Read, Lane::Read, Lane::Write];
            let counts = through(&limits, &lanes, 4096, 6);
            for count in &counts {
                assert!(near(count[4], per_second / 3), "{counts:?}");
            }
        }
    }

    #[test]
    fn bytes_are_counted_and_a_large_request_passes_and_is_paid_for() {
        let limits = Limits {
            bytes: Rates {
                total: rate(1 << 20, None),
                ..Rates::default()
            },
            ..Limits::default()
        };
        let small = through(&limits, &[Lane::Read], 4096, 5);
        assert!(near(small[0][3], 256), "{small:?}");
        let mut buckets = Buckets::new(&limits);
        let large = Cost { bytes: 8 << 20 };
        let first = buckets.turn(Lane::Write, std::iter::once(large), Tick(0));
        assert_eq!(first.due, Tick(0));
        let next = buckets.turn(Lane::Read, std::iter::once(large), Tick(0));
        // All but what the bucket holds has to leak.
        assert!(near(next.due.0 / 1_000_000, 7900), "{next:?}");
        // Data that is not moved costs nothing.
        let limits = Limits {
            bytes: Rates {
                total: rate(1, None),
                ..Rates::default()
            },
            ..Limits::default()
        };
        let free = through(&limits, &[Lane::Write], 0, 1);
        assert!(free[0][0] > 1000);
    }

    #[test]
    fn a_large_request_counts_as_several_operations_if_so_configured() {
        let limits = Limits {
            operation_bytes: 4096,
            ..operations(rate(100, None))
        };
        for (bytes, count) in [(512, 100), (4096, 100), (8192, 50), (65536, 6)] {
            let counts = through(&limits, &[Lane::Read], bytes, 4);
            assert!(near(counts[0][3], count), "{bytes}: {counts:?}");
        }
    }

    #[test]
    fn what_may_begin_at_about_the_same_time_has_one_turn() {
        let mut buckets = Buckets::new(&operations(rate(100_000, None)));
        let mut turn = |now| {
            let offered = std::iter::repeat_n(Cost { bytes: 512 }, 30_000);
            buckets.turn(Lane::Read, offered, now)
        };
        // What the bucket holds goes at once.
        let first = turn(Tick(0));
        assert_eq!(first.due, Tick(0));
        assert!(near(first.requests as u64, 10_000));
        let second = turn(Tick(0));
        assert!(near(second.requests as u64, 100), "{second:?}");
        assert!(second.due <= Tick(1_100_000), "{second:?}");
    }

    #[test]
    fn no_limit_is_no_wait() {
        let counts = through(&Limits::default(), &[Lane::Read], 1 << 30, 1);
        assert!(counts[0][0] > 100_000);
    }
}
