//! The provider `broker`: another sealblk asks the key service for us.
//!
//! This room has both ends' words: what is said ([`protocol`]), how it is
//! sealed from one end to the other ([`seal`]), and the key files of both
//! ([`keyfile`]). It knows nothing of disks, and nothing of policy: who may
//! have what is decided by the broker alone. `docs/broker-protocol.md` has
//! the protocol byte for byte.

pub mod keyfile;
pub mod protocol;
pub mod seal;
mod text;
