//! Disks, and what may be asked of them.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Problem, RekeyInfo};
use crate::config::{Limits, Options};
use crate::engine::Stuck;
use crate::engine::hold::Mode;
use crate::engine::trouble::{self, Counts};
use crate::error::Kind;
use crate::timestamp::Timestamp;
use crate::volume::Standing;
use crate::worker::protocol::{Frozen, Status as WorkerStatus};

/// The most characters that the name of a disk has.
pub const DISK_NAME_MAX: usize = 64;

/// Whether a disk may have that name: 1 to 64 of `A-Z a-z 0-9 . _ -`. The two
/// that are directories everywhere are left out.
pub fn is_disk_name(name: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    (1..=DISK_NAME_MAX).contains(&name.len())
        && name.bytes().all(good)
        && name != "."
        && name != ".."
}

/// A volume that is to be served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The file or block device: an absolute path. For an ephemeral disk, the
    /// directory or block device that its space is taken from.
    #[schema(value_type = String, example = "/var/lib/vm/disk.img")]
    pub volume: PathBuf,
    /// The file with its detached header: an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub header: Option<PathBuf>,
    /// The socket that QEMU connects to: an absolute path.
    #[schema(value_type = String, example = "/run/sealblk/disk.sock")]
    pub socket: PathBuf,
    /// What to call the disk: 1 to 64 letters, digits, `.`, `_` and `-`. The
    /// volume's UUID unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    pub name: Option<String>,
    /// How it is served. What is not given is taken from `[serve]` of the
    /// configuration.
    #[serde(default)]
    pub options: Options,
    /// Answer at once with state `waiting`, and keep trying until it succeeds.
    #[serde(default)]
    pub wait: bool,
    /// Use the break-glass key set if the volume's own one yields no key.
    #[serde(default)]
    pub break_glass: bool,
    /// Also if the volume's own key set works, and denies its key. It holds for
    /// this request, and not when the disk is attached again by itself.
    #[serde(default)]
    pub even_if_denied: bool,
    /// A file with the recovery key, if that is to be used: an absolute path. It is
    /// read now, and not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub recovery_key_file: Option<PathBuf>,
    /// A disk that is nowhere but here: it begins empty, its key is in its
    /// worker alone, and nothing of it is left when it is detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<Ephemeral>,
    /// Its guest comes from another host, which has the volume: it is opened and its
    /// key proven, and it is taken when the guest's disk starts here.
    #[serde(default)]
    pub incoming: bool,
    /// With `incoming`: only find out whether all that would work, and leave nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an ephemeral disk is to be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ephemeral {
    /// What the guest sees, in bytes: a multiple of the sector size.
    #[schema(minimum = 512)]
    pub size: u64,
    /// Bytes of a data unit: 512 or 4096, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<u32>,
    /// Destroy what can be recognised on the block device.
    #[serde(default)]
    pub force: bool,
}

/// How a disk is to be taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Also with a front end connected, and without waiting for requests that
    /// do not end.
    #[serde(default)]
    pub force: bool,
}

/// What is to change of an attached disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskChange {
    /// What its guest may do per second. Limits of a kind, of requests or of
    /// bytes, are set together: who sets one of them sets all, and lifts those
    /// that are left out. 0 lifts a limit.
    #[serde(default)]
    pub limits: Limits,
    /// What the guest is to see, in bytes: more than now, and a multiple of
    /// `sector_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 512)]
    pub size: Option<u64>,
    /// As large as the file or block device has room for, instead of `size`.
    #[serde(default)]
    pub fill: bool,
    /// Reserve the new space of a file now, instead of as the guest writes.
    #[serde(default)]
    pub preallocate: bool,
}

impl DiskChange {
    /// Other limits, and nothing else.
    pub fn limits(limits: Limits) -> Self {
        DiskChange {
            limits,
            ..DiskChange::default()
        }
    }
}

/// How large a disk is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewSize {
    /// In bytes. None: as large as there is room for.
    pub size: Option<u64>,
    /// Whether to reserve the new space of a file now.
    pub preallocate: bool,
}

