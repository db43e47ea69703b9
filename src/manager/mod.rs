//! The manager: which disks are attached, each in a worker process of its own.
//!
//! What enters: requests to attach and detach, key sets, and directories for
//! its state and its sockets. It opens volumes, asks for their keys, starts a
//! worker for each, and starts another when one dies. It survives its own end:
//! workers go on without it, and the next manager finds them. It never sees
//! guest data.

mod adopt;
mod directory;
pub mod disks;
mod held;
mod link;
pub mod model;
mod state;
mod supervise;
mod watched;
mod worker_process;
