//! The vhost-user side: the socket, the session with a front end, and the
//! memory that the front end shares.
//!
//! What enters: messages of a front end, which may be hostile, with file
//! descriptors. What leaves: rings that are ready to run, handed to `engine`.
//! Nothing here touches the data of requests.
//!
//! Source: the vhost-user protocol specification of QEMU
//! (<https://www.qemu.org/docs/master/interop/vhost-user.html>).

mod bus_error;
mod claims;
mod crowd;
mod events;
mod handover;
mod inflight;
mod listener;
mod log;
mod memory;
mod notices;
mod rest;
mod ring;
mod server;
mod session;

pub use bus_error::explain_bus_errors;
pub use claims::{Claims, Settled};
pub use handover::{Exported, Facts, HAND_OVER};
pub use listener::{Error as ListenerError, Listener, SocketFile, SocketParams};
pub use notices::{Notices, Sent};
pub use rest::{After, Handed, Rest};
pub use ring::RingFacts;
pub use server::{Ended, Server, Stopper};
