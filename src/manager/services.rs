//! What the API stands on, as object-safe traits: whoever implements one is
//! plugged in by [`super::run`], and the API's own tests bring others.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::sync::watch;
use uuid::Uuid;

use super::model::{
    Attach, ChangeWraps, Detach, DiskInfo, EraseVolume, ErasedVolume, KeySetCheck, KeySetInfo,
    KeySetRotation, NewSize, RekeyChange, RekeysStarted, Reloaded, StartRekey, UpgradeDisk,
    UpgradedDisk, UpgradedManager, Verify, WrapAction, WrapsChanged,
};
use super::roles::{Operation, Role};
use crate::config::{Config, Limits};
use crate::error::Failure;
use crate::keys::Context;
use crate::rekey::{Direction, Kind};
use crate::rotation::KeySetLedger;
use crate::timestamp::Timestamp;
use crate::verify::{Cancel, Envelope, Report};

/// The disks of this host.
///
/// Calls that change something are carried to their end, also when the one
/// who asked has gone away meanwhile.
#[async_trait]
pub trait Disks: fmt::Debug + Send + Sync {
    /// Attaches a disk. Paths are absolute and a name is a good one.
    ///
    /// # Errors
    /// When it cannot be served, unless `attach.wait` says to keep trying.
    async fn attach(&self, context: &Context, attach: Attach) -> Result<DiskInfo, Failure>;

    /// Takes a disk away, and returns when it is no longer served.
    ///
    /// # Errors
    /// When there is none of that name, or it does not end.
    async fn detach(&self, context: &Context, name: &str, how: Detach) -> Result<(), Failure>;

    /// Keeps the guest of a disk to other limits: those of a kind that `limits`
    /// sets are set, all others stay.
    ///
    /// # Errors
    /// When there is none of that name, or the limits cannot be.
    async fn limit(
        &self,
        context: &Context,
        name: &str,
        limits: Limits,
    ) -> Result<DiskInfo, Failure>;

    /// Destroys the key of a volume; by force also of one that is attached,
    /// which is detached first.
    ///
    /// # Errors
    /// When it is in use, is no volume, or its key cannot be destroyed.
    async fn erase(&self, context: &Context, erase: EraseVolume) -> Result<ErasedVolume, Failure>;

    /// Gives volumes a wrap for break-glass access, or takes one away.
    ///
    /// # Errors
    /// When what is asked for makes no sense. Volumes that cannot be changed are
    /// told.
    async fn change_wraps(
        &self,
        context: &Context,
        change: ChangeWraps,
    ) -> Result<WrapsChanged, Failure>;

    /// Makes a disk larger.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be that large.
    async fn resize(
        &self,
        context: &Context,
        name: &str,
        wanted: NewSize,
    ) -> Result<DiskInfo, Failure>;

    /// Completes what is in flight of a disk, makes it durable, and lets all
    /// other requests wait, until it is thawed or for so long. Returns when
    /// nothing is written any more.
    ///
    /// # Errors
    /// When there is none of that name, it is not served or is frozen already,
    /// or the time is over before. It goes on then.
    async fn freeze(
        &self,
        context: &Context,
        name: &str,
        timeout: Duration,
    ) -> Result<DiskInfo, Failure>;

    /// Lets a frozen disk go on.
    ///
    /// # Errors
    /// When there is none of that name, or it is not frozen any more.
    async fn thaw(&self, context: &Context, name: &str) -> Result<DiskInfo, Failure>;

    /// Replaces the worker of a disk by a new process, which goes on with its front
    /// end.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be: the old one goes on then.
    async fn upgrade(
        &self,
        context: &Context,
        name: &str,
        wanted: UpgradeDisk,
    ) -> Result<UpgradedDisk, Failure>;

    /// Tries again what waits because the disk below fails, or fails it.
    ///
    /// # Errors
    /// When there is none of that name, it is not served, or nothing of it waits.
    async fn resume(&self, context: &Context, name: &str, fail: bool) -> Result<DiskInfo, Failure>;

    /// Has all data of disks re-encrypted or decrypted, while they are served: of
    /// some now, of the others when it is their turn.
    ///
    /// # Errors
    /// When nothing makes sense of it, or none of the disks can be.
    async fn rekey(&self, context: &Context, wanted: StartRekey) -> Result<RekeysStarted, Failure>;

    /// Lets that rest or go on, faster or slower.
    ///
    /// # Errors
    /// When there is no such disk, or nothing is done to its data.
    async fn change_rekey(
        &self,
        context: &Context,
        name: &str,
        change: RekeyChange,
    ) -> Result<DiskInfo, Failure>;

