//! The uses of keys, as key sets tell of them.

use std::io;

use super::event::{EndpointAsked, Event, KeyEvent};
use super::log::Log;
use super::outcome::{Outcome, class_word};
use super::record::{Record, micros};
use crate::keys::{KeyUse, Operation, Witness};

impl Witness for Log {
    /// Records it. A check that succeeded used no key, and is not recorded.
    fn key_used(&self, used: &KeyUse<'_>) -> io::Result<()> {
        if used.operation == Operation::Check && used.outcome.is_ok() {
            return Ok(());
        }
        Ok(self.append(&record(used))?)
    }
}

fn record<'a>(used: &'a KeyUse<'_>) -> Record<'a> {
    let attempts = used.notes.attempts.iter();
    let key = KeyEvent {
        volume: used.context.volume,
        key_set: used.key_set,
        provider: used.provider,
        key_id: used.key_id,
        key_version: used.key_version,
        group: used.group,
        service_asked: used.service_asked,
        break_glass: used.break_glass,
        request_id: used.notes.request_id.as_deref().unwrap_or_default(),
        endpoints: attempts
            .map(|attempt| EndpointAsked {
                endpoint: &attempt.endpoint,
                took_us: micros(attempt.took),
                failed: attempt.failed.map(class_word),
            })
            .collect(),
    };
    Record {
        actor: &used.context.actor,
        event: match used.operation {
            Operation::Wrap => Event::Wrap(key),
            Operation::Unwrap => Event::Unwrap(key),
            Operation::Check => Event::Check(key),
        },
        outcome: match used.outcome {
            Ok(()) => Outcome::Ok,
            Err(error) => error.into(),
        },
        correlation: Some(used.context.correlation),
        took: Some(used.took),
    }
}
