//! Key sets, their checks, rotations and switches.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A key set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeySetInfo {
    /// Its name.
    pub name: String,
    /// Who wraps and unwraps.
    pub provider: String,
    /// The key, as the service has it. None where the provider is itself one key.
    pub key: Option<String>,
    /// Its settings, as the table `[key_sets.NAME]` of the configuration has
    /// them. They name secrets by their files, and hold none.
    pub definition: Map<String, Value>,
    /// Where it is defined.
    pub origin: Origin,
    /// The file that defines it. None for the built-in one.
    #[schema(value_type = Option<String>)]
    pub defined_in: Option<PathBuf>,
    /// How many attached disks use it.
    pub disks: u64,
}

/// Where a key set is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// In the configuration file: it is changed there.
    Configuration,
    /// In a file of its own: it is changed through this API, or by command.
    Manager,
}

/// A key set that is to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKeySet {
    /// Its name: 1 to 64 letters, digits, `.`, `_` and `-`, beginning with a
    /// letter or digit.
    #[schema(
        min_length = 1,
        max_length = 64,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )]
    pub name: String,
    /// Its settings, as the table `[key_sets.NAME]` of the configuration would
    /// have them.
    pub definition: Map<String, Value>,
}

/// What the service of a key set says of its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeySetCheck {
    /// The key set.
    pub name: String,
    /// Its provider.
    pub provider: String,
    /// The version that a key would be wrapped with now.
    pub key_version: String,
    /// Whether that version may be used now.
    pub enabled: bool,
    /// When it ends: UTC, as `2031-02-28T23:59:59Z`.
    pub expires: Option<String>,
}

/// What a key set is to be from now on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeySetSwitch {
    /// Its settings, as the table `[key_sets.NAME]` of the configuration would
    /// have them. Those that are not of a provider stay unless they are given.
    pub definition: Map<String, Value>,
    /// Also if volumes that this host knows are locked out by that.
    #[serde(default)]
    pub force: bool,
}

/// What a key set wraps with, and how far its volumes have followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeySetRotation {
    /// The key set.
    pub name: String,
    /// Its provider.
    pub provider: String,
    /// The version that wraps from now on.
    pub key_version: String,
    /// How many volumes of the key set this host knows.
    pub volumes: u64,
    /// How many of them have yet to follow. They do so in the background.
    pub behind: u64,
}
