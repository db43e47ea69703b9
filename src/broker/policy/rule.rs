//! One rule.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::{Asked, Pattern, Times};
use crate::timestamp::Timestamp;

/// What can be permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To have a key wrapped.
    Wrap,
    /// To have one unwrapped.
    Unwrap,
    /// To be told the state of a key. It is about no volume.
    Check,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 3] = [Operation::Wrap, Operation::Unwrap, Operation::Check];

    /// As it stands in policies and records.
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

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Operation::ALL.into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| {
            format!("there is no operation {text:?}: there are \"wrap\", \"unwrap\" and \"check\"")
        })
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Names of hosts.
    pub hosts: Vec<Pattern>,
    /// Names of key sets.
    pub key_sets: Vec<Pattern>,
    /// What it is about.
    pub operations: Vec<Operation>,
    /// Volumes.
    pub volumes: Volumes,
    /// When it holds.
    pub times: Times,
    /// Whether it denies, and does not permit.
    pub deny: bool,
}

/// The volumes that a rule is about: patterns on their UUIDs.
#[derive(Clone, Debug, PartialEq)]
pub struct Volumes(pub Vec<Pattern>);

impl Volumes {
    /// Whether they are all there are, and what is bound to no volume as well.
    pub fn is_for_all(&self) -> bool {
        self.0.iter().any(Pattern::is_any)
    }

    /// Whether a rule that permits is about what is asked for.
    pub fn permit(&self, asked: &Asked<'_>) -> bool {
        self.are(asked, false)
    }

    /// Whether they are those of what is asked for; `unknown` where that is
    /// bound to no volume.
    fn are(&self, asked: &Asked<'_>, unknown: bool) -> bool {
        if self.is_for_all() || asked.operation == Operation::Check {
            return true;
        }
        match asked.volume.map(|volume| volume.to_string()) {
            Some(volume) => self.0.iter().any(|one| one.matches_caseless(&volume)),
            None => unknown,
        }
    }
}

impl Rule {
    /// Whether it is about that host, key set and operation.
    pub fn is_about(&self, asked: &Asked<'_>) -> bool {
        let like = |patterns: &[Pattern], name| patterns.iter().any(|one| one.matches(name));
        like(&self.hosts, asked.host)
            && like(&self.key_sets, asked.key_set)
            && self.operations.contains(&asked.operation)
    }

    /// Whether it denies, if it is a rule that does. What is bound to no volume
    /// could be for any: a group key opens those that it is asked to open. The
    /// state of a key is about no volume, and is denied by a rule for all.
    pub fn denies(&self, asked: &Asked<'_>, now: Timestamp) -> bool {
        let about_volumes = asked.operation != Operation::Check || self.volumes.is_for_all();
        self.is_about(asked)
            && about_volumes
            && self.times.hold(now)
            && self.volumes.are(asked, true)
    }
}
