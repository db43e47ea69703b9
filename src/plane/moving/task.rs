//! What is to be done to the data of a disk, and how far that is: as it goes from
//! the manager to its worker and back.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::one_line;
use crate::rekey::{Direction, Facts, Kind};

/// What is to be done to the data of a disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// What the keys of the operation are derived from.
    pub facts: Facts,
    /// Where the journal is, in the file of the header.
    pub journal: Range<u64>,
    /// How fast it may be.
    #[serde(default)]
    pub pace: Pace,
    /// Whether it goes on, or rests.
    #[serde(default)]
    pub go: Go,
    /// Which way it is to go, if somebody has said so. Otherwise as the journal says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// A journal with a lower number is an older one that somebody has put back.
    #[serde(default)]
    pub at_least: u64,
}

/// Whether an operation goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Go {
    /// It goes on.
    #[default]
    Run,
    /// It rests, for as long as somebody likes.
    Pause,
}

/// How fast data may be moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pace {
    /// Bytes of the disk per second, at most. Nothing: as fast as it can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 65536)]
    pub limit: Option<u64>,
    /// How long a request of the guest shall wait for it, at most, in
    /// microseconds. What is moved at a time gets smaller until that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 100)]
    pub latency_us: Option<u64>,
    /// Its share of the disk below, where the scheduler there heeds that.
    #[serde(skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
}

/// The least that a limit can be: a region has to be moved at a time.
pub const LEAST_LIMIT: u64 = 64 << 10;

/// The shortest time that requests can be promised to wait at most.
pub const LEAST_LATENCY_US: u64 = 100;

impl Pace {
    /// What is wrong with it, if something is.
    pub fn fault(&self) -> Option<String> {
        if self.limit.is_some_and(|limit| limit < LEAST_LIMIT) {
            return Some(format!("a limit is {LEAST_LIMIT} bytes per second or more"));
        }
        if self.latency_us.is_some_and(|time| time < LEAST_LATENCY_US) {
            return Some(format!(
                "a latency is {LEAST_LATENCY_US} microseconds or more"
            ));
        }
        None
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            Some(limit) => write!(f, "at most {}/s", crate::units::Bytes(limit))?,
            None => f.write_str("without a limit")?,
        }
        if let Some(time) = self.latency_us {
            write!(f, ", guests wait {} us at most", time)?;
        }
        match self.priority {
            Priority::Normal => Ok(()),
            Priority::Idle => f.write_str(", when the disk below is idle"),
        }
    }
}

/// What the kernel's I/O scheduler is told of a thread that moves data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// As everybody.
    #[default]
    Normal,
    /// Only when nobody else wants anything.
    Idle,
}

impl Priority {
    /// Whether it is that of everybody.
    pub fn is_normal(&self) -> bool {
        *self == Priority::Normal
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Normal => "normal",
            Priority::Idle => "idle",
        }
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "normal" => Ok(Priority::Normal),
            "idle" => Ok(Priority::Idle),
            _ => Err(format!("{text:?} is no priority: write normal or idle")),
        }
    }
}

/// What an operation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Data is moved.
    Moving,
    /// It rests, because somebody wants it to.
    Paused,
    /// It rests for as long as the disk is frozen, or its requests are held.
    Held,
    /// It rests, because the disk below failed.
    Failed,
    /// Everything was moved, and that is durable. What is left is the header's.
    Done,
}

impl Phase {
    /// As it stands in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Moving => "moving",
            Phase::Paused => "paused",
            Phase::Held => "held",
            Phase::Failed => "failed",
            Phase::Done => "done",
        }
    }
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The operation.
    pub id: uuid::Uuid,
    /// What it does.
    pub kind: Kind,
    /// Which way it goes.
    pub direction: Direction,
    /// What it is doing.
    pub phase: Phase,
    /// Units below this byte of the disk are new.
    pub boundary: u64,
    /// The size of the disk, in bytes.
    pub size: u64,
    /// Bytes that were moved since this process began, in both directions.
    pub moved: u64,
    /// Bytes per second, of late.
    pub rate: u64,
    /// Bytes that are moved at a time.
    pub region: u64,
    /// The number of the last record that is durable.
    pub sequence: u64,
    /// Whether it goes on when nothing is against it.
    pub go: Go,
    /// How fast it may be.
    pub pace: Pace,
    /// Why it rests, if the disk below failed.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "one_line::read_if_any"
    )]
    pub fault: Option<String>,
}

impl Progress {
    /// Bytes that are left to be moved.
    pub fn left(&self) -> u64 {
        match self.direction {
            Direction::Forward => self.size.saturating_sub(self.boundary),
            Direction::Back => self.boundary,
        }
    }

    /// Whether everything is as it is to be.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }
}

/// What a running operation is told. What is not said stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Orders {
    /// Whether it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go: Option<Go>,
    /// How fast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
    /// Which way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
}
