//! What a call to a service leaves behind beside its result.
//!
//! Whoever calls a [`Provider`](super::Provider) may run it in [`observed`].
//! The provider then finds the correlation id there, to send it along where
//! its service takes one, and notes what the service said of the call: a
//! request id, and which endpoints were asked. So the trait stays small, and
//! no provider knows who keeps records. In the same way [`within`] tells a
//! provider until when somebody waits for it.
#![forbid(unsafe_code)]

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Class;

/// What was learned of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// The service's own id of the request, for its own log. The last one, if
    /// there were several.
    pub request_id: Option<String>,
    /// Each endpoint that was asked, in their order in time.
    pub attempts: Vec<Attempt>,
}

/// One endpoint that was asked once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// As it is configured.
    pub endpoint: String,
    /// How long it took to answer, or to be given up.
    pub took: Duration,
    /// Why it did not help. `None` when it did.
    pub failed: Option<Class>,
}

#[derive(Debug)]
struct Call {
    correlation: Uuid,
    notes: Mutex<Notes>,
}

impl Call {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

tokio::task_local! {
    static CALL: Arc<Call>;
    static UNTIL: Instant;
}

/// Runs `work`, whose result nobody waits for after `until`. What has to say
/// why it failed says so before.
pub async fn within<F: Future>(until: Instant, work: F) -> F::Output {
    let until = self::until().map_or(until, |earlier| until.min(earlier));
    UNTIL.scope(until, work).await
}

/// Until when somebody waits for this call, if that is known.
pub fn until() -> Option<Instant> {
    UNTIL.try_with(|until| *until).ok()
}

/// A request id is cut to this many characters.
const REQUEST_ID_MAX: usize = 128;

/// Runs `work`, and returns with its result what was noted meanwhile.
pub async fn observed<F: Future>(correlation: Uuid, work: F) -> (F::Output, Notes) {
    let call = Arc::new(Call {
        correlation,
        notes: Mutex::default(),
    });
    let output = CALL.scope(call.clone(), work).await;
    let notes = call.notes().clone();
    (output, notes)
}

/// The id under which the caller keeps its record of this call.
pub fn correlation() -> Option<Uuid> {
    CALL.try_with(|call| call.correlation).ok()
}

/// Notes the service's own id of the request. Control characters are left
/// out, since it ends in logs.
pub fn note_request_id(id: &str) {
    let id: String = id
        .chars()
        .filter(|c| !c.is_control())
        .take(REQUEST_ID_MAX)
        .collect();
    let _ = CALL.try_with(|call| call.notes().request_id = Some(id));
}

/// Notes that an endpoint was asked.
pub fn note_attempt(attempt: Attempt) {
    let _ = CALL.try_with(|call| call.notes().attempts.push(attempt));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_with_the_result() {
        let id = Uuid::from_u128(7);
        let work = async {
            note_request_id("one");
            note_request_id("two\n\u{1b}[31m");
            note_attempt(Attempt {
                endpoint: "https://a".into(),
                took: Duration::from_millis(3),
                failed: Some(Class::Sealed),
            });
            correlation()
        };
        let (seen, notes) = crate::runtime::block_on(observed(id, work)).unwrap();
        assert_eq!(seen, Some(id));
        assert_eq!(notes.request_id.as_deref(), Some("two[31m"));
        assert_eq!(notes.attempts.len(), 1);
    }

    #[test]
    fn nobody_waits_longer_than_whoever_waits_for_them() {
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_secs(1), now + Duration::from_secs(2));
        let work = within(soon, async {
            let inner = within(late, async { until() }).await;
            (inner, within(now, async { until() }).await, until())
        });
        let seen = crate::runtime::block_on(work).unwrap();
        assert_eq!(seen, (Some(soon), Some(now), Some(soon)));
        assert_eq!(until(), None);
    }

    #[test]
    fn nothing_is_lost_where_nobody_observes() {
        assert_eq!(correlation(), None);
        note_request_id("x");
    }
}
