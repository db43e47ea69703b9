//! What is done to all data of a disk while it is served: it is re-encrypted
//! under another key, encrypted, or decrypted.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Problem;
use crate::plane::moving::{Go, Pace, Phase, Priority, Progress};
use crate::rekey::{Direction, Kind};

/// What is done to all data of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RekeyInfo {
    /// The operation. One that is queued has none yet.
    pub id: Option<Uuid>,
    /// `rekey`: from one key to another; `encrypt` or `decrypt`.
    #[schema(value_type = String, example = "rekey")]
    pub kind: Kind,
    /// What it is doing.
    pub state: RekeyState,
    /// `forward`, or `back` to what was before.
    #[schema(value_type = String, example = "forward")]
    pub direction: Direction,
    /// Below this byte of the disk all data is new.
    pub boundary: u64,
    /// How many bytes are as they are to be, of `size`.
    pub done: u64,
    /// The size of the disk, in bytes.
    pub size: u64,
    /// Bytes per second, of late.
    pub rate: u64,
    /// How many seconds it takes yet at that rate.
    pub seconds_left: Option<u64>,
    /// Bytes that are moved at a time, and that requests of the guest may have to
    /// wait for.
    pub region: u64,
    /// How fast it may be.
    pub pace: Pace,
    /// Why it does not go on.
    pub problem: Option<Problem>,
}

/// What an operation on all data of a disk is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RekeyState {
    /// It waits for its turn: nothing has been done to the disk.
    Queued,
    /// It could not begin: nothing has been done to the disk.
    Refused,
    /// Data is moved.
    Moving,
    /// It rests, because somebody wants it to.
    Paused,
    /// It rests for as long as the disk is frozen, or its key is denied.
    Held,
    /// It rests, because the disk below failed.
    Failed,
    /// It rests, because the disk has no worker at this moment.
    Waiting,
    /// All data was moved, and the header is about to say so.
    Finishing,
    /// All data is plain. The disk has to be detached: with that, its header goes.
    Plain,
}

impl RekeyState {
    /// Every state.
    pub const ALL: [RekeyState; 9] = [
        RekeyState::Queued,
        RekeyState::Refused,
        RekeyState::Moving,
        RekeyState::Paused,
        RekeyState::Held,
        RekeyState::Failed,
        RekeyState::Waiting,
        RekeyState::Finishing,
        RekeyState::Plain,
    ];

    /// As it stands in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            RekeyState::Queued => "queued",
            RekeyState::Refused => "refused",
            RekeyState::Moving => "moving",
            RekeyState::Paused => "paused",
            RekeyState::Held => "held",
            RekeyState::Failed => "failed",
            RekeyState::Waiting => "waiting",
            RekeyState::Finishing => "finishing",
            RekeyState::Plain => "plain",
        }
    }

    /// Whether nothing has been done to the disk yet.
    pub fn is_only_wanted(self) -> bool {
        matches!(self, RekeyState::Queued | RekeyState::Refused)
    }
}

impl RekeyInfo {
    /// One that waits for its turn.
    pub fn queued(kind: Kind, size: u64, pace: Pace, problem: Option<Problem>) -> Self {
        RekeyInfo {
            id: None,
            kind,
            state: match problem {
                None => RekeyState::Queued,
                Some(_) => RekeyState::Refused,
            },
            direction: Direction::Forward,
            boundary: 0,
            done: 0,
            size,
            rate: 0,
            seconds_left: None,
            region: 0,
            pace,
            problem,
        }
    }
}

impl From<&Progress> for RekeyInfo {
    fn from(progress: &Progress) -> Self {
        let left = progress.left();
        let moves = progress.phase == Phase::Moving && progress.rate > 0;
        let ends_plain = match progress.direction {
            Direction::Forward => progress.kind == Kind::Decrypt,
            Direction::Back => progress.kind == Kind::Encrypt,
        };
        RekeyInfo {
            id: Some(progress.id),
            kind: progress.kind,
            state: match progress.phase {
                Phase::Moving => RekeyState::Moving,
                Phase::Paused => RekeyState::Paused,
                Phase::Held => RekeyState::Held,
                Phase::Failed => RekeyState::Failed,
                Phase::Done if ends_plain => RekeyState::Plain,
                Phase::Done => RekeyState::Finishing,
            },
            direction: progress.direction,
            boundary: progress.boundary,
            done: progress.size.saturating_sub(left),
            size: progress.size,
            rate: progress.rate,
            seconds_left: moves.then(|| left.div_ceil(progress.rate)),
            region: progress.region,
            pace: progress.pace,
            problem: progress.fault.as_ref().map(|message| Problem {
                message: message.clone(),
                help: Some(
                    "check the disk below, for example with `dmesg`; guests are served on, and \
                     `sealblk rekey NAME --resume` has it go on"
                        .into(),
                ),
                kind: crate::error::Kind::Io,
            }),
        }
    }
}

