//! What is recorded.
//!
//! The names here, in snake case, are those in the log: `docs/audit.md` lists
//! them. Texts come from volumes, services and requests, so that all of them
//! are cut to a length before they are written.

use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use super::text::{empty, list, no, none, path_text, text};

/// What somebody did.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// A disk was attached, or should have been.
    Attach {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume, as far as it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// The key set of the volume, as far as it was read.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        key_set: &'a str,
        /// Whether it was asked for by break-glass access.
        #[serde(skip_serializing_if = "no")]
        break_glass: bool,
        /// Whether it has no volume, and no key but that of its worker.
        #[serde(skip_serializing_if = "no")]
        ephemeral: bool,
    },
    /// A disk was detached.
    Detach {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// Whether it was told not to wait for the guest.
        #[serde(skip_serializing_if = "no")]
        force: bool,
    },
    /// The guest of a disk was given other limits.
    Limit {
        /// The name of the disk.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// Those that were asked for.
        #[serde(serialize_with = "text")]
        limits: &'a str,
    },
    /// A disk was frozen for a snapshot, or should have been.
    Freeze {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// For how many seconds at most.
        seconds: u64,
    },
    /// A disk went on after that: somebody thawed it, or its time was over.
    Thaw {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// Whether nobody thawed it in its time.
        #[serde(skip_serializing_if = "no")]
        expired: bool,
    },
    /// Another process serves a disk, as its worker, or should have.
    Upgrade {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// Whether its front end might have to connect anew.
        #[serde(skip_serializing_if = "no")]
        reconnect: bool,
        /// The version of the new worker.
        #[serde(serialize_with = "text")]
        version: &'a str,
    },
    /// The manager is replaced by another program, or should have been.
    DaemonUpgraded {
        /// The program.
        #[serde(serialize_with = "path_text")]
        binary: &'a Path,
        /// Its version.
        #[serde(serialize_with = "text")]
        version: &'a str,
    },
    /// What waited because the disk below fails was tried again, or failed.
    Resume {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// Whether it was to fail.
        #[serde(skip_serializing_if = "no")]
        fail: bool,
    },
    /// The service of a key set denies a key that served disks need.
    KeyDenied {
        /// The key set.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its provider.
        #[serde(serialize_with = "text")]
        provider: &'a str,
        /// The key, as the service has it.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        key_id: &'a str,
        /// The version that the disks need.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        key_version: &'a str,
        /// What becomes of them, if it lasts.
        #[serde(serialize_with = "text")]
        on_denied: &'a str,
        /// Why.
        #[serde(serialize_with = "text")]
        cause: &'a str,
    },
    /// It does not deny it any more.
    KeyRestored {
        /// The key set.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its provider.
        #[serde(serialize_with = "text")]
        provider: &'a str,
        /// The key, as the service has it.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        key_id: &'a str,
        /// The version that the disks need.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        key_version: &'a str,
    },
    /// A disk was paused, made to fail, or detached, because its key is denied.
    DiskHeld {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// The key set whose key is denied.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// `pause`, `fail` or `detach`.
        #[serde(serialize_with = "text")]
        action: &'a str,
    },
    /// It goes on.
    DiskReleased {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
    },
    /// The worker of an ephemeral disk was gone, and with it the key: what was on
    /// the disk is lost.
    DiskLost {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Where its space was.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
    },
    /// Its guest came from another host, which let the volume go: this one has it.
    DiskTaken {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
    },
    /// Its guest was stopped, to go on at another host, and the volume let go.
    DiskMoved {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
    },
    /// A key was wrapped.
    Wrap(KeyEvent<'a>),
    /// A key was unwrapped.
    Unwrap(KeyEvent<'a>),
    /// A service was asked for the state of a key, and did not tell it.
    Check(KeyEvent<'a>),
    /// A key set was made.
    KeySetCreated {
        /// Its name.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its provider.
        #[serde(serialize_with = "text")]
        provider: &'a str,
    },
    /// The settings of a key set were changed.
    KeySetEdited {
        /// Its name.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its provider, after the change.
        #[serde(serialize_with = "text")]
        provider: &'a str,
        /// Which settings.
        #[serde(serialize_with = "list")]
        changed: &'a [String],
    },
    /// A key set was removed.
    KeySetRemoved {
        /// Its name.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
    },
    /// A bare data encryption key was written to a file.
    KeyExported {
        /// The volume whose key it is.
        volume: Uuid,
        /// The file.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
    },
    /// The entry of a volume in a key store was read.
    KeyStoreRead(StoreEvent<'a>),
    /// One was written.
    KeyStoreWrite(StoreEvent<'a>),
    /// One was destroyed, with all its versions.
    KeyStorePurge(StoreEvent<'a>),
    /// The wrapped keys of a volume were moved, from one key store or the
    /// header to another.
    KeysMoved {
        /// The volume.
        volume: Uuid,
        /// Where they were: the name of a key store, or `header`.
        #[serde(serialize_with = "text")]
        from: &'a str,
        /// Where they are now.
        #[serde(serialize_with = "text")]
        to: &'a str,
    },
    /// A volume's header was copied.
    HeaderBackup {
        /// The volume, as far as it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// The copy.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
    },
    /// A volume's header was written back.
    HeaderRestore {
        /// The volume, as far as it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// The copy.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
    },
    /// The manager started.
    DaemonStarted {
        /// Its version.
        #[serde(serialize_with = "text")]
        version: &'a str,
    },
    /// The manager read its configuration again.
    DaemonReloaded {
        /// Which settings have changed.
        #[serde(serialize_with = "list")]
        changed: &'a [String],
    },
    /// The manager ends.
    DaemonStopped,
    /// A broker started.
    BrokerStarted {
        /// Its version.
        #[serde(serialize_with = "text")]
        version: &'a str,
    },
    /// A broker read its configuration again.
    BrokerReloaded {
        /// What it took.
        #[serde(serialize_with = "list")]
        changed: &'a [String],
    },
    /// A broker ends.
    BrokerStopped,
    /// A broker read its policy, or should have.
    PolicyLoaded {
        /// The file.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
        /// The SHA-256 of what was read, in hexadecimal.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        sha256: &'a str,
    },
    /// Somebody with a certificate asked a broker, which did not take the call.
    CallRefused {
        /// From where.
        #[serde(serialize_with = "text")]
        peer: &'a str,
        /// The host that it claims to be, as far as it was read.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        claimed: &'a str,
        /// How many more were refused to that certificate since the last
        /// line, and not recorded one by one.
        #[serde(skip_serializing_if = "none")]
        unrecorded: u64,
    },
    /// A disk was verified, or should have been.
    Verified {
        /// Its volume, as far as it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// The disk.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
        /// `proved`, `disproved` or `undecided`; missing if nothing was found.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        verdict: &'a str,
        /// Whether the report was signed.
        #[serde(skip_serializing_if = "no")]
        signed: bool,
    },
    /// Somebody asked for what their role does not permit.
    RoleRefused {
        /// What they asked for.
        #[serde(serialize_with = "text")]
        operation: &'a str,
        /// The disk, key set or volume that it was about; may be empty.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        object: &'a str,
        /// The role that it takes.
        #[serde(serialize_with = "text")]
        needs: &'a str,
    },
    /// A volume was opened with a key that is not of its own key set.
    BreakGlass {
        /// Always `alert`: this is not to happen unseen.
        severity: &'a str,
        /// The volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// The key set of the volume.
        #[serde(serialize_with = "text")]
        own_key_set: &'a str,
        /// The key set that opened it; `recovery-key` for one from a safe.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its provider.
        #[serde(serialize_with = "text")]
        provider: &'a str,
        /// The key.
        #[serde(serialize_with = "text")]
        key_id: &'a str,
        /// Its version.
        #[serde(serialize_with = "text")]
        key_version: &'a str,
        /// Whether the own key set denied its key, and that was overridden.
        #[serde(skip_serializing_if = "no")]
        denied: bool,
        /// Why the own key set did not open it.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        instead_of: &'a str,
    },
    /// Wraps for break-glass access were to be made or destroyed.
    BreakGlassChanged {
        /// `add` or `remove`.
        action: &'a str,
        /// The key set whose wraps they are, or `recovery-key`.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// The key set whose volumes were meant, if not one volume.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        all_of: &'a str,
        /// How many volumes were changed.
        volumes: u64,
        /// How many could not be.
        #[serde(skip_serializing_if = "none")]
        failed: u64,
    },
    /// A volume was given a wrap beside those that it had, or lost one.
    WrapsChanged {
        /// The volume.
        volume: Uuid,
        /// `add` or `remove`.
        action: &'a str,
        /// The key set whose wrap it is, or `recovery-key`.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Which recovery key, if it is one.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        key_id: &'a str,
    },
    /// The key of a volume is about to be destroyed.
    VolumeErasing {
        /// The volume, as far as it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// Where it is.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
        /// Whether also if it is attached, or a key store does not answer.
        #[serde(skip_serializing_if = "no")]
        force: bool,
        /// Whether also if a part of its data is plain, and stays readable.
        #[serde(skip_serializing_if = "no")]
        leave_plain: bool,
    },
    /// The key of a volume was destroyed, or should have been.
    VolumeErased {
        /// The volume, as far as it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// Where it is.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
        /// Whether also if it was attached, or a key store did not answer.
        #[serde(skip_serializing_if = "no")]
        force: bool,
        /// The disk that was detached for it.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        disk: &'a str,
        /// Key stores that may have its wrapped keys still.
        #[serde(skip_serializing_if = "<[String]>::is_empty", serialize_with = "list")]
        left: &'a [String],
        /// How many backups of its header this host knows of.
        #[serde(skip_serializing_if = "none")]
        backups: u64,
    },
    /// The volumes of a key set were to follow its key, as somebody asked.
    KeySetRotate {
        /// The key set.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// The version that wraps, where that was found out.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        key_version: &'a str,
    },
    /// The volumes of a key set began to follow its key.
    RotationStarted(RotationEvent<'a>),
    /// All volumes of a key set that are known have followed its key.
    RotationFinished(RotationEvent<'a>),
    /// The wraps of a volume were exchanged for others of the same key.
    VolumeRewrapped {
        /// The volume.
        volume: Uuid,
        /// The key set whose wrap it is.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// The provider, key and version that had wrapped it.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        from: &'a str,
        /// Those that wrap it now.
        #[serde(serialize_with = "text")]
        to: &'a str,
    },
    /// A key set was made one of another key or service.
    KeySetSwitched {
        /// The key set.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its provider from now on.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        provider: &'a str,
        /// Whether it was to be so also if that locks volumes out.
        #[serde(skip_serializing_if = "no")]
        force: bool,
    },
    /// No volume needs what a key set was before it was switched: that is
    /// forgotten.
    KeySetSettled {
        /// The key set.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
    },
    /// A volume that is gone for good was forgotten.
    VolumeForgotten {
        /// The volume.
        volume: Uuid,
    },
    /// The version of a key that wraps ends soon, or has ended.
    KeyExpiring {
        /// The key set.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// The version.
        #[serde(serialize_with = "text")]
        key_version: &'a str,
        /// When: UTC.
        #[serde(serialize_with = "text")]
        expires: &'a str,
        /// Whether the key set stays with this version.
        pinned: bool,
    },
    /// A volume was copied to a new one, with a key of its own.
    VolumeCloned {
        /// The volume that was copied.
        volume: Uuid,
        /// The new one.
        clone: Uuid,
        /// The key set of the new one.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its file.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
    },
    /// A disk was made larger, or a volume larger or smaller.
    Resize {
        /// The name of the disk. A volume that is not attached has none.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// Its size before, in bytes.
        #[serde(skip_serializing_if = "Option::is_none")]
        before: Option<u64>,
        /// Its size after that, or the one that was asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// All data of a volume is re-encrypted, encrypted or decrypted in place:
    /// that began, went on, was paused, or ended.
    Rekey(RekeyEvent<'a>),
    /// A disk image was copied to a new volume.
    VolumeImported {
        /// The new volume.
        volume: Uuid,
        /// Its key set.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its file.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
        /// The image.
        #[serde(serialize_with = "path_text")]
        source: &'a Path,
    },
    /// All data of disks was to be re-encrypted or decrypted, as somebody asked:
    /// at once or when it is their turn.
    RekeyAsked {
        /// `alert` where data is to be decrypted.
        #[serde(skip_serializing_if = "empty")]
        severity: &'a str,
        /// What is to be done to the data.
        kind: crate::rekey::Kind,
        /// The disks.
        #[serde(serialize_with = "list")]
        disks: &'a [String],
        /// The key set all of whose disks were meant.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        key_set: &'a str,
    },
    /// Somebody changed how an operation on all data of a disk goes.
    RekeyChanged {
        /// The disk.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// `alert` where data is decrypted.
        #[serde(skip_serializing_if = "empty")]
        severity: &'a str,
        /// What is done to its data.
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<crate::rekey::Kind>,
        /// `resume`, `pause`, `pace`, `back` or `forward`.
        action: &'a str,
    },
}

/// What is recorded of an operation on all data of a volume.
#[derive(Clone, Debug, Serialize)]
pub struct RekeyEvent<'a> {
    /// `alert` where data is decrypted, which is not to happen unseen.
    #[serde(skip_serializing_if = "empty")]
    pub severity: &'a str,
    /// What is done to the data.
    pub kind: crate::rekey::Kind,
    /// `begin`, `resume`, `pause`, `back`, `finish`, or `finish_back` where the
    /// data is again what it was.
    pub action: &'a str,
    /// The volume.
    pub volume: Uuid,
    /// The operation: the same from its beginning to its end.
    pub operation: Uuid,
    /// The disk, where the volume is attached.
    #[serde(skip_serializing_if = "empty", serialize_with = "text")]
    pub disk: &'a str,
    /// The key set of the volume.
    #[serde(serialize_with = "text")]
    pub key_set: &'a str,
    /// Where the data is.
    #[serde(serialize_with = "path_text")]
    pub path: &'a Path,
}

impl<'a> RekeyEvent<'a> {
    /// How loud an operation of that kind is: `alert`, or nothing.
    pub fn severity_of(kind: crate::rekey::Kind) -> &'a str {
        match kind {
            crate::rekey::Kind::Decrypt => "alert",
            crate::rekey::Kind::Rekey | crate::rekey::Kind::Encrypt => "",
        }
    }
}

/// What is recorded of the rotation of a key set.
#[derive(Clone, Debug, Serialize)]
pub struct RotationEvent<'a> {
    /// The key set.
    #[serde(serialize_with = "text")]
    pub key_set: &'a str,
    /// Who wraps.
    #[serde(serialize_with = "text")]
    pub provider: &'a str,
    /// The key.
    #[serde(serialize_with = "text")]
    pub key_id: &'a str,
    /// The version that wraps now.
    #[serde(serialize_with = "text")]
    pub key_version: &'a str,
    /// The version that wrapped before, where that is known.
    #[serde(skip_serializing_if = "empty", serialize_with = "text")]
    pub from_version: &'a str,
    /// How many volumes had yet to follow.
    pub volumes: u64,
}

/// What is recorded of a use of a key.
#[derive(Clone, Debug, Serialize)]
pub struct KeyEvent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volume: Option<Uuid>,
    #[serde(serialize_with = "text")]
    pub(super) key_set: &'a str,
    #[serde(serialize_with = "text")]
    pub(super) provider: &'a str,
    #[serde(skip_serializing_if = "empty", serialize_with = "text")]
    pub(super) key_id: &'a str,
    #[serde(skip_serializing_if = "empty", serialize_with = "text")]
    pub(super) key_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<Uuid>,
    /// Whether the service was asked, or memory answered.
    pub(super) service_asked: bool,
    #[serde(skip_serializing_if = "no")]
    pub(super) break_glass: bool,
    #[serde(skip_serializing_if = "empty", serialize_with = "text")]
    pub(super) request_id: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "list")]
    pub(super) endpoints: Vec<EndpointAsked<'a>>,
}

impl<'a> KeyEvent<'a> {
    /// What somebody wanted of a key, and did not get as far as the key.
    pub fn wanted(volume: Option<Uuid>, key_set: &'a str, provider: &'a str) -> Self {
        KeyEvent {
            volume,
            key_set,
            provider,
            key_id: "",
            key_version: "",
            group: None,
            service_asked: false,
            break_glass: false,
            request_id: "",
            endpoints: Vec::new(),
        }
    }
}

/// What is recorded of a use of a key store.
#[derive(Clone, Debug, Serialize)]
pub struct StoreEvent<'a> {
    pub(super) volume: Uuid,
    #[serde(serialize_with = "text")]
    pub(super) key_store: &'a str,
    #[serde(serialize_with = "text")]
    pub(super) kind: &'a str,
    #[serde(skip_serializing_if = "empty", serialize_with = "text")]
    pub(super) request_id: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "list")]
    pub(super) endpoints: Vec<EndpointAsked<'a>>,
}

/// An endpoint that was asked, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EndpointAsked<'a> {
    #[serde(serialize_with = "text")]
    pub(super) endpoint: &'a str,
    pub(super) took_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<&'static str>,
}
