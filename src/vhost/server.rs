//! Accepting front ends, one after the other, until told to stop.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::listener::Listener;
use super::notices::{Notices, channel_in_next_message};
use super::session::Session;
use crate::engine::Disk;

/// Serves a disk on a socket.
pub struct Server {
    disk: Arc<Disk>,
    listener: Listener,
    stopper: Stopper,
    on_front_end: Option<FrontEndHook>,
    notices: Arc<Notices>,
}

/// Is told when a front end has come (`true`) or gone.
type FrontEndHook = Box<dyn Fn(bool) + Send + Sync>;

/// Ends a [`Server`] from another thread.
#[derive(Clone)]
pub struct Stopper {
    wake: Arc<OwnedFd>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connection: Mutex<Connection>,
    /// No front end is listened to any more.
    silence: Condvar,
}

#[derive(Default)]
struct Connection {
    stopped: bool,
    /// The front end whose messages are handled.
    stream: Option<UnixStream>,
}

/// How long a front end may leave its answers unread when the server ends.
const GRACE: Duration = Duration::from_secs(1);

/// How long to wait for resources before accepting is tried again.
const SHORTAGE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

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
            let stopper = self.clone();
            // Without the thread, a front end that reads nothing is waited for.
            let _ = std::thread::Builder::new()
                .name("stop".into())
                .spawn(move || stopper.cut_off_if_stuck());
        }
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// Answering may block for ever, if the front end reads no answers: then
    /// it is given up. One that waits for an answer of ours is not.
    fn cut_off_if_stuck(&self) {
        let mut connection = self.lock();
        loop {
            (connection, _) = self
                .shared
                .silence
                .wait_timeout_while(connection, GRACE, |connection| connection.stream.is_some())
                .unwrap_or_else(PoisonError::into_inner);
            let Some(stream) = &connection.stream else {
                return;
            };
            if !takes_answers(stream) {
                tracing::warn!("the front end reads no answers: it is cut off");
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        let connection = &self.shared.connection;
        connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The front end is not listened to any more.
    fn silence(&self) {
        self.lock().stream = None;
        self.shared.silence.notify_all();
    }

    /// Whether the front end shall be served. Takes note of it.
    fn begin(&self, stream: UnixStream) -> bool {
        let mut connection = self.lock();
        connection.stream = Some(stream);
        !connection.stopped
    }

    fn is_stopped(&self) -> bool {
        self.lock().stopped
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
                shared: Arc::default(),
            },
            on_front_end: None,
            notices: Arc::default(),
        })
    }

    /// The same server, which calls `hook` when a front end comes or goes.
    #[must_use]
    pub fn telling(mut self, hook: FrontEndHook) -> Self {
        self.on_front_end = Some(hook);
        self
    }

    fn tell(&self, connected: bool) {
        if let Some(hook) = &self.on_front_end {
            hook(connected);
        }
    }

    /// What front ends are told of, and have read.
    pub fn notices(&self) -> Arc<Notices> {
        self.notices.clone()
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
            match stream.try_clone() {
                Ok(handle) => {
                    if self.stopper.begin(handle) {
                        self.serve(stream);
                    }
                }
                Err(error) => tracing::warn!(%error, "a front end could not be served"),
            }
            self.stopper.silence();
            if self.stopper.is_stopped() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The next front end, or nothing when stopped.
    fn accept(&self) -> io::Result<Option<UnixStream>> {
        let wake = self.stopper.wake.as_fd();
        let mut short = false;
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
                Err(error) if has_gone(&error) => {}
                // It stays in the backlog, so that polling alone would spin.
                Err(error) if is_shortage(&error) => {
                    if !short {
                        tracing::warn!(%error, "a front end has to wait to be accepted");
                    }
                    short = true;
                    let mut fds = [PollFd::from_borrowed_fd(wake, PollFlags::IN)];
                    let _ = poll(&mut fds, Some(&SHORTAGE));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn serve(&self, stream: UnixStream) {
        tracing::info!("front end connected");
        self.notices.begin();
        self.tell(true);
        let session = Session::new(self.disk.clone(), self.notices.clone());
        let session = Arc::new(Mutex::new(session));
        // Without a second descriptor it is served as one that takes no notices.
        let peeked = stream.try_clone().ok();
        let mut handler = BackendReqHandler::from_stream(stream, session.clone());
        let reason = loop {
            let channel = peeked.as_ref().and_then(channel_in_next_message);
            if let Err(error) = handler.handle_request() {
                break error;
            }
            // Only now it is known to be what it should be.
            if let Some(channel) = channel {
                self.notices.opened(channel);
            }
        };
        drop(peeked);
        self.stopper.silence();
        session.lock().unwrap_or_else(PoisonError::into_inner).end();
        match reason {
            VhostError::Disconnected => tracing::info!("front end disconnected"),
            error => tracing::warn!(%error, "front end cut off"),
        }
        // Only now is the socket closed, with no request in flight: QEMU takes
        // the used ring's position for the place to go on from.
        drop(handler);
        self.notices.begin();
        self.tell(false);
    }
}

/// Whether there is room for an answer.
fn takes_answers(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::OUT)];
    // An error says nothing about the front end.
    poll(&mut fds, Some(&Timespec::default())) != Ok(0)
}

/// Whether the front end left before it was accepted.
fn has_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNABORTED | libc::EINTR | libc::EAGAIN)
    )
}

/// Whether accepting may succeed once resources are free.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
