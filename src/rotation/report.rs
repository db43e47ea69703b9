//! The ledger, as it is told: which volumes need which version of a key.
//!
//! It looks at the volumes themselves, wherever they can be read: what was
//! noted of them earlier counts only where they cannot.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Error, Rotation, off};
use crate::keys::ledger::{Known, KnownWrap};
use crate::keys::{Hierarchy, Name, Target};
use crate::volume::{Inspection, Location};

/// Which volumes need which version of the key of a key set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeySetLedger {
    /// The key set.
    pub key_set: String,
    /// Who wraps for it now.
    pub provider: String,
    /// Whether it stays with one version of its key.
    pub pinned: bool,
    /// Whether volumes may still have wraps of what the key set was before it
    /// was switched.
    pub switching: bool,
    /// What it wraps with, and how far its volumes have followed. None: it has
    /// never been rotated as far as this host knows.
    pub rotation: Option<RotationState>,
    /// The versions, the newest last as far as this host saw them come.
    pub versions: Vec<VersionUse>,
    /// Volumes of which nobody knows what they need: no version but the
    /// current one can be told to be free while there are any.
    pub unknown: Vec<Holder>,
}

/// How far the volumes of a key set have followed its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RotationState {
    /// The version that wraps now.
    pub key_version: String,
    /// Since when: UTC, as `2031-02-28T23:59:59Z`.
    pub since: String,
    /// When all volumes that are known had followed. None: some have not.
    pub finished: Option<String>,
    /// How many volumes have yet to follow.
    pub behind: u64,
}

/// One version of a key, and who needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VersionUse {
    /// The provider.
    pub provider: String,
    /// The key, in the provider's own notation.
    pub key_id: String,
    /// Its version, in the provider's own notation.
    pub key_version: String,
    /// Whether new wraps are made with it.
    pub current: bool,
    /// The volumes that need it.
    pub volumes: Vec<Holder>,
    /// Whether nothing that this host knows of needs it any more.
    pub safe_to_disable: bool,
    /// Why not.
    pub why_not: Option<String>,
}

/// A volume that needs a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// The volume.
    pub uuid: Uuid,
    /// Where it was seen last.
    #[schema(value_type = String)]
    pub volume: PathBuf,
    /// The file with its header, if that is detached.
    #[schema(value_type = Option<String>)]
    pub header: Option<PathBuf>,
    /// The disk that it is attached as.
    pub disk: Option<String>,
    /// Whether it was seen.
    pub state: HolderState,
    /// Why it could not be seen, or has not followed.
    pub problem: Option<String>,
}

/// How a volume was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HolderState {
    /// It is attached.
    Attached,
    /// It is not attached, and is where it was.
    Detached,
    /// It is not where it was, or cannot be read: what is told of it is what was
    /// seen last.
    Unseen,
}

impl Rotation {
    /// The ledger of a key set, of volumes as they are now.
    ///
    /// # Errors
    /// When there is no such key set, or the ledger cannot be read.
    pub async fn report(&self, name: &Name) -> Result<KeySetLedger, Error> {
        let definition = self.keys.definition(name.as_str())?;
        let (jobs, ledger, of) = (self.jobs.clone(), self.ledger.clone(), name.clone());
        let read = off(move || Ok((jobs.read(&of)?, ledger.needing(of.as_str())?)));
        let (job, known) = read.await.map_err(Error::state(name.as_str()))?;
        let recorded = match definition.policy.hierarchy {
            Hierarchy::Group => self.keys.recorded(name)?,
            Hierarchy::Direct => None,
        };
        let current = recorded.or_else(|| {
            let job = job
                .as_ref()
                .filter(|job| job.key == definition.source.key_id());
            Some(job?.target.clone())
        });
        let mut versions = Versions::default();
        for target in job
            .iter()
            .flat_map(|job| job.past.iter().chain([&job.target]))
        {
            versions.of(target);
        }
        if let Some(current) = &current {
            versions.of(current);
        }
        let mut unknown = Vec::new();
        for known in known {
            let (holder, wraps) = self.look(known).await;
            let mut any = false;
            for wrap in wraps.iter().filter(|wrap| wrap.key_set == name.as_str()) {
                any = true;
                let holders = versions.of(&wrap.by);
                if !holders.contains(&holder) {
                    holders.push(holder.clone());
                }
            }
            if !any && wraps.is_empty() {
                unknown.push(holder);
            }
        }
        let versions: Vec<VersionUse> = versions
            .0
            .into_iter()
            .map(|(target, volumes)| judge(target, volumes, current.as_ref(), unknown.len()))
            .collect();
        let behind = versions.iter().filter(|version| !version.current);
        let behind = behind.map(|version| version.volumes.len()).sum::<usize>() + unknown.len();
        Ok(KeySetLedger {
            key_set: name.to_string(),
            provider: definition.source.provider().into(),
            pinned: definition.version.is_some(),
            switching: definition.previous.is_some(),
            rotation: job.map(|job| RotationState {
                key_version: job.target.key_version,
                since: job.since.to_string(),
                finished: job
                    .finished
                    .filter(|_| behind == 0)
                    .map(|at| at.to_string()),
                behind: behind as u64,
            }),
            versions,
            unknown,
        })
    }

