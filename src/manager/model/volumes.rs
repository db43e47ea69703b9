//! Volumes, attached or not: their wraps, and their end.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Problem;
use crate::erase::{Backup, Done, Unpurged};

/// A wrap for break-glass access that volumes are to have, or to have no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeWraps {
    /// What to do.
    pub action: WrapAction,
    /// The volume: an absolute path. This or `all_of`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub volume: Option<PathBuf>,
    /// The file with its detached header: an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub header: Option<PathBuf>,
    /// The key set all volumes of which are meant that this host knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_of: Option<String>,
    /// The key set whose wrap it is. This or a recovery key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_set: Option<String>,
    /// To add: the file with the recovery key, an absolute path. It is read now,
    /// and not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub recovery_key_file: Option<PathBuf>,
    /// To remove: the id of the recovery key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_key: Option<String>,
    /// To add: volumes whose own key set yields no key may be opened with the wrap
    /// of another one.
    #[serde(default)]
    pub break_glass: bool,
    /// Also if the own key set works, and denies its key.
    #[serde(default)]
    pub even_if_denied: bool,
}

/// What is to become of a wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WrapAction {
    /// It is made, unless it is there.
    Add,
    /// It is destroyed, if it is there.
    Remove,
}

impl WrapAction {
    /// As it stands in records.
    pub fn as_str(self) -> &'static str {
        match self {
            WrapAction::Add => "add",
            WrapAction::Remove => "remove",
        }
    }
}

/// What became of the wraps of volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WrapsChanged {
    /// What was done.
    pub action: WrapAction,
    /// The key set whose wrap it is, or `recovery-key`.
    pub key_set: String,
    /// Which recovery key, if it is one.
    pub key_id: Option<String>,
    /// Each volume that was meant.
    pub volumes: Vec<VolumeWraps>,
}

impl WrapsChanged {
    /// How many volumes were changed, and how many could not be.
    pub fn counts(&self) -> (u64, u64) {
        let changed = self.volumes.iter().filter(|volume| volume.changed);
        let failed = self.volumes.iter().filter(|it| it.problem.is_some());
        (changed.count() as u64, failed.count() as u64)
    }
}

/// What became of the wraps of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeWraps {
    /// The volume.
    pub uuid: Uuid,
    /// Where it is.
    #[schema(value_type = String)]
    pub volume: PathBuf,
    /// The disk that it is attached as.
    pub disk: Option<String>,
    /// Whether something was changed. If not, and without a problem, it had been
    /// so before.
    pub changed: bool,
    /// How many wraps it has.
    pub wraps: Option<u64>,
    /// Why it stays as it was.
    pub problem: Option<Problem>,
}

/// A volume whose key is to be destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EraseVolume {
    /// The file or block device: an absolute path.
    #[schema(value_type = String, example = "/var/lib/vm/disk.img")]
    pub volume: PathBuf,
    /// The file with its detached header: an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub header: Option<PathBuf>,
    /// Which volume it has to be: if another one is there, nothing is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Also if it is attached: it is detached first, whatever its guest does.
    /// And also if a key store that has its keys does not answer.
    #[serde(default)]
    pub force: bool,
    /// Give the space of the data back as well.
    #[serde(default)]
    pub discard: bool,
    /// Also if a part of its data is plain, because it is being encrypted or
    /// decrypted: that part stays readable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leave_plain: bool,
}

/// What was destroyed of a volume's key, and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErasedVolume {
    /// The volume.
    pub uuid: Uuid,
    /// When erasing it was begun, which may have been earlier: UTC, as
    /// `2031-02-28T23:59:59Z`.
    #[schema(example = "2031-02-28T23:59:59Z")]
    pub since: String,
    /// Whether nothing is left that this host knows of, but for backups. If
    /// not, do the same again when the key stores in `left` answer.
    pub finished: bool,
    /// The disk that was detached for it.
    pub detached: Option<String>,
    /// How many wrapped keys its header had.
    pub wraps: u64,
    /// Key stores in which its entry was destroyed, with all versions.
    pub purged: Vec<String>,
    /// Key stores that have an entry of it still.
    pub left: Vec<Unpurged>,
    /// Key stores of this host that its header did not name and that did not
    /// answer, so that nobody knows whether they have an entry.
    pub unasked: Vec<Unpurged>,
    /// Whether the space of the data was given back.
    pub discarded: bool,
    /// Why it was not, if it should have been.
    pub not_discarded: Option<String>,
    /// Backups of its header that this host knows of. They were not touched.
    pub backups: Vec<Backup>,
    /// Whether a part of its data was plain, and stays readable.
    #[serde(default)]
    pub partly_plain: bool,
}

impl ErasedVolume {
    /// What is told of a volume that was erased.
    pub fn new(done: Done, detached: Option<String>, backups: Vec<Backup>) -> Self {
        ErasedVolume {
            uuid: done.uuid,
            since: done.since.to_string(),
            finished: done.left.is_empty(),
            detached,
            wraps: done.wraps as u64,
            purged: done.purged,
            left: done.left,
            unasked: done.unasked,
            discarded: matches!(done.discarded, Some(Ok(()))),
            not_discarded: done.discarded.and_then(Result::err),
            backups,
            partly_plain: done.partly_plain,
        }
    }

    /// The names of the key stores that have an entry still.
    pub fn left_in(&self) -> Vec<String> {
        self.left.iter().map(|it| it.key_store.clone()).collect()
    }
}
