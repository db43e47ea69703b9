//! Re-encrypting the data of a volume in place: from one key to another, from
//! plain to encrypted, or back, while a guest uses it, so that a crash at any
//! instant loses nothing (`docs/rekey.md`, which has the format of the journal,
//! the order of all writes, and why it holds).
//!
//! What enters: opened files behind [`Medium`], two ready transforms, derived keys,
//! and something that keeps guests out of a region ([`Fence`]). Nothing here
//! knows key services, the LUKS2 header, guests or the manager.
#![forbid(unsafe_code)]

mod buffer;
#[cfg(test)]
mod edits;
mod error;
mod fence;
#[cfg(test)]
mod files;
mod geometry;
mod handle;
mod journal;
mod keys;
mod medium;
mod mover;
mod pace;
mod parts;
mod record;
mod recover;
mod region;
mod rules;
#[cfg(test)]
mod sim;

pub use buffer::Buffer;
pub use error::Error;
pub use fence::{Alone, Fence};
pub use geometry::{Geometry, Transforms};
pub use handle::{Handle, Pace, Phase, Progress};
pub use journal::Journal;
pub use keys::{Keys, PREVIOUS_BYTES, SectorTag, TAG_BYTES, open_previous, seal_previous};
pub use medium::Medium;
pub use mover::{Mover, Options, Outcome};
pub use parts::over;
pub use record::State;
pub use recover::recover;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What is done to the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// From one key to another.
    Rekey,
    /// From plain to encrypted.
    Encrypt,
    /// From encrypted to plain.
    Decrypt,
}

impl Kind {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Rekey => "rekey",
            Kind::Encrypt => "encrypt",
            Kind::Decrypt => "decrypt",
        }
    }
}

/// Which way the boundary goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Up: old becomes new.
    #[default]
    Forward,
    /// Down: new becomes old again.
    Back,
}

/// What the keys of an operation are derived from, beside the two DEKs: a
/// header in which any of it was edited derives other keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The operation.
    pub id: Uuid,
    /// What it does.
    pub kind: Kind,
    /// What the wraps of the volume are bound to (`volume::Binding::bytes`).
    pub binding: Vec<u8>,
    /// Where the data starts in the data file, in bytes.
    pub data_offset: u64,
    /// How long the data is, in bytes.
    pub size: u64,
}

/// How far an operation is, as it is at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which way it goes on.
    pub direction: Direction,
    /// Units below this byte of the disk are new, the others old.
    pub boundary: u64,
}

/// The unit of tags and of what a device writes whole or not at all, in bytes.
const SECTOR: usize = 512;
