//! Several endpoints of one service: which one is asked, and when the next.
//!
//! The endpoints share their keys and stand in order, the nearest first. A
//! call goes through them until one gives an answer that counts:
//!
//! - refused, no route, sealed, garbled: the next one at once,
//! - silent for [`Timing::timeout`]: the next one,
//! - key not found: may be replication that lags, so it counts only when
//!   every endpoint says so,
//! - throttled: the next one, and this one not again before the time it asked,
//! - denied, or wrong bytes: that is the answer.
//!
//! An endpoint that failed is skipped for a while, which doubles each time,
//! unless there is no other; then one call probes it. When no endpoint helped,
//! the rounds are repeated with growing, random pauses up to
//! [`Timing::deadline`], or until nobody waits any more. The one thing that a cluster knows of its service is
//! the class of its errors, so that every provider can use it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::call::{self, Attempt};
use super::{Class, Error};

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long an endpoint may be silent before the next one is asked.
    pub timeout: Duration,
    /// How long a call may take, all endpoints and repetitions together.
    pub deadline: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
        }
    }
}

/// How long an endpoint that failed once is skipped.
const SKIP_MIN: Duration = Duration::from_secs(2);
/// How long an endpoint is skipped at most.
const SKIP_MAX: Duration = Duration::from_secs(60);
/// How long an endpoint can have itself left alone at most.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// The pause after the first round in vain, at most.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The pause between rounds, at most.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A call to one endpoint that did not succeed.
#[derive(Debug)]
pub enum Failed {
    /// The endpoint did; whether another one may help is told by the class.
    Here(Error),
    /// No endpoint could do better: this host is not set up for it.
    Everywhere(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Here(error)
    }
}

/// The endpoints of one service.
#[derive(Debug)]
pub struct Cluster<E> {
    endpoints: Vec<Endpoint<E>>,
    timing: Timing,
}

#[derive(Debug)]
struct Endpoint<E> {
    client: E,
    state: Mutex<State>,
}

/// What is remembered of an endpoint between calls.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Failures since the last answer.
    failures: u32,
    /// Not asked before, unless there is no other.
    skip_until: Option<Instant>,
    /// Not asked before in any case: it wanted that.
    wait_until: Option<Instant>,
}

impl<E> Endpoint<E> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: fmt::Display> Cluster<E> {
    /// A cluster of `endpoints`, in the order in which they are to be asked.
    /// Each shows itself as it is to be named in messages.
    pub fn new(endpoints: impl IntoIterator<Item = E>, timing: Timing) -> Self {
        let endpoints = endpoints.into_iter().map(|client| Endpoint {
            client,
            state: Mutex::default(),
        });
        Cluster {
            endpoints: endpoints.collect(),
            timing,
        }
    }

    /// The endpoints, in their order.
    pub fn endpoints(&self) -> impl Iterator<Item = &E> {
        self.endpoints.iter().map(|endpoint| &endpoint.client)
    }

