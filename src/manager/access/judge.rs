//! When answers of a service count.
//!
//! A denial is in force when the service has denied the key at two times that
//! are the grace period apart, and has not granted it in between. An answer
//! that does not come says nothing: it neither ends a denial, so that cutting
//! off the network does not bring back a key that was taken away, nor completes
//! one. One grant ends it, since the service has then really unwrapped what is
//! needed. So a service that wavers holds a disk at most once for each grace
//! period that it denied the key without a break, and never for less.
#![forbid(unsafe_code)]

use std::time::Duration;

use tokio::time::Instant;

use crate::manager::model::Problem;
use crate::timestamp::Timestamp;

/// Why a key is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What it is, and what to do.
    pub problem: Problem,
    /// Whether the service has no such key.
    pub gone: bool,
}

/// What a service answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It unwrapped what is needed.
    Granted,
    /// It works, and does not.
    Denied(Cause),
    /// None, or one that says nothing of the key.
    Silence,
}

/// What an answer has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    None,
    /// The key is denied from now on.
    Began,
    /// It has been denied for long enough.
    InForce,
    /// It is not denied any more.
    Ended,
}

/// What is known of one need.
#[derive(Debug, Default)]
pub struct Judge {
    denied: Option<Denied>,
    granted: bool,
}

/// A denial that has begun.
#[derive(Clone, Debug)]
pub struct Denied {
    began: Instant,
    /// When the service last said so.
    pub heard: Instant,
    /// When that was.
    pub since: Timestamp,
    /// Whether it has lasted for long enough.
    pub in_force: bool,
    /// Why, as it was last told.
    pub cause: Cause,
}

impl Judge {
    /// Takes an answer that came `now`.
    pub fn hear(&mut self, answer: Answer, grace: Duration, now: Instant) -> Turn {
        match (answer, &mut self.denied) {
            (Answer::Silence, _) => Turn::None,
            (Answer::Granted, denied) => {
                self.granted = true;
                match denied.take() {
                    Some(_) => Turn::Ended,
                    None => Turn::None,
                }
            }
            (Answer::Denied(cause), None) => {
                self.granted = false;
                self.denied = Some(Denied {
                    began: now,
                    heard: now,
                    since: Timestamp::now(),
                    in_force: false,
                    cause,
                });
                Turn::Began
            }
            (Answer::Denied(cause), Some(denied)) => {
                denied.cause = cause;
                denied.heard = now;
                let lasted = now.saturating_duration_since(denied.began) >= grace;
                match lasted && !denied.in_force {
                    true => {
                        denied.in_force = true;
                        Turn::InForce
                    }
                    false => Turn::None,
                }
            }
        }
    }

    /// The denial, if there is one.
    pub fn denied(&self) -> Option<&Denied> {
        self.denied.as_ref()
    }

    /// Whether the service was last heard to give what is needed.
    pub fn is_granted(&self) -> bool {
        self.granted
    }

    /// When the next answer could put a denial in force.
    pub fn due(&self, grace: Duration) -> Option<Instant> {
        let denied = self.denied.as_ref().filter(|denied| !denied.in_force)?;
        Some(denied.began + grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const GRACE: Duration = Duration::from_secs(300);

    fn denied(why: &str) -> Answer {
        Answer::Denied(Cause {
            problem: Problem {
                message: why.into(),
                help: None,
                kind: Kind::Key,
            },
            gone: false,
        })
    }

    struct Case(Judge, Instant);

    impl Case {
        fn new() -> Case {
            Case(Judge::default(), Instant::now())
        }

        fn at(&mut self, seconds: u64, answer: Answer) -> Turn {
            let now = self.1 + Duration::from_secs(seconds);
            self.0.hear(answer, GRACE, now)
        }
    }

    #[test]
    fn a_denial_is_in_force_after_the_grace_and_ends_with_one_grant() {
        let mut case = Case::new();
        assert!(!case.0.is_granted(), "nobody knows yet");
        assert_eq!(case.at(0, Answer::Granted), Turn::None);
        assert!(case.0.is_granted());
        assert_eq!(case.at(60, denied("a")), Turn::Began);
        assert!(!case.0.is_granted());
        assert_eq!(case.0.due(GRACE), Some(case.1 + Duration::from_secs(360)));
        assert_eq!(case.at(359, denied("b")), Turn::None);
        assert!(!case.0.denied().unwrap().in_force);
        assert_eq!(case.at(360, denied("c")), Turn::InForce);
        assert_eq!(case.0.due(GRACE), None);
        assert_eq!(case.at(420, denied("d")), Turn::None);
        let now = case.0.denied().unwrap();
        assert_eq!(now.cause.problem.message, "d");
        assert_eq!(case.at(480, Answer::Granted), Turn::Ended);
        assert!(case.0.denied().is_none() && case.0.is_granted());
    }

    #[test]
    fn a_service_that_wavers_puts_nothing_in_force() {
        let mut case = Case::new();
        for round in 0..100 {
            let at = round * 299;
            assert_eq!(case.at(at, denied("a")), Turn::Began);
            assert_eq!(case.at(at + 200, denied("a")), Turn::None);
            assert_eq!(case.at(at + 298, Answer::Granted), Turn::Ended);
        }
    }

    #[test]
    fn silence_neither_ends_a_denial_nor_completes_one() {
        let mut case = Case::new();
        assert_eq!(case.at(0, Answer::Silence), Turn::None);
        assert!(!case.0.is_granted() && case.0.denied().is_none());
        assert_eq!(case.at(10, denied("a")), Turn::Began);
        assert_eq!(case.at(20, Answer::Silence), Turn::None);
        assert_eq!(case.at(1000, Answer::Silence), Turn::None);
        assert!(!case.0.denied().unwrap().in_force);
        // The last thing that it said was no, and now it says so again.
        assert_eq!(case.at(1001, denied("a")), Turn::InForce);
        assert_eq!(case.at(1002, Answer::Silence), Turn::None);
        assert!(case.0.denied().unwrap().in_force);
    }
}
