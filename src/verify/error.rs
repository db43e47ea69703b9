//! Why nothing could be found out.

use std::io;
use std::path::{Path, PathBuf};

use crate::crypt;
use crate::error::{Explain, Kind, io_kind};
use crate::volume;

/// A verification that came to no report, a report that does not check, or a
/// key that is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or block device.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The files of the volume cannot be opened.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// There is no cipher.
    #[error(transparent)]
    Cipher(#[from] crypt::Error),
    /// Whoever asked has gone, or the process ends.
    #[error("the verification was stopped before its end")]
    Stopped,
    /// There are no random bytes, or no threads.
    #[error("{what}")]
    System {
        /// What was not possible.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A defect of sealblk.
    #[error("a part of the verification ended early")]
    Internal,
    /// There is no host key.
    #[error("there is no host key {}", path.display())]
    NoHostKey {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The host key cannot be read or made.
    #[error("cannot {what} the host key {}: {why}", path.display())]
    HostKey {
        /// `read` or `make`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What kind of failure it is.
        kind: Kind,
        /// Why.
        why: String,
    },
    /// Not a public key.
    #[error("{0:?} is not an Ed25519 public key")]
    NoPublicKey(String),
    /// Not a signed report.
    #[error("it is not a signed report: {0}")]
    NotSigned(String),
    /// Signed by somebody else.
    #[error("it was signed with another key than {expected}: with one that calls itself {found:?}")]
    OtherKey {
        /// The key that it should be signed with.
        expected: String,
        /// The key that the report names.
        found: String,
    },
    /// The signature is not that of these bytes.
    #[error("its signature is wrong: it was changed after it was signed, or is a forgery")]
    Forged,
}

impl Error {
    pub(super) fn read(path: &Path, source: impl Into<io::Error>) -> Self {
        Error::Read {
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Read { source, .. } | Error::System { source, .. } => io_kind(source),
            Error::Volume(source) => source.kind(),
            Error::Cipher(source) => source.kind(),
            Error::Stopped => Kind::Busy,
            Error::Internal => Kind::Internal,
            Error::NoHostKey { .. } => Kind::NotFound,
            Error::HostKey { kind, .. } => *kind,
            Error::NoPublicKey(_) => Kind::Usage,
            Error::NotSigned(_) | Error::Forged => Kind::Corrupt,
            Error::OtherKey { .. } => Kind::Key,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Read { path, .. } => format!(
                "check what {} lies on: the kernel log (`dmesg`) may say more",
                path.display()
            ),
            Error::Volume(source) => return source.help(),
            Error::Cipher(source) => return source.help(),
            Error::Stopped => "start it again, and let it end; --sample takes less time".into(),
            Error::System { .. } => "check the limits of the process (`ulimit -a`)".into(),
            Error::Internal => "report this as a bug".into(),
            Error::NoHostKey { .. } => {
                "make one, once per host, as root: sealblk report make-key; then give its public \
                 half (sealblk report show-key) to those who check reports"
                    .into()
            }
            Error::HostKey { .. } => {
                "give the user that runs sealblk a file of mode 0600 with an Ed25519 key in PEM: \
                 sealblk report make-key makes it"
                    .into()
            }
            Error::NoPublicKey(_) => "name the file that `sealblk report show-key` wrote on the \
                 host, or give the 64 hexadecimal digits that it shows"
                .into(),
            Error::NotSigned(_) => {
                "name what `sealblk verify --sign` wrote, the whole of it".into()
            }
            Error::OtherKey { .. } => "check it with the key of the host that it is said to come \
                 from, as that host's administrator gives it"
                .into(),
            Error::Forged => "believe nothing of it, and have a new one made".into(),
        })
    }
}