    /// Makes a call to the first endpoint that can answer it. `call` may be
    /// started several times, and be dropped before it ends.
    ///
    /// # Errors
    /// The answer that counts, or what each endpoint failed for.
    pub async fn call<'c, T, F>(&'c self, call: impl Fn(&'c E) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let start = Instant::now();
        let deadline = start + self.timing.deadline;
        let deadline = call::until().map_or(deadline, |until| deadline.min(until));
        let mut pause = PAUSE_MIN;
        // The last error of each endpoint, by its place in the list.
        let mut errors = BTreeMap::new();
        loop {
            if let Some(answer) = self.round(&call, deadline, &mut errors).await {
                return answer;
            }
            let until = self.next_round(&errors, pause);
            match until {
                Some(until) if until < deadline => tokio::time::sleep_until(until).await,
                _ => return Err(self.summary(errors, start.elapsed())),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks each endpoint once, as far as it is to be asked. The answer that
    /// counts, if there is one.
    async fn round<'c, T, F>(
        &'c self,
        call: &impl Fn(&'c E) -> F,
        deadline: Instant,
        errors: &mut BTreeMap<usize, Error>,
    ) -> Option<Result<T, Error>>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        for (place, endpoint) in self.in_turn() {
            let now = Instant::now();
            // The first one is asked in any case.
            if now >= deadline && !errors.is_empty() {
                break;
            }
            if let Some(wait) = endpoint.state().wait_until.filter(|until| *until > now) {
                errors.insert(place, throttled(&endpoint.client, wait - now));
                continue;
            }
            if let Some(until) = &mut endpoint.state().skip_until {
                // This call probes it; those beside it go on skipping it.
                *until = now + self.timing.timeout;
            }
            let limit = (now + self.timing.timeout).min(deadline.max(now + PAUSE_MIN));
            let cut_short = limit - now < self.timing.timeout;
            let asked = call::within(limit, call(&endpoint.client));
            let answer = tokio::time::timeout_at(limit, asked).await;
            let silent = answer.is_err();
            let result = match answer {
                Ok(result) => result,
                Err(_) => Err(Failed::Here(no_answer(&endpoint.client, limit - now))),
            };
            call::note_attempt(Attempt {
                endpoint: endpoint.client.to_string(),
                took: now.elapsed(),
                failed: match &result {
                    Ok(_) => None,
                    Err(Failed::Here(error) | Failed::Everywhere(error)) => Some(error.class()),
                },
            });
            let error = match result {
                // It had less than its time: what it said before tells more.
                Err(Failed::Here(_)) if silent && cut_short && errors.contains_key(&place) => {
                    continue;
                }
                Ok(value) => {
                    *endpoint.state() = State::default();
                    return Some(Ok(value));
                }
                Err(Failed::Everywhere(error)) => return Some(Err(error)),
                Err(Failed::Here(error)) => error,
            };
            tracing::debug!(endpoint = %endpoint.client, class = %error.class(), %error, "a call failed");
            match error.class() {
                Class::Denied(_) | Class::BadKey => {
                    *endpoint.state() = State::default();
                    return Some(Err(error));
                }
                Class::NotFound => *endpoint.state() = State::default(),
                Class::Throttled { retry_after } => {
                    let wait = retry_after.unwrap_or_default().clamp(PAUSE_MIN, WAIT_MAX);
                    endpoint.state().wait_until = Some(Instant::now() + wait);
                }
                Class::Unreachable | Class::Sealed | Class::Protocol => skip(endpoint),
            }
            errors.insert(place, error);
        }
        None
    }

    /// The endpoints to ask now: those that are not skipped, in their order;
    /// then the skipped ones, of which each is asked only if no other helped.
    fn in_turn(&self) -> impl Iterator<Item = (usize, &Endpoint<E>)> {
        let now = Instant::now();
        let skip = |endpoint: &Endpoint<E>| endpoint.state().skip_until;
        let (skipped, good): (Vec<_>, Vec<_>) = self
            .endpoints
            .iter()
            .enumerate()
            .partition(|(_, endpoint)| skip(endpoint).is_some_and(|until| until > now));
        good.into_iter().chain(skipped)
    }

    /// When another round could end otherwise, if it could.
    fn next_round(&self, errors: &BTreeMap<usize, Error>, pause: Duration) -> Option<Instant> {
        let now = Instant::now();
        let pause = now + pause.mul_f64(0.5 + 0.5 * random());
        let again = |class| {
            matches!(
                class,
                Class::Unreachable | Class::Sealed | Class::Throttled { .. }
            )
        };
        if !errors.values().any(|error| again(error.class())) {
            return None;
        }
        let waits: Vec<Instant> = self
            .endpoints
            .iter()
            .map(|endpoint| endpoint.state().wait_until.unwrap_or(now))
            .collect();
        // Before the first of them may be asked there is nothing to do.
        waits.into_iter().min().map(|first| first.max(pause))
    }

    /// One error for all endpoints. Its class is the one of which waiting cures
    /// the most: a key is not found only if no endpoint could still have it.
    fn summary(&self, mut errors: BTreeMap<usize, Error>, after: Duration) -> Error {
        for (place, endpoint) in self.endpoints.iter().enumerate() {
            let unasked = || not_asked(&endpoint.client);
            errors.entry(place).or_insert_with(unasked);
        }
        let told: Vec<String> = errors.values().map(Error::to_string).collect();
        let rank = |error: &Error| match error.class() {
            Class::Throttled { .. } => 0,
            Class::Sealed => 1,
            Class::Unreachable => 2,
            Class::Protocol => 3,
            _ => 4,
        };
        match errors.into_values().min_by_key(rank) {
            Some(only) if told.len() == 1 => only,
            Some(first) => first.with_cause(format!(
                "none of {} endpoints helped within {:.1} s: {}",
                told.len(),
                after.as_secs_f64(),
                told.join("; ")
            )),
            None => Error::new(
                Class::Unreachable,
                "the service has no endpoints",
                "configure at least one",
            ),
        }
    }
}

/// Not to be asked for a while, and longer each time.
fn skip<E>(endpoint: &Endpoint<E>) {
    let mut state = endpoint.state();
    let skip = SKIP_MIN
        .saturating_mul(1 << state.failures.min(8))
        .min(SKIP_MAX);
    state.failures = state.failures.saturating_add(1);
    // Clients that saw it fail together do not come back together.
    state.skip_until = Some(Instant::now() + skip.mul_f64(0.75 + 0.25 * random()));
}

fn no_answer(endpoint: &impl fmt::Display, time: Duration) -> Error {
    Error::new(
        Class::Unreachable,
        format!(
            "{endpoint} did not answer within {:.1} s",
            time.as_secs_f64()
        ),
        "check that the service runs and that no firewall drops the connection; `timeout` can be raised if it is just slow",
    )
}

fn not_asked(endpoint: &impl fmt::Display) -> Error {
    Error::new(
        Class::Unreachable,
        format!("{endpoint} was not asked: the deadline was over"),
        "raise `deadline`, or lower `timeout`",
    )
}

fn throttled(endpoint: &impl fmt::Display, rest: Duration) -> Error {
    Error::new(
        Class::Throttled {
            retry_after: Some(rest),
        },
        format!(
            "{endpoint} asked not to be called for another {:.1} s",
            rest.as_secs_f64()
        ),
        "wait, or have the rate limit of this host raised at the service",
    )
}

/// From 0 to 1. For spreading calls in time, where any number will do.
fn random() -> f64 {
    let mut bytes = [0; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
