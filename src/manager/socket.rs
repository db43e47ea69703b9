//! The socket that the API is served on: made by us, or handed over by
//! systemd.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::config::daemon::{DEFAULT_GROUP, Daemon};
use crate::config::{Group, SocketMode};
use crate::error::{Explain, Kind, io_kind};
use crate::vhost::{Listener, ListenerError, SocketParams};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody accepts connections there.
    #[error("another daemon answers at {}", .0.display())]
    Running(PathBuf),
    /// The socket cannot be made.
    #[error(transparent)]
    Listen(ListenerError),
    /// What systemd handed over cannot be used.
    #[error("cannot use the socket that systemd handed over: {why}")]
    Activation {
        /// What is wrong with it.
        why: String,
    },
    /// The operating system refuses.
    #[error("cannot listen at {}", path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Running(_) => Kind::Busy,
            Error::Listen(error) => error.kind(),
            Error::Activation { .. } => Kind::Usage,
            Error::System { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Running(_) => "one daemon serves all disks of a host: use it, or stop it first (`systemctl stop sealblk`); a second one needs a socket, a state_dir and a run_dir of its own".into(),
            Error::Listen(ListenerError::NotASocket(_) | ListenerError::TooLong(_)) => {
                "set another socket in [daemon] of the configuration".into()
            }
            Error::Listen(ListenerError::Group { .. }) => {
                "run the daemon as root or as a member of that group, or set another socket_group in [daemon]".into()
            }
            Error::Listen(error) => return error.help(),
            Error::Activation { .. } => {
                "let the socket unit have one ListenStream= with the path of a socket".into()
            }
            Error::System { .. } => "check the limits of the process (`ulimit -a`)".into(),
        })
    }
}

/// The listening socket of the API.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Removes the socket at the end, where it is ours.
    made: Option<Listener>,
}

impl Socket {
    /// The socket that systemd handed over, or else one at the configured path.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(daemon: &Daemon) -> Result<Self, Error> {
        match inherited()? {
            Some(fd) => {
                let mut socket = Self::activated(fd)?;
                // That of the program before this one, in the same process.
                if super::replace::owns_socket() {
                    let made = socket
                        .listener
                        .try_clone()
                        .and_then(|listener| Listener::of(listener, socket.path.clone()));
                    socket.made = made.ok();
                }
                Ok(socket)
            }
            None => Self::bind(daemon),
        }
    }

    fn bind(daemon: &Daemon) -> Result<Self, Error> {
        let path = &daemon.socket;
        let group = match &daemon.socket_group {
            Some(group) => Some(group.gid),
            None => DEFAULT_GROUP.parse::<Group>().ok().map(|group| group.gid),
        };
        let usual = match group {
            Some(_) => SocketMode::GROUP,
            None => SocketMode::OWNER,
        };
        let mode = daemon.socket_mode.map_or(usual.bits(), |mode| mode.bits());
        let bind = |group| {
            Listener::bind(&SocketParams {
                path: path.clone(),
                mode,
                group,
            })
        };
        let made = match bind(group) {
            // A user who tries it out need not be a member.
            Err(ListenerError::Group { .. }) if daemon.socket_group.is_none() => bind(None),
            other => other,
        }
        .map_err(|error| match error {
            ListenerError::Taken(path) => Error::Running(path),
            error => Error::Listen(error),
        })?;
        let failed = |source: io::Error| Error::System {
            path: path.clone(),
            source,
        };
        rustix::net::listen(&made, BACKLOG).map_err(|errno| failed(errno.into()))?;
        let listener = made.as_fd().try_clone_to_owned().map_err(failed)?.into();
        Ok(Socket {
            listener,
            path: path.clone(),
            made: Some(made),
        })
    }

    fn activated(fd: OwnedFd) -> Result<Self, Error> {
        let unusable = |why: &str| Error::Activation { why: why.into() };
        let listens = rustix::net::sockopt::socket_acceptconn(&fd)
            .map_err(|_| unusable("it is not a socket"))?;
        let kind = rustix::net::sockopt::socket_type(&fd);
        if !listens || kind != Ok(rustix::net::SocketType::STREAM) {
            return Err(unusable("it does not listen for connections"));
        }
        let listener = UnixListener::from(fd);
        let path = match listener.local_addr() {
            Ok(address) => address.as_pathname().map(Path::to_owned),
            Err(_) => return Err(unusable("it is not a unix socket")),
        };
        Ok(Socket {
            listener,
            path: path.ok_or_else(|| unusable("it has no path"))?,
            made: None,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether systemd made it.
    pub fn is_inherited(&self) -> bool {
        self.made.is_none()
    }

    /// For the program that this process is next, and whether that is to remove it.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn pass_on(self) -> io::Result<(OwnedFd, bool)> {
        let ours = self.made.is_some();
        if let Some(made) = self.made {
            // It stays where it is.
            made.release()?;
        }
        Ok((self.listener.into(), ours))
    }

    /// The same socket, to accept connections from.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// What systemd handed over, if it did.
fn inherited() -> Result<Option<OwnedFd>, Error> {
    let unusable = |why: String| Error::Activation { why };
    let mut fds = sd_notify::listen_fds().map_err(|error| unusable(error.to_string()))?;
    match (fds.next(), fds.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(unusable("there are several".into())),
        (Some(fd), None) => {
            // SAFETY: systemd says in our environment that it opened this
            // descriptor for us, and `listen_fds` has just set a flag on it, so
            // that it is open. Nothing else in this program takes such
            // descriptors, and this runs once, when the manager starts.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            debug_assert!(fd.as_raw_fd() > 2);
            Ok(Some(fd))
        }
    }
}
