//! The manager (`sealblk daemon`): the control plane of a host.
//!
//! It holds the credentials of the key services and answers the API; each disk
//! is a process of its own. [`model`] is what goes over the API, [`api`] the
//! HTTP server, [`roles`] and [`peer`] say who may do what, [`services`] what
//! the API stands on, [`control`] and [`run()`] the life of the manager itself,
//! [`client`] the other end. [`disks`] is who is attached: `supervise` looks after
//! each, `state` keeps what shall be attached, `worker_process` starts and finds
//! the processes, `access` is whether their keys may be used. Workers go on without a manager, and the next one finds them.
//! Nothing here touches a guest's memory, or its data but to verify that it is
//! encrypted (`verifier`).

mod access;
mod adopt;
pub mod api;
pub mod client;
pub mod control;
mod directory;
pub mod disks;
mod erase;
mod held;
pub mod key_sets;
pub mod link;
pub mod model;
pub mod peer;
mod poll;
mod recorder;
mod replace;
pub mod roles;
mod rotation;
mod run;
pub mod services;
pub mod socket;
mod state;
mod supervise;
pub mod verifier;
pub(crate) mod walls;
mod watched;
mod wiring;
mod worker_process;
pub mod wraps;

pub use replace::Probe;
pub use run::{Setup, run};
