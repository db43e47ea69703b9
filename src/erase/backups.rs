//! Backups of the header of an erased volume: as far as this host made them, it
//! knows where they were put. They still open the volume, so that whoever erases
//! it is told of them; nothing here destroys them.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::keys::ledger::{self, Ledger};
use crate::volume::{Inspection, Location};

/// A backup of the header of an erased volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backup {
    /// Where it was put.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// What is there now.
    pub state: BackupState,
}

/// What is at the place of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackupState {
    /// It has wrapped keys: with it and the key service the volume opens.
    HasKeys,
    /// It only says in which key store the wrapped keys were.
    NoKeys,
    /// Nothing. It may have been moved.
    NotFound,
    /// It cannot be read from here, or is something else now.
    Unknown,
}

impl BackupState {
    /// In plain words.
    pub fn describe(self) -> &'static str {
        match self {
            BackupState::HasKeys => "has wrapped keys, which open the volume with the key service",
            BackupState::NoKeys => "has no wrapped keys in itself",
            BackupState::NotFound => "is not there any more; it may have been moved or copied",
            BackupState::Unknown => "cannot be read from here, or is something else now",
        }
    }
}

/// The backups of a volume's header that this host knows of, and what they are
/// worth.
pub fn backups(ledger: &Ledger, uuid: Uuid) -> Vec<Backup> {
    let known = match ledger.find(uuid) {
        Ok(known) => known.map_or(Vec::new(), |known| known.backups),
        Err(error) => {
            tracing::warn!(volume = %uuid, %error, "the ledger cannot tell backups of the header");
            Vec::new()
        }
    };
    let backup = |known: ledger::Backup| Backup {
        state: state_of(&known.path, uuid),
        path: known.path,
    };
    known.into_iter().map(backup).collect()
}

fn state_of(path: &Path, uuid: Uuid) -> BackupState {
    if matches!(path.try_exists(), Ok(false)) {
        return BackupState::NotFound;
    }
    let location = Location {
        data: path.to_owned(),
        header: None,
    };
    let description = Inspection::of(&location).and_then(|inspection| inspection.description());
    match description {
        Ok(description) if description.uuid != uuid => BackupState::Unknown,
        Ok(description) if description.token.wraps.is_empty() => BackupState::NoKeys,
        Ok(_) => BackupState::HasKeys,
        Err(_) => BackupState::Unknown,
    }
}
