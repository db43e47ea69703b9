//! The audit log as the manager keeps it: of uses of keys, and of what people
//! ask for. Its lines are counted.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::model::ErasedVolume;
use super::services::{self, Act, Outcome};
use crate::audit::{self, Event, Record, RekeyEvent};
use crate::error::{Failure, Kind};
use crate::keys::{Actor, GlassBroken, KeyUse, StoreUse, Witness};
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

    fn glass_broken(&self, broken: &GlassBroken<'_>) -> io::Result<()> {
        let result = tokio::task::block_in_place(|| self.log.glass_broken(broken));
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
        let left;
        let changed_limits;
        let what = match event.act {
            Act::Attach {
                disk,
                volume,
                key_set,
                break_glass,
                ephemeral,
            } => Event::Attach {
                disk,
                volume: *volume,
                key_set: key_set.as_deref().unwrap_or_default(),
                break_glass: *break_glass,
                ephemeral: *ephemeral,
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
            Act::Resize {
                disk,
                volume,
                before,
                size,
            } => Event::Resize {
                disk,
                volume: *volume,
                before: *before,
                size: *size,
            },
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
            Act::Resume { disk, volume, fail } => Event::Resume {
                disk,
                volume: *volume,
                fail: *fail,
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
            Act::KeySetRotate {
                key_set,
                key_version,
            } => Event::KeySetRotate {
                key_set,
                key_version: key_version.as_deref().unwrap_or_default(),
            },
            Act::KeySetSwitch {
                key_set,
                provider,
                force,
            } => Event::KeySetSwitched {
                key_set,
                provider: provider.as_deref().unwrap_or_default(),
                force: *force,
            },
            Act::VolumeForget { volume } => Event::VolumeForgotten { volume: *volume },
            Act::Rekey {
                kind,
                disks,
                key_set,
            } => Event::RekeyAsked {
                severity: RekeyEvent::severity_of(*kind),
                kind: *kind,
                disks,
                key_set: key_set.as_deref().unwrap_or_default(),
            },
            Act::RekeyChange {
                disk,
                volume,
                kind,
                action,
            } => Event::RekeyChanged {
                disk,
                volume: *volume,
                severity: kind.map(RekeyEvent::severity_of).unwrap_or_default(),
                kind: *kind,
                action,
            },
            Act::Upgrade {
                disk,
                volume,
                reconnect,
                version,
            } => Event::Upgrade {
                disk,
                volume: *volume,
                reconnect: *reconnect,
                version: version.as_deref().unwrap_or_default(),
            },
            Act::UpgradeManager { binary, version } => Event::DaemonUpgraded {
                binary: binary.as_deref().unwrap_or(std::path::Path::new("")),
                version: version.as_deref().unwrap_or_default(),
            },
            Act::Reload { changed } => Event::DaemonReloaded { changed },
            Act::Verify {
                path,
                volume,
                verdict,
                signed,
            } => Event::Verified {
                volume: *volume,
                path,
                verdict: verdict.unwrap_or_default(),
                signed: *signed,
            },
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
            Act::ChangeWraps { asked, changed } => {
                let counts = changed.as_ref().map(|changed| changed.counts());
                let (volumes, failed) = counts.unwrap_or_default();
                let key_set = changed.as_ref().map(|changed| changed.key_set.as_str());
                Event::BreakGlassChanged {
                    action: asked.action.as_str(),
                    key_set: key_set.or(asked.key_set.as_deref()).unwrap_or_default(),
                    all_of: asked.all_of.as_deref().unwrap_or_default(),
                    volumes,
                    failed,
                }
            }
            Act::WrapChanged {
                volume,
                action,
                key_set,
                key_id,
            } => Event::WrapsChanged {
                volume: *volume,
                action: action.as_str(),
                key_set,
                key_id: key_id.as_deref().unwrap_or_default(),
            },
            Act::Erasing { asked } => Event::VolumeErasing {
                volume: asked.uuid,
                path: &asked.volume,
                force: asked.force,
                leave_plain: asked.leave_plain,
            },
            Act::Erase { asked, erased } => {
                let erased = erased.as_deref();
                left = erased.map(ErasedVolume::left_in).unwrap_or_default();
                Event::VolumeErased {
                    volume: erased.map(|erased| erased.uuid).or(asked.uuid),
                    path: &asked.volume,
                    force: asked.force,
                    disk: erased
                        .and_then(|it| it.detached.as_deref())
                        .unwrap_or_default(),
                    left: &left,
                    backups: erased.map_or(0, |erased| erased.backups.len() as u64),
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
