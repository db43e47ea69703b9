//! The manager itself, and who asks it.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DiskInfo, DiskState};

/// What the manager is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The version of sealblk.
    pub version: String,
    /// The manager's process.
    pub pid: u32,
    /// Another one whenever the manager was started or replaced.
    #[serde(default)]
    pub instance: String,
    /// When it was started: UTC, as `2031-02-28T23:59:59Z`.
    pub since: String,
    /// The configuration file, if there is one.
    #[schema(value_type = Option<String>)]
    pub config: Option<PathBuf>,
    /// The socket of this API.
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// Where the desired state is kept.
    #[schema(value_type = String)]
    pub state_dir: PathBuf,
    /// Where sockets of workers are.
    #[schema(value_type = String)]
    pub run_dir: PathBuf,
    /// How many disks are in each state.
    pub disks: DiskCounts,
    /// How many key sets there are.
    pub key_sets: u64,
    /// Settings that were changed in the file and wait for a restart.
    pub needs_restart: Vec<String>,
    /// Who asked.
    pub you: You,
}

/// How many disks are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[allow(missing_docs, reason = "the states have theirs")]
pub struct DiskCounts {
    pub waiting: u64,
    pub attaching: u64,
    pub running: u64,
    pub restarting: u64,
    pub stopping: u64,
    pub failed: u64,
    #[serde(default)]
    pub paused: u64,
    #[serde(default)]
    pub failing: u64,
    #[serde(default)]
    pub frozen: u64,
    #[serde(default)]
    pub denied: u64,
    #[serde(default)]
    pub migrating: u64,
    #[serde(default)]
    pub moved: u64,
    #[serde(default)]
    pub incoming: u64,
    #[serde(default)]
    pub stopped: u64,
}

impl DiskCounts {
    /// Counts `disks`.
    pub fn of<'a>(disks: impl IntoIterator<Item = &'a DiskInfo>) -> Self {
        let mut counts = DiskCounts::default();
        for disk in disks {
            *counts.count(disk.state) += 1;
        }
        counts
    }

    /// The number for a state.
    pub fn get(mut self, state: DiskState) -> u64 {
        *self.count(state)
    }

    fn count(&mut self, state: DiskState) -> &mut u64 {
        match state {
            DiskState::Waiting => &mut self.waiting,
            DiskState::Attaching => &mut self.attaching,
            DiskState::Running => &mut self.running,
            DiskState::Restarting => &mut self.restarting,
            DiskState::Stopping => &mut self.stopping,
            DiskState::Failed => &mut self.failed,
            DiskState::Paused => &mut self.paused,
            DiskState::Failing => &mut self.failing,
            DiskState::Frozen => &mut self.frozen,
            DiskState::Denied => &mut self.denied,
            DiskState::Migrating => &mut self.migrating,
            DiskState::Moved => &mut self.moved,
            DiskState::Incoming => &mut self.incoming,
            DiskState::Stopped => &mut self.stopped,
        }
    }
}

/// Who asked, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct You {
    /// The user.
    pub uid: u32,
    /// The process that connected.
    pub pid: Option<u32>,
    /// What that user may do.
    pub roles: Vec<crate::manager::roles::Role>,
}

/// What reading the configuration again has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reloaded {
    /// Settings that have their new value now.
    pub changed: Vec<String>,
    /// Settings that were changed in the file and wait for a restart.
    pub needs_restart: Vec<String>,
    /// What is not as its author may think: a user in `roles` who does not
    /// exist, for example.
    pub warnings: Vec<String>,
}
