//! The verify room: proves from its stored bytes that a disk is encrypted, or
//! that it is not, and signs what it found.
//!
//! What enters: files that are read and never written, and, of an encrypted
//! volume, its key as the key sets gave it. What leaves: a [`Report`] of checks,
//! each with its outcome. Nothing here asks a key service, knows managers or
//! disks that are served, or prints.
//!
//! - `shape` tells stored text from noise, unit by unit, with a bound on false
//!   alarms; `special` is the statistics of the whole.
//! - `source` reads, `sample` says which units, `tally` looks at them, `scan`
//!   does so with all cores.
//! - `encrypted` and `plain` make checks of what was seen, for the two things
//!   that a disk can be expected to be.
//! - `report` is the document, `envelope` signs and checks it with a [`HostKey`].
#![forbid(unsafe_code)]

mod encrypted;
mod envelope;
mod error;
mod host_key;
mod plain;
mod repeats;
mod report;
mod run;
mod sample;
mod scan;
mod shape;
mod source;
mod special;
mod tally;
mod tweaks;

pub use envelope::{Envelope, PAYLOAD_TYPE};
pub use error::Error;
pub use host_key::{HostKey, PublicKey};
pub use report::{Check, Expect, Outcome, Report, Requester, Verdict};
pub use run::{Keys, Subject, Wanted, run};
pub use sample::{Extent, Seed};
pub use scan::{Cancel, Means};
