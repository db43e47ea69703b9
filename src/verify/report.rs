//! What a verification found, as a document: `docs/operations/verify.md`
//! lists its fields, whose names are part of the interface.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::sample::Seed;
use crate::timestamp::Timestamp;
use crate::units::Bytes;

/// The `type` of the document.
pub const TYPE: &str = "sealblk-verification";

/// Its version.
pub const VERSION: u32 = 1;

/// What a disk is expected to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// A volume whose data is encrypted with the key in its header.
    #[default]
    Encrypted,
    /// Anything that is not encrypted.
    Plain,
}

impl Expect {
    /// As it stands in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Expect::Encrypted => "encrypted",
            Expect::Plain => "plain",
        }
    }
}

impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "encrypted" => Ok(Expect::Encrypted),
            "plain" => Ok(Expect::Plain),
            _ => Err(format!("{text:?} is neither \"encrypted\" nor \"plain\"")),
        }
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is as it has to be.
    Passed,
    /// It is not.
    Failed,
    /// It could not be found out.
    Unknown,
}

/// What all checks together say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The disk is what was expected: all checks passed.
    Proved,
    /// It is not: a check failed.
    Disproved,
    /// Nothing speaks against it, and something could not be found out.
    Undecided,
}

impl Verdict {
    /// As it stands in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Proved => "proved",
            Verdict::Disproved => "disproved",
            Verdict::Undecided => "undecided",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Which one.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found, in a sentence without a final full stop.
    pub says: String,
    /// The numbers behind it.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub facts: Map<String, Value>,
}

impl Check {
    /// A check without numbers.
    pub fn new(name: &str, outcome: Outcome, says: impl Into<String>) -> Self {
        Check {
            name: name.into(),
            outcome,
            says: says.into(),
            facts: Map::new(),
        }
    }

    /// The same with a number.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.into(), value.into());
        self
    }
}

/// Who asked for the verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requester {
    /// The user.
    pub uid: u32,
    /// The role in which it was permitted; `local` for a command that did it
    /// by itself.
    pub role: String,
}

/// The disk, as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file or block device.
    pub path: PathBuf,
    /// The file with its detached header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<PathBuf>,
    /// Bytes of the file or block device.
    pub length: u64,
    /// The volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// What people call it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// Bytes that its guest sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Where its data begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_offset: Option<u64>,
    /// Bytes of a unit that is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<u64>,
    /// Whether units stored as zeroes read as zeroes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_units: Option<bool>,
    /// Its key set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_set: Option<String>,
    /// The number of the header update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<u64>,
    /// Whether somebody had it open.
    pub in_use: bool,
}

/// How much of the disk was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Whether it was all.
    pub full: bool,
    /// What the sample was drawn with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// How many units were drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<u64>,
    /// Bytes at each end that were looked at beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
    /// Bytes of a unit.
    pub unit: u64,
    /// Units of the disk.
    pub units: u64,
    /// Units that were looked at.
    pub looked_at: u64,
    /// Bytes that were read: holes are not.
    pub bytes: u64,
}

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Says that this is one: `sealblk-verification`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Of this structure: 1.
    pub version: u32,
    /// When the verification began.
    pub time: Timestamp,
    /// How long it took.
    pub took_ms: u64,
    /// The host that did it, by its own name.
    pub host: String,
    /// Its sealblk.
    pub sealblk: String,
    /// Who asked for it.
    pub requester: Requester,
    /// What the one who asked wanted to see again here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// What the disk was expected to be.
    pub expect: Expect,
    /// Whether it is.
    pub verdict: Verdict,
    /// The disk.
    pub disk: Disk,
    /// How much of it was looked at. `None`: nothing, since it is clear without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// What was found.
    pub checks: Vec<Check>,
}

/// What these checks say together.
pub fn verdict(checks: &[Check]) -> Verdict {
    let any = |outcome| checks.iter().any(|check| check.outcome == outcome);
    match (any(Outcome::Failed), any(Outcome::Unknown)) {
        (true, _) => Verdict::Disproved,
        (false, true) => Verdict::Undecided,
        (false, false) => Verdict::Proved,
    }
}

/// What this host calls itself.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = &self.disk;
        writeln!(f, "disk       {}", disk.path.display())?;
        if let Some(header) = &disk.header {
            writeln!(f, "header     {}", header.display())?;
        }
        if let Some(uuid) = disk.uuid {
            writeln!(f, "volume     {uuid}")?;
        }
        if let Some(key_set) = &disk.key_set {
            writeln!(f, "key set    {key_set}")?;
        }
        if let Some(scope) = &self.scope {
            let whole = Bytes(scope.units * scope.unit);
            match (scope.full, scope.seed) {
                (true, _) => writeln!(f, "looked at  all of {whole}")?,
                (false, seed) => {
                    let sample = scope.sample.unwrap_or_default().min(scope.units);
                    let ends = Bytes(scope.ends.unwrap_or_default());
                    write!(
                        f,
                        "looked at  {sample} of {} units, and {ends} at each end",
                        scope.units
                    )?;
                    match seed {
                        Some(seed) => writeln!(f, "; seed {seed}")?,
                        None => writeln!(f)?,
                    }
                }
            }
        }
        for check in &self.checks {
            let outcome = match check.outcome {
                Outcome::Passed => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Unknown => "unknown",
            };
            writeln!(f, "{:<10} {outcome}: {}", check.name, check.says)?;
        }
        let expect = match self.expect {
            Expect::Encrypted => "encrypted with the key of its header",
            Expect::Plain => "not encrypted",
        };
        match self.verdict {
            Verdict::Proved => writeln!(f, "proved     it is {expect}"),
            Verdict::Disproved => writeln!(f, "DISPROVED  that it is {expect}"),
            Verdict::Undecided => writeln!(f, "undecided  whether it is {expect}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_disproves_and_one_gap_leaves_it_open() {
        let checks = |outcomes: &[Outcome]| -> Vec<Check> {
            let check = |outcome: &Outcome| Check::new("x", *outcome, "y");
            outcomes.iter().map(check).collect()
        };
        use Outcome::{Failed, Passed, Unknown};
        for (outcomes, expected) in [
            (&[Passed, Passed][..], Verdict::Proved),
            (&[Passed, Unknown], Verdict::Undecided),
            (&[Failed, Unknown, Passed], Verdict::Disproved),
        ] {
            assert_eq!(verdict(&checks(outcomes)), expected);
        }
    }
}