/// What is known of an attached disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskInfo {
    /// What it is called here.
    pub name: String,
    /// The UUID of its volume. Unknown until its header was read.
    pub uuid: Option<Uuid>,
    /// The file or block device.
    #[schema(value_type = String)]
    pub volume: PathBuf,
    /// The file with its header, if that is detached.
    #[schema(value_type = Option<String>)]
    pub header: Option<PathBuf>,
    /// The socket that QEMU connects to.
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// What it is doing.
    pub state: DiskState,
    /// The key set of its volume.
    pub key_set: Option<String>,
    /// The provider that unwrapped its key.
    pub provider: Option<String>,
    /// The key that wraps its key.
    pub key_id: Option<String>,
    /// The version of that key.
    pub key_version: Option<String>,
    /// What opened it, if that was break-glass access: a key set that is not its
    /// own, or `recovery-key`.
    pub break_glass: Option<String>,
    /// What the guest sees, in bytes.
    pub size: Option<u64>,
    /// Bytes of a data unit.
    pub sector_size: Option<u32>,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// The cipher engine.
    pub engine: Option<String>,
    /// Its worker process.
    pub pid: Option<u32>,
    /// Since when it has been in this state: UTC, as `2031-02-28T23:59:59Z`.
    #[schema(example = "2031-02-28T23:59:59Z")]
    pub since: String,
    /// How often its worker was started again after it died.
    pub restarts: u32,
    /// Why it is not running, or was not before.
    pub last_error: Option<Problem>,
    /// Whether a front end is connected.
    pub front_end: bool,
    /// The size that the front end has read, in bytes. While it is not that of
    /// the disk, the guest does not see a change yet.
    #[serde(default)]
    pub size_read: Option<u64>,
    /// Whether the front end can be told that the size has changed.
    #[serde(default)]
    pub takes_notices: bool,
    /// What its guest may do per second: nothing is limited that is not here.
    pub limits: Limits,
    /// Whether nothing of it is left when it is detached, or its worker dies.
    #[serde(default)]
    pub ephemeral: bool,
    /// Its service denies its key, and what follows from that.
    #[serde(default)]
    pub denial: Option<DenialInfo>,
    /// Its requests wait for a snapshot.
    #[serde(default)]
    pub frozen: Option<FrozenInfo>,
    /// All its data is being moved to another key, or out of plain or into it.
    #[serde(default)]
    pub rekey: Option<RekeyInfo>,
    /// The version of sealblk that its worker is.
    #[serde(default)]
    pub version: Option<String>,
    /// Requests wait because the disk below fails.
    #[serde(default)]
    pub trouble: Option<TroubleInfo>,
    /// Operations of the disk below are in flight for too long.
    #[serde(default)]
    pub stuck: Option<StuckInfo>,
    /// How often there was trouble below, since its worker was started.
    #[serde(default)]
    pub troubles: Troubles,
}

/// A key that is denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DenialInfo {
    /// The key set whose service denies it.
    pub key_set: String,
    /// Since when: UTC, as `2031-02-28T23:59:59Z`.
    pub since: String,
    /// What becomes of the disk when it lasts: `continue`, `pause`, `fail` or
    /// `detach`.
    pub on_denied: String,
    /// When that is, at the earliest.
    pub acts_at: String,
    /// Whether it is so by now.
    pub in_force: bool,
    /// Why it is denied, and what to do.
    pub problem: Problem,
}

/// A disk that is frozen for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FrozenInfo {
    /// Whether nothing is written any more, and everything is durable.
    pub complete: bool,
    /// When it goes on by itself: UTC, as `2031-02-28T23:59:59Z`.
    pub until: String,
}

impl From<Frozen> for FrozenInfo {
    fn from(frozen: Frozen) -> Self {
        FrozenInfo {
            complete: frozen.complete,
            until: timestamp(frozen.until),
        }
    }
}

/// Requests that wait because the disk below fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TroubleInfo {
    /// Whether all requests wait: the disk is stopped.
    pub stopped: bool,
    /// Since when: UTC, as `2031-02-28T23:59:59Z`.
    pub since: String,
    /// How many wait because they have failed.
    pub waiting: u64,
    /// How often one of them was tried, in all.
    pub attempts: u64,
    /// What failed last, and why.
    pub problem: Problem,
}

