//! The socket of the plugin. Whoever listens there gets keys to encrypt, so it
//! has to belong to somebody who is trusted with them.

use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use tokio::net::UnixStream;

use crate::error::{Kind, io_kind};
use crate::kms::{Class, Error};

/// A unix socket, and whose it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    path: PathBuf,
    /// Who may have it besides root and who runs this.
    owner: Option<u32>,
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Socket {
    pub(super) fn new(path: PathBuf, owner: Option<u32>) -> Self {
        Socket { path, owner }
    }

    /// A connection to the plugin.
    pub(super) async fn connect(&self) -> Result<UnixStream, Error> {
        self.check()?;
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.unreachable(&error))?;
        // The file that was looked at may have been replaced since.
        let peer = stream
            .peer_cred()
            .map_err(|error| self.unreachable(&error))?;
        if !self.is_trusted(peer.uid()) {
            return Err(self.unsafe_for(&format!(
                "user {} listens there, and must be {}",
                peer.uid(),
                self.trusted()
            )));
        }
        Ok(stream)
    }

    fn check(&self) -> Result<(), Error> {
        // Links are followed: what they lead to is looked at.
        let meta = std::fs::metadata(&self.path).map_err(|error| self.unreachable(&error))?;
        if !meta.file_type().is_socket() {
            return Err(self.unsafe_for("it is not a socket"));
        }
        let mode = meta.mode() & 0o7777;
        if mode & 0o002 != 0 {
            return Err(self.unsafe_for(&format!(
                "its mode is {mode:04o}: everybody can use the key"
            )));
        }
        if !self.is_trusted(meta.uid()) {
            return Err(self.unsafe_for(&format!(
                "its owner is user {}, and must be {}",
                meta.uid(),
                self.trusted()
            )));
        }
        Ok(())
    }

    fn is_trusted(&self, uid: u32) -> bool {
        uid == 0 || uid == rustix::process::geteuid().as_raw() || self.owner == Some(uid)
    }

    fn trusted(&self) -> String {
        let us = rustix::process::geteuid().as_raw();
        match self.owner {
            Some(owner) => {
                format!("user {owner} (the plugin's), user {us} (who runs this) or root")
            }
            None => format!("user {us} (who runs this) or root"),
        }
    }

    fn unsafe_for(&self, why: &str) -> Error {
        Error::new(
            Class::Unreachable,
            format!("the socket {self} of the KMS plugin is not safe to use: {why}"),
            "correct it; for a plugin with a user of its own, name its number: plugin_user = N",
        )
        .with_kind(Kind::Permission)
    }

    fn unreachable(&self, error: &io::Error) -> Error {
        let (cause, kind) = match error.kind() {
            io::ErrorKind::NotFound => (format!("there is no socket {self}"), Kind::Unreachable),
            io::ErrorKind::ConnectionRefused => (
                format!("no KMS plugin listens at {self}"),
                Kind::Unreachable,
            ),
            _ => (
                format!("the KMS plugin at {self} cannot be reached"),
                io_kind(error),
            ),
        };
        Error::new(
            Class::Unreachable,
            cause,
            "start the plugin, or correct endpoint in the configuration",
        )
        .with_kind(kind)
        .with_words(&error.to_string())
    }
}
