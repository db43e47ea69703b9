//! The life of `sealblk serve`: it starts completely or not at all, tells when
//! it is ready, serves one front end after the other whatever becomes of them,
//! shares nothing that must not be shared, and ends without losing a request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "serve_lifecycle/front_ends.rs"]
mod front_ends;
#[path = "serve_lifecycle/killed.rs"]
mod killed;
#[path = "serve_lifecycle/locks.rs"]
mod locks;
#[path = "serve_lifecycle/moving.rs"]
mod moving;
#[path = "serve_lifecycle/readiness.rs"]
mod readiness;
#[path = "serve_lifecycle/settings.rs"]
mod settings;
#[path = "serve_lifecycle/shutdown.rs"]
mod shutdown;
#[path = "serve_lifecycle/sockets.rs"]
mod sockets;
#[path = "serve_lifecycle/starved.rs"]
mod starved;
#[path = "serve_lifecycle/trouble.rs"]
mod trouble;
#[path = "serve_lifecycle/walls.rs"]
mod walls;

#[path = "support/inject.rs"]
mod inject;

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use support::home::Home;
use support::server::DEADLINE;

/// The service manager's side of `sd_notify`.
struct Notified {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Notified {
    fn new(home: &Home) -> Notified {
        let path = home.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Notified { socket, path }
    }

    /// The command, told where to notify.
    fn by(&self, mut command: Command) -> Command {
        command.env("NOTIFY_SOCKET", &self.path);
        command
    }

    /// The next notification.
    fn next(&self) -> String {
        let mut bytes = [0; 4096];
        let len = self.socket.recv(&mut bytes).expect("a notification");
        let text = std::str::from_utf8(&bytes[..len]).unwrap();
        text.trim_end().into()
    }

    /// Whether a notification has come that nobody took.
    fn has_more(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let more = self.socket.recv(&mut [0; 4096]).is_ok();
        self.socket.set_nonblocking(false).unwrap();
        more
    }
}
