//! The states of a key version, and what to do about each.

use super::settings::KeyName;
use crate::kms::{Class, Denied, Error};

/// A state (google.cloud.kms.v1.CryptoKeyVersion.CryptoKeyVersionState).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Enabled,
    Disabled,
    DestroyScheduled,
    Destroyed,
    PendingGeneration,
    PendingImport,
    GenerationFailed,
    ImportFailed,
    PendingExternalDestruction,
    ExternalDestructionFailed,
}

/// The states by name.
const STATES: [(&str, State); 10] = [
    ("ENABLED", State::Enabled),
    ("DISABLED", State::Disabled),
    ("DESTROY_SCHEDULED", State::DestroyScheduled),
    ("DESTROYED", State::Destroyed),
    ("PENDING_GENERATION", State::PendingGeneration),
    ("PENDING_IMPORT", State::PendingImport),
    ("GENERATION_FAILED", State::GenerationFailed),
    ("IMPORT_FAILED", State::ImportFailed),
    (
        "PENDING_EXTERNAL_DESTRUCTION",
        State::PendingExternalDestruction,
    ),
    (
        "EXTERNAL_DESTRUCTION_FAILED",
        State::ExternalDestructionFailed,
    ),
];

impl State {
    /// The state of that name.
    pub(super) fn of(name: &str) -> Option<Self> {
        let found = STATES.iter().find(|(known, _)| *known == name);
        found.map(|(_, state)| *state)
    }

    pub(super) fn is_usable(self) -> bool {
        self == State::Enabled
    }

    /// Why a version in this state, which is not a usable one, is not used.
    /// `version` is `None` where it is not known; `destroyed` says when.
    pub(super) fn refusal(
        self,
        key: &KeyName,
        version: Option<u64>,
        destroyed: Option<&str>,
    ) -> Error {
        let (which, number) = match version {
            Some(version) => (format!("version {version} of {key}"), version.to_string()),
            None => (format!("the version of {key} that is needed"), "N".into()),
        };
        let gcloud =
            |verb: &str| format!("gcloud kms keys versions {verb} {number} {}", key.options());
        let at = destroyed.map_or(String::new(), |time| format!(" at {time}"));
        let deleted = Class::Denied(Denied::Deleted);
        let disabled = Class::Denied(Denied::Disabled);
        let (class, cause, next) = match self {
            State::Enabled => (
                Class::Unreachable,
                format!("{which} is enabled, and cannot be used yet"),
                "wait a moment: the change is on its way".into(),
            ),
            State::Disabled => (
                disabled,
                format!("{which} is disabled"),
                format!("have it enabled: {}", gcloud("enable")),
            ),
            State::DestroyScheduled => (
                deleted,
                format!("{which} is scheduled for destruction{at}, and can be restored still"),
                format!("have it restored, then enabled: {}; gcloud kms keys versions enable {number} …", gcloud("restore")),
            ),
            State::Destroyed => (
                deleted,
                format!("{which} was destroyed{at}"),
                "it is gone for good, unless it was imported and is imported again: use the break-glass wrap, if the volume has one".into(),
            ),
            State::PendingGeneration | State::PendingImport => (
                Class::Unreachable,
                format!("{which} is being made, and not ready"),
                "wait; then this works by itself".into(),
            ),
            State::GenerationFailed | State::ImportFailed => (
                disabled,
                format!("{which} was never made: that failed"),
                format!("see why, make a new version, and make it the primary one: gcloud kms keys versions create --primary {}", key.options()),
            ),
            State::PendingExternalDestruction | State::ExternalDestructionFailed => (
                deleted,
                format!("{which} is being destroyed at the external key manager"),
                "it is gone for good: use the break-glass wrap, if the volume has one".into(),
            ),
        };
        Error::new(class, cause, next)
    }
}
