//! The socket that front ends connect to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::error::{Explain, Kind, io_kind};
use crate::paths;

/// Front ends that may wait to be accepted. One is served at a time.
const BACKLOG: i32 = 8;

/// How long to wait for others who make a socket in the same directory: they
/// take microseconds, unless they are stopped.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the socket is, and who may connect.
#[derive(Clone, Debug)]
pub struct SocketParams {
    /// The path.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// The group, if not that of the process.
    pub group: Option<u32>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody accepts connections there.
    #[error("another process serves {0}")]
    Taken(PathBuf),
    /// What is there is not a socket.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The path does not fit into a socket address.
    #[error("{0} is too long for a socket: {bytes} bytes, of at most 107", bytes = .0.as_os_str().len())]
    TooLong(PathBuf),
    /// The socket cannot be given to the group.
    #[error("cannot give the socket {path} to group {group}")]
    Group {
        /// The path.
        path: PathBuf,
        /// The number of the group.
        group: u32,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The operating system refuses.
    #[error("cannot make the socket {path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What it says.
        #[source]
        source: io::Error,
    },
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Taken(_) => Kind::Busy,
            Error::NotASocket(_) => Kind::Refused,
            Error::TooLong(_) => Kind::Usage,
            Error::Group { source, .. } | Error::Io { source, .. } => io_kind(source),
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Taken(path) => format!(
                "stop that process (`fuser {}` names it), or choose another --socket",
                path.display()
            ),
            Error::NotASocket(_) => "move it away, or choose another --socket".into(),
            Error::TooLong(_) => "choose a shorter path, for example below /run".into(),
            Error::Group { .. } => {
                "run sealblk as root or as a member of that group, or choose another --socket-group"
                    .into()
            }
            Error::Io { path, .. } => format!(
                "check that {} exists and is writable",
                path.parent().unwrap_or(Path::new("/")).display()
            ),
        })
    }
}

/// A listening socket. Whoever has made it also removes it from the file
/// system, unless that was handed over ([`Listener::release`]).
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    file: Option<SocketFile>,
}

/// Where a listening socket is in the file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    path: PathBuf,
    /// What tells it from another one that has taken the path over.
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The path that front ends connect to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless the path is another's by now. `_socket` is the one
    /// that listens there: as long as it is open, no other has its inode.
    pub fn remove(&self, _socket: &impl AsFd) {
        let is_ours = |there: std::fs::Metadata| {
            there.file_type().is_socket() && (there.dev(), there.ino()) == (self.device, self.inode)
        };
        if std::fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Listens at the path. A socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn bind(params: &SocketParams) -> Result<Self, Error> {
        let path = &params.path;
        let failed = |source: io::Error| Error::Io {
            path: path.clone(),
            source,
        };
        let address = SocketAddrUnix::new(path).map_err(|errno| match errno {
            Errno::NAMETOOLONG => Error::TooLong(path.clone()),
            errno => failed(errno.into()),
        })?;
        // Two that start at once would take each other's socket, bound and not
        // yet listening, for one that nobody serves.
        let _alone = lock_directory(path);
        remove_stale(path, &address)?;
        let bind = || -> io::Result<(Self, OwnedFd)> {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            // The mode of the file is that of the socket at this moment: nobody
            // else can connect before its owner and mode are set.
            rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600 & params.mode))?;
            rustix::net::bind(&socket, &address)?;
            let made = just_made(path)?;
            let stat = rustix::fs::fstat(&made)?;
            let listener = Listener {
                socket: socket.into(),
                file: Some(SocketFile {
                    path: path.clone(),
                    device: stat.st_dev,
                    inode: stat.st_ino,
                }),
            };
            Ok((listener, made))
        };
        // From here on a failure takes the socket away again.
        let (listener, made) = bind().map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Error::Taken(path.clone()),
            _ => failed(source),
        })?;
        if let Some(group) = params.group {
            let gid = Some(Gid::from_raw(group));
            rustix::fs::chownat(&made, "", None, gid, AtFlags::EMPTY_PATH).map_err(|source| {
                Error::Group {
                    path: path.clone(),
                    group,
                    source: source.into(),
                }
            })?;
        }
        let own_name = format!("/proc/self/fd/{}", made.as_raw_fd());
        std::fs::set_permissions(own_name, std::fs::Permissions::from_mode(params.mode))
            .map_err(failed)?;
        rustix::net::listen(&listener.socket, BACKLOG).map_err(|errno| failed(errno.into()))?;
        Ok(listener)
    }

    /// A socket at this path that is ours from now on, to be removed at the end.
    ///
    /// # Errors
    /// When nothing is at the path.
    pub fn of(socket: UnixListener, path: PathBuf) -> io::Result<Self> {
        let made = std::fs::symlink_metadata(&path)?;
        let (device, inode) = (made.dev(), made.ino());
        Ok(Listener {
            socket,
            file: Some(SocketFile {
                path,
                device,
                inode,
            }),
        })
    }

    /// A socket that somebody else has made, and will remove.
    pub fn received(socket: OwnedFd) -> Self {
        Listener {
            socket: socket.into(),
            file: None,
        }
    }

    /// The bare socket, and what is to be removed once nobody serves it. Until
    /// then it may be served by one process after the other: who connects
    /// meanwhile waits to be accepted. `None` for one that was received.
    pub fn release(mut self) -> io::Result<(OwnedFd, Option<SocketFile>)> {
        let socket = self.socket.try_clone()?;
        Ok((socket.into(), self.file.take()))
    }

    /// The next connection.
    ///
    /// # Errors
    /// What `accept(2)` says.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().map(|(stream, _)| stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            file.remove(&self.socket);
        }
    }
}