impl From<trouble::Standing> for TroubleInfo {
    fn from(standing: trouble::Standing) -> Self {
        let last = standing.last;
        let error = last.error();
        TroubleInfo {
            stopped: standing.stopped,
            since: timestamp(standing.since),
            waiting: standing.waiting,
            attempts: standing.attempts,
            problem: Problem {
                message: format!(
                    "{} of {} bytes at byte {} failed: {error}",
                    last.operation.as_str(),
                    last.bytes,
                    last.position
                ),
                help: Some(
                    match last.errno {
                        libc::ENOSPC | libc::EDQUOT => {
                            "make room below the volume: the disk goes on by itself within \
                             seconds, or at once with `sealblk resume`"
                        }
                        _ => {
                            "look at the disk below (`dmesg`): when it works again the disk goes \
                             on by itself within seconds, or at once with `sealblk resume`; \
                             `sealblk resume --fail` gives the guest an I/O error instead"
                        }
                    }
                    .into(),
                ),
                kind: Kind::Io,
            },
        }
    }
}

/// Operations of the disk below that are in flight for too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StuckInfo {
    /// What the oldest of them does: `read`, `write`, `deallocate`, `flush`; or
    /// `operation`, where the kernel does not let its thread tell.
    pub operation: String,
    /// Where, in bytes of the disk.
    pub position: u64,
    /// How long it is.
    pub bytes: u64,
    /// Since when: UTC, as `2031-02-28T23:59:59Z`.
    pub since: String,
    /// How many operations are.
    pub count: u64,
}

impl From<Stuck> for StuckInfo {
    fn from(stuck: Stuck) -> Self {
        StuckInfo {
            operation: stuck.operation.as_str().into(),
            position: stuck.position,
            bytes: stuck.bytes,
            since: timestamp(stuck.since),
            count: stuck.count,
        }
    }
}

/// How often there was trouble below a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Troubles {
    /// Times that it was stopped.
    pub stops: u64,
    /// Requests that failed and were to wait.
    pub waited: u64,
    /// Times that operations were in flight for too long.
    pub stuck: u64,
}

impl From<Counts> for Troubles {
    fn from(counts: Counts) -> Self {
        Troubles {
            stops: counts.stops,
            waited: counts.waited,
            stuck: counts.stuck,
        }
    }
}

fn timestamp(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    Timestamp::from(time.unwrap_or(std::time::UNIX_EPOCH)).to_string()
}

/// What is to become of requests that wait because the disk below fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// Have them fail, instead of trying them again: the guest has an I/O error for
    /// each.
    #[serde(default)]
    pub fail: bool,
}

/// A disk that is to be frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// After so many seconds it goes on by itself: 1 to 3600.
    #[serde(default = "freeze_seconds")]
    #[schema(minimum = 1, maximum = 3600, default = 60)]
    pub timeout_seconds: u64,
}

/// How long a disk is frozen unless somebody says otherwise, in seconds.
pub const FREEZE_SECONDS: u64 = 60;

/// The longest time that a disk can be frozen, in seconds.
pub const FREEZE_SECONDS_MAX: u64 = 3600;

fn freeze_seconds() -> u64 {
    FREEZE_SECONDS
}

/// What a disk is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// Something that it needs is away, and is tried again.
    Waiting,
    /// Its volume is being opened, its key asked for, or its worker started.
    Attaching,
    /// It is served.
    Running,
    /// Its worker died and is being started again.
    Restarting,
    /// Its worker was told to end.
    Stopping,
    /// It is not served, and nothing is tried before somebody mends it.
    Failed,
    /// It is served, and its requests wait: its key is denied.
    Paused,
    /// It is served, and its requests fail: its key is denied.
    Failing,
    /// It is served, and its requests wait for a snapshot.
    Frozen,
    /// It is not served, because its key is denied, and comes back when it is not.
    Denied,
    /// It is served, and its front end is moving its guest to another host.
    Migrating,
    /// Its guest was stopped, to go on at another host, which may have the volume.
    Moved,
    /// It waits for a guest that comes from another host, which has the volume.
    Incoming,
    /// It is served, and its requests wait: the disk below fails.
    Stopped,
}

