//! A simulator of crashes and power losses, under the real mover and the real
//! recovery: what `docs/rekey.md` claims, tried at every write and sync.
//!
//! Faults: the process is killed (caches stay, and stay volatile); the power
//! fails (of each sector of 512 bytes anything is left that was written since the
//! last sync of its device, or what was durable before); in recovery again, as
//! often as one likes; one record is damaged while nothing else is being
//! written; a write or a sync fails. A guest reads, writes, discards and flushes
//! in between, mostly where data is being moved. Seeds are printed.

mod case;
mod guest;
mod machine;
mod tests;
mod world;

use crate::{platter as disk, random};
