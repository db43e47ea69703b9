//! Why the data of a disk cannot be moved, or the move not be ended.

use crate::error::{Explain, Kind};
use crate::units::SectorSize;

/// Why a disk does not get, or lose, a second way to store its data.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It has two already.
    #[error("the data of this disk is being moved already")]
    UnderWay,
    /// It has only one.
    #[error("the data of this disk is not being moved")]
    NothingMoves,
    /// There is no data any more.
    #[error("the contents of this disk are lost: there is nothing to move")]
    Lost,
    /// Units of another size.
    #[error("the disk has sectors of {disk} bytes, and the new data would have sectors of {new}")]
    SectorSize {
        /// What requests are checked against.
        disk: SectorSize,
        /// What was asked for.
        new: SectorSize,
    },
    /// The guest gives space back, and the new data cannot have holes.
    #[error("the guest may give space back, which the new data cannot show: it has no zero units")]
    Discard,
    /// There is no such place.
    #[error("{boundary} is no boundary between sectors of a disk of {size} bytes")]
    Boundary {
        /// What was asked for.
        boundary: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// It is served already, and its first part is not what it was served as.
    #[error("a part of the data was moved before this disk was served, and it was not said then")]
    Served,
    /// A region is closed.
    #[error("a region of the disk is being moved")]
    NotAtRest,
    /// A part is in the one way, and a part in the other.
    #[error("the data is moved up to byte {boundary} of {size}")]
    HalfWay {
        /// How far.
        boundary: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::UnderWay | Error::NotAtRest | Error::HalfWay { .. } => Kind::Busy,
            Error::NothingMoves | Error::Lost | Error::Discard => Kind::Refused,
            Error::SectorSize { .. } => Kind::Usage,
            Error::Boundary { .. } => Kind::Corrupt,
            Error::Served => Kind::Internal,
        }
    }

    fn help(&self) -> Option<String> {
        Some(
            match self {
                Error::UnderWay => "wait until it is done, or finish it back to the old key",
                Error::NothingMoves => "begin it first",
                Error::Lost => "restore the volume from a backup",
                Error::SectorSize { .. } => "ask for the sector size that the disk has",
                Error::Discard => {
                    "create the volume with --zero-units, or attach the disk without discard"
                }
                Error::Boundary { .. } => "the header does not belong to this data",
                Error::Served => "detach the disk, and attach it anew",
                Error::NotAtRest => "pause first",
                Error::HalfWay { .. } => "let it run to its end, or back to its beginning",
            }
            .into(),
        )
    }
}