/// How fast data may be moved, as somebody asks for it. What is left out stays
/// as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PaceChange {
    /// Bytes of the disk per second, at most: 65536 or more. 0 lifts the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How many microseconds a request of the guest shall wait for it, at most:
    /// 100 or more. 0: as long as a region takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
    /// `normal`, or `idle`: only when nobody else uses the disk below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

impl PaceChange {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == PaceChange::default()
    }

    /// `pace` with what is asked for.
    pub fn over(&self, pace: Pace) -> Pace {
        let lifted = |given: Option<u64>, is: Option<u64>| match given {
            Some(0) => None,
            Some(value) => Some(value),
            None => is,
        };
        Pace {
            limit: lifted(self.limit, pace.limit),
            latency_us: lifted(self.latency_us, pace.latency_us),
            priority: self.priority.unwrap_or(pace.priority),
        }
    }
}

/// What is to be done to the data of which disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartRekey {
    /// The names of attached disks.
    #[serde(default)]
    pub disks: Vec<String>,
    /// All attached disks of this key set, instead of `disks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_set: Option<String>,
    /// `rekey`, or `decrypt`. A plain disk is encrypted by being attached with the
    /// header that `sealblk volume encrypt --prepare` has made for it.
    #[serde(default = "rekey")]
    #[schema(value_type = String, default = "rekey")]
    pub kind: Kind,
    /// To decrypt: the name of the disk once more. Its data is plain then, for
    /// everybody who has the storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
    /// How fast.
    #[serde(default)]
    pub pace: PaceChange,
}

fn rekey() -> Kind {
    Kind::Rekey
}

/// What became of that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RekeysStarted {
    /// In the order in which their turn is.
    pub disks: Vec<StartedRekey>,
}

/// One disk of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StartedRekey {
    /// Its name.
    pub disk: String,
    /// Its volume.
    pub volume: Option<Uuid>,
    /// Whether it has begun. If not, it waits for its turn, or see `problem`.
    pub begun: bool,
    /// Why it cannot.
    pub problem: Option<Problem>,
}

/// What is to change of an operation that is queued or under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RekeyChange {
    /// `run`, or `pause`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub go: Option<Go>,
    /// How fast.
    pub pace: PaceChange,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_changed_as_far_as_somebody_says_so() {
        let pace = Pace {
            limit: Some(1 << 20),
            latency_us: Some(5000),
            priority: Priority::Idle,
        };
        assert_eq!(PaceChange::default().over(pace), pace);
        let change = PaceChange {
            limit: Some(0),
            latency_us: Some(100),
            priority: None,
        };
        let expected = Pace {
            limit: None,
            latency_us: Some(100),
            priority: Priority::Idle,
        };
        assert_eq!(change.over(pace), expected);
    }

    #[test]
    fn states_are_written_as_they_are_named() {
        for state in RekeyState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }

    #[test]
    fn what_is_done_and_left_goes_by_the_direction() {
        let mut progress = Progress {
            id: Uuid::nil(),
            kind: Kind::Rekey,
            direction: Direction::Forward,
            phase: Phase::Moving,
            boundary: 300,
            size: 1000,
            moved: 300,
            rate: 100,
            region: 64,
            sequence: 3,
            go: Go::Run,
            pace: Pace::default(),
            fault: None,
        };
        let info = RekeyInfo::from(&progress);
        assert_eq!((info.done, info.seconds_left), (300, Some(7)));
        progress.direction = Direction::Back;
        let info = RekeyInfo::from(&progress);
        assert_eq!((info.done, info.seconds_left), (700, Some(3)));
        progress.phase = Phase::Paused;
        assert_eq!(RekeyInfo::from(&progress).seconds_left, None);
        progress.phase = Phase::Done;
        assert_eq!(RekeyInfo::from(&progress).state, RekeyState::Finishing);
        progress.kind = Kind::Encrypt;
        assert_eq!(RekeyInfo::from(&progress).state, RekeyState::Plain);
    }
}
