//! The volume room: a file or block device in the on-disk format.
//!
//! A volume is a LUKS2 device without passphrase keyslots, whose token of
//! type `sealblk` holds its wrapped data encryption key (`docs/format.md`).
//! This room makes volumes, opens and locks them, and rewrites their headers
//! so that a crash at any instant loses nothing. It never unwraps a key and
//! knows no key management: keys go past it as wrapped bytes, except for the
//! digest, which proves a key right.

mod backup;
pub(crate) mod base64_text;
mod beside;
pub mod binding;
mod create;
mod description;
mod device;
mod devices;
mod erase;
mod error;
mod help;
mod inspect;
mod io_marks;
mod lock;
pub mod luks2;
mod occupied;
mod open;
mod options;
mod plain;
mod rekey;
mod resize;
pub mod scratch;
mod signatures;
pub mod tenure;
pub mod token;
mod traces;
mod undo;

pub use backup::{Restored, backup, description_of_backup, restore};
pub use beside::clear_unfinished;
pub use binding::Binding;
pub use create::{Fill, Plan};
pub use description::{Description, Layout};
pub use device::Access;
pub use devices::Location;
pub use error::Error;
pub(crate) use help::plain_help;
pub use inspect::Inspection;
pub use io_marks::{await_quiet, mark_io, mark_mover};
pub use occupied::{Bare, Occupant, Searched, next_data_of};
pub use open::{Files, Volume};
pub use options::{CreateOptions, DEFAULT_HEADER_AREA};
pub use plain::PlainPlan;
pub use resize::{Loss, check_size};
pub use tenure::{Standing, Tenure};
pub use token::{Bound, Erased, Group, Plain, Rekey, Token, TokenError, Wrap};
