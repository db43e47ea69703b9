//! The audit log: one line for each use of a key, each bound to the one before.
//!
//! What is recorded is who used which key for what, and how it ended. A line
//! is on disk before the key is handed out, and a key whose use cannot be
//! recorded is not handed out. `docs/audit.md` has the format.
//!
//! - [`Log`] appends. Several processes may have one log.
//! - [`verify()`] reads it all again and tells whether anything was changed.
//! - [`Files`] is what there is to be read: the log and its rotated files.
//!
//! Nothing in here knows providers, volumes or the manager; they hand in an
//! [`Event`]. No key material comes in: no type of this room could hold it.
#![forbid(unsafe_code)]

mod chain;
mod error;
mod event;
mod files;
mod head;
mod line;
mod log;
mod outcome;
mod place;
mod record;
mod resume;
mod text;
mod verify;
mod witness;
mod writer;

pub use error::{Cause, Error};
pub use event::{Event, KeyEvent, RekeyEvent, RotationEvent};
pub use files::{Files, Segment, last};
pub use head::Head;
pub use line::{Hash, LINE_MAX, Line, TornBytes, Unsound};
pub use log::Log;
pub use outcome::Outcome;
pub use record::Record;
pub use verify::{Expect, Problem, Report, Torn, verify};

use std::path::PathBuf;

/// Where the log is, unless configured otherwise.
pub const DEFAULT_PATH: &str = "/var/log/sealblk/audit.jsonl";

/// A file is closed and the next one begun when it would grow beyond this.
pub const DEFAULT_MAX_SIZE: u64 = 64 << 20;

/// Where to keep the log, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file that is written; rotated ones are beside it.
    pub path: PathBuf,
    /// How many bytes it may have before it is rotated.
    pub max_size: u64,
    /// How many rotated files to keep; `None` keeps all.
    pub keep: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            path: DEFAULT_PATH.into(),
            max_size: DEFAULT_MAX_SIZE,
            keep: None,
        }
    }
}
