//! Asks a service for what disks need of it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::{Answer, Cause, Need};
use crate::error::{Explain, Failure};
use crate::keys::{Actor, Context, KeySets, Why};
use crate::kms::{self, Class};
use crate::manager::disks::{Disks, blocking};
use crate::manager::held::Held;
use crate::manager::model::Problem;
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
    pub disks: Vec<Arc<Held>>,
    /// When the key of any of them was last unwrapped for it to be served.
    pub unwrapped: Option<Instant>,
}

impl Disks {
    /// What the attached disks need, as far as their volumes are open.
    pub(in crate::manager) fn needs(&self) -> Needs {
        let mut needs = Needs::new();
        for entry in self.entries() {
            let (Some(held), Some(key)) = (entry.held(), entry.key()) else {
                continue;
            };
            let need = Need::of(&key, held.spec.uuid);
            let needing: &mut Needing = needs.entry(need).or_default();
            needing.unwrapped = needing.unwrapped.max(entry.unwrapped());
            if needing.disks.len() < LOOKED_AT {
                needing.disks.push(held);
            }
        }
        needs
    }
}

/// Asks whether the service of a key set gives what these disks need.
pub async fn ask(keys: &KeySets, need: &Need, disks: &[Arc<Held>]) -> Answer {
    for held in disks {
        match ask_for(keys, need, held).await {
            Ok(Some(answer)) => return answer,
            Ok(None) => {}
            Err(failure) => {
                let volume = held.spec.uuid;
                tracing::warn!(key_set = need.key_set, %volume, "its key cannot be looked for: {failure}");
            }
        }
    }
    Answer::Silence
}

async fn ask_for(keys: &KeySets, need: &Need, held: &Arc<Held>) -> Result<Option<Answer>, Failure> {
    // Read anew each time: with what was remembered, a version that nothing
    // needs any more would be missed when somebody disables it.
    let volume = {
        let held = held.clone();
        blocking(move || -> Result<Volume, Failure> {
            let files = held.files.try_clone();
            let files = files.map_err(crate::manager::disks::system("cannot copy a descriptor"))?;
            // Nothing is repaired here.
            Ok(Volume::of_files(files, Access::ReadOnly)?)
        })
        .await??
    };
    let context = Context::new(Actor::this_process("manager"), Some(volume.uuid()));
    let wraps = keys.wraps(&context, volume.token()).await?;
    let Some(wrap) = wraps.iter().find(|wrap| wrap.key_set == need.key_set) else {
        return Ok(None);
    };
    let probed = keys.probe(&context, wrap, &volume.binding()).await;
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
