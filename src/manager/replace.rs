//! The manager replaces itself by another program, in the same process: workers are
//! not touched, and the service manager sees a reload.
//!
//! Before that, the program is tried: it has to run, to take the configuration that
//! this manager would read now, and to speak with the workers that there are. One that
//! fails as it starts gives the process back to the program that it took it from.
//!
//! Managers before workers: a manager speaks the versions of all workers that it may
//! find, and a worker only that of the manager which started it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Kind, io_kind};
use crate::paths;
use crate::worker::protocol::{HAND_OVER, PROTOCOL};

/// How long a program may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(20);

/// The most that it says.
const ANSWER_MAX: u64 = 4096;

/// The descriptor that systemd passes sockets from, and its environment.
const FIRST_SOCKET: i32 = 3;

/// The program that this one has taken the process from: a descriptor.
const PREVIOUS: &str = "SEALBLK_PREVIOUS_PROGRAM";

/// Says that the socket of the API is ours to remove, though it was passed on.
const OWN_SOCKET: &str = "SEALBLK_OWN_SOCKET";

/// It has started well.
static READY: AtomicBool = AtomicBool::new(false);

/// What a program says of itself, asked with `daemon --probe`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Its version.
    pub version: String,
    /// The versions of workers that it speaks with.
    pub protocols: Vec<u32>,
    /// How its workers hand disks over.
    pub hand_over: u32,
}

impl Probe {
    /// Of this program.
    pub fn own() -> Self {
        Probe {
            version: crate::version::version().into(),
            protocols: vec![PROTOCOL],
            hand_over: HAND_OVER,
        }
    }
}

/// A program that was tried.
#[derive(Debug)]
pub struct Successor {
    /// Where it is.
    pub program: PathBuf,
    /// What it says.
    pub probe: Probe,
}

fn refused(program: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(
        Kind::Refused,
        format!("{} cannot be the new program: {why}", program.display()),
        Some("everything stays as it is; look at that file and its owner".into()),
    )
}

/// Where `program` really is, if nobody but root and ourselves can put something
/// else there. That is what is run: a link may be another one by then.
pub(super) fn firm(program: &Path) -> Result<PathBuf, Failure> {
    let real = paths::firm(program).map_err(|loose| refused(program, loose))?;
    let there = real.metadata().map_err(|error| refused(program, error))?;
    match there.is_file() {
        true => Ok(real),
        false => Err(refused(program, "it is not a file")),
    }
}

/// Tries whether `program` can be what this manager is. Blocks.
///
/// # Errors
/// When it cannot, with what it says.
pub fn probe(program: &Path) -> Result<Successor, Failure> {
    if !program.is_absolute() {
        return Err(refused(program, "its path is not absolute"));
    }
    let real = firm(program)?;
    let mut command = Command::new(&real);
    command.arg0("sealblk").args(std::env::args_os().skip(1));
    command.arg("--probe");
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| refused(program, error))?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(refused(program, "it does not say what it is"));
            }
            Err(error) => return Err(refused(program, error)),
        }
    };
    let mut said = [String::new(), String::new()];
    if let Some(out) = child.stdout.take() {
        let _ = out.take(ANSWER_MAX).read_to_string(&mut said[0]);
    }
    if let Some(err) = child.stderr.take() {
        let _ = err.take(ANSWER_MAX).read_to_string(&mut said[1]);
    }
    if !status.success() {
        let why = said[1].trim().replace(char::is_control, " ");
        return Err(refused(
            program,
            format!("it does not start ({status}): {why}"),
        ));
    }
    let probe: Probe = serde_json::from_str(&said[0]).map_err(|_| {
        refused(
            program,
            "it is not sealblk, or of a version before upgrades",
        )
    })?;
    if !probe.protocols.contains(&PROTOCOL) {
        let why = format!(
            "it does not speak with the workers that there are (version {PROTOCOL}), but with \
             {:?}",
            probe.protocols
        );
        return Err(refused(program, why));
    }
    Ok(Successor {
        program: real,
        probe,
    })
}

