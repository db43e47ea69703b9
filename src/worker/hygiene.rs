//! What a worker process gives up before it is given anything.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// The connection to the manager that started this process, which is its
/// standard input. `None` when it is something else: then a person did.
pub fn is_started_by_manager() -> bool {
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    sockopt::socket_type(socket) == Ok(SocketType::SEQPACKET)
        && sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
}

/// Leaves no descriptor open but the standard ones, of which the input is
/// `/dev/null` from now on; what it was is returned. For a process that has
/// opened nothing yet.
///
/// # Errors
/// When the kernel refuses.
pub fn take_connection() -> io::Result<OwnedFd> {
    let first = libc::STDERR_FILENO as libc::c_uint + 1;
    // SAFETY: nothing has been opened by now that somebody would use or close
    // later: this is the first thing that a worker process does.
    let closed = unsafe { libc::close_range(first, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    let connection = io::stdin().as_fd().try_clone_to_owned()?;
    let null = File::open("/dev/null")?;
    // SAFETY: both are open. Replacing what is behind standard input, which
    // nobody has read from, leaves every owner of a descriptor with its own.
    if unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(connection)
}

/// Lets nobody look into this process: no core dumps, no tracing by processes
/// of the same user, no new privileges by `exec`. It leaves the session and
/// process group of whoever started it, so that what ends those does not end it.
///
/// # Errors
/// When the kernel refuses.
pub fn close_up() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_no_new_privs(true)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    // Fails for the leader of a process group, which is fine: it has its own.
    let _ = rustix::process::setsid();
    Ok(())
}

/// Shows the disk's name where processes are listed by theirs.
pub fn show_name(name: &str) {
    // The kernel keeps 15 bytes. The name has no zero bytes.
    if let Ok(shown) = std::ffi::CString::new(format!("sb:{name}")) {
        let _ = rustix::thread::set_name(&shown);
    }
}
