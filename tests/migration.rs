//! A guest moves to another host while it runs: its front end learns of every page
//! that was written, one host at a time has the volume, and none of what the guest
//! wrote is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "migration/dirty.rs"]
mod dirty;
#[path = "migration/log.rs"]
mod log;
#[path = "migration/serve.rs"]
mod serve;

mod support;
