//! The system calls that processes may make, and what each is needed for.
//!
//! `docs/sandbox.md` has the same tables, and `tests/manager_disks/walls.rs`
//! compares them.
#![forbid(unsafe_code)]

use libc::c_long;

/// A system call, what its arguments have to be, and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Its number, on this architecture.
    pub number: c_long,
    /// All of these have to be true. None: it may always be made.
    pub only: &'static [Argument],
    /// What it is for, or why nobody needs it.
    pub why: &'static str,
}

/// What an argument has to be.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// Which it is, from 0.
    pub index: u8,
    /// What it has to be.
    pub is: Is,
    /// The same for people.
    pub text: &'static str,
}

/// What an argument has to be.
#[derive(Clone, Copy, Debug)]
pub enum Is {
    /// The number of this process.
    OwnProcess,
    /// One of these numbers, of 32 bits.
    OneOf(&'static [u64]),
    /// Its bits in the first of these are those of the second.
    Bits(u64, u64),
    /// No address.
    Null,
}

macro_rules! calls {
    ($($name:ident $number:ident [$($only:expr),*] $why:literal,)*) => {
        &[$(Call {
            name: stringify!($name),
            number: libc::$number,
            only: &[$($only),*],
            why: $why,
        }),*]
    };
}

const fn argument(index: u8, is: Is, text: &'static str) -> Argument {
    Argument { index, is, text }
}

const fn own(index: u8) -> Argument {
    argument(index, Is::OwnProcess, "of this process")
}

const EXEC: u64 = libc::PROT_EXEC as u64;
const NOT_EXECUTABLE: Argument = argument(2, Is::Bits(EXEC, 0), "not executable");

const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
/// No namespaces, either.
const CLONE_BITS: u64 = THREAD
    | (libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP) as u64;

const OF_DESCRIPTOR: u64 = libc::AT_EMPTY_PATH as u64;

/// What a process that serves may do.
pub const WORKER: &[Call] = calls! {
    // Data and descriptors.
    io_uring_setup SYS_io_uring_setup [] "the rings of queue threads",
    io_uring_enter SYS_io_uring_enter [] "the data of guests",
    io_uring_register SYS_io_uring_register [argument(1, Is::OneOf(&[0, 1, 2, 6, 11, 12]),
        "IORING_REGISTER_BUFFERS, IORING_UNREGISTER_BUFFERS, IORING_REGISTER_FILES, IORING_REGISTER_FILES_UPDATE, IORING_REGISTER_RESTRICTIONS, IORING_REGISTER_ENABLE_RINGS")]
        "buffers and files of a ring",
    read SYS_read [] "eventfds, streams",
    write SYS_write [] "eventfds, the log",
    readv SYS_readv [] "streams",
    writev SYS_writev [] "the log",
    pread64 SYS_pread64 [] "data that is in memory, or is moved; journals",
    pwrite64 SYS_pwrite64 [] "the same",
    fdatasync SYS_fdatasync [] "what is moved, and journals; at the end, what guests wrote",
    fsync SYS_fsync [] "the same",
    fallocate SYS_fallocate [] "holes in what is moved",
    ftruncate SYS_ftruncate [] "the memory in which front ends keep what is in flight",
    flock SYS_flock [] "who writes the header of a volume, and who has it",
    fadvise64 SYS_fadvise64 [] "what was read of a volume, when another host has written it",
    lseek SYS_lseek [] "holes in what is moved; sizes of devices",
    fstat SYS_fstat [] "descriptors that were received",
    fstatfs SYS_fstatfs [] "whether the memory of a key is secret memory",
    statx SYS_statx [argument(2, Is::Bits(OF_DESCRIPTOR, OF_DESCRIPTOR), "with AT_EMPTY_PATH")]
        "descriptors that were received",
    newfstatat SYS_newfstatat [argument(3, Is::Bits(OF_DESCRIPTOR, OF_DESCRIPTOR), "with AT_EMPTY_PATH")]
        "the same, by older C libraries",
    fcntl SYS_fcntl [argument(1, Is::OneOf(&[1, 2, 3, 4, 36, 37, 1030, 1033, 1034]),
        "F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_OFD_GETLK, F_OFD_SETLK, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS")]
        "copies of descriptors, locks, seals",
    ioctl SYS_ioctl [argument(1, Is::OneOf(&[0x5401, 0x5421, 0x5451]), "TCGETS, FIONBIO, FIOCLEX")]
        "sockets that do not wait; whether the log is a terminal",
    close SYS_close [] "descriptors",
    dup SYS_dup [] "descriptors",
    dup3 SYS_dup3 [] "the front end of another worker, in its place",
    eventfd2 SYS_eventfd2 [] "queue threads that are woken",
    memfd_create SYS_memfd_create [] "the memory in which front ends keep what is in flight",
    memfd_secret SYS_memfd_secret [] "keys",
    // Sockets that were received, or accepted of those.
    accept SYS_accept [] "front ends and managers",
    accept4 SYS_accept4 [] "front ends and managers",
    recvmsg SYS_recvmsg [] "front ends and managers",
    sendmsg SYS_sendmsg [] "front ends and managers",
    recvfrom SYS_recvfrom [] "the same",
    sendto SYS_sendto [argument(4, Is::Null, "to no address")] "signals, which come by a socket to oneself",
    socketpair SYS_socketpair [
        argument(0, Is::OneOf(&[1]), "AF_UNIX"),
        argument(1, Is::Bits(0xf, 1), "SOCK_STREAM")
    ] "signals",
    shutdown SYS_shutdown [] "front ends",
    getsockopt SYS_getsockopt [] "who a manager is",
    getsockname SYS_getsockname [] "sockets that were received",
    getpeername SYS_getpeername [] "the same",
    poll SYS_poll [] "waiting for managers, front ends and signals",
    ppoll SYS_ppoll [] "the same",
    // Memory.
    brk SYS_brk [] "memory",
    mmap SYS_mmap [NOT_EXECUTABLE] "memory: buffers, that of guests, keys",
    mprotect SYS_mprotect [NOT_EXECUTABLE] "the stacks of threads",
    mremap SYS_mremap [] "memory that grows",
    munmap SYS_munmap [] "memory",
    madvise SYS_madvise [] "huge pages, no dumps, memory that is given back",
    mlock SYS_mlock [] "keys",
    mlock2 SYS_mlock2 [] "keys",
    munlock SYS_munlock [] "keys",
    // Threads.
    clone SYS_clone [argument(0, Is::Bits(CLONE_BITS, THREAD), "a thread of this process, in no new namespace")] "threads",
    clone3 SYS_clone3 [] "threads; answered with ENOSYS, so that clone is asked, whose arguments can be looked at",
    futex SYS_futex [] "threads that wait",
    set_robust_list SYS_set_robust_list [] "threads that begin",
    rseq SYS_rseq [] "threads that begin",
    gettid SYS_gettid [] "threads",
    getpid SYS_getpid [] "who this is",
    getuid SYS_getuid [] "who this is",
    geteuid SYS_geteuid [] "who this is",
    getgid SYS_getgid [] "who this is",
    getegid SYS_getegid [] "who this is",
    sched_yield SYS_sched_yield [] "threads",
    sched_getaffinity SYS_sched_getaffinity [] "where threads run",
    sched_setaffinity SYS_sched_setaffinity [] "CPUs of queue threads",
    set_mempolicy SYS_set_mempolicy [] "the memory node of queue threads",
    getcpu SYS_getcpu [] "where threads run",
    ioprio_set SYS_ioprio_set [] "the priority of moving data",
    prctl SYS_prctl [argument(0, Is::OneOf(&[15, 38, 39]), "PR_SET_NAME, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS")] "names of threads",
    prlimit64 SYS_prlimit64 [
        argument(0, Is::OneOf(&[0]), "of this process"),
        argument(2, Is::Null, "changing nothing")
    ] "the sizes of stacks",
    pidfd_open SYS_pidfd_open [own(0)] "managers are given a descriptor of this process",
    exit SYS_exit [] "threads that end",
    exit_group SYS_exit_group [] "the end",
    seccomp SYS_seccomp [] "the last wall",
    // Signals and time.
    rt_sigaction SYS_rt_sigaction [] "signals",
    rt_sigprocmask SYS_rt_sigprocmask [] "signals",
    rt_sigreturn SYS_rt_sigreturn [] "signals",
    sigaltstack SYS_sigaltstack [] "threads that begin and end",
    tgkill SYS_tgkill [own(0)] "an abort",
    restart_syscall SYS_restart_syscall [] "a call that was interrupted",
    nanosleep SYS_nanosleep [] "waiting",
    clock_nanosleep SYS_clock_nanosleep [] "waiting",
    clock_gettime SYS_clock_gettime [] "the time, where it is not read from memory",
    clock_getres SYS_clock_getres [] "the same",
    gettimeofday SYS_gettimeofday [] "the same",
    getrandom SYS_getrandom [] "keys of ephemeral disks, hash tables",
};

/// What `sealblk serve` may do besides: it removes its sockets.
pub const SERVE: &[Call] = calls! {
    openat SYS_openat [] "the file with its process id, which it removes if it is its own",
    unlinkat SYS_unlinkat [] "sockets, at the end",
    unlink SYS_unlink [] "the same",
    statx SYS_statx [] "whether a socket is still the one that it made",
    newfstatat SYS_newfstatat [] "the same, by older C libraries",
};

/// What ends a process that serves at once: nobody but an intruder does this.
pub const DEADLY: &[Call] = calls! {
    execve SYS_execve [] "runs a program",
    execveat SYS_execveat [] "runs a program",
    ptrace SYS_ptrace [] "looks into other processes",
    process_vm_readv SYS_process_vm_readv [] "looks into other processes",
    process_vm_writev SYS_process_vm_writev [] "changes other processes",
    pidfd_getfd SYS_pidfd_getfd [] "takes descriptors of other processes",
    pidfd_send_signal SYS_pidfd_send_signal [] "ends other processes",
    kcmp SYS_kcmp [] "looks into other processes",
    socket SYS_socket [] "begins to talk to others",
    connect SYS_connect [] "talks to others",
    bind SYS_bind [] "is there for others",
    listen SYS_listen [] "is there for others",
    open_by_handle_at SYS_open_by_handle_at [] "opens files beside their paths",
    chroot SYS_chroot [] "leaves its root directory",
    pivot_root SYS_pivot_root [] "leaves its root directory",
    mount SYS_mount [] "gets other files",
    umount2 SYS_umount2 [] "gets other files",
    move_mount SYS_move_mount [] "gets other files",
    open_tree SYS_open_tree [] "gets other files",
    fsopen SYS_fsopen [] "gets other files",
    fsmount SYS_fsmount [] "gets other files",
    unshare SYS_unshare [] "leaves its namespaces",
    setns SYS_setns [] "leaves its namespaces",
    setuid SYS_setuid [] "becomes somebody else",
    setgid SYS_setgid [] "becomes somebody else",
    setreuid SYS_setreuid [] "becomes somebody else",
    setregid SYS_setregid [] "becomes somebody else",
    setresuid SYS_setresuid [] "becomes somebody else",
    setresgid SYS_setresgid [] "becomes somebody else",
    setgroups SYS_setgroups [] "becomes somebody else",
    capset SYS_capset [] "gets privileges",
    personality SYS_personality [] "changes what memory may be executed",
    bpf SYS_bpf [] "talks to more of the kernel",
    perf_event_open SYS_perf_event_open [] "talks to more of the kernel",
    userfaultfd SYS_userfaultfd [] "talks to more of the kernel",
    keyctl SYS_keyctl [] "talks to more of the kernel",
    add_key SYS_add_key [] "talks to more of the kernel",
    request_key SYS_request_key [] "talks to more of the kernel",
    init_module SYS_init_module [] "changes the kernel",
    finit_module SYS_finit_module [] "changes the kernel",
    delete_module SYS_delete_module [] "changes the kernel",
    kexec_load SYS_kexec_load [] "changes the kernel",
    reboot SYS_reboot [] "ends the host",
};

/// What was needed to get ready alone, and ends a process that serves.
pub const ONLY_BEFORE: &[Call] = calls! {
    io_uring_setup SYS_io_uring_setup [] "makes a ring that is not restricted, whose operations nobody looks at",
    io_uring_register SYS_io_uring_register [argument(1, Is::OneOf(&[2, 11, 12]),
        "IORING_REGISTER_FILES, IORING_REGISTER_RESTRICTIONS, IORING_REGISTER_ENABLE_RINGS")]
        "prepares a ring",
    seccomp SYS_seccomp [] "there are no more walls to come",
};

/// What a process ends by that has no rings.
pub const NO_RINGS: &[Call] = calls! {
    io_uring_setup SYS_io_uring_setup [] "makes a ring, whose operations nobody looks at",
};

/// What no process of sealblk does, and ends each that does: those that talk to
/// key services, too.
pub const NOBODY: &[Call] = calls! {
    ptrace SYS_ptrace [] "looks into other processes",
    process_vm_readv SYS_process_vm_readv [] "looks into other processes",
    process_vm_writev SYS_process_vm_writev [] "changes other processes",
    pidfd_getfd SYS_pidfd_getfd [] "takes descriptors of other processes",
    kcmp SYS_kcmp [] "looks into other processes",
    open_by_handle_at SYS_open_by_handle_at [] "opens files beside their paths",
    setns SYS_setns [] "enters the namespaces of others",
    personality SYS_personality [] "changes what memory may be executed",
    bpf SYS_bpf [] "talks to more of the kernel",
    perf_event_open SYS_perf_event_open [] "talks to more of the kernel",
    userfaultfd SYS_userfaultfd [] "talks to more of the kernel",
    keyctl SYS_keyctl [] "talks to more of the kernel",
    add_key SYS_add_key [] "talks to more of the kernel",
    request_key SYS_request_key [] "talks to more of the kernel",
    init_module SYS_init_module [] "changes the kernel",
    finit_module SYS_finit_module [] "changes the kernel",
    delete_module SYS_delete_module [] "changes the kernel",
    kexec_load SYS_kexec_load [] "changes the kernel",
    reboot SYS_reboot [] "ends the host",
    swapon SYS_swapon [] "brings memory to a disk",
    clock_settime SYS_clock_settime [] "changes the host",
    settimeofday SYS_settimeofday [] "changes the host",
    sethostname SYS_sethostname [] "changes the host",
};

/// What a process ends by that starts no others.
pub const NO_PROGRAMS: &[Call] = calls! {
    execve SYS_execve [] "runs a program",
    execveat SYS_execveat [] "runs a program",
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_call_is_in_a_table_twice_or_both_needed_and_deadly() {
        let numbers = |calls: &[Call]| -> BTreeSet<c_long> {
            let set: BTreeSet<_> = calls.iter().map(|call| call.number).collect();
            assert_eq!(set.len(), calls.len());
            set
        };
        let worker = numbers(WORKER);
        assert!(worker.is_disjoint(&numbers(DEADLY)));
        assert!(numbers(SERVE).is_disjoint(&numbers(DEADLY)));
        assert!(numbers(ONLY_BEFORE).is_subset(&worker));
        assert!(numbers(NOBODY).is_disjoint(&worker));
        numbers(NO_PROGRAMS);
        numbers(NO_RINGS);
    }
}