/// Where this program was started from, and where a package puts the next one.
///
/// # Errors
/// When that is not known.
pub fn own_place() -> Result<PathBuf, Failure> {
    let unknown = |error: io::Error| {
        Failure::new(
            io_kind(&error),
            format!("it is not known where this program is: {error}"),
            Some("say so: `sealblk upgrade --binary PATH`".into()),
        )
    };
    let link = std::fs::read_link("/proc/self/exe").map_err(unknown)?;
    // So the kernel calls what was replaced.
    let text = link.into_os_string().into_encoded_bytes();
    let text = text.strip_suffix(b" (deleted)").unwrap_or(&text);
    let path = PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(text));
    match path.is_file() {
        true => Ok(path),
        false => Err(unknown(io::ErrorKind::NotFound.into())),
    }
}

/// Becomes `program`, with the arguments of this process and with the socket of the
/// API, which nobody finds closed meanwhile. Returns only when that fails.
pub fn become_program(program: &Path, socket: Option<(OwnedFd, bool)>) -> io::Error {
    let keep = |fd: BorrowedFd<'_>| rustix::io::fcntl_setfd(fd, FdFlags::empty());
    let mut command = Command::new(program);
    let own = std::env::args_os()
        .next()
        .unwrap_or_else(|| OsString::from("sealblk"));
    command.arg0(own).args(std::env::args_os().skip(1));
    command
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env_remove(OWN_SOCKET);
    // Of this program, in case that the next one does not start.
    let previous = match File::open("/proc/self/exe") {
        Ok(previous) if previous.as_raw_fd() != FIRST_SOCKET => Some(previous),
        // Another number.
        Ok(previous) => previous.try_clone().ok(),
        Err(_) => None,
    };
    if let Some(previous) = &previous
        && keep(previous.as_fd()).is_ok()
    {
        command.env(PREVIOUS, previous.as_raw_fd().to_string());
    }
    if let Some((socket, ours)) = &socket {
        // SAFETY: whoever owned that descriptor has ended with the runtime, and the
        // program is exchanged next; where that fails, the process ends.
        let put = unsafe { libc::dup2(socket.as_raw_fd(), FIRST_SOCKET) };
        let same = socket.as_raw_fd() == FIRST_SOCKET && keep(socket.as_fd()).is_ok();
        if put == FIRST_SOCKET || same {
            command.env("LISTEN_FDS", "1");
            command.env("LISTEN_PID", std::process::id().to_string());
            if *ours {
                command.env(OWN_SOCKET, "1");
            }
        }
    }
    command.exec()
}

/// Whether the socket that was passed on is ours to remove.
pub fn owns_socket() -> bool {
    std::env::var_os(OWN_SOCKET).is_some()
}

/// This program has started well: there is no way back any more.
pub fn started() {
    READY.store(true, Ordering::SeqCst);
    if let Some(previous) = previous() {
        // SAFETY: the program before has left it open for this, and nobody else
        // knows of it; `previous` finds nothing from here on, since it is closed.
        unsafe { libc::close(previous) };
    }
}

fn previous() -> Option<i32> {
    let number: i32 = std::env::var(PREVIOUS).ok()?.parse().ok()?;
    let path = format!("/proc/self/fd/{number}");
    // Not what has the number by chance.
    let there = std::fs::metadata(&path).ok()?;
    (number > 2 && there.is_file() && there.mode() & 0o111 != 0).then_some(number)
}

/// Gives the process back to the program that it was taken from, if this one has not
/// started well. Returns where there is none.
pub fn give_back(why: &Failure) {
    if READY.load(Ordering::SeqCst) {
        return;
    }
    let Some(previous) = previous() else { return };
    tracing::error!("the new program does not start, and the one before goes on: {why}");
    let mut command = Command::new(format!("/proc/self/fd/{previous}"));
    let own = std::env::args_os()
        .next()
        .unwrap_or_else(|| OsString::from("sealblk"));
    command
        .arg0(own)
        .args(std::env::args_os().skip(1))
        .env_remove(PREVIOUS);
    // SAFETY: it is only asked for, and a number that is not open is an error.
    let socket = unsafe { BorrowedFd::borrow_raw(FIRST_SOCKET) };
    match rustix::net::sockopt::socket_acceptconn(socket) {
        // Nobody has taken it.
        Ok(true) => drop(rustix::io::fcntl_setfd(socket, FdFlags::empty())),
        _ => {
            command
                .env_remove("LISTEN_FDS")
                .env_remove("LISTEN_PID")
                .env_remove(OWN_SOCKET);
        }
    }
    let error = command.exec();
    tracing::error!(%error, "it cannot");
}
