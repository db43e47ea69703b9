//! Paths that other users of the host may have a hand in.
//!
//! Whoever can write to a directory decides what the names in it mean, and can
//! change that at any moment. So nothing here looks at a path and then uses it:
//! what a path means is found out once, as a descriptor, and everything else is
//! asked of that.
//!
//! What may enter: finding, opening and making files, and who can change what a
//! path means. What may not: what is in the files, and what they are for.
#![forbid(unsafe_code)]

mod firm;
mod found;
mod text;

pub use firm::{Loose, firm};
pub use found::{Found, Refused, create_new, find, open_directory};
pub use text::{Unsafe, read_own};
