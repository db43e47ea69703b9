//! The audit log as the manager keeps it: of uses of keys, and of what people
//! ask for. Its lines are counted.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::services::{self, Act, Outcome};
use crate::audit::{self, Event, Record};
use crate::error::{Failure, Kind};
use crate::keys::{Actor, KeyUse, StoreUse, Witness};
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
    pub fn append(&self, record: &Record<'_>) -> Result<(), audit::Error> {
        // It waits for the disk below.
        let result = tokio::task::block_in_place(|| self.log.append(record));
        self.metrics.audit_line(result.is_ok());
        result
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
        let result = tokio::task::block_in_place(|| self.log.key_used(used));
        self.metrics.audit_line(result.is_ok());
        result
    }

    fn store_used(&self, used: &StoreUse<'_>) -> io::Result<()> {
        let result = tokio::task::block_in_place(|| self.log.store_used(used));
        self.metrics.audit_line(result.is_ok());
        result
    }
}

#[async_trait]
impl services::Audit for Recorder {
    async fn record(&self, event: &services::Event<'_>) -> Result<(), Failure> {
        let needs;
        let changed_limits;
        let what = match event.act {
            Act::Attach {
                disk,
                volume,
                key_set,
                break_glass,
            } => Event::Attach {
                disk,
                volume: *volume,
                key_set: key_set.as_deref().unwrap_or_default(),
                break_glass: *break_glass,
            },
            Act::Detach {
                disk,
                volume,
                force,
            } => Event::Detach {
                disk,
                volume: *volume,
                force: *force,
            },
            Act::Limit {
                disk,
                volume,
                limits,
            } => {
                changed_limits = limits.to_string();
                Event::Limit {
                    disk,
                    volume: *volume,
                    limits: &changed_limits,
                }
            }
            Act::Freeze {
                disk,
                volume,
                seconds,
            } => Event::Freeze {
                disk,
                volume: *volume,
                seconds: *seconds,
            },
            Act::Thaw { disk, volume } => Event::Thaw {
                disk,
                volume: *volume,
                expired: false,
            },
            Act::KeySetCreate { key_set, provider } => Event::KeySetCreated {
                key_set,
                provider: provider.as_deref().unwrap_or_default(),
            },
            Act::KeySetEdit {
                key_set,
                provider,
                changed,
            } => Event::KeySetEdited {
                key_set,
                provider: provider.as_deref().unwrap_or_default(),
                changed,
            },
            Act::KeySetRemove { key_set } => Event::KeySetRemoved { key_set },
            // What it uses is recorded as a use of a key.
            Act::KeySetCheck { .. } => return Ok(()),
            Act::Reload { changed } => Event::DaemonReloaded { changed },
            Act::Refused {
                operation,
                object,
                needs: roles,
            } => {
                let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
                needs = roles.join(" or ");
                Event::RoleRefused {
                    operation: operation.as_str(),
                    object,
                    needs: &needs,
                }
            }
        };
        self.append(&Record {
            actor: &event.context.actor,
            event: what,
            outcome: match event.outcome {
                Outcome::Done => audit::Outcome::Ok,
                Outcome::Refused(why) => audit::Outcome::role_refused(why),
                Outcome::Failed(failure) => failure.into(),
            },
            correlation: Some(event.context.correlation),
            took: Some(event.took),
        })?;
        Ok(())
    }

    async fn tail(&self, lines: usize) -> Result<Vec<Map<String, Value>>, Failure> {
        let path = self.log.path().to_owned();
        let read = tokio::task::spawn_blocking(move || audit::last(&path, lines));
        read.await
            .map_err(|error| Failure::new(Kind::Internal, error.to_string(), None))?
            .map_err(Failure::from)
    }
}
