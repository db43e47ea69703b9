//! LUKS2 headers: bytes and JSON, two copies, and how they are rewritten.
//!
//! What the fields mean for a volume is decided one level up, in
//! `super::description`; nothing here knows of tokens or keys, except that
//! a digest proves one. Source: *LUKS2 On-Disk Format Specification*,
//! version 1.1.x; section numbers are given where they rule.

pub mod binary;
pub mod copies;
pub mod digest;
pub mod io;
pub mod metadata;

pub use binary::{Binary, Flaw, Which};
pub use copies::{Found, Header, State};
pub use io::HeaderIo;
pub use metadata::{Metadata, Requirement, Segment};
