//! What others can have logged as often as they like.
//!
//! A guest breaks its ring and resets its disk, a front end comes and goes, both
//! thousands of times a second if they want to. Each kind of line has its own bound,
//! so that a flood of one hides no other. Where lines were left out, their number is
//! told with the next of their kind.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::quota::Quota;

/// Lines of one kind at once, and then one in that time.
const LINES: Quota = Quota::new(200, Duration::from_secs(1));

/// One kind of line: what one place in the program logs.
struct Kind {
    quota: Quota,
    left_out: u64,
}

/// Leaves out what is too much. There are as many kinds as places in the program
/// that log something.
#[derive(Default)]
pub struct Bound(Mutex<HashMap<Identifier, Kind>>);

impl Bound {
    /// Whether a line of this kind is logged, and how many were not since the last one.
    fn take(&self, kind: Identifier, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kinds.entry(kind).or_insert(Kind {
            quota: LINES,
            left_out: 0,
        });
        if kind.quota.take(now) {
            return Some(std::mem::take(&mut kind.left_out));
        }
        kind.left_out += 1;
        None
    }
}

impl<S: Subscriber> Layer<S> for Bound {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Who asks for more than that wants all of it.
        if *metadata.level() > Level::INFO {
            return true;
        }
        match self.take(metadata.callsite(), Instant::now()) {
            None => false,
            Some(0) => true,
            Some(left_out) => {
                let told = super::bare_line(
                    "WARN",
                    &format!("{left_out} lines like the next one were left out"),
                );
                // Nothing can be logged from in here; and lost is lost.
                let _ = std::io::stderr().write_all(told.as_bytes());
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tracing_subscriber::layer::SubscriberExt as _;

    struct Count([Arc<AtomicU64>; 3]);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let level = match *event.metadata().level() {
                Level::ERROR => 0,
                Level::WARN => 1,
                _ => 2,
            };
            self.0[level].fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_flood_hides_nothing_but_itself() {
        let counts: [Arc<AtomicU64>; 3] = Default::default();
        let layers = tracing_subscriber::registry()
            .with(Bound::default())
            .with(Count(counts.clone()));
        let begun = Instant::now();
        tracing::subscriber::with_default(layers, || {
            for number in 0..5000 {
                tracing::warn!(number, "a front end was cut off");
                tracing::debug!(number, "everything");
            }
            tracing::error!("what matters");
        });
        let [errors, warnings, others] = counts.map(|count| count.load(Ordering::SeqCst));
        assert_eq!((errors, others), (1, 5000));
        let most = 200 + 1 + begun.elapsed().as_secs();
        assert!((200..=most).contains(&warnings), "{warnings} of {most}");
    }

    #[test]
    fn what_was_left_out_is_counted() {
        let bound = Bound::default();
        let kind = Identifier(&CALLSITE);
        let start = Instant::now();
        for _ in 0..200 {
            assert_eq!(bound.take(kind.clone(), start), Some(0));
        }
        for _ in 0..70 {
            assert_eq!(bound.take(kind.clone(), start), None);
        }
        let later = start + Duration::from_secs(1);
        assert_eq!(bound.take(kind.clone(), later), Some(70));
        assert_eq!(bound.take(kind, later), None);
    }

    struct Callsite;
    static CALLSITE: Callsite = Callsite;

    impl tracing::Callsite for Callsite {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("never registered")
        }
    }
}
