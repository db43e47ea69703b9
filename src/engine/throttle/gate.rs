//! Where the requests of one queue wait for their turn.

use std::collections::VecDeque;

use super::limits::{Cost, Lane};
use super::{Throttle, Tick};

/// A request that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    number: u16,
    cost: Cost,
    since: Tick,
}

/// Requests of one kind, oldest first.
#[derive(Debug)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// How many of the oldest have a turn, and have been charged.
    turns: usize,
    /// When that is.
    due: Tick,
}

/// A request that may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// The number that it was let wait with.
    pub number: u16,
    /// What it was.
    pub lane: Lane,
    /// Nanoseconds that it waited.
    pub waited: u64,
}

/// The gate of one queue thread: reads do not wait for writes, nor writes for
/// reads, but for the requests of their kind that came first.
#[derive(Debug)]
pub struct Gate {
    queues: [Queue; Lane::ALL.len()],
    generation: u64,
}

impl Gate {
    /// A gate at which at most so many requests wait.
    pub fn new(most: u16) -> Self {
        let queue = || Queue {
            waiting: VecDeque::with_capacity(most.into()),
            turns: 0,
            due: Tick::default(),
        };
        Gate {
            queues: Lane::ALL.map(|_| queue()),
            generation: 0,
        }
    }

    /// Whether nobody waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(|queue| queue.waiting.is_empty())
    }

    /// Whether a request may begin now. Else it waits, and is
    /// [released](Gate::release) later.
    pub fn admit(
        &mut self,
        throttle: &Throttle,
        (number, lane, cost): (u16, Lane, Cost),
        now: Tick,
    ) -> bool {
        self.renew(throttle);
        let queue = &mut self.queues[lane as usize];
        let waiting = Waiting {
            number,
            cost,
            since: now,
        };
        if queue.waiting.is_empty() {
            let turn = throttle.turn(lane, std::iter::once(cost), now);
            if turn.due <= now {
                return true;
            }
            queue.turns = turn.requests;
            queue.due = turn.due;
        }
        queue.waiting.push_back(waiting);
        false
    }

    /// A request whose turn it is.
    pub fn release(&mut self, throttle: &Throttle, now: Tick) -> Option<Released> {
        self.renew(throttle);
        for lane in Lane::ALL {
            let queue = &mut self.queues[lane as usize];
            if queue.waiting.is_empty() {
                continue;
            }
            if queue.turns == 0 {
                let costs = queue.waiting.iter().map(|waiting| waiting.cost);
                let turn = throttle.turn(lane, costs, now);
                queue.turns = turn.requests;
                queue.due = turn.due;
            }
            if queue.due <= now {
                queue.turns -= 1;
                return queue.pop(lane, now);
            }
        }
        None
    }

    /// Any request that waits, whether it is its turn or not. It is charged all
    /// the same: who has the queue stopped and started gains nothing by it.
    pub fn release_any(&mut self, throttle: &Throttle, now: Tick) -> Option<Released> {
        self.renew(throttle);
        for lane in Lane::ALL {
            let queue = &mut self.queues[lane as usize];
            let Some(first) = queue.waiting.front() else {
                continue;
            };
            match queue.turns.checked_sub(1) {
                Some(left) => queue.turns = left,
                None => throttle.charge(lane, first.cost),
            }
            return queue.pop(lane, now);
        }
        None
    }

    /// When the next request may begin, if any waits.
    pub fn due(&self) -> Option<Tick> {
        let waiting = self.queues.iter().filter(|it| !it.waiting.is_empty());
        waiting.map(|queue| queue.due).min()
    }

    /// Turns are worth nothing once the limits have changed.
    fn renew(&mut self, throttle: &Throttle) {
        let generation = throttle.generation();
        if self.generation != generation {
            self.generation = generation;
            self.queues.iter_mut().for_each(|queue| {
                queue.turns = 0;
                queue.due = Tick::default();
            });
        }
    }
}

