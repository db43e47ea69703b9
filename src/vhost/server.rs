//! Accepting front ends, one after the other, until told to stop.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::listener::Listener;
use super::session::Session;
use crate::engine::Disk;

/// Serves a disk on a socket.
pub struct Server {
    disk: Arc<Disk>,
    listener: Listener,
    stopper: Stopper,
}

/// Ends a [`Server`] from another thread.
#[derive(Clone)]
pub struct Stopper {
    wake: Arc<OwnedFd>,
    connection: Arc<Mutex<Connection>>,
}

#[derive(Default)]
struct Connection {
    stopped: bool,
    stream: Option<UnixStream>,
}

impl Stopper {
    /// Tells the server to finish: requests in flight are completed, what was
    /// written is made durable, then the front end is let go.
    pub fn stop(&self) {
        let mut connection = self.lock();
        connection.stopped = true;
        if let Some(stream) = &connection.stream {
            // Only our reading side: the front end must not take this for the
            // end before the requests in flight have been completed.
            let _ = stream.shutdown(Shutdown::Read);
        }
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server shall go on. Takes note of the front end that it
    /// is to be cut off from.
    fn begin(&self, stream: Option<UnixStream>) -> bool {
        let mut connection = self.lock();
        connection.stream = stream;
        !connection.stopped
    }
}

impl Server {
    /// A server for `disk` on `listener`.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new(disk: Arc<Disk>, listener: Listener) -> io::Result<Self> {
        Ok(Server {
            disk,
            listener,
            stopper: Stopper {
                wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?),
                connection: Arc::default(),
            },
        })
    }

    /// What ends the server.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves front ends until stopped.
    ///
    /// # Errors
    /// When the socket cannot be waited for or accepted from.
    pub fn run(&self) -> io::Result<()> {
        while let Some(stream) = self.accept()? {
            let handle = stream.try_clone()?;
            if self.stopper.begin(Some(handle)) {
                self.serve(stream);
            }
            if !self.stopper.begin(None) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next front end, or nothing when stopped.
    fn accept(&self) -> io::Result<Option<UnixStream>> {
        let wake = self.stopper.wake.as_fd();
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(wake, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            if !fds[0].revents().is_empty() {
                return Ok(None);
            }
            match self.listener.accept() {
                Ok(stream) => return Ok(Some(stream)),
                // The front end has gone again, or resources are short for now.
                Err(error) if is_passing(&error) => {
                    tracing::warn!(%error, "a front end could not be accepted");
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn serve(&self, stream: UnixStream) {
        tracing::info!("front end connected");
        let session = Arc::new(Mutex::new(Session::new(self.disk.clone())));
        let mut handler = BackendReqHandler::from_stream(stream, session.clone());
        let reason = loop {
            if let Err(error) = handler.handle_request() {
                break error;
            }
        };
        session.lock().unwrap_or_else(PoisonError::into_inner).end();
        match reason {
            VhostError::Disconnected => tracing::info!("front end disconnected"),
            error => tracing::warn!(%error, "front end cut off"),
        }
        // Only now is the socket closed, with no request in flight: QEMU takes
        // the used ring's position for the place to go on from.
        drop(handler);
    }
}

/// Whether accepting may succeed later.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN)
    )
}