/// The socket that was made at `path` just now. Its owner and mode are changed by
/// this descriptor: whoever can write to the directory may have put something else
/// there meanwhile, a link to any file at all.
fn just_made(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&made)?;
    let is_socket = stat.st_mode & libc::S_IFMT == libc::S_IFSOCK;
    match is_socket && stat.st_nlink == 1 && stat.st_uid == rustix::process::geteuid().as_raw() {
        true => Ok(made),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "somebody has put something else there meanwhile",
        )),
    }
}

/// Keeps others who make a socket in the same directory waiting, until it is
/// dropped. Where that is not possible, it goes without.
fn lock_directory(path: &Path) -> Option<File> {
    let directory = paths::open_directory(path.parent()?).ok()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {}
            Err(_) => return None,
        }
        // flock has no time-out of its own.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether somebody has the socket open. Never waits for them to answer.
fn is_served(address: &SocketAddrUnix) -> rustix::io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&probe, address) {
        // Alive too, with its backlog full, or with a socket of another kind.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes a socket that nobody listens at, as a killed server leaves it.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), Error> {
    let failed = |source: io::Error| Error::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(Error::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    if is_served(address).map_err(|errno| failed(errno.into()))? {
        return Err(Error::Taken(path.to_owned()));
    }
    tracing::info!(path = %path.display(), "replacing a socket that nobody serves");
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(path: &Path) -> SocketParams {
        SocketParams {
            path: path.to_owned(),
            mode: 0o660,
            group: None,
        }
    }

    #[test]
    fn a_live_socket_is_left_alone_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Listener::bind(&params(&path)).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(
            Listener::bind(&params(&path)),
            Err(Error::Taken(_))
        ));
        drop(first);
        assert!(!path.exists());
        // What a killed process leaves: a socket file that refuses.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&params(&path)).unwrap();
    }

    #[test]
    fn other_files_are_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(
            Listener::bind(&params(&path)),
            Err(Error::NotASocket(_))
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(
            Listener::bind(&params(&long)),
            Err(Error::TooLong(_))
        ));
    }

    #[test]
    fn a_socket_that_was_taken_over_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&params(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_that_was_handed_over_stays_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (socket, file) = Listener::bind(&params(&path)).unwrap().release().unwrap();
        let file = file.unwrap();
        assert_eq!(file.path(), path);
        // Served by one after the other; who comes between waits.
        let first = Listener::received(socket.try_clone().unwrap());
        drop(first);
        let early = UnixStream::connect(&path).unwrap();
        let second = Listener::received(socket.try_clone().unwrap());
        second.accept().unwrap();
        drop((early, second));
        assert!(path.exists());
        file.remove(&socket);
        assert!(!path.exists());
        let _other = UnixListener::bind(&path).unwrap();
        file.remove(&socket);
        assert!(path.exists(), "another's socket was removed");
    }
}