impl Queue {
    fn pop(&mut self, lane: Lane, now: Tick) -> Option<Released> {
        let first = self.waiting.pop_front()?;
        Some(Released {
            number: first.number,
            lane,
            waited: now.0.saturating_sub(first.since.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Limits, Rate, Rates};
    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    fn limits(read: u64, write: u64) -> Limits {
        let rate = |per_second| {
            (per_second > 0).then_some(Rate {
                per_second,
                burst: None,
            })
        };
        Limits {
            operations: Rates {
                read: rate(read),
                write: rate(write),
                total: None,
            },
            ..Limits::default()
        }
    }

    const COST: Cost = Cost { bytes: 4096 };

    /// What is released up to that time, as the thread would: it wakes when
    /// something is due.
    fn run(gate: &mut Gate, throttle: &Throttle, until: Tick) -> Vec<(u16, u64)> {
        let mut released = Vec::new();
        while let Some(due) = gate.due().filter(|due| *due <= until) {
            while let Some(it) = gate.release(throttle, due) {
                released.push((it.number, due.0 / MILLISECOND));
            }
        }
        released
    }

    #[test]
    fn requests_begin_in_their_order_when_it_is_their_turn() {
        let throttle = Throttle::new(&limits(100, 0));
        let mut gate = Gate::new(64);
        let admitted = (0..30).filter(|n| gate.admit(&throttle, (*n, Lane::Read, COST), Tick(0)));
        // What the bucket holds, and one.
        assert_eq!(admitted.count(), 11);
        // Writes have no limit, and do not wait behind reads.
        assert!(gate.admit(&throttle, (99, Lane::Write, COST), Tick(0)));
        let released = run(&mut gate, &throttle, Tick(10 * 1000 * MILLISECOND));
        let numbers: Vec<u16> = released.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (11..30).collect::<Vec<_>>());
        for (place, (_, at)) in released.iter().enumerate() {
            assert!(at.abs_diff(10 * (place as u64 + 1)) <= 2, "{released:?}");
        }
        assert!(gate.is_empty());
        assert_eq!(gate.due(), None);
    }

    #[test]
    fn limits_that_change_hold_for_those_who_wait() {
        let throttle = Throttle::new(&limits(1, 1));
        let mut gate = Gate::new(64);
        for number in 0..20 {
            gate.admit(&throttle, (number, Lane::Write, COST), Tick(0));
        }
        assert!(gate.due().unwrap() > Tick(0));
        throttle.set(&limits(0, 1000));
        let soon = Tick(100 * MILLISECOND);
        assert_eq!(run(&mut gate, &throttle, soon).len(), 0, "nobody was woken");
        // The thread is, and looks.
        let mut released = 0;
        while gate.release(&throttle, Tick(0)).is_some() {
            released += 1;
        }
        released += run(&mut gate, &throttle, soon).len();
        assert_eq!(released, 19);
        // And no limit at all.
        for number in 0..20 {
            gate.admit(&throttle, (number, Lane::Write, COST), soon);
        }
        throttle.set(&limits(1, 1));
        assert!(gate.admit(&throttle, (1, Lane::Read, COST), soon));
        throttle.set(&Limits::default());
        while gate.release(&throttle, soon).is_some() {}
        assert!(gate.is_empty() && !throttle.is_on());
    }

    #[test]
    fn those_who_are_let_go_before_their_turn_are_charged() {
        let throttle = Throttle::new(&limits(0, 10));
        let mut gate = Gate::new(64);
        for number in 0..21 {
            gate.admit(&throttle, (number, Lane::Write, COST), Tick(0));
        }
        let mut count = 0;
        while let Some(it) = gate.release_any(&throttle, Tick(5)) {
            assert_eq!((it.lane, it.waited), (Lane::Write, 5));
            count += 1;
        }
        assert_eq!(count, 19);
        // Twenty-one requests at ten a second, less what the bucket holds.
        assert!(!gate.admit(&throttle, (0, Lane::Write, COST), Tick(5)));
        let due = gate.due().unwrap().0 / MILLISECOND;
        assert!(due.abs_diff(2000) <= 2, "{due}");
    }
}
