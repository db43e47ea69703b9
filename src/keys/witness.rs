//! Who uses keys and what for, and those who keep a record of it.
//!
//! Every use of a key set runs past the witnesses of its [`KeySets`]: the
//! audit log and the metrics. This room knows neither of them.
//!
//! [`KeySets`]: super::KeySets
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

use uuid::Uuid;

use crate::key_store;
use crate::kms;

/// Who caused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The user.
    pub uid: u32,
    /// The process, as far as it is known.
    pub pid: Option<u32>,
    /// The role in which it was permitted: `operator`, `key-admin`, …;
    /// `local` for a command without a manager, `manager` for what the
    /// manager does of itself; `broker` for what a broker does.
    pub role: Cow<'static, str>,
    /// The host that asked for it, where a broker did it.
    pub host: Option<Host>,
}

/// A host that asks a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// What the policy of the broker calls it.
    pub name: String,
    /// What its certificate calls it.
    pub certificate: String,
}

impl Actor {
    /// This process, in the given role.
    pub fn this_process(role: &'static str) -> Self {
        Actor {
            uid: rustix::process::getuid().as_raw(),
            pid: Some(std::process::id()),
            role: Cow::Borrowed(role),
            host: None,
        }
    }

    /// The same, for a host.
    #[must_use]
    pub fn for_host(mut self, host: Host) -> Self {
        self.host = Some(host);
        self
    }
}

/// What a use of a key belongs to.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who caused it.
    pub actor: Actor,
    /// The volume that it is for. `None` for a check of the key set itself.
    pub volume: Option<Uuid>,
    /// Ties the record here to that of the service.
    pub correlation: Uuid,
    /// Whether it is for break-glass access.
    pub break_glass: bool,
}

impl Context {
    /// A use by `actor`, with a correlation id of its own.
    pub fn new(actor: Actor, volume: Option<Uuid>) -> Self {
        Context {
            actor,
            volume,
            correlation: Uuid::new_v4(),
            break_glass: false,
        }
    }

    /// The same for break-glass access.
    #[must_use]
    pub fn for_break_glass(mut self) -> Self {
        self.break_glass = true;
        self
    }

    /// A use by this process itself, as a command without a manager.
    pub fn local(volume: Option<Uuid>) -> Self {
        Self::new(Actor::this_process("local"), volume)
    }
}

/// What a key was used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A data encryption key or group key was wrapped.
    Wrap,
    /// One was unwrapped.
    Unwrap,
    /// The service was asked for the state of the key.
    Check,
}

impl Operation {
    /// As it stands in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Wrap => "wrap",
            Operation::Unwrap => "unwrap",
            Operation::Check => "check",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One use of a key, after it succeeded or failed.
#[derive(Debug)]
pub struct KeyUse<'a> {
    /// Who, for which volume.
    pub context: &'a Context,
    /// What for.
    pub operation: Operation,
    /// The key set.
    pub key_set: &'a str,
    /// Its provider.
    pub provider: &'a str,
    /// The key, as the service has it. Empty where a failure left it unknown.
    pub key_id: &'a str,
    /// Its version. Empty where a failure left it unknown.
    pub key_version: &'a str,
    /// The group key that stood between, if there was one.
    pub group: Option<Uuid>,
    /// Whether the service was asked. A group key that is in memory answers
    /// without it.
    pub service_asked: bool,
    /// Whether this was for break-glass access.
    pub break_glass: bool,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: Result<(), &'a kms::Error>,
    /// What the provider noted.
    pub notes: &'a kms::call::Notes,
}

/// What was done with the entry of a volume in a key store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOperation {
    /// It was read.
    Read,
    /// It was written.
    Write,
    /// It was destroyed.
    Purge,
}

impl StoreOperation {
    /// As it stands in records.
    pub fn as_str(self) -> &'static str {
        match self {
            StoreOperation::Read => "read",
            StoreOperation::Write => "write",
            StoreOperation::Purge => "purge",
        }
    }
}

impl fmt::Display for StoreOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One use of a key store, after it succeeded or failed.
#[derive(Debug)]
pub struct StoreUse<'a> {
    /// Who, and under which correlation id.
    pub context: &'a Context,
    /// What for.
    pub operation: StoreOperation,
    /// The volume whose entry it is.
    pub volume: Uuid,
    /// The key store.
    pub key_store: &'a str,
    /// What kind it is.
    pub kind: &'a str,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: Result<(), &'a key_store::Error>,
    /// What its service noted.
    pub notes: &'a kms::call::Notes,
}

/// A volume that was opened with a key that is not of its own key set.
#[derive(Debug)]
pub struct GlassBroken<'a> {
    /// Who, and which volume.
    pub context: &'a Context,
    /// The key set of the volume.
    pub own_key_set: &'a str,
    /// The key set that opened it, or that it was a recovery key.
    pub key_set: &'a str,
    /// The provider of that.
    pub provider: &'a str,
    /// The key.
    pub key_id: &'a str,
    /// Its version.
    pub key_version: &'a str,
    /// Whether the own key set works and denies its key: somebody has said that
    /// this does not matter.
    pub denied: bool,
    /// Why the own key set did not open it. Empty if there is no wrap of it.
    pub instead_of: &'a str,
}

/// Keeps a record of how keys are used.
pub trait Witness: fmt::Debug + Send + Sync {
    /// Takes note. It is called before anybody gets the result.
    ///
    /// # Errors
    /// When no record can be kept. The key is then not handed out.
    fn key_used(&self, used: &KeyUse<'_>) -> io::Result<()>;

    /// Takes note of a use of a key store. Those who keep a record of keys
    /// alone have nothing to note.
    ///
    /// # Errors
    /// When no record can be kept. What was read is then not handed out.
    fn store_used(&self, _used: &StoreUse<'_>) -> io::Result<()> {
        Ok(())
    }

    /// Takes note of break-glass access that succeeded, beside the use of the
    /// key itself.
    ///
    /// # Errors
    /// When no record can be kept. The volume is then not opened.
    fn glass_broken(&self, _broken: &GlassBroken<'_>) -> io::Result<()> {
        Ok(())
    }
}
