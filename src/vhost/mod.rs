//! The vhost-user side: the socket, the session with a front end, and the
//! memory that the front end shares.
//!
//! What enters: messages of a front end, which may be hostile, with file
//! descriptors. What leaves: rings that are ready to run, handed to `engine`.
//! Nothing here touches the data of requests.
//!
//! Source: the vhost-user protocol specification of QEMU
//! (<https://www.qemu.org/docs/master/interop/vhost-user.html>).

mod inflight;
mod listener;
mod memory;
mod notices;
mod ring;
mod server;
mod session;

pub use listener::{Error as ListenerError, Listener, SocketFile, SocketParams};
pub use notices::{Notices, Sent};
pub use server::{Server, Stopper};