    /// Has it go the other way.
    ///
    /// # Errors
    /// As [`Disks::change_rekey`].
    async fn turn_rekey(
        &self,
        context: &Context,
        name: &str,
        direction: Direction,
    ) -> Result<DiskInfo, Failure>;

    /// All disks, sorted by name.
    fn list(&self) -> Vec<DiskInfo>;

    /// One disk.
    fn get(&self, name: &str) -> Option<DiskInfo>;

    /// A number that changes whenever a disk does.
    fn subscribe(&self) -> watch::Receiver<u64>;

    /// Lets go of the disks, because the manager ends. They are served on.
    async fn close(&self);

    /// Takes the settings of a configuration that was read again, as far as
    /// they can change, and returns the names of those that can: of single
    /// settings or of whole tables.
    fn reconfigure(&self, config: &Config) -> Vec<String>;
}

/// The key sets of this host.
#[async_trait]
pub trait KeySets: fmt::Debug + Send + Sync {
    /// All key sets, sorted by name.
    ///
    /// # Errors
    /// When their definitions cannot be read.
    async fn list(&self) -> Result<Vec<KeySetInfo>, Failure>;

    /// One key set.
    ///
    /// # Errors
    /// When there is none of that name.
    async fn show(&self, name: &str) -> Result<KeySetInfo, Failure>;

    /// Makes a key set from a table as the configuration would have it. With
    /// `check`, its service has to wrap and unwrap first.
    ///
    /// # Errors
    /// When there is one of that name, or the table is wrong.
    async fn create(
        &self,
        context: &Context,
        name: &str,
        definition: Map<String, Value>,
        check: bool,
    ) -> Result<KeySetInfo, Failure>;

    /// Changes settings of a key set: `changes` is a merge patch (RFC 7396) to
    /// its table, in which null takes a setting away.
    ///
    /// # Errors
    /// When there is none of that name, it is not defined here, or the result
    /// would be wrong.
    async fn edit(
        &self,
        context: &Context,
        name: &str,
        changes: Map<String, Value>,
        check: bool,
    ) -> Result<KeySetInfo, Failure>;

    /// Removes a key set. With `force`, also one that known volumes need.
    ///
    /// # Errors
    /// When there is none of that name, it is not defined here, or is in use.
    async fn remove(&self, context: &Context, name: &str, force: bool) -> Result<(), Failure>;

    /// Asks the service for the state of the key.
    ///
    /// # Errors
    /// As the service answers.
    async fn check(&self, context: &Context, name: &str) -> Result<KeySetCheck, Failure>;

    /// As [`Disks::reconfigure`].
    fn reconfigure(&self, config: &Config) -> Vec<String>;
}

/// The keys of the key sets as they change, and the volumes that follow them.
#[async_trait]
pub trait Rotations: fmt::Debug + Send + Sync {
    /// Asks the service of a key set which version wraps now, and has its
    /// volumes follow in the background.
    ///
    /// # Errors
    /// When there is none of that name, or as the service answers.
    async fn rotate(&self, context: &Context, name: &str) -> Result<KeySetRotation, Failure>;

    /// Makes a key set one of another key or another service, and has its
    /// volumes follow in the background. With `force`, also if volumes that
    /// are known are locked out by that.
    ///
    /// # Errors
    /// When there is none of that name, it is not defined here, the table is
    /// wrong, a service fails, or volumes would be locked out.
    async fn switch(
        &self,
        context: &Context,
        name: &str,
        definition: Map<String, Value>,
        force: bool,
    ) -> Result<KeySetRotation, Failure>;

    /// Which volumes need which version of the key of each key set, or of the
    /// one of that name.
    ///
    /// # Errors
    /// When there is none of that name, or the ledger cannot be read.
    async fn ledger(&self, name: Option<&str>) -> Result<Vec<KeySetLedger>, Failure>;

    /// Forgets a volume that is gone for good.
    ///
    /// # Errors
    /// When it is not known, or attached.
    async fn forget(&self, volume: Uuid) -> Result<(), Failure>;
}

/// What can be measured.
pub trait Metrics: fmt::Debug + Send + Sync {
    /// All metrics, in the OpenMetrics text format.
    ///
    /// # Errors
    /// When they cannot be written down.
    fn render(&self) -> Result<String, Failure>;

    /// A request was answered. `route` is the pattern that it matched, not its
    /// path, which may be anything.
    fn api_request(&self, method: &str, route: &str, status: u16, took: Duration);
}

