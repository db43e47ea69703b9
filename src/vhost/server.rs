//! Accepting front ends, one after the other, until told to stop.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::claims::{Claims, Settled};
use super::crowd::Crowd;
use super::handover::{Exported, Imported};
use super::listener::Listener;
use super::notices::{Notices, channel_in_next_message};
use super::rest::{After, Handed, Rest};
use super::session::Session;
use crate::engine::Disk;

/// Serves a disk on a socket.
pub struct Server {
    disk: Arc<Disk>,
    listener: Listener,
    stopper: Stopper,
    on_front_end: Option<FrontEndHook>,
    notices: Arc<Notices>,
    claims: Arc<dyn Claims>,
    rest: Rest,
    /// A session that another process has begun.
    taken_over: Mutex<Option<Imported>>,
}

/// How a server has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was stopped: nobody serves the front end any more.
    Stopped,
    /// Another process serves on.
    HandedOver,
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
            rest: Rest::new()?,
            taken_over: Mutex::default(),
            claims: Arc::new(Settled),
        })
    }

    /// The same server, which calls `hook` when a front end comes or goes.
    #[must_use]
    pub fn telling(mut self, hook: FrontEndHook) -> Self {
        self.on_front_end = Some(hook);
        self
    }

    /// The same server of a volume that moves between hosts: no ring starts before
    /// it is this one's.
    #[must_use]
    pub fn claiming(mut self, claims: Arc<dyn Claims>) -> Self {
        self.claims = claims;
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

    /// What has it come to rest, for another process to go on.
    pub fn rest(&self) -> Rest {
        self.rest.clone()
    }

    /// Takes over the session of another process. Its rings run from here on, and
    /// its messages are heard from [`Server::run`] on.
    ///
    /// # Errors
    /// When it cannot be one of this disk, or cannot be served here.
    pub fn take_over(&self, exported: Exported) -> io::Result<()> {
        let session = Session::new(self.disk.clone(), self.notices.clone(), self.claims.clone());
        let imported = Imported::new(session, exported)?;
        *self.taken_over() = Some(imported);
        Ok(())
    }

    fn taken_over(&self) -> MutexGuard<'_, Option<Imported>> {
        let taken_over = self.taken_over.lock();
        taken_over.unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves front ends until stopped, or until another process does.
    ///
    /// # Errors
    /// When the socket cannot be waited for or accepted from.
    pub fn run(&self) -> io::Result<Ended> {
        let imported = self.taken_over().take();
        let mut next = imported.map(Next::Begun);
        loop {
            let front_end = match next.take() {
                Some(begun) => begun,
                None => self.accept()?,
            };
            let (stream, imported) = match front_end {
                Next::Stop => return Ok(Ended::Stopped),
                Next::Leave => return Ok(Ended::HandedOver),
                Next::Come(stream) => (stream, None),
                Next::Begun(it) => match it.stream.try_clone() {
                    Ok(stream) => (stream, Some(it)),
                    Err(error) => {
                        tracing::warn!(%error, "a front end could not be served");
                        continue;
                    }
                },
            };
            let mut after = After::GoOn;
            match stream.try_clone() {
                Ok(handle) => {
                    if self.stopper.begin(handle) {
                        after = match imported {
                            Some(imported) => self.serve_on(imported),
                            None => self.serve(stream),
                        };
                    }
                }
                Err(error) => tracing::warn!(%error, "a front end could not be served"),
            }
            self.stopper.silence();
            match after {
                After::Leave => return Ok(Ended::HandedOver),
                After::GoOn if self.stopper.is_stopped() => return Ok(Ended::Stopped),
                // The next one would fare no better: another process has to go on.
                After::GoOn if self.disk.crew().has_lost() => {
                    return Err(io::Error::other("a queue cannot be served any more"));
                }
                After::GoOn => {}
            }
        }
    }

    /// The next front end, unless it is to end.
    fn accept(&self) -> io::Result<Next> {
        let wake = self.stopper.wake.as_fd();
        let mut short = false;
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(wake, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.rest, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            if !fds[0].revents().is_empty() {
                return Ok(Next::Stop);
            }
            if !fds[2].revents().is_empty() && self.rest.rest(|| Ok(None)) == After::Leave {
                return Ok(Next::Leave);
            }
            if fds[1].revents().is_empty() {
                continue;
            }
            match self.listener.accept() {
                Ok(stream) => return Ok(Next::Come(stream)),
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

    fn serve(&self, stream: UnixStream) -> After {
        tracing::info!("front end connected");
        self.notices.begin();
        let session = Session::new(self.disk.clone(), self.notices.clone(), self.claims.clone());
        let session = Arc::new(Mutex::new(session));
        // Without a second descriptor it is served as one that takes no notices,
        // and is handed over to nobody.
        let peeked = stream.try_clone().ok();
        let handler = BackendReqHandler::from_stream(stream, session.clone());
        self.converse(session, handler, peeked)
    }

    /// Goes on with a front end that another process has served.
    fn serve_on(&self, imported: Imported) -> After {
        let Imported {
            session,
            handler,
            stream,
        } = imported;
        tracing::info!("serving on, where another process has stopped");
        self.converse(session, handler, Some(stream))
    }

    /// Hears a front end until it has gone, or somebody wants it handed over.
    fn converse(
        &self,
        session: Arc<Mutex<Session>>,
        mut handler: BackendReqHandler<Mutex<Session>>,
        peeked: Option<UnixStream>,
    ) -> After {
        self.tell(true);
        let lock = || session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut crowd = Crowd::default();
        let reason = loop {
            if let Some(stream) = &peeked
                && self.is_rest_wanted(stream, &mut crowd)
            {
                let hand = || -> io::Result<Handed> {
                    let mut session = lock();
                    session.leave_queues();
                    Exported::of(&session, stream).map(Some)
                };
                match self.rest.rest(hand) {
                    After::Leave => return After::Leave,
                    After::GoOn => {
                        if let Err(error) = lock().start_queues() {
                            break error;
                        }
                        continue;
                    }
                }
            }
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
        lock().end();
        match reason {
            VhostError::Disconnected => tracing::info!("front end disconnected"),
            error => tracing::warn!(%error, "front end cut off"),
        }
        // Only now is the socket closed, with no request in flight: QEMU takes
        // the used ring's position for the place to go on from.
        drop(handler);
        self.notices.begin();
        self.tell(false);
        After::GoOn
    }

    /// Waits for the next message, or until somebody may want this to rest, which is
    /// only looked for between messages.
    fn is_rest_wanted(&self, stream: &UnixStream, crowd: &mut Crowd) -> bool {
        loop {
            let mut fds = [
                PollFd::new(&self.rest, PollFlags::IN),
                PollFd::new(stream, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            // Once: who waits there stays there.
            let looked_at = if crowd.is_looked_for() { 3 } else { 2 };
            match poll(&mut fds[..looked_at], None) {
                Err(rustix::io::Errno::INTR) => continue,
                // Whoever reads the message finds out what is wrong.
                Err(_) => return false,
                Ok(_) => {}
            }
            let [wanted, message, came] = fds.map(|fd| !fd.revents().is_empty());
            if wanted || message {
                return wanted;
            }
            // One that has left, and is not known to have, does not count.
            if came {
                crowd.came(stream);
            }
        }
    }
}

/// Whom to serve next.
enum Next {
    /// A front end that has just come.
    Come(UnixStream),
    /// One that another process has served until now.
    Begun(Imported),
    /// Nobody: it was stopped.
    Stop,
    /// Nobody: another process does.
    Leave,
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
