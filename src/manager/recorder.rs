//! The audit log as the manager keeps it: of uses of keys, and of what people
//! ask for. Its lines are counted.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::roles::Operation;
use super::services::{self, Outcome};
use crate::audit::{self, Event, Record};
use crate::error::{Failure, Kind};
use crate::keys::{Actor, KeyUse, Witness};
use crate::metrics::Metrics;

/// The audit log, and who counts its lines.
#[derive(Debug)]
pub struct Recorder {
    log: audit::Log,
    metrics: Arc<Metrics>,
}

impl Recorder {
    /// Records to `log`.
    pub fn new(log: audit::Log, metrics: Arc<Metrics>) -> Self {
        Recorder { log, metrics }
    }

    /// Records something that is not a use of a key.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub fn append(&self, record: &Record<'_>) -> io::Result<()> {
        let result = self.log.append(record);
        self.metrics.audit_line(result.is_ok());
        Ok(result?)
    }
}

impl Recorder {
    /// Records what the manager does of itself.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub fn of_manager(&self, event: Event<'_>) -> Result<(), Failure> {
        let result = self
            .log
            .record(&Actor::this_process("manager"), event, audit::Outcome::Ok);
        self.metrics.audit_line(result.is_ok());
        Ok(result?)
    }
}

impl Witness for Recorder {
    fn key_used(&self, used: &KeyUse<'_>) -> io::Result<()> {
        let result = self.log.key_used(used);
        self.metrics.audit_line(result.is_ok());
        result
    }
}

#[async_trait]
impl services::Audit for Recorder {
    fn record(&self, event: &services::Event<'_>) -> io::Result<()> {
        let (name, object) = (event.operation.as_str(), event.object);
        let refused = match event.outcome {
            Outcome::Refused(needs) => Some(needs),
            _ => None,
        };
        let what = match (refused, event.operation) {
            (Some(needs), _) => Event::RoleRefused {
                operation: name,
                object,
                needs,
            },
            (None, Operation::Attach) => Event::Attach {
                disk: object,
                volume: event.context.volume,
                key_set: "",
                break_glass: event.context.break_glass,
            },
            (None, Operation::Detach) => Event::Detach {
                disk: object,
                volume: event.context.volume,
                force: false,
            },
            (None, Operation::KeySetCreate) => Event::KeySetCreated {
                key_set: object,
                provider: "",
            },
            (None, Operation::KeySetEdit) => Event::KeySetEdited {
                key_set: object,
                provider: "",
                changed: &[],
            },
            (None, Operation::KeySetRemove) => Event::KeySetRemoved { key_set: object },
            // Whoever looks changes nothing, what a check uses is recorded as
            // a use of a key, and a reload by the manager itself.
            (None, Operation::Look | Operation::KeySetCheck | Operation::Reload) => return Ok(()),
        };
        self.append(&Record {
            actor: &event.context.actor,
            event: what,
            outcome: match event.outcome {
                Outcome::Done => audit::Outcome::Ok,
                Outcome::Refused(needs) => {
                    audit::Outcome::role_refused(format!("it takes the role {needs}"))
                }
                Outcome::Failed(failure) => failure.into(),
            },
            correlation: Some(event.context.correlation),
            took: None,
        })
    }

    async fn tail(&self, lines: usize) -> Result<Vec<Map<String, Value>>, Failure> {
        let path = self.log.path().to_owned();
        let read = tokio::task::spawn_blocking(move || audit::last(&path, lines));
        read.await
            .map_err(|error| Failure::new(Kind::Internal, error.to_string(), None))?
            .map_err(Failure::from)
    }
}
