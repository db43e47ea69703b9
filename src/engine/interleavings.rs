//! All orders in which queues, the kernel below them and who freezes a disk can come:
//! what is shared is the real [`Hold`], what is done in between are the steps of a
//! queue thread. No order loses a request to a freeze, or ends one that nobody thawed.

use std::sync::Arc;
use std::time::Instant;

use super::hold::{Gate, Hold, Member, Mode};

/// Goes through all orders: what it is asked, it answers by the order that it is at.
struct Orders {
    /// At each place: what is chosen, and from how many.
    chosen: Vec<(usize, usize)>,
    at: usize,
}

impl Orders {
    /// One of so many.
    fn choose(&mut self, count: usize) -> usize {
        if self.at == self.chosen.len() {
            self.chosen.push((0, count));
        }
        let (choice, of) = self.chosen[self.at];
        assert_eq!(of, count, "the same choices lead to the same place");
        self.at += 1;
        choice
    }

    /// On to the next order. False: there is none.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, of)) = self.chosen.pop() {
            if choice + 1 < of {
                self.chosen.push((choice + 1, of));
                return true;
            }
        }
        false
    }
}

/// Runs `model` in all orders, and says how many there were.
fn all(mut model: impl FnMut(&mut Orders)) -> u64 {
    let mut orders = Orders {
        chosen: Vec::new(),
        at: 0,
    };
    let mut count = 0;
    loop {
        model(&mut orders);
        count += 1;
        if !orders.next() {
            return count;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Reap,
    Take,
    Look,
    Tell,
}

/// A queue thread, as `QueueThread::serve` goes round: completions, requests, and
/// whether it is quiet.
struct Queue {
    member: Member,
    place: Place,
    in_flight: bool,
    steps: u32,
}

impl Queue {
    fn step(&mut self, hold: &Hold, orders: &mut Orders) {
        self.steps -= 1;
        self.place = match self.place {
            Place::Reap => {
                if self.in_flight && orders.choose(2) == 1 {
                    self.in_flight = false;
                }
                Place::Take
            }
            Place::Take => {
                if hold.gate() == Gate::Open {
                    self.in_flight = true;
                }
                Place::Look
            }
            Place::Look => match hold.gate() != Gate::Open && !self.in_flight {
                true => Place::Tell,
                false => Place::Reap,
            },
            Place::Tell => {
                self.member.quiet();
                Place::Reap
            }
        };
    }
}

/// What is done to the disk, one after the other.
#[derive(Clone, Copy, Debug)]
enum Act {
    Freeze,
    /// Looks whether it is frozen by now.
    Look,
    Thaw,
    Mode(Mode),
}

/// In all orders of so many queues, with so many steps each, and these acts. How many
/// orders there were, and in how many of them a freeze was complete.
fn explore(queues: usize, steps: u32, acts: &[Act]) -> (u64, u64) {
    let mut complete = 0;
    let orders = all(|orders| {
        let hold = Arc::new(Hold::new(Arc::default()));
        let mut queues: Vec<Queue> = (0..queues)
            .map(|_| Queue {
                member: hold.join(),
                place: Place::Reap,
                in_flight: false,
                steps,
            })
            .collect();
        let mut acts = acts.iter();
        let (mut era, mut frozen, mut ever) = (None, false, false);
        loop {
            let able: Vec<usize> = (0..queues.len())
                .filter(|queue| queues[*queue].steps > 0)
                .collect();
            let count = able.len() + usize::from(acts.len() > 0);
            if count == 0 {
                break;
            }
            match able.get(orders.choose(count)) {
                Some(queue) => queues[*queue].step(&hold, orders),
                None => match acts.next() {
                    Some(Act::Freeze) => era = hold.freeze(),
                    Some(Act::Look) => {
                        let now = Instant::now();
                        frozen = era.is_some_and(|era| hold.wait_until_quiet_by(era, now));
                        ever |= frozen;
                    }
                    Some(Act::Thaw) => {
                        assert_eq!(hold.thaw(), era.take().is_some());
                        frozen = false;
                    }
                    Some(Act::Mode(mode)) => hold.set(*mode),
                    None => {}
                },
            }
            let busy = queues.iter().any(|queue| queue.in_flight);
            assert!(
                !(frozen && busy),
                "a request is in flight in a disk that is frozen"
            );
        }
        complete += u64::from(ever);
    });
    (orders, complete)
}

#[test]
fn no_order_has_a_request_in_flight_in_a_frozen_disk() {
    use Act::{Freeze, Look, Thaw};
    // One queue, and freezes that come one upon the other.
    let (orders, complete) = explore(1, 10, &[Freeze, Look, Thaw, Freeze, Look]);
    assert!(orders > 3000 && complete > 0, "{complete} of {orders}");
    // Two queues.
    let (orders, complete) = explore(2, 5, &[Freeze, Look, Thaw]);
    assert!(orders > 20_000 && complete > 0, "{complete} of {orders}");
    // A key that is denied before, meanwhile and after.
    let paused = [
        Act::Mode(Mode::Pause),
        Freeze,
        Act::Mode(Mode::Run),
        Look,
        Thaw,
    ];
    let (orders, complete) = explore(1, 8, &paused);
    assert!(orders > 1000 && complete > 0, "{complete} of {orders}");
}

/// The other way round: with a queue that says that it is quiet without having looked,
/// orders are found in which it is not.
#[test]
fn an_order_that_goes_wrong_is_found() {
    let mut wrong = 0;
    all(|orders| {
        let hold = Arc::new(Hold::new(Arc::default()));
        let mut member = hold.join();
        let mut in_flight = false;
        let mut left = [3u32, 2];
        let mut era = None;
        while left != [0, 0] {
            let able: Vec<usize> = (0..2).filter(|who| left[*who] > 0).collect();
            let who = able[orders.choose(able.len())];
            left[who] -= 1;
            match (who, left[who]) {
                (0, 2) => in_flight = hold.gate() == Gate::Open,
                (0, 1) => member.quiet(),
                (0, _) => in_flight = false,
                (_, 1) => era = hold.freeze(),
                (_, _) => {
                    let done = |era| hold.wait_until_quiet_by(era, Instant::now());
                    wrong += u32::from(era.is_some_and(done) && in_flight);
                }
            }
        }
    });
    assert!(wrong > 0);
}
