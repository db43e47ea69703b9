//! The volume room: a file or block device in the on-disk format.
//!
//! A volume is a LUKS2 device without passphrase keyslots, whose token of
//! type `sealblk` holds its wrapped data encryption key (`docs/format.md`).
//! This room makes volumes, opens and locks them, and rewrites their headers
//! so that a crash at any instant loses nothing. It never unwraps a key and
//! knows no key management: keys go past it as wrapped bytes, except for the
//! digest, which proves a key right.

pub mod binding;
pub mod token;

pub use binding::Binding;
pub use token::{Bound, Token, TokenError, Wrap};
