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
