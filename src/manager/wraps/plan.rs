//! Which volumes get a wrap for break-glass access, or lose one, and how that is
//! asked for: shared by the manager and by commands without one.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Failure, Kind};
use crate::keys::KeySets;
use crate::keys::ledger::{Known, KnownWrap, Ledger};
use crate::kms::recovery::{self, RecoveryKey};
use crate::manager::model::{ChangeWraps, Problem, VolumeWraps, WrapAction};
use crate::prepare::Opening;
use crate::rewrap::{Add, Change, Remove, Rewrapped, Second};
use crate::volume::{Inspection, Location};

/// What was asked for, checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is done to each volume.
    pub change: Arc<dyn Change>,
    /// The volumes that are meant.
    pub volumes: Vec<Meant>,
    /// Whose wrap it is.
    pub key_set: String,
    /// Which key, if it is a recovery key.
    pub key_id: Option<String>,
}

/// A volume that is meant.
#[derive(Clone, Debug)]
pub struct Meant {
    /// Which one.
    pub uuid: Uuid,
    /// The key set that it belongs to.
    pub key_set: String,
    /// Where it is, or was seen last.
    pub location: Location,
}

fn wrong(message: &str, help: &str) -> Failure {
    Failure::new(Kind::Usage, message, Some(help.into()))
}

impl Plan {
    /// Checks what is asked for, reads the recovery key, and finds the volumes.
    /// Reads files.
    ///
    /// # Errors
    /// When the request contradicts itself, or nothing of the kind is there.
    pub fn of(asked: &ChangeWraps, keys: &KeySets, ledger: &Ledger) -> Result<Self, Failure> {
        let (change, key_set, key_id) = change(asked, keys)?;
        let volumes = match (&asked.volume, &asked.all_of) {
            (Some(volume), None) => vec![one(volume, asked.header.as_deref())?],
            (None, Some(key_set)) if asked.header.is_none() => {
                keys.definition(key_set)?;
                all_of(key_set, ledger)?
            }
            _ => {
                return Err(wrong(
                    "it is not said which volumes are meant",
                    "name a volume, or with --all-of a key set whose volumes are meant",
                ));
            }
        };
        Ok(Plan {
            change,
            volumes,
            key_set,
            key_id,
        })
    }
}

/// The change, whose wrap it is about, and which recovery key.
type Wanted = (Arc<dyn Change>, String, Option<String>);

fn change(asked: &ChangeWraps, keys: &KeySets) -> Result<Wanted, Failure> {
    let named = recovery::NAME.to_owned();
    let action = asked.action;
    let parts = (
        asked.key_set.as_ref(),
        asked.recovery_key_file.as_ref(),
        asked.recovery_key.as_ref(),
    );
    let opening = |recovery| Opening {
        recovery,
        ..opening(asked)
    };
    Ok(match (action, parts) {
        (WrapAction::Add, (Some(name), file, None)) => {
            keys.definition(name)?;
            // With a key set to add, a recovery key opens the volume.
            let recovery = file.map(|path| RecoveryKey::read(path)).transpose()?;
            let add = Add {
                second: Second::KeySet(name.clone()),
                opening: opening(recovery.map(Arc::new)),
            };
            (Arc::new(add), name.clone(), None)
        }
        (WrapAction::Add, (None, Some(path), None)) => {
            let key = Arc::new(RecoveryKey::read(path)?);
            let id = key.id().to_string();
            let add = Add {
                second: Second::Recovery(key),
                opening: opening(None),
            };
            (Arc::new(add), named, Some(id))
        }
        (WrapAction::Remove, (Some(name), None, None)) => {
            let remove = Remove::KeySet(name.clone());
            (Arc::new(remove), name.clone(), None)
        }
        (WrapAction::Remove, (None, None, Some(id))) => {
            let help = "`sealblk volume info` shows the ids of those that a volume has";
            let parsed = id.parse().map_err(|why: String| wrong(&why, help))?;
            let remove = Remove::Recovery(parsed);
            (Arc::new(remove), named, Some(id.clone()))
        }
        _ => {
            return Err(wrong(
                "it is not said whose wrap it is",
                "name a key set, or a recovery key: its file to add it, its id to remove it",
            ));
        }
    })
}

fn opening(asked: &ChangeWraps) -> Opening {
    use crate::keys::Access;
    Opening {
        access: match (asked.break_glass, asked.even_if_denied) {
            (_, true) => Access::DespiteDenial,
            (true, false) => Access::BreakGlass,
            (false, false) => Access::OwnKeySet,
        },
        recovery: None,
    }
}

fn one(volume: &Path, header: Option<&Path>) -> Result<Meant, Failure> {
    let location = Location {
        data: volume.to_owned(),
        header: header.map(Path::to_owned),
    };
    let description = Inspection::of(&location)?.description()?;
    Ok(Meant {
        uuid: description.uuid,
        key_set: description.token.key_set,
        location,
    })
}

fn all_of(key_set: &str, ledger: &Ledger) -> Result<Vec<Meant>, Failure> {
    let known = ledger.all().map_err(|error| {
        Failure::new(
            crate::error::io_kind(&error),
            format!("the ledger of known volumes cannot be read: {error}"),
            Some("run it as the user that the daemon runs as".into()),
        )
    })?;
    let own = |known: &Known| known.key_sets.first().is_some_and(|own| own == key_set);
    let meant = |known: Known| Meant {
        uuid: known.uuid,
        key_set: key_set.to_owned(),
        location: Location {
            data: known.path,
            header: known.header,
        },
    };
    Ok(known.into_iter().filter(own).map(meant).collect())
}

/// Takes note of what became of a volume, and tells it.
pub fn told(
    ledger: &Ledger,
    meant: &Meant,
    disk: Option<String>,
    result: Result<Rewrapped, Failure>,
) -> VolumeWraps {
    if let Ok(done) = &result {
        let Location { data, header } = meant.location.clone();
        let known = match ledger.find(meant.uuid) {
            Ok(Some(known)) => known.with_wraps(done.after.iter().map(KnownWrap::from).collect()),
            // Also one that needed no key set so far that could be removed.
            _ => Known::new(meant.uuid, (data, header), &meant.key_set, &done.after),
        };
        if let Err(error) = ledger.note(&known) {
            tracing::warn!(volume = %meant.uuid, %error, "the ledger does not know of its new wraps");
        }
    }
    let wraps = result.as_ref().ok().map(|done| done.after.len() as u64);
    VolumeWraps {
        uuid: meant.uuid,
        volume: meant.location.data.clone(),
        disk,
        changed: result.as_ref().is_ok_and(|done| done.changed),
        wraps,
        problem: result.err().as_ref().map(Problem::from),
    }
}
