//! From a disk to a report: header, keys, scan, checks, verdict.

use std::path::PathBuf;
use std::time::Instant;

use super::encrypted;
use super::error::Error;
use super::plain;
use super::report::{
    Check, Disk, Expect, Outcome, Report, Requester, TYPE, VERSION, host_name, verdict,
};
use super::sample::Extent;
use super::scan::Means;
use crate::error::Failure;
use crate::secret::Dek;
use crate::timestamp::Timestamp;
use crate::volume::{self, Bare, Description, Inspection, Location};

/// What the key sets say of the wrapped keys of a volume.
#[derive(Debug)]
pub enum Keys {
    /// Nobody asked them.
    NotAsked,
    /// They gave no key.
    None {
        /// Whether that shows that something is wrong with the volume, and not
        /// with the way to its keys.
        wrong: bool,
        /// Why.
        why: Failure,
    },
    /// The key, which the digest of the header proves.
    Proven {
        /// The key.
        dek: Dek,
        /// What there is to say of each wrap.
        check: Check,
    },
}

/// What is wanted of a verification.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How much to look at.
    pub extent: Extent,
    /// Who asks.
    pub requester: Requester,
    /// What the report shall repeat.
    pub nonce: Option<String>,
}

/// A disk that is to be verified. It is open for reading, without a lock.
#[derive(Debug)]
pub struct Subject {
    pub(super) location: Location,
    pub(super) bare: Bare,
    pub(super) expect: Expect,
    pub(super) volume: Result<(Inspection, Box<Description>), volume::Error>,
    began: (Timestamp, Instant),
}

impl Subject {
    /// Opens a disk, and reads its header if it has one.
    ///
    /// # Errors
    /// When it cannot be opened or read. That it is no volume is none.
    pub fn open(location: &Location, expect: Expect) -> Result<Self, Error> {
        let began = (Timestamp::now(), Instant::now());
        let bare = Bare::open(&location.data)?;
        let volume = Inspection::of(location).and_then(|inspection| {
            let description = inspection.description()?;
            Ok((inspection, Box::new(description)))
        });
        let volume = match volume {
            Err(
                error @ (volume::Error::Open { .. }
                | volume::Error::Io { .. }
                | volume::Error::WrongFileType { .. }
                | volume::Error::SameFile { .. }
                | volume::Error::Busy { .. }),
            ) => return Err(error.into()),
            volume => volume,
        };
        Ok(Subject {
            location: location.clone(),
            bare,
            expect,
            volume,
            began,
        })
    }

    /// What its header says, if it is a volume.
    pub fn description(&self) -> Option<&Description> {
        let (_, description) = self.volume.as_ref().ok()?;
        Some(description)
    }

    fn disk(&self) -> Result<Disk, Error> {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let disk = Disk {
            path: absolute(&self.location.data),
            header: self.location.header.as_ref().map(absolute),
            length: self.bare.length()?,
            in_use: self.in_use(),
            ..Disk::default()
        };
        let Some(description) = self.description() else {
            return Ok(disk);
        };
        let layout = description.layout;
        Ok(Disk {
            uuid: Some(description.uuid),
            label: description.label.clone(),
            size: Some(layout.size),
            data_offset: Some(layout.data_offset),
            sector_size: Some(layout.sector_size.bytes() as u64),
            zero_units: Some(layout.zero_units),
            key_set: Some(description.token.key_set.clone()),
            update: Some(description.seqid),
            ..disk
        })
    }

    /// Whether somebody may be writing to it. A file system without locks
    /// tells nothing, which means the same.
    pub(super) fn in_use(&self) -> bool {
        self.bare.in_use().unwrap_or(true)
    }
}

/// Verifies a disk. It blocks, for as long as that takes.
///
/// # Errors
/// When the disk cannot be read, or it was to stop. Whatever the disk turns out
/// to be is none, and stands in the report.
pub fn run(subject: &Subject, keys: Keys, wanted: Wanted, means: &Means) -> Result<Report, Error> {
    let disk = subject.disk()?;
    let (scope, checks) = match subject.expect {
        Expect::Encrypted => encrypted::verify(subject, keys, wanted.extent, means)?,
        Expect::Plain => plain::verify(subject, wanted.extent, means)?,
    };
    let (time, start) = subject.began;
    Ok(Report {
        kind: TYPE.into(),
        version: VERSION,
        time,
        took_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        host: host_name(),
        sealblk: env!("CARGO_PKG_VERSION").into(),
        requester: wanted.requester,
        nonce: wanted.nonce,
        expect: subject.expect,
        verdict: verdict(&checks),
        disk,
        scope,
        checks,
    })
}

/// A check of the keys that did not end well, or was not made.
pub(super) fn no_key(keys: &Keys) -> Check {
    match keys {
        Keys::NotAsked => Check::new(
            "key",
            Outcome::Unknown,
            "nobody asked the key service, so that it is not known whether it has the key",
        ),
        Keys::None { wrong, why } => {
            let outcome = match wrong {
                true => Outcome::Failed,
                false => Outcome::Unknown,
            };
            Check::new(
                "key",
                outcome,
                format!("the wrapped keys gave no key: {why}"),
            )
        }
        Keys::Proven { check, .. } => check.clone(),
    }
}
