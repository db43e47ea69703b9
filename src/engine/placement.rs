//! Where a queue thread runs, and where its memory is.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Lets the calling thread run on that CPU alone, and take its memory (the
/// kernel's for its ring, too) from the node that the CPU belongs to, whatever
/// this process was started with.
///
/// # Errors
/// When there is no such CPU, or this process may not use it.
pub fn settle(cpu: u16) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    if usize::from(cpu) >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    cpus.set(cpu.into());
    sched_setaffinity(None, &cpus)?;
    prefer_own_node()
}

/// The kernel takes memory from the node where it is first touched, if it was
/// not told otherwise (by `numactl`, for example).
fn prefer_own_node() -> io::Result<()> {
    // `set_mempolicy(2)`: to prefer no node in particular is to prefer the own.
    let (no_mask, no_length) = (std::ptr::null::<libc::c_ulong>(), 0usize);
    // SAFETY: no memory is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            libc::MPOL_PREFERRED,
            no_mask,
            no_length,
        )
    };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without NUMA has one node, or a sandbox wants it so.
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
            error => Err(error),
        },
    }
}

/// What the I/O scheduler is told of the calling thread: that it wants only what
/// nobody else does (`idle`), or as much as everybody. Schedulers that know no
/// priorities do not heed it.
///
/// # Errors
/// When the kernel refuses it.
pub fn set_io_priority(idle: bool) -> io::Result<()> {
    // linux/ioprio.h, which no header of a C library has.
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: libc::c_int = 13;
    const CLASS_NONE: libc::c_int = 0;
    const CLASS_IDLE: libc::c_int = 3;
    let class = if idle { CLASS_IDLE } else { CLASS_NONE };
    // SAFETY: no memory is passed. Process 0 is the calling thread.
    let result =
        unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << CLASS_SHIFT) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first of these CPUs that this process may not run on.
///
/// # Errors
/// When the kernel does not say where it may.
pub fn not_permitted(cpus: &[u16]) -> io::Result<Option<u16>> {
    let permitted = sched_getaffinity(None)?;
    let missing =
        |cpu: &u16| usize::from(*cpu) >= CpuSet::MAX_CPU || !permitted.is_set((*cpu).into());
    Ok(cpus.iter().copied().find(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_settles_on_one_cpu_and_its_node() {
        let permitted = sched_getaffinity(None).unwrap();
        let all = (0..CpuSet::MAX_CPU).filter(|cpu| permitted.is_set(*cpu));
        for cpu in all.take(4) {
            std::thread::spawn(move || {
                settle(cpu as u16).unwrap();
                let now = sched_getaffinity(None).unwrap();
                assert!(now.is_set(cpu) && now.count() == 1);
                let mut mode: libc::c_int = -1;
                // SAFETY: `mode` has room for the answer, and no mask is passed.
                let result = unsafe {
                    libc::syscall(
                        libc::SYS_get_mempolicy,
                        &raw mut mode,
                        std::ptr::null::<libc::c_ulong>(),
                        0usize,
                        0usize,
                        0usize,
                    )
                };
                // Kernels without NUMA have no policies.
                if result == 0 {
                    const LOCAL: libc::c_int = 4;
                    assert!([libc::MPOL_PREFERRED, LOCAL].contains(&mode), "{mode}");
                }
            })
            .join()
            .unwrap();
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_number() {
        assert_eq!(not_permitted(&[1023]).unwrap(), Some(1023));
        assert_eq!(not_permitted(&[]).unwrap(), None);
        assert!(settle(1023).is_err() && settle(u16::MAX).is_err());
        // And nothing has changed.
        assert!(sched_getaffinity(None).unwrap().count() > 0);
    }
}
