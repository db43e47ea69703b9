//! The manager (`sealblk daemon`): the control plane of a host.
//!
//! It holds the credentials of the key services and answers the API; each disk
//! is a process of its own. [`model`] is what goes over the API, [`api`] the
//! HTTP server, [`roles`] and [`peer`] say who may do what, [`services`] what
//! the API stands on, [`control`] and [`run()`] the life of the manager itself,
//! [`client`] the other end. Nothing here touches a guest's memory or data.

pub mod api;
pub mod client;
pub mod control;
pub mod key_sets;
pub mod model;
pub mod peer;
mod recorder;
pub mod roles;
mod run;
pub mod services;
pub mod socket;
mod wiring;

pub use run::{Setup, run};
