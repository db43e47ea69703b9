//! Why an image cannot be copied.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use crate::error::{Explain, Kind, io_kind};
use crate::volume;

/// Why an image cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] volume::Error),
    /// Somebody writes to it.
    #[error("{} is in use", path.display())]
    Busy {
        /// The image.
        path: PathBuf,
    },
    /// It may be of a format, and nobody has said so.
    #[error("{} looks like {what}", path.display())]
    Ambiguous {
        /// The image.
        path: PathBuf,
        /// What, with its article.
        what: &'static str,
        /// What that format is called.
        format: &'static str,
    },
    /// It is not what somebody said.
    #[error("{} is not an image in the format {format}: {why}", path.display())]
    WrongFormat {
        /// The image.
        path: PathBuf,
        /// The format.
        format: String,
        /// What was found out.
        why: String,
    },
    /// It is not one that can be copied as it is.
    #[error("{} {why}", path.display())]
    Unusable {
        /// The image.
        path: PathBuf,
        /// Why.
        why: String,
        /// The next step.
        next: String,
    },
    /// There is no `qemu-img`.
    #[error("qemu-img, which reads disk images, cannot be run")]
    NoTool(#[source] io::Error),
    /// It failed.
    #[error("qemu-img cannot read {}: {told}", path.display())]
    Tool {
        /// The image.
        path: PathBuf,
        /// In its own words.
        told: String,
    },
    /// It cannot be talked to.
    #[error("cannot {what}")]
    Talk {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The volume cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The volume.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Open(source) => source.kind(),
            Error::Busy { .. } => Kind::Busy,
            Error::Ambiguous { .. } => Kind::Refused,
            Error::WrongFormat { .. } | Error::Unusable { .. } => Kind::Usage,
            Error::NoTool(source) => io_kind(source),
            Error::Tool { .. } => Kind::Io,
            Error::Talk { source, .. }
            | Error::Read { source, .. }
            | Error::Write { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Open(source) => return source.help(),
            Error::Busy { .. } => {
                "shut its guest down first, or import a snapshot of it: what is written \
                 meanwhile would be missing"
                    .into()
            }
            Error::Ambiguous { format, .. } => format!(
                "say --format {format} if that is what it is, or --format raw if its guest reads \
                 these bytes"
            ),
            Error::WrongFormat { .. } => {
                "say its format with --format: `qemu-img info` may know it".into()
            }
            Error::Unusable { next, .. } => next.clone(),
            Error::NoTool(_) => {
                "install it (Debian, Ubuntu: package qemu-utils; Fedora, RHEL: qemu-img; SUSE: \
                 qemu-img or qemu-tools), or convert the image elsewhere and import it with \
                 --format raw"
                    .into()
            }
            Error::Tool { path, .. } => format!("try `qemu-img check {}`", path.display()),
            Error::Talk { .. } => "check the limits of the process (`ulimit -a`), and that the \
                 directory for temporary files is writable"
                .into(),
            Error::Read { path, .. } | Error::Write { path, .. } => format!(
                "check what {} lies on: the kernel log (`dmesg`) may say more",
                path.display()
            ),
        })
    }
}
