//! Rotation as the manager does it: volumes by its disks, told to its log,
//! audit log and metrics, and carried on in the background.
#![forbid(unsafe_code)]

mod expiry;
mod keeper;
mod reach;
mod teller;

pub use keeper::Keeper;
pub use reach::Reach;
pub use teller::Teller;
