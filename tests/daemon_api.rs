//! The manager's API as a running `sealblk daemon` serves it: it answers as
//! its description says, to those alone who may ask; no client keeps others
//! out; it starts, reads its configuration again, and ends as it should.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "daemon_api/commands.rs"]
mod commands;
#[path = "daemon_api/hostile.rs"]
mod hostile;
#[path = "daemon_api/installed.rs"]
mod installed;
#[path = "daemon_api/key_sets.rs"]
mod key_sets;
#[path = "daemon_api/lifecycle.rs"]
mod lifecycle;
#[path = "daemon_api/local.rs"]
mod local;
#[path = "daemon_api/reload.rs"]
mod reload;
#[path = "daemon_api/roles.rs"]
mod roles;
#[path = "daemon_api/schema.rs"]
mod schema;
#[path = "daemon_api/upgrade.rs"]
mod upgrade;
#[path = "daemon_api/walls.rs"]
mod walls;

#[path = "support/inject.rs"]
#[allow(dead_code)]
mod inject;

mod support;
