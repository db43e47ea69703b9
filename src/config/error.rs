//! What can be wrong with a configuration.

use std::io;
use std::path::PathBuf;

use crate::error::{Explain, Kind, io_kind};
use crate::paths;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The named file is not there.
    #[error("configuration file {} does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Everybody may write the file.
    #[error("configuration file {} can be written by everybody", path.display())]
    WorldWritable {
        /// The file.
        path: PathBuf,
    },
    /// Something in the file is not as it must be.
    #[error("{}:{line}:{column}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column, from 1, in characters.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// Two settings that exclude each other, or one that cannot be met.
    #[error("{message}")]
    Contradiction {
        /// What does not go together.
        message: String,
        /// What to do.
        next: String,
    },
}

impl Error {
    pub(super) fn contradiction(message: impl Into<String>, next: impl Into<String>) -> Self {
        Error::Contradiction {
            message: message.into(),
            next: next.into(),
        }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Missing { .. } => Kind::NotFound,
            Error::Read { source, .. } => io_kind(source),
            Error::WorldWritable { .. } => Kind::Permission,
            Error::File { .. } | Error::Contradiction { .. } => Kind::Usage,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Missing { .. } => {
                "name an existing file with --config, or leave --config out".into()
            }
            Error::Read { path, source } => {
                match (paths::Unsafe::of(source), paths::Refused::of(source)) {
                    (Some(paths::Unsafe::Owner { us, .. }), _) => {
                        format!("chown {us} {}, when you have read it", path.display())
                    }
                    (Some(_), _) => "name a regular file".into(),
                    (_, Some(refused)) => refused.next().into(),
                    (None, None) => "check the path and its permissions".into(),
                }
            }
            Error::WorldWritable { path } => format!("chmod o-w {}", path.display()),
            Error::File { path, line, .. } => {
                format!("correct line {line} of {}", path.display())
            }
            Error::Contradiction { next, .. } => next.clone(),
        })
    }
}