/// The record of who did what.
#[async_trait]
pub trait Audit: fmt::Debug + Send + Sync {
    /// Takes note of an event. It is called before anybody gets an answer.
    ///
    /// # Errors
    /// When it cannot be kept.
    async fn record(&self, event: &Event<'_>) -> Result<(), Failure>;

    /// The last records, oldest first.
    ///
    /// # Errors
    /// When they cannot be read.
    async fn tail(&self, lines: usize) -> Result<Vec<Map<String, Value>>, Failure>;
}

/// Something that somebody did, or was not permitted to do.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Who, and under which correlation id.
    pub context: &'a Context,
    /// What.
    pub act: &'a Act,
    /// How it ended.
    pub outcome: Outcome<'a>,
    /// How long it took.
    pub took: Duration,
}

/// What somebody did, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Attached a disk.
    Attach {
        /// Its name; of one that failed without a name, the path of its volume.
        disk: String,
        /// Its volume.
        volume: Option<Uuid>,
        /// The key set of the volume.
        key_set: Option<String>,
        /// Whether break-glass access was asked for.
        break_glass: bool,
        /// Whether it is a disk without a volume.
        ephemeral: bool,
    },
    /// Detached a disk.
    Detach {
        /// Its name.
        disk: String,
        /// Its volume.
        volume: Option<Uuid>,
        /// Whether it was not to wait.
        force: bool,
    },
    /// Gave a disk other limits.
    Limit {
        /// Its name.
        disk: String,
        /// Its volume.
        volume: Option<Uuid>,
        /// Those that were asked for.
        limits: Box<Limits>,
    },
    /// Made a key set.
    KeySetCreate {
        /// Its name.
        key_set: String,
        /// Its provider, where it was made.
        provider: Option<String>,
    },
    /// Changed a key set.
    KeySetEdit {
        /// Its name.
        key_set: String,
        /// Its provider, after the change.
        provider: Option<String>,
        /// Which settings.
        changed: Vec<String>,
    },
    /// Removed a key set.
    KeySetRemove {
        /// Its name.
        key_set: String,
    },
    /// Had the service asked for the state of a key.
    KeySetCheck {
        /// The key set.
        key_set: String,
    },
    /// Had the configuration read again.
    Reload {
        /// Which settings have changed.
        changed: Vec<String>,
    },
    /// Made a disk larger.
    Resize {
        /// Its name.
        disk: String,
        /// Its volume.
        volume: Option<Uuid>,
        /// Its size before, in bytes.
        before: Option<u64>,
        /// Its size now; of one that was not resized, what was asked for.
        size: Option<u64>,
    },
    /// Had a disk verified.
    Verify {
        /// The disk: its path, or what somebody called it.
        path: PathBuf,
        /// Its volume.
        volume: Option<Uuid>,
        /// What came of it.
        verdict: Option<&'static str>,
        /// Whether a signed report was asked for.
        signed: bool,
    },
    /// Froze a disk.
    Freeze {
        /// Its name.
        disk: String,
        /// Its volume.
        volume: Option<Uuid>,
        /// For how many seconds at most.
        seconds: u64,
    },
    /// Let one go on.
    Thaw {
        /// Its name.
        disk: String,
        /// Its volume.
        volume: Option<Uuid>,
    },
    /// Had tried again what waited because the disk below fails, or had it fail.
    Resume {
        /// Its name.
        disk: String,
        /// Its volume.
        volume: Option<Uuid>,
        /// Whether to have it fail.
        fail: bool,
    },
    /// Asked for what their role does not permit.
    Refused {
        /// What they asked for.
        operation: Operation,
        /// The disk or key set that it was about; may be empty.
        object: String,
        /// The roles of which one would have done.
        needs: &'static [Role],
    },
    /// Had wraps for break-glass access made or destroyed.
    ChangeWraps {
        /// What was asked for.
        asked: ChangeWraps,
        /// What came of it.
        changed: Option<Box<WrapsChanged>>,
    },
    /// Of which this was one volume.
    WrapChanged {
        /// The volume.
        volume: Uuid,
        /// What was done.
        action: WrapAction,
        /// Whose wrap it is.
        key_set: String,
        /// Which recovery key, if it is one.
        key_id: Option<String>,
    },
    /// Is about to destroy the key of a volume.
    Erasing {
        /// What was asked for.
        asked: EraseVolume,
    },
    /// Destroyed the key of a volume.
    Erase {
        /// What was asked for.
        asked: EraseVolume,
        /// What came of it.
        erased: Option<Box<ErasedVolume>>,
    },

    /// Had the volumes of a key set follow its key.
    KeySetRotate {
        /// The key set.
        key_set: String,
        /// The version that wraps, where that was found out.
        key_version: Option<String>,
    },
    /// Made a key set one of another key or service.
    KeySetSwitch {
        /// The key set.
        key_set: String,
        /// Its provider from now on, where it was switched.
        provider: Option<String>,
        /// Whether it was to be so also if that locks volumes out.
        force: bool,
    },
    /// Had a volume forgotten that is gone for good.
    VolumeForget {
        /// The volume.
        volume: Uuid,
    },
    /// Wanted all data of disks to be re-encrypted or decrypted.
    Rekey {
        /// Which of the two.
        kind: Kind,
        /// The disks.
        disks: Vec<String>,
        /// The key set all of whose disks were meant.
        key_set: Option<String>,
    },
    /// Changed how that goes for a disk.
    RekeyChange {
        /// Its name.
        disk: String,
        /// Its volume.
        volume: Option<Uuid>,
        /// What is done to its data.
        kind: Option<Kind>,
        /// `resume`, `pause`, `pace`, `back` or `forward`.
        action: &'static str,
    },
    /// Had the worker of a disk replaced.
    Upgrade {
        /// Its name.
        disk: String,
        /// Its volume.
        volume: Option<Uuid>,
        /// Whether the front end might have to connect anew.
        reconnect: bool,
        /// The version of the new one, where it was replaced.
        version: Option<String>,
    },
    /// Had the manager replaced.
    UpgradeManager {
        /// By which program.
        binary: Option<PathBuf>,
        /// Its version, where it will be replaced.
        version: Option<String>,
    },
}

