//! Last words of a process that a front end takes down with it.
//!
//! Memory that a front end shares may be cut short while it is mapped here, unless
//! it is sealed against that, as QEMU's `memory-backend-memfd` is. To touch what is
//! gone is SIGBUS, and there is no going on from that: what was to be written to
//! the disk is not there, and made-up data in its place would be worse than none.
//! So the process ends, as if it was killed, and nothing that it had not done is
//! lost (`vhost::inflight`). What is left to do here is to say why.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use crate::logging;

/// The lines are made before they are needed: a signal handler may not allocate.
struct Lines {
    cut_short: String,
    broken: String,
}

static LINES: OnceLock<Lines> = OnceLock::new();

/// Memory of the machine is broken (`BUS_MCEERR_AR`, `BUS_MCEERR_AO`), and not
/// missing.
const BROKEN: [c_int; 2] = [libc::BUS_MCEERR_AR, libc::BUS_MCEERR_AO];

/// Has this process say why, if it ends by SIGBUS. `whose` says which front end
/// that is about. The first call counts.
///
/// # Errors
/// When the kernel refuses.
pub fn explain_bus_errors(whose: &str) -> io::Result<()> {
    let lines = Lines {
        cut_short: logging::last_words(&format!(
            "memory that the front end of {whose} shares is gone (SIGBUS): it was cut short while \
             it was in use. This process ends, and what it had not answered is done by the next; \
             help: seal the memory of the guest against that (memory-backend-memfd does), and \
             leave the file behind it alone"
        )),
        broken: logging::last_words(&format!(
            "memory of this machine is broken (SIGBUS with a machine check), most likely of the \
             guest of {whose}. This process ends, and what it had not answered is done by the \
             next; help: look for hardware errors in `dmesg`, and move guests away"
        )),
    };
    if LINES.set(lines).is_err() {
        return Ok(());
    }
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes is a `sigaction` (no handler, no flags, an empty mask),
    // and `report` is a handler as SA_SIGINFO wants it that stays within what
    // signal handlers may do.
    let set = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = report as *const () as libc::sighandler_t;
        // Once: what is touched again after the handler ends the process.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
        libc::sigaction(libc::SIGBUS, action, ptr::null_mut())
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Says why, and returns: the instruction is tried again, and the process ends by
/// the same signal, whose status tells everybody else.
extern "C" fn report(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let Some(lines) = LINES.get() else {
        return;
    };
    // SAFETY: the kernel gives a handler with SA_SIGINFO a filled `siginfo_t`.
    let code = unsafe { (*info).si_code };
    let line = match BROKEN.contains(&code) {
        true => &lines.broken,
        false => &lines.cut_short,
    };
    // SAFETY: the line is there for as long as the process is.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    if code <= 0 {
        // Somebody sent it: no instruction is tried again.
        // SAFETY: ends the process by the signal, which has its default action.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}
