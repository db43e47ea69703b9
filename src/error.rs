//! What every error of the crate can tell: its kind and the next step.
//!
//! Modules define their own `thiserror` enums for what callers match on, and
//! implement [`Explain`] for them. `main` turns whatever reaches it into a
//! [`Failure`], prints the source chain once, then the help line, and exits
//! with the status of the kind.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The stable classes of failure. Each has its own exit status, and its own
/// name in what the manager answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// A defect of sealblk itself. Exit status 1.
    Internal,
    /// The command line or the configuration is wrong. Exit status 2.
    Usage,
    /// A file, key set or key that was named does not exist. Exit status 3.
    NotFound,
    /// The operating system does not permit it, or a mode or owner is unsafe. Exit status 4.
    Permission,
    /// Somebody else holds the volume or the socket. Exit status 5.
    Busy,
    /// It would destroy something; an explicit flag is needed. Exit status 6.
    Refused,
    /// Stored bytes are damaged, truncated, or have been tampered with. Exit status 7.
    Corrupt,
    /// The key is wrong, denied, or its version is gone. Exit status 8.
    Key,
    /// A key management service, or the manager, does not answer. Exit status 9.
    Unreachable,
    /// Reading or writing failed, or there is no space left. Exit status 10.
    Io,
    /// This kernel, CPU or sealblk version cannot do it. Exit status 11.
    Unsupported,
    /// A disk is not what it was verified to be. Exit status 12.
    Disproved,
    /// It could not be found out whether a disk is what it was verified to be.
    /// Exit status 13.
    Undecided,
}

impl Kind {
    /// Every kind, in the order of the exit statuses.
    pub const ALL: [Kind; 13] = [
        Kind::Internal,
        Kind::Usage,
        Kind::NotFound,
        Kind::Permission,
        Kind::Busy,
        Kind::Refused,
        Kind::Corrupt,
        Kind::Key,
        Kind::Unreachable,
        Kind::Io,
        Kind::Unsupported,
        Kind::Disproved,
        Kind::Undecided,
    ];

    /// The exit status of the process for this kind.
    pub fn exit_status(self) -> u8 {
        match self {
            Kind::Internal => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Permission => 4,
            Kind::Busy => 5,
            Kind::Refused => 6,
            Kind::Corrupt => 7,
            Kind::Key => 8,
            Kind::Unreachable => 9,
            Kind::Io => 10,
            Kind::Unsupported => 11,
            Kind::Disproved => 12,
            Kind::Undecided => 13,
        }
    }
}

/// An error that knows its kind and what the reader can do about it.
pub trait Explain: Error {
    /// The class of the failure.
    fn kind(&self) -> Kind;

    /// The next step, as a sentence without a final full stop. `None` only
    /// where the message already is the next step.
    fn help(&self) -> Option<String> {
        None
    }
}

/// The kind that an I/O error belongs to when nothing more is known of it.
pub fn io_kind(error: &std::io::Error) -> Kind {
    use std::io::ErrorKind as E;
    match error.kind() {
        E::NotFound | E::NotADirectory => Kind::NotFound,
        E::PermissionDenied | E::ReadOnlyFilesystem => Kind::Permission,
        E::AddrInUse | E::ResourceBusy | E::ExecutableFileBusy => Kind::Busy,
        E::Unsupported => Kind::Unsupported,
        _ => Kind::Io,
    }
}

/// What a command ends with: any [`Explain`] error, ready to be printed.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    help: Option<String>,
    source: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// A failure that no module's error type describes.
    pub fn new(kind: Kind, message: impl Into<String>, help: Option<String>) -> Self {
        Failure {
            kind,
            help,
            source: message.into().into(),
        }
    }

    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The next step.
    pub fn help(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

impl<E: Explain + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure {
            kind: error.kind(),
            help: error.help(),
            source: Box::new(error),
        }
    }
}

impl fmt::Display for Failure {
    /// The whole source chain on one line, outermost first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(&*self.source))
    }
}

/// An error with all that caused it, on one line, outermost first.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read header")]
    struct Outer(#[source] std::io::Error);

    impl Explain for Outer {
        fn kind(&self) -> Kind {
            io_kind(&self.0)
        }
        fn help(&self) -> Option<String> {
            Some("check the path".into())
        }
    }

    #[test]
    fn a_failure_keeps_chain_kind_and_help() {
        let outer = Outer(std::io::Error::from(std::io::ErrorKind::NotFound));
        let failure = Failure::from(outer);
        assert_eq!(failure.kind(), Kind::NotFound);
        assert_eq!(failure.help(), Some("check the path"));
        assert_eq!(failure.to_string(), "cannot read header: entity not found");
    }
}
