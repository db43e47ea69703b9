//! A worker process: the data plane of one disk, which a manager started.
//!
//! What enters: one message with the settings of a disk, its opened files, its
//! listening socket and its key. From then on a worker serves front ends, and
//! answers managers: the one that started it, and any that comes after it. It
//! goes on when there is none. It opens no path, reads no configuration, knows
//! no key sets and no network, and has no runtime but threads.
//!
//! [`packet`], [`parcel`] and [`protocol`] are the manager's, too.

mod connection;
mod control;
mod cord;
mod elder;
mod freeze;
mod heir;
mod hygiene;
mod moving;
mod news;
pub mod packet;
pub mod parcel;
mod peer;
mod process;
pub mod protocol;
mod turn;

pub use process::run;
