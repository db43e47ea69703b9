//! io_uring, as the data path uses it: the same ring, on a file in memory,
//! with one operation of each kind.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;

use crate::doctor::check::Check;
use crate::error::Kind;
use crate::store::{DirectMode, Event, Ring, Store};
use crate::units::SectorSize;

const BYTES: u32 = 4096;

pub(super) fn check() -> Check {
    const NAME: &str = "io_uring";
    match run() {
        Ok(()) => Check::ok(NAME, "reads, writes, syncs, discards and polls"),
        Err((what, error)) => {
            let next = match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
                    "see that kernel.io_uring_disabled is 0, and that no seccomp filter (of a container) refuses io_uring"
                }
                Some(libc::ENOMEM) => {
                    "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)"
                }
                _ => "use Linux 5.15 or later",
            };
            Check::fail(
                NAME,
                Kind::Unsupported,
                format!("{what} does not work: {error}"),
                next,
            )
        }
    }
}

fn run() -> Result<(), (&'static str, io::Error)> {
    let at = |what| move |error| (what, error);
    let file = rustix::fs::memfd_create("sealblk-doctor", MemfdFlags::CLOEXEC)
        .map_err(|error| ("a file in memory", error.into()))?;
    let file = File::from(file);
    file.set_len(BYTES.into()).map_err(at("a file in memory"))?;
    let area = (0, BYTES.into());
    let mode = (false, DirectMode::Never);
    let store = Store::open(file.as_fd(), area, SectorSize::B512, mode, 1)
        .map_err(|error| ("a file in memory", io::Error::other(error)))?;
    let mut ring = Ring::new(&store, 0, 4, 64 << 10).map_err(at("setting it up"))?;
    let no_memory = || ("its buffer", io::Error::from(io::ErrorKind::OutOfMemory));
    let block = ring
        .allocate(BYTES as usize)
        .map_err(at("its buffer"))?
        .ok_or_else(no_memory)?;

    ring.write(0, &block, 0, BYTES, 0).map_err(at("a write"))?;
    finish(&mut ring, BYTES).map_err(at("a write"))?;
    ring.read(0, &block, 0, BYTES, 0).map_err(at("a read"))?;
    finish(&mut ring, BYTES).map_err(at("a read"))?;
    ring.sync(0).map_err(at("a sync"))?;
    finish(&mut ring, 0).map_err(at("a sync"))?;
    ring.punch(0, 0, BYTES.into()).map_err(at("a discard"))?;
    finish(&mut ring, 0).map_err(at("a discard"))?;
    ring.arena().release(block);

    let signalled = rustix::event::eventfd(1, EventfdFlags::CLOEXEC)
        .map_err(|error| ("an eventfd", error.into()))?;
    ring.poll(1, signalled.as_fd()).map_err(at("a poll"))?;
    match next(&mut ring).map_err(at("a poll"))? {
        Event::Ready {
            number: 1,
            more: true,
        } => {}
        Event::Ready { .. } => return Err(("a poll that goes on", unsupported())),
        _ => return Err(("a poll", unsupported())),
    }

    ring.alarm(Duration::from_millis(1))
        .map_err(at("an alarm"))?;
    match next(&mut ring).map_err(at("an alarm"))? {
        Event::Alarm => Ok(()),
        _ => Err(("an alarm", unsupported())),
    }
}

fn unsupported() -> io::Error {
    io::Error::from(io::ErrorKind::Unsupported)
}

/// Waits for the one operation, which has to return `expected`.
fn finish(ring: &mut Ring, expected: u32) -> io::Result<()> {
    match next(ring)? {
        Event::Done(_, result) if u32::try_from(result) == Ok(expected) => Ok(()),
        Event::Done(_, error @ ..0) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

fn next(ring: &mut Ring) -> io::Result<Event> {
    loop {
        if let Some(event) = ring.next_event() {
            return Ok(event);
        }
        ring.wait(None)?;
    }
}
