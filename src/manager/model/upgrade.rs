//! Other versions of workers and manager, under running guests.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::DiskInfo;

/// How the worker of a disk is to be replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeDisk {
    /// The program that the new worker is: an absolute path. That of the manager
    /// unless given, and nobody but its own user and root may give another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub binary: Option<PathBuf>,
    /// Where the disk cannot be handed over because of the versions: complete its
    /// requests, end the old worker, and have its front end connect to the new one.
    #[serde(default)]
    pub reconnect: bool,
}

/// A disk whose worker was replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpgradedDisk {
    /// The disk.
    pub disk: DiskInfo,
    /// The version that its worker was.
    pub before: String,
    /// The version that its worker is.
    pub version: String,
    /// For how many microseconds none of its requests was begun. Unknown when its
    /// front end had to connect anew.
    pub pause_us: Option<u64>,
}

/// How the manager is to be replaced by another program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeManager {
    /// The program: an absolute path. What is now where the manager was started from,
    /// unless given; nobody but its own user and root may give another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub binary: Option<PathBuf>,
}

/// The manager is about to be replaced: it answers again, as another `instance`, when
/// that is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpgradedManager {
    /// The program that it will be.
    #[schema(value_type = String)]
    pub binary: PathBuf,
    /// The version that it is.
    pub before: String,
    /// The version that it will be.
    pub version: String,
    /// The `instance` of this one, as the status has it.
    pub instance: String,
}
