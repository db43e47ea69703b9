//! Re-encrypting the data of a volume in place: from one key to another, from
//! plain to encrypted, or back, while a guest uses it, so that a crash at any
//! instant loses nothing (`docs/rekey.md`, which has the format of the journal,
//! the order of all writes, and why it holds).
//!
//! What enters: opened files behind [`Medium`], two ready transforms, derived keys,
//! and something that keeps guests out of a region ([`Fence`]). Nothing here
//! knows key services, the LUKS2 header, guests or the manager.
#![forbid(unsafe_code)]

mod medium;

pub use medium::Medium;

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

/// Keeps guests out of the region that is being moved, and knows which state a
/// unit is in. Positions are bytes of the disk; a region is next to the
/// boundary, above it when going forward and below it when going back.
///
/// The engine has one for disks that are served; nobody is there to be kept out
/// when a volume is moved offline.
pub trait Fence: Sync {
    /// Lets requests wait that would write to the `bytes` next to the boundary,
    /// and returns when none is in flight that does. What is closed already
    /// stays so: `bytes` counts from the boundary. False: this is not to go on
    /// now (the disk is frozen, held or being stopped), and nothing has changed.
    fn close_for_writing(&self, direction: Direction, bytes: u64) -> bool;

    /// The same for requests that would read from there.
    fn close_for_reading(&self, direction: Direction, bytes: u64) -> bool;

    /// The `bytes` next to the boundary were moved: the boundary is on their
    /// other side from now on, and they are open. What was closed beyond them
    /// stays closed for writing.
    fn advance(&self, direction: Direction, bytes: u64);

    /// Opens everything; the boundary stays where it is.
    fn open(&self);

    /// The longest time that a request had to wait since this was asked last,
    /// in microseconds.
    fn longest_wait(&self) -> u64;
}
