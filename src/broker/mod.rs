//! `sealblk broker`: wraps and unwraps for hosts that hold no credential of a
//! key service (`docs/broker.md`).
//!
//! What enters: connections with TLS, of hosts that show a certificate; their
//! calls, encrypted to the broker's own key. What leaves: answers, encrypted
//! to the key of the host. Between the two a policy decides, [`KeySets`] do the
//! work, and the audit log is written before anybody gets anything.
//!
//! - `listener`: connections: how many, how long, with which certificates,
//! - `service`: the three things that can be asked for over HTTP,
//! - `calls`: one call, from its ciphertext to that of its answer,
//! - `identity`: whose certificate it is; `policy`: who may do what,
//! - `challenge`: that no call is taken twice,
//! - `wrapped`: what hosts are given to keep,
//! - `recorder`: the audit log; `state`: all that a running broker has, and
//!   what it reads again,
//! - `check`: tries a configuration without serving it.
//!
//! Nothing in here knows a volume but by the name that the bytes have to which
//! its key is bound. What a host says is believed when its key has sealed it
//! and its certificate is that of the host.
//!
//! [`KeySets`]: crate::keys::KeySets
#![forbid(unsafe_code)]

mod calls;
mod challenge;
mod check;
mod identity;
mod listener;
pub mod policy;
mod recorder;
mod run;
mod service;
mod state;
pub mod wrapped;

pub use check::examine;
pub use run::{Load, Setup, run, settings};
