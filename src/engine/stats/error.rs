//! Why statistics cannot be shared.
#![forbid(unsafe_code)]

use std::io;

use crate::error::{Explain, Kind, io_kind};

/// Why the memory of statistics cannot be had or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gives no memory.
    #[error("cannot {what} the memory for statistics")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The descriptor is something else than a sealed memfd.
    #[error("the descriptor for statistics is not sealed memory: {0}")]
    Unsafe(&'static str),
    /// It is memory, but its contents are not as this version has them.
    #[error("the memory for statistics is not laid out as here: {0}")]
    Layout(&'static str),
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::System { source, .. } => io_kind(source),
            Error::Unsafe(_) => Kind::Internal,
            Error::Layout(_) => Kind::Unsupported,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::System { .. } => {
                "check the limits of the process (`ulimit -a`) and the free memory".into()
            }
            Error::Unsafe(_) => "detach the disk and attach it anew; if it was another process \
                 than sealblk that made this, find out which"
                .into(),
            Error::Layout(_) => "the disk works, but its statistics come from another version of \
                 sealblk: detach it and attach it anew when that suits"
                .into(),
        })
    }
}
