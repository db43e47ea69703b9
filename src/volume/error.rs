//! What can go wrong with a volume, in the words that people get to read.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use super::luks2::copies::Lost;
use super::luks2::metadata::Fault;
use super::occupied::Occupant;
use super::tenure::Standing;
use super::token::{Rekey, TokenError};
use crate::timestamp::Timestamp;
use crate::units::Bytes;

/// An error of the volume room. Paths are those that the caller gave.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path could not be opened or created.
    #[error("cannot {what} {}", path.display())]
    Open {
        /// `open` or `create`.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A system call failed on an open file.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried, as in "cannot … PATH".
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is {what}, and a volume is a regular file or a block device", path.display())]
    WrongFileType {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another process has it open.
    #[error("{} is in use{}", path.display(), holder(*by))]
    Busy {
        /// The path.
        path: PathBuf,
        /// The process that holds it, if it could be found.
        by: Option<u32>,
    },
    /// The kernel uses the block device: mounted, part of an array, …
    #[error("the block device {} is in use by the kernel: mounted, mapped or part of an array", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Data and header are the same file.
    #[error("{} was given both as the data and as the detached header", path.display())]
    SameFile {
        /// The path.
        path: PathBuf,
    },
    /// No LUKS2 header.
    #[error("{} is not a volume: it has no LUKS2 header{}", path.display(), instead(found))]
    NotAVolume {
        /// The path.
        path: PathBuf,
        /// What is there instead, if that was recognised.
        found: Option<Occupant>,
    },
    /// Both header copies are damaged.
    #[error(
        "both header copies of {} are damaged (primary: {}; secondary: {})",
        path.display(), lost.primary,
        lost.secondary.as_ref().map_or("not found".into(), ToString::to_string)
    )]
    BothDamaged {
        /// The path.
        path: PathBuf,
        /// What is wrong with each.
        lost: Lost,
    },
    /// A LUKS2 header without a token of ours.
    #[error("{} is a LUKS2 device, but not one that sealblk made: it has no sealblk token", path.display())]
    NotSealblk {
        /// The path.
        path: PathBuf,
    },
    /// The header is consistent, and nothing that this sealblk can serve.
    #[error("the header of {} cannot be used: {fault}", path.display())]
    Header {
        /// The path.
        path: PathBuf,
        /// Why.
        fault: Fault,
    },
    /// The token cannot be used.
    #[error("the header of {} cannot be used", path.display())]
    Token {
        /// The path.
        path: PathBuf,
        /// Why.
        source: TokenError,
    },
    /// The data is shorter than the header says.
    #[error(
        "{} has {actual} bytes and its header says {needed}: {} are missing at the end",
        path.display(), Bytes(needed - actual)
    )]
    Shorter {
        /// The path of the data.
        path: PathBuf,
        /// Its length in bytes.
        actual: u64,
        /// The length that the header asks for.
        needed: u64,
    },
    /// A detached header was opened as if it were the whole volume.
    #[error("{} is a detached header: the data of its volume is in another file", path.display())]
    DetachedHeader {
        /// The path.
        path: PathBuf,
    },
    /// The data has a header of another volume.
    #[error(
        "{} has a header of its own, of volume {data_uuid}, and the detached header is that of volume {header_uuid}",
        path.display()
    )]
    OtherVolume {
        /// The path of the data.
        path: PathBuf,
        /// The UUID in the data's own header.
        data_uuid: String,
        /// The UUID in the detached header.
        header_uuid: String,
    },
    /// Opened for reading, and asked to write.
    #[error("{} is open for reading only", path.display())]
    ReadOnly {
        /// The path.
        path: PathBuf,
    },
    /// The token does not fit any more.
    #[error("the header of {} is full: it needs {needed} bytes of JSON and has room for {room}", path.display())]
    HeaderFull {
        /// The path.
        path: PathBuf,
        /// Bytes of JSON.
        needed: u64,
        /// Bytes there are.
        room: u64,
    },
    /// Somebody else rewrote the header while it was locked.
    #[error("the header of {} was changed by something else while the volume was open: {what}", path.display())]
    ChangedUnderneath {
        /// The path.
        path: PathBuf,
        /// What is different.
        what: &'static str,
    },
    /// The digest does not fit the key.
    #[error("this is not the data encryption key of {}", path.display())]
    WrongKey {
        /// The path.
        path: PathBuf,
    },
    /// There is something that would be overwritten.
    #[error("{} holds {found}", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
        /// What, and where.
        found: Occupant,
    },
    /// The wishes of the caller contradict each other or the format.
    #[error("{0}")]
    Options(String),
    /// No volume can have that size.
    #[error("{why}")]
    Size {
        /// Why.
        why: String,
        /// What could be said instead.
        next: String,
    },
    /// Space for an ephemeral disk cannot be had there.
    #[error("{why}")]
    Place {
        /// Why.
        why: String,
        /// What to name instead.
        next: String,
    },
    /// Not enough room on a device.
    #[error("{} has {}, and {} are needed", path.display(), Bytes(*actual), Bytes(*needed))]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// Bytes there are.
        actual: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// A header backup that does not fit the volume.
    #[error("the backup {} does not belong here: {why}", path.display())]
    WrongBackup {
        /// The path of the backup.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It cannot be done while the data is being re-encrypted.
    #[error(
        "cannot {what} {} now: it is being {} since {}",
        path.display(), rekey.doing(), rekey.since
    )]
    UnderWay {
        /// The path.
        path: PathBuf,
        /// What was asked for, as in "cannot … PATH now".
        what: &'static str,
        /// What is under way.
        rekey: Rekey,
    },
    /// Something is to be ended that is not under way.
    #[error("{} is not being re-encrypted", path.display())]
    NothingUnderWay {
        /// The path.
        path: PathBuf,
    },
    /// The volume is as it is now no subject of such an operation.
    #[error("the data of {} cannot be re-encrypted in place: {why}", path.display())]
    CannotBegin {
        /// The path.
        path: PathBuf,
        /// Why not.
        why: String,
        /// What to do about it.
        next: String,
    },
    /// The header is that of a volume which is encrypted no more.
    #[error(
        "{} says that its data has been plain since {since}: it opens nothing any more",
        path.display()
    )]
    Plain {
        /// The path of the header.
        path: PathBuf,
        /// Since when.
        since: Timestamp,
        /// Where the data starts in the data file.
        data_offset: u64,
    },
    /// A header beside the one that the volume has, and of another time.
    #[error(
        "{} is a header of the same volume as {}, and of another time: the key, or what is under \
         way, is another one there",
        path.display(), data.display()
    )]
    StaleHeader {
        /// The path of the header.
        path: PathBuf,
        /// The path of the volume, which has one of its own.
        data: PathBuf,
    },
    /// Nobody has it open any more, and something is in flight all the same.
    #[error("what a process that has ended was writing to {} is still on its way", .0.display())]
    Dying(PathBuf),
    /// Its guest was moved to another host, or is to come from one.
    #[error("{path} is not this host's: {}", match .standing {
        Standing::Moved => "its guest was moved to another one",
        _ => "its guest has not come from another one yet",
    })]
    Elsewhere {
        /// The path.
        path: PathBuf,
        /// Which of the two.
        standing: Standing,
    },
    /// No random numbers.
    #[error("the kernel's random number generator failed")]
    Random(#[source] io::Error),
}

fn holder(by: Option<u32>) -> String {
    by.map_or("".into(), |pid| format!(" by process {pid}"))
}

fn instead(found: &Option<Occupant>) -> String {
    found
        .as_ref()
        .map_or("".into(), |found| format!(", but {found}"))
}

impl Error {
    /// A failed open or create.
    pub(crate) fn opening(what: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Open {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// A failed system call on an open file.
    pub(crate) fn io(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Error::Io {
            what,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// A header that was read and cannot be used.
    pub(crate) fn header(path: &Path, fault: Fault) -> Self {
        Error::Header {
            path: path.to_owned(),
            fault,
        }
    }
}
