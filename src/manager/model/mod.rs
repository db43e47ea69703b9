//! What goes over the API, in both directions: of disks, of key sets, of volumes
//! that are not attached, of verifications, and of the manager itself. The names
//! of fields and values are part of the interface: `docs/api.md` has them, and
//! the OpenAPI document is made from these types. Nothing here decides anything.
#![forbid(unsafe_code)]

mod disks;
mod host;
mod key_sets;
mod rekey;
mod upgrade;
mod verification;
mod volumes;

pub use disks::*;
pub use host::*;
pub use key_sets::*;
pub use rekey::*;
pub use upgrade::*;
pub use verification::*;
pub use volumes::*;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Failure, Kind};

/// What went wrong with a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The cause.
    pub message: String,
    /// The next step.
    pub help: Option<String>,
    /// Its class.
    pub kind: Kind,
}

impl From<&Failure> for Problem {
    fn from(failure: &Failure) -> Self {
        Problem {
            message: failure.to_string(),
            help: failure.help().map(str::to_owned),
            kind: failure.kind(),
        }
    }
}