    /// A volume, and its wraps as they are, or else as they were seen last.
    async fn look(&self, known: Known) -> (Holder, Vec<KnownWrap>) {
        let mut holder = Holder {
            uuid: known.uuid,
            volume: known.path.clone(),
            header: known.header.clone(),
            disk: self.volumes.disk(&known),
            state: HolderState::Detached,
            problem: self
                .problems()
                .get(&known.uuid)
                .map(|problem| problem.text.clone()),
        };
        if holder.disk.is_some() {
            holder.state = HolderState::Attached;
        }
        match self.wraps_of(&known).await {
            Ok(wraps) => (holder, wraps),
            Err(problem) => {
                if holder.disk.is_none() {
                    holder.state = HolderState::Unseen;
                }
                holder.problem = Some(problem);
                (holder, known.wraps)
            }
        }
    }

    /// The wraps that a volume has now.
    async fn wraps_of(&self, known: &Known) -> Result<Vec<KnownWrap>, String> {
        let location = Location {
            data: known.path.clone(),
            header: known.header.clone(),
        };
        let uuid = known.uuid;
        let read = off(move || {
            let read = || Inspection::of(&location)?.description();
            read().map_err(std::io::Error::other)
        });
        let description = read.await.map_err(|error| error.to_string())?;
        if description.uuid != uuid {
            return Err(format!("another volume is there: {}", description.uuid));
        }
        let wraps = match &description.token.key_store {
            None => description.token.wraps,
            Some(store) => {
                let stored = self.keys.stores().get(store, uuid).await;
                stored.map_err(|error| error.to_string())?.entry.wraps
            }
        };
        Ok(wraps.iter().map(KnownWrap::from).collect())
    }
}

/// Versions in the order in which they came, each once, whatever group key is
/// between it and the volumes.
#[derive(Default)]
struct Versions(Vec<(Target, Vec<Holder>)>);

impl Versions {
    fn of(&mut self, target: &Target) -> &mut Vec<Holder> {
        let place = self.0.iter().position(|(is, _)| is.same_version(target));
        let place = place.unwrap_or_else(|| {
            self.0.push((target.clone(), Vec::new()));
            self.0.len() - 1
        });
        &mut self.0[place].1
    }
}

fn judge(
    target: Target,
    volumes: Vec<Holder>,
    current: Option<&Target>,
    unknown: usize,
) -> VersionUse {
    let is_current = current.is_some_and(|current| current.same_version(&target));
    let mut by_state: BTreeMap<&str, usize> = BTreeMap::new();
    for volume in &volumes {
        let what = match volume.state {
            HolderState::Attached => "attached",
            HolderState::Detached => "detached",
            HolderState::Unseen => "not seen where it was",
        };
        *by_state.entry(what).or_default() += 1;
    }
    let counted = |number: usize| match number {
        1 => "1 volume".to_owned(),
        number => format!("{number} volumes"),
    };
    let why_not = match (is_current, volumes.len(), unknown) {
        (true, ..) => Some("new wraps are made with it".to_owned()),
        (_, 0, 0) => None,
        (_, 0, unknown) => Some(format!("nobody knows what {} need", counted(unknown))),
        (_, number, _) => {
            let states: Vec<String> = by_state
                .iter()
                .map(|(state, number)| format!("{number} {state}"))
                .collect();
            let verb = if number == 1 { "needs" } else { "need" };
            Some(format!(
                "{} {verb} it ({})",
                counted(number),
                states.join(", ")
            ))
        }
    };
    VersionUse {
        provider: target.provider,
        key_id: target.key_id,
        key_version: target.key_version,
        current: is_current,
        volumes,
        safe_to_disable: why_not.is_none(),
        why_not,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(version: &str) -> Target {
        Target {
            provider: "vault".into(),
            key_id: "disks".into(),
            key_version: version.into(),
            group: Some(Uuid::new_v4()),
        }
    }

    fn holder(state: HolderState) -> Holder {
        Holder {
            uuid: Uuid::new_v4(),
            volume: "/v".into(),
            header: None,
            disk: None,
            state,
            problem: None,
        }
    }

    #[test]
    fn a_version_is_free_when_nothing_needs_it_and_it_wraps_nothing() {
        let current = target("2");
        let judged = |version, volumes, unknown| {
            let judged = judge(target(version), volumes, Some(&current), unknown);
            assert_eq!(judged.safe_to_disable, judged.why_not.is_none());
            judged.why_not.unwrap_or_default()
        };
        assert_eq!(judged("1", vec![], 0), "");
        assert_eq!(judged("2", vec![], 0), "new wraps are made with it");
        assert_eq!(judged("1", vec![], 1), "nobody knows what 1 volume need");
        use HolderState::{Attached, Unseen};
        assert_eq!(
            judged(
                "1",
                vec![holder(Attached), holder(Unseen), holder(Attached)],
                0
            ),
            "3 volumes need it (2 attached, 1 not seen where it was)"
        );
    }

    #[test]
    fn one_version_is_one_whatever_group_key_it_wraps() {
        let mut versions = Versions::default();
        versions
            .of(&target("1"))
            .push(holder(HolderState::Attached));
        versions
            .of(&target("1"))
            .push(holder(HolderState::Attached));
        versions.of(&target("2"));
        assert_eq!(versions.0.len(), 2);
        assert_eq!(versions.0[0].1.len(), 2);
    }
}
