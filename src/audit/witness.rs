//! The uses of keys, as key sets tell of them.

use std::io;

use super::event::{EndpointAsked, Event, KeyEvent, StoreEvent};
use super::log::Log;
use super::outcome::{Outcome, class_word};
use super::record::{Record, micros};
use crate::keys::{GlassBroken, KeyUse, Operation, StoreOperation, StoreUse, Witness};
use crate::kms::call::Notes;

impl Witness for Log {
    /// Records it. A check that succeeded used no key, and is not recorded.
    fn key_used(&self, used: &KeyUse<'_>) -> io::Result<()> {
        if used.operation == Operation::Check && used.outcome.is_ok() {
            return Ok(());
        }
        Ok(self.append(&record(used))?)
    }

    fn glass_broken(&self, broken: &GlassBroken<'_>) -> io::Result<()> {
        let event = Event::BreakGlass {
            severity: "alert",
            volume: broken.context.volume,
            own_key_set: broken.own_key_set,
            key_set: broken.key_set,
            provider: broken.provider,
            key_id: broken.key_id,
            key_version: broken.key_version,
            denied: broken.denied,
            instead_of: broken.instead_of,
        };
        Ok(self.append(&Record {
            actor: &broken.context.actor,
            event,
            outcome: Outcome::Ok,
            correlation: Some(broken.context.correlation),
            took: None,
        })?)
    }

    fn store_used(&self, used: &StoreUse<'_>) -> io::Result<()> {
        let event = StoreEvent {
            volume: used.volume,
            key_store: used.key_store,
            kind: used.kind,
            request_id: used.notes.request_id.as_deref().unwrap_or_default(),
            endpoints: endpoints(used.notes),
        };
        Ok(self.append(&Record {
            actor: &used.context.actor,
            event: match used.operation {
                StoreOperation::Read => Event::KeyStoreRead(event),
                StoreOperation::Write => Event::KeyStoreWrite(event),
                StoreOperation::Purge => Event::KeyStorePurge(event),
            },
            outcome: match used.outcome {
                Ok(()) => Outcome::Ok,
                Err(error) => error.into(),
            },
            correlation: Some(used.context.correlation),
            took: Some(used.took),
        })?)
    }
}

fn endpoints(notes: &Notes) -> Vec<EndpointAsked<'_>> {
    let attempts = notes.attempts.iter();
    attempts
        .map(|attempt| EndpointAsked {
            endpoint: &attempt.endpoint,
            took_us: micros(attempt.took),
            failed: attempt.failed.map(class_word),
        })
        .collect()
}

fn record<'a>(used: &'a KeyUse<'_>) -> Record<'a> {
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
        endpoints: endpoints(used.notes),
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
