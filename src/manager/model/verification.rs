//! What goes over the API for a verification.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::verify::Expect;

/// A disk that is to be verified: one that is attached, or a volume that this
/// host knows because it was made or attached here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// The name of an attached disk. Goes before `volume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// The file or block device: an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "/var/lib/vm/disk.img")]
    pub volume: Option<PathBuf>,
    /// Look at every unit, and not at a sample.
    #[serde(default)]
    pub full: bool,
    /// How many units the sample has; 10000 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10_000_000)]
    pub sample: Option<u64>,
    /// What to draw the sample with, as an earlier report has it: 32
    /// hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 32, max_length = 32, pattern = "^[0-9a-fA-F]{32}$")]
    pub seed: Option<String>,
    /// What the disk has to be.
    #[serde(default)]
    pub expect: Expect,
    /// Do not ask the key service.
    #[serde(default)]
    pub no_key: bool,
    /// Sign the report.
    #[serde(default)]
    pub sign: bool,
    /// What the report shall repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256)]
    pub nonce: Option<String>,
    /// Bytes to read per second, at most. The manager has a limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub rate: Option<u64>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// The report. `verdict` in it is `proved`, `disproved` or `undecided`.
    #[schema(value_type = Object)]
    pub report: Value,
    /// The same in a DSSE envelope with the signature of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub signed: Option<Value>,
}
