//! Front ends that wait for another one to leave.
//!
//! A disk has one front end at a time. A second one is not refused: QEMU that has
//! been started anew comes while the end of the one before is still being dealt
//! with, and to be refused would end it. But one that waits for long, as its other
//! is alive, has started without a word and does not go on, so that is said here.
#![forbid(unsafe_code)]

use std::os::unix::net::UnixStream;

use rustix::net::sockopt;

/// Who else has come while one front end is served.
#[derive(Default)]
pub struct Crowd {
    told: bool,
}

impl Crowd {
    /// Whether it matters still that somebody comes.
    pub fn is_looked_for(&self) -> bool {
        !self.told
    }

    /// Somebody has come, while `served` has the disk.
    pub fn came(&mut self, served: &UnixStream) {
        self.told = true;
        // The process that connected, even if another one has the socket by now.
        let process = sockopt::socket_peercred(served).map_or(0, |who| who.pid.as_raw_pid());
        tracing::warn!(
            process,
            "another front end has connected, and waits until the one of that process leaves: a \
             disk has one at a time. If both are meant to run, one has the wrong socket"
        );
    }
}