impl DiskState {
    /// Every state.
    pub const ALL: [DiskState; 14] = [
        DiskState::Waiting,
        DiskState::Attaching,
        DiskState::Running,
        DiskState::Restarting,
        DiskState::Stopping,
        DiskState::Failed,
        DiskState::Paused,
        DiskState::Failing,
        DiskState::Frozen,
        DiskState::Denied,
        DiskState::Migrating,
        DiskState::Moved,
        DiskState::Incoming,
        DiskState::Stopped,
    ];

    /// Whether there is a worker that serves it, whatever it does with requests.
    pub fn is_served(self) -> bool {
        match self {
            DiskState::Running
            | DiskState::Paused
            | DiskState::Failing
            | DiskState::Frozen
            | DiskState::Migrating
            | DiskState::Moved
            | DiskState::Incoming
            | DiskState::Stopped => true,
            DiskState::Waiting
            | DiskState::Attaching
            | DiskState::Restarting
            | DiskState::Stopping
            | DiskState::Failed
            | DiskState::Denied => false,
        }
    }

    /// As it stands in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskState::Waiting => "waiting",
            DiskState::Attaching => "attaching",
            DiskState::Running => "running",
            DiskState::Restarting => "restarting",
            DiskState::Stopping => "stopping",
            DiskState::Failed => "failed",
            DiskState::Paused => "paused",
            DiskState::Failing => "failing",
            DiskState::Frozen => "frozen",
            DiskState::Denied => "denied",
            DiskState::Migrating => "migrating",
            DiskState::Moved => "moved",
            DiskState::Incoming => "incoming",
            DiskState::Stopped => "stopped",
        }
    }
}

impl WorkerStatus {
    /// What a disk is doing that has such a worker.
    pub fn state(&self) -> DiskState {
        let frozen = self.frozen.is_some_and(|frozen| frozen.complete);
        match (self.stopping, self.mode, frozen) {
            // Told so by a manager that did not live to see it.
            (true, ..) => DiskState::Restarting,
            _ if self.standing == Standing::Incoming => DiskState::Incoming,
            _ if self.standing == Standing::Moved => DiskState::Moved,
            (false, Mode::Pause, _) => DiskState::Paused,
            (false, Mode::Fail, _) => DiskState::Failing,
            (false, Mode::Run, true) => DiskState::Frozen,
            (false, Mode::Run, false) => match self.trouble {
                Some(standing) if standing.stopped => DiskState::Stopped,
                _ if self.migrating => DiskState::Migrating,
                _ => DiskState::Running,
            },
        }
    }
}

/// All disks, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskList {
    /// Changes whenever something here does: give it as `after` to wait for that.
    pub revision: u64,
    /// Sorted by name.
    pub disks: Vec<DiskInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_disks() {
        for good in ["a", "0", "vm-1_root.img", &"x".repeat(64), "-", "...", ".a"] {
            assert!(is_disk_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "é", "a\n", &"x".repeat(65)] {
            assert!(!is_disk_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn whatever_time_a_worker_tells_can_be_shown() {
        for until in [0, 1, 253_402_300_799, u64::MAX] {
            let frozen = Frozen {
                complete: true,
                until,
                left_ms: u64::MAX,
            };
            let shown = FrozenInfo::from(frozen).until;
            assert!(shown.parse::<Timestamp>().is_ok(), "{until}: {shown}");
        }
    }

    #[test]
    fn states_are_written_as_they_are_named() {
        for state in DiskState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }

    #[test]
    fn what_a_request_does_not_say_is_the_default() {
        let request: Attach = serde_json::from_str(r#"{"volume": "/v", "socket": "/s"}"#).unwrap();
        assert_eq!(request.options, Options::default());
        assert!(!request.wait && !request.break_glass);
        let error =
            serde_json::from_str::<Attach>(r#"{"volume": "/v", "socket": "/s", "wiat": true}"#);
        assert!(error.unwrap_err().to_string().contains("wiat"));
    }
}