/// How something ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// It was done.
    Done,
    /// They had not the role for it, and nothing was done. In plain words.
    Refused(&'a str),
    /// It was tried, and failed.
    Failed(&'a Failure),
}

/// Proofs that disks are encrypted.
#[async_trait]
pub trait Verifications: fmt::Debug + Send + Sync {
    /// Verifies a disk that is attached, or that this host knows. One is
    /// verified at a time. It ends soon when `cancel` says so.
    ///
    /// # Errors
    /// When there is no such disk, another one is being verified, it cannot be
    /// read, or there is no key to sign with.
    async fn verify(
        &self,
        context: &Context,
        wanted: Verify,
        cancel: Cancel,
    ) -> Result<Verified, Failure>;
}

/// What came of a verification.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What was found.
    pub report: Report,
    /// The same with a signature, if that was asked for.
    pub signed: Option<Envelope>,
}

/// The manager itself: what it was told, and to be told anew.
#[async_trait]
pub trait Control: fmt::Debug + Send + Sync {
    /// What it runs with.
    fn facts(&self) -> Facts;

    /// Reads the configuration again.
    ///
    /// # Errors
    /// When it is wrong. Everything stays as it was then.
    async fn reload(&self) -> Result<Reloaded, Failure>;

    /// Tries a program, and has the manager replaced by it as soon as what is asked of
    /// it now has been answered.
    ///
    /// # Errors
    /// When the program is not one that can: nothing changes then.
    async fn upgrade(&self, binary: Option<PathBuf>) -> Result<UpgradedManager, Failure>;
}

/// What the manager runs with.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Another one in every manager.
    pub instance: String,
    /// When it was started.
    pub since: Timestamp,
    /// The configuration file, if there is one.
    pub config: Option<PathBuf>,
    /// Where the API is.
    pub socket: PathBuf,
    /// Where the desired state is kept.
    pub state_dir: PathBuf,
    /// Where sockets of workers are.
    pub run_dir: PathBuf,
    /// Settings that were changed in the file and wait for a restart.
    pub needs_restart: Vec<String>,
}

/// Everything that the API stands on.
#[derive(Clone, Debug)]
pub struct Services {
    /// The disks.
    pub disks: Arc<dyn Disks>,
    /// The key sets.
    pub key_sets: Arc<dyn KeySets>,
    /// The volumes that follow their keys.
    pub rotations: Arc<dyn Rotations>,
    /// What can be measured.
    pub metrics: Arc<dyn Metrics>,
    /// The record of who did what. `None` keeps none.
    pub audit: Option<Arc<dyn Audit>>,
    /// The manager.
    pub control: Arc<dyn Control>,
    /// Proofs that disks are encrypted.
    pub verifications: Arc<dyn Verifications>,
}
