//! Asks a service for what disks need of it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::{Answer, Cause, Need};
use crate::error::{Explain, Failure};
use crate::keys::{Actor, Context, KeySets, Why};
use crate::kms::{self, Class};
use crate::manager::disks::{Disks, Entry, blocking, system};
use crate::manager::model::{DiskState, Problem};
use crate::volume::token::Token;
use crate::volume::{Access, Volume};

/// So many disks that need the same are looked at for what that is. One will
/// do, unless its header cannot be read.
const LOOKED_AT: usize = 3;

/// What disks need, with who needs it.
pub type Needs = BTreeMap<Need, Needing>;

/// Disks that need the same.
#[derive(Clone, Default)]
pub struct Needing {
    /// Some of them.
    pub disks: Vec<Arc<Entry>>,
    /// When the key of any of them was last unwrapped for it to be served, or it
    /// was found being served.
    pub believed: Option<Instant>,
    /// Whether any of them is not about to have its key unwrapped anyway.
    pub wanted: bool,
}

impl Disks {
    /// What the attached disks need, as far as their volumes are open.
    pub(in crate::manager) fn needs(&self) -> Needs {
        let mut needs = Needs::new();
        for entry in self.entries() {
            let info = entry.info();
            let (Some(uuid), Some(key)) = (info.uuid, entry.key()) else {
                continue;
            };
            if !entry.is_held() {
                continue;
            }
            let need = Need::of(&key, uuid);
            let needing: &mut Needing = needs.entry(need).or_default();
            needing.wanted |= !matches!(info.state, DiskState::Attaching | DiskState::Waiting);
            needing.believed = needing.believed.max(entry.believed());
            if needing.disks.len() < LOOKED_AT {
                needing.disks.push(entry);
            }
        }
        needs
    }
}

/// Asks whether the service of a key set gives what these disks need.
pub async fn ask(keys: &KeySets, need: &Need, disks: &[Arc<Entry>]) -> Answer {
    for disk in disks {
        match ask_for(keys, need, disk).await {
            Ok(Some(answer)) => return answer,
            Ok(None) => {}
            Err(failure) => {
                let disk = disk.info().name;
                tracing::warn!(
                    key_set = need.key_set,
                    disk,
                    "its key cannot be looked for: {failure}"
                );
            }
        }
    }
    Answer::Silence
}

/// What is needed of a header.
struct Header {
    uuid: Uuid,
    token: Token,
    binding: Vec<u8>,
}

/// The header of a disk, read anew each time: with what was remembered, a
/// version that nothing needs any more would be missed when somebody disables
/// it. The volume is let go again before a service is asked, so that nobody who
/// detaches the disk waits for that, or finds it still locked.
async fn read(disk: &Entry) -> Result<Option<Header>, Failure> {
    let reading = disk.reading.clone().read_owned().await;
    let Some(held) = disk.held() else {
        return Ok(None);
    };
    blocking(move || {
        let read = || -> Result<Header, Failure> {
            let files = held.files.try_clone();
            let files = files.map_err(system("cannot copy a descriptor"))?;
            // Nothing is repaired here.
            let volume = Volume::of_files(files, Access::ReadOnly)?;
            Ok(Header {
                uuid: volume.uuid(),
                token: volume.token().clone(),
                binding: volume.binding(),
            })
        };
        let header = read();
        drop(held);
        drop(reading);
        header.map(Some)
    })
    .await?
}

async fn ask_for(keys: &KeySets, need: &Need, disk: &Entry) -> Result<Option<Answer>, Failure> {
    // None: it has just been detached.
    let Some(Header {
        uuid,
        token,
        binding,
    }) = read(disk).await?
    else {
        return Ok(None);
    };
    let context = Context::new(Actor::this_process("manager"), Some(uuid));
    let wraps = keys.wraps(&context, &token).await?;
    let Some(wrap) = wraps.iter().find(|wrap| wrap.key_set == need.key_set) else {
        return Ok(None);
    };
    let probed = keys.probe(&context, wrap, &binding).await;
    Ok(Some(answer_of(need, probed)))
}

fn answer_of(need: &Need, probed: Result<(), Why>) -> Answer {
    let error = match probed {
        Ok(()) => return Answer::Granted,
        Err(Why::Kms(error)) => error,
        Err(why) => {
            tracing::warn!(key_set = need.key_set, "its key cannot be asked for: {why}");
            return Answer::Silence;
        }
    };
    let gone = match error.class() {
        Class::Denied(_) => false,
        Class::NotFound => true,
        Class::Throttled { .. } | Class::Unreachable | Class::Sealed => return Answer::Silence,
        Class::BadKey | Class::Protocol => {
            tracing::warn!(key_set = need.key_set, "its key cannot be used: {error}");
            return Answer::Silence;
        }
    };
    Answer::Denied(Cause {
        problem: problem(need, &error),
        gone,
    })
}

fn problem(need: &Need, error: &kms::Error) -> Problem {
    Problem {
        message: format!("the key of key set {:?} is denied: {error}", need.key_set),
        help: error.help(),
        kind: error.kind(),
    }
}
