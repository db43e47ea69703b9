//! What a guest is permitted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the guest of a disk may do per second. Nothing is limited by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Requests per second.
    pub operations: Rates,
    /// Bytes of data per second.
    pub bytes: Rates,
    /// A request of more data than this counts as several: as many times as it
    /// is larger. Zero counts every request once.
    pub operation_bytes: u64,
}

/// Limits of one kind, on all that is done and on each direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Reads and writes together.
    pub total: Option<Rate>,
    /// Reads.
    pub read: Option<Rate>,
    /// Everything else that is limited.
    pub write: Option<Rate>,
}

/// How much is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Per second, in the long run. At least one.
    pub per_second: u64,
    /// For a while, more.
    pub burst: Option<Burst>,
}

/// How much more is permitted for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burst {
    /// Per second, at least the rate.
    pub per_second: u64,
    /// For so many seconds after a time without work.
    pub seconds: u64,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        self.operations.is_none() && self.bytes.is_none()
    }
}

impl Rates {
    fn is_none(&self) -> bool {
        self.total.is_none() && self.read.is_none() && self.write.is_none()
    }
}

impl Burst {
    /// How long it may last.
    pub fn length(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// What waits for the same turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Reads.
    Read,
    /// Writes, and whatever else changes the disk.
    Write,
}

impl Lane {
    /// Both.
    pub const ALL: [Lane; 2] = [Lane::Read, Lane::Write];
}

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Bytes that it moves. None when space is only given back.
    pub bytes: u64,
}
