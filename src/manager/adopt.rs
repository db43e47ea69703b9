//! Taking over a worker that an earlier manager has started.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::net::SocketAddrUnix;

use super::held::{Baggage, FrontEnds, Held, KeyFacts};
use super::link::{self, Link};
use super::model::is_disk_name;
use super::state::Record;
use super::worker_process::{Process, Worker};
use crate::error::Failure;
use crate::secret::Dek;
use crate::worker::parcel::{Parcel, Role};
use crate::worker::protocol::{Answer, Contents, Request};

/// A worker that an earlier manager has started, with all that it had.
pub struct Found {
    /// The worker.
    pub worker: Worker,
    /// The desired state of its disk.
    pub record: Record,
    /// What was known about the key.
    pub key: KeyFacts,
    /// The volume.
    pub held: Held,
    /// The socket.
    pub front_ends: FrontEnds,
    /// The key, if it was kept.
    pub dek: Option<Dek>,
    /// What is on the disk.
    pub contents: Contents,
}

/// Looks for the worker that accepts managers at `control`, and takes over.
/// Nothing: there is none. What it says of itself must be what the manager
/// knows, `ours`, as far as it knows it: a guest may have taken it over.
///
/// # Errors
/// When there is one that does not answer, or in another way than expected.
pub async fn adopt(control: &Path, ours: Option<&Record>) -> Result<Option<Found>, Failure> {
    let unwilling = |error: io::Error| {
        Failure::new(
            crate::error::io_kind(&error),
            format!("the worker of this disk cannot be taken over: {error}"),
            Some("it serves the disk on; look at its log, and end the process if it hangs".into()),
        )
    };
    let Some(socket) = link::connect(control).map_err(unwilling)? else {
        return Ok(None);
    };
    let gone = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        )
    };
    match adopt_over(socket, ours).await {
        Ok(found) => Ok(Some(found)),
        // It ended with our connection waiting to be accepted.
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(unwilling(error)),
    }
}

async fn adopt_over(socket: OwnedFd, ours: Option<&Record>) -> io::Result<Found> {
    let (mut link, hello, pidfd) = Link::open(socket).await?;
    let (answer, mut parcel) = link.call(Request::Adopt, Parcel::default()).await?;
    let Answer::Adopted { start, status } = answer else {
        return Err(invalid("it did not say what it serves"));
    };
    let Baggage { record, key } = serde_json::from_value(start.baggage.clone())?;
    let record = match ours {
        Some(ours) if ours.id == record.id => ours.clone(),
        Some(_) => return Err(invalid("it says that it serves another disk")),
        None if is_disk_name(&record.name) => record,
        None => return Err(invalid("it says that its disk has an impossible name")),
    };
    let held = Held::adopt(&start, &record, &mut parcel)?;
    let front_ends = FrontEnds {
        socket: parcel.need(Role::FrontEnds)?,
        file: start.socket.clone(),
    };
    // The path is removed one day, by us.
    let claimed = SocketAddrUnix::new(start.socket.path())?;
    let bound = rustix::net::getsockname(&front_ends.socket)?;
    if start.socket.path() != record.socket || SocketAddrUnix::try_from(bound) != Ok(claimed) {
        return Err(invalid("its socket is not where it should be"));
    }
    if !is_worker(&pidfd, &record.name)? {
        return Err(invalid("the process that it calls itself is another one"));
    }
    let process = Process::new(pidfd, hello.pid)?;
    let dek = parcel.take(Role::Dek).map(Dek::receive).transpose()?;
    Ok(Found {
        worker: Worker {
            link,
            process,
            status,
            version: hello.version,
        },
        record,
        key,
        held,
        front_ends,
        dek,
        contents: start.contents,
    })
}

/// Whether this is the descriptor of a process that was started as a worker of that
/// disk: we end it one day, and may be root. A worker that was taken over can have others
/// from its front end. Those that have ended or cannot be seen from here, which nobody
/// here can end, pass.
fn is_worker(pidfd: &OwnedFd, disk: &str) -> io::Result<bool> {
    let Some(pid) = pid_of(pidfd)? else {
        return Ok(true);
    };
    let command = match std::fs::read(format!("/proc/{pid}/cmdline")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        read => read.unwrap_or_default(),
    };
    // It had the number all the while, or has none any more.
    match pid_of(pidfd)? == Some(pid) {
        true => Ok(command == format!("sealblk\0worker\0{disk}\0").as_bytes()),
        false => Ok(true),
    }
}

/// The number of a process; nothing when it has ended, or has none here.
fn pid_of(pidfd: &OwnedFd) -> io::Result<Option<u32>> {
    let number = pidfd.as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let mut pid = info.lines().filter_map(|line| line.strip_prefix("Pid:"));
    let pid = pid.next().ok_or_else(|| invalid("it sent no process"))?;
    Ok(pid.trim().parse().ok().filter(|pid| *pid > 0))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
