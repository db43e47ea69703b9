//! A crash at a chosen system call: the kernel kills the program when it
//! makes the call, before the call does anything.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

/// The calls at which a change of a key file can be cut short, in their order:
/// created and empty, written but perhaps not on the disk, not yet renamed.
pub const POINTS: [libc::c_long; 3] = [libc::SYS_fchmod, libc::SYS_fsync, libc::SYS_renameat2];

/// Runs `command`, which must die at its first `syscall`.
pub fn at(mut command: Command, syscall: libc::c_long) {
    let number = u32::try_from(syscall).unwrap();
    // SAFETY: between fork and exec only `prctl` is called, which is
    // async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(move || kill_at(number)) };
    let output = command.output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
}

fn kill_at(number: u32) -> io::Result<()> {
    let step = |code: u32, jump_true, k| libc::sock_filter {
        code: code as u16,
        jt: jump_true,
        jf: 0,
        k,
    };
    let mut filter = [
        // The number of the call is at the start of what a filter sees.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_KILL_PROCESS,
        ),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` and the filter it points to live through the calls,
    // and the kernel copies them.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
