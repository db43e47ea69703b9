//! What an intruder tries who runs code of his own in a worker.

use std::collections::BTreeMap;

use io_uring::opcode;
use sealblk::sandbox::calls::{Call, Is};

use super::inject::{Answer, Puppet};

const EPERM: Answer = Answer::Returned(-(libc::EPERM as i64));
const ENOSYS: Answer = Answer::Returned(-(libc::ENOSYS as i64));

/// The descriptor table's end: of no descriptor.
const NO_FD: u64 = u32::MAX as u64;
const CWD: u64 = libc::AT_FDCWD as u64;

/// The threads of a process, by their names. Those that the kernel has for a ring have
/// no code that could be broken into.
pub fn threads(pid: u32) -> BTreeMap<String, u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // Some end while they are looked at.
    let tasks = tasks.filter_map(|task| {
        let path = task.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let number = path.file_name()?.to_str()?.parse().ok()?;
        Some((name.trim().to_owned(), number))
    });
    tasks
        .filter(|(name, _)| !name.starts_with("iou-"))
        .collect()
}

/// Has a worker make a call that it never makes, as that is described. Its parent sees
/// what becomes of it.
pub fn end_alone_by(worker: u32, call: &Call) {
    let mut puppet = Puppet::take(worker);
    let arguments = arguments(&mut puppet, call);
    puppet.leave_to(call.number, &arguments);
}

fn arguments(puppet: &mut Puppet, call: &Call) -> [u64; 6] {
    let mut arguments = [puppet.text("/"), 0, 0, 0, 0, 0];
    for argument in call.only {
        if let Is::OneOf(values) = argument.is {
            arguments[usize::from(argument.index)] = values[0];
        }
    }
    arguments
}

fn call(number: libc::c_long, arguments: &[u64]) -> (libc::c_long, Vec<u64>) {
    (number, arguments.to_vec())
}

/// What a thread of a worker is refused, and with which answer.
pub fn try_refused(thread: u32, worker: u32) {
    let mut puppet = Puppet::take(thread);
    let root = puppet.text("/");
    let passwd = puppet.text("/etc/passwd");
    let new = puppet.text("/tmp/made-by-a-worker");
    let fork = libc::SIGCHLD as u64;
    let write_and_run = (libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let cases = [
        // The file system.
        call(libc::SYS_openat, &[CWD, passwd, 0]),
        call(libc::SYS_openat, &[CWD, root, libc::O_DIRECTORY as u64]),
        call(
            libc::SYS_openat,
            &[CWD, new, (libc::O_CREAT | libc::O_RDWR) as u64, 0o600],
        ),
        call(libc::SYS_open, &[passwd, 0]),
        call(libc::SYS_creat, &[new, 0o600]),
        call(libc::SYS_openat2, &[CWD, passwd, root, 24]),
        call(libc::SYS_unlinkat, &[CWD, passwd, 0]),
        call(libc::SYS_unlink, &[passwd]),
        call(libc::SYS_renameat2, &[CWD, passwd, CWD, new, 0]),
        call(libc::SYS_linkat, &[CWD, passwd, CWD, new, 0]),
        call(libc::SYS_symlinkat, &[passwd, CWD, new]),
        call(libc::SYS_mkdirat, &[CWD, new, 0o700]),
        call(libc::SYS_mknodat, &[CWD, new, 0o600, 0]),
        call(libc::SYS_fchmodat, &[CWD, passwd, 0o777]),
        call(libc::SYS_fchownat, &[CWD, passwd, 0, 0, 0]),
        call(libc::SYS_readlinkat, &[CWD, root, root, 8]),
        call(libc::SYS_faccessat, &[CWD, passwd, 0]),
        call(libc::SYS_getdents64, &[0, root, 8]),
        call(libc::SYS_chdir, &[root]),
        call(libc::SYS_stat, &[passwd, root]),
        call(libc::SYS_statx, &[CWD, passwd, 0, 0, root]),
        call(libc::SYS_newfstatat, &[CWD, passwd, root, 0]),
        call(libc::SYS_inotify_init1, &[0]),
        call(libc::SYS_fanotify_init, &[0, 0]),
        // Other processes.
        call(libc::SYS_fork, &[]),
        call(libc::SYS_vfork, &[]),
        call(libc::SYS_clone, &[fork]),
        call(libc::SYS_clone, &[fork | libc::CLONE_NEWUSER as u64]),
        call(libc::SYS_kill, &[1, 0]),
        call(libc::SYS_kill, &[worker.into(), 0]),
        call(libc::SYS_tkill, &[worker.into(), 0]),
        call(libc::SYS_tgkill, &[1, 1, 0]),
        call(libc::SYS_rt_sigqueueinfo, &[1, 0, 0]),
        call(libc::SYS_pidfd_open, &[1, 0]),
        call(libc::SYS_prlimit64, &[1, 0, 0, root]),
        call(
            libc::SYS_prlimit64,
            &[0, libc::RLIMIT_NOFILE.into(), root, 0],
        ),
        call(libc::SYS_setrlimit, &[libc::RLIMIT_CORE.into(), root]),
        call(libc::SYS_setpriority, &[0, 1, 0]),
        // Networks.
        call(
            libc::SYS_socketpair,
            &[libc::AF_UNIX as u64, libc::SOCK_DGRAM as u64, 0, root],
        ),
        call(
            libc::SYS_socketpair,
            &[libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, root],
        ),
        call(libc::SYS_sendto, &[0, root, 1, 0, root, 16]),
        call(libc::SYS_sendmmsg, &[0, root, 1, 0]),
        // Memory and the process itself.
        call(
            libc::SYS_mmap,
            &[0, 4096, write_and_run, anonymous, NO_FD, 0],
        ),
        call(libc::SYS_mprotect, &[root & !4095, 4096, write_and_run]),
        call(
            libc::SYS_pkey_mprotect,
            &[root & !4095, 4096, write_and_run, 0],
        ),
        call(libc::SYS_shmat, &[0, 0, 0]),
        call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1]),
        call(libc::SYS_prctl, &[libc::PR_SET_PTRACER as u64, 1]),
        call(libc::SYS_prctl, &[libc::PR_SET_SECCOMP as u64, 2, root]),
        call(libc::SYS_arch_prctl, &[0x1002, root]),
        call(libc::SYS_ioctl, &[0, libc::TIOCSTI, root]),
        call(libc::SYS_fcntl, &[0, libc::F_SETOWN as u64, 1]),
        call(libc::SYS_fcntl, &[0, libc::F_DUPFD as u64, 1]),
        call(libc::SYS_dup2, &[0, 1]),
        call(libc::SYS_sysinfo, &[root]),
        call(libc::SYS_uname, &[root]),
        call(libc::SYS_timer_create, &[0, root, root]),
        call(libc::SYS_landlock_create_ruleset, &[0, 0, 1]),
        call(libc::SYS_io_uring_register, &[0, 26, root, 1]),
        call(libc::SYS_epoll_create1, &[0]),
        call(libc::SYS_splice, &[0, 0, 0, 0, 0, 0]),
        call(libc::SYS_process_madvise, &[0, root, 1, 4, 0]),
    ];
    for (number, arguments) in cases {
        let answer = puppet.call(number, &arguments);
        assert_eq!(answer, EPERM, "system call {number} {arguments:x?}");
    }
    assert_eq!(puppet.call(libc::SYS_clone3, &[root, 88]), ENOSYS);
}

/// That the answers above are those of walls, and not of an injector that makes
/// no calls.
pub fn try_permitted(thread: u32, worker: u32) {
    let mut puppet = Puppet::take(thread);
    let pid = puppet.call(libc::SYS_getpid, &[]);
    assert_eq!(pid, Answer::Returned(worker.into()));
    let user = puppet.call(libc::SYS_getuid, &[]);
    assert_ne!(user, Answer::Returned(0));
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let read = libc::PROT_READ as u64;
    let Answer::Returned(page) = puppet.call(libc::SYS_mmap, &[0, 4096, read, anonymous, NO_FD, 0])
    else {
        panic!("it has ended");
    };
    assert!(page > 0, "{page}");
    let gone = puppet.call(libc::SYS_munmap, &[page.cast_unsigned(), 4096]);
    assert_eq!(gone, Answer::Returned(0));
    let badf = Answer::Returned(-i64::from(libc::EBADF));
    for number in [libc::SYS_read, libc::SYS_fdatasync, libc::SYS_close] {
        assert_eq!(puppet.call(number, &[NO_FD, 0, 0]), badf, "{number}");
    }
}

/// The rings of a process, by their descriptors: that of the first queue first.
pub fn rings(pid: u32) -> Vec<u64> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let rings = fds.filter_map(|fd| {
        let fd = fd.unwrap();
        let target = std::fs::read_link(fd.path()).ok()?;
        let is_ring = target.to_str() == Some("anon_inode:[io_uring]");
        is_ring.then(|| fd.file_name().to_str().unwrap().parse().unwrap())
    });
    let mut rings: Vec<u64> = rings.collect();
    rings.sort_unstable();
    rings
}

/// Where the kernel keeps what of a ring: `io_uring_setup(2)`. The same for all rings
/// of a size.
struct Layout {
    entries: u32,
    sq_tail: u64,
    sq_mask: u64,
    cq_head: u64,
    cq_tail: u64,
    cq_mask: u64,
    cqes: u64,
    bytes: u64,
}

/// As many entries as the ring of a queue has.
const ENTRIES: u32 = 256 + 3;
const SQES: u64 = 0x1000_0000;
const SQE_BYTES: u64 = 64;
const CQE_BYTES: u64 = 16;

fn layout() -> Layout {
    let mut params = [0u32; 30];
    // SAFETY: the kernel reads and writes the 120 bytes of the structure.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params.as_mut_ptr()) };
    assert!(ring >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: it is ours.
    unsafe { libc::close(ring as i32) };
    // Ten words, and then ten for either queue.
    let (sq, cq) = (&params[10..20], &params[20..30]);
    Layout {
        entries: params[0],
        sq_tail: sq[1].into(),
        sq_mask: sq[2].into(),
        cq_head: cq[0].into(),
        cq_tail: cq[1].into(),
        cq_mask: cq[2].into(),
        cqes: cq[5].into(),
        bytes: u64::from(sq[6] + params[0] * 4).max(u64::from(cq[5]) + 16 * u64::from(params[1])),
    }
}

/// Has a queue thread give operations to the ring that it has: what it is not for is
/// refused by the ring itself, whoever asks and however.
pub fn try_the_ring(thread: u32, worker: u32, ring: u64) {
    let layout = layout();
    let mut puppet = Puppet::take(thread);
    let shared = libc::MAP_SHARED as u64;
    let both = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let mut map = |bytes: u64, offset: u64| match puppet
        .call(libc::SYS_mmap, &[0, bytes, both, shared, ring, offset])
    {
        Answer::Returned(at @ 1..) => at.cast_unsigned(),
        other => panic!("{other:?}"),
    };
    let queues = map(layout.bytes, 0);
    let sqes = map(u64::from(layout.entries) * SQE_BYTES, SQES);
    let path = puppet.text("/etc/passwd");
    const FIXED_FILE: u8 = 1;
    let refused = -libc::EACCES;
    let mut submit = |opcode: u8, flags: u8, fd: i32, address: u64| -> i32 {
        let tail = puppet.word(queues + layout.sq_tail);
        let slot = sqes + u64::from(tail & puppet.word(queues + layout.sq_mask)) * SQE_BYTES;
        // opcode, flags, priority, fd; offset; address; length and flags; user data.
        let fd = u64::from(fd.cast_unsigned());
        let first = u64::from(opcode) | (u64::from(flags) << 8) | (fd << 32);
        for (index, word) in [first, 0, address, 0, 0x5ea1, 0, 0, 0]
            .into_iter()
            .enumerate()
        {
            puppet.set(slot + index as u64 * 8, word);
        }
        puppet.set_word(queues + layout.sq_tail, tail.wrapping_add(1));
        let entered = puppet.call(libc::SYS_io_uring_enter, &[ring, 1, 1, 1, 0, 0]);
        assert_eq!(entered, Answer::Returned(1));
        let head = puppet.word(queues + layout.cq_head);
        assert_ne!(head, puppet.word(queues + layout.cq_tail), "it is answered");
        let place = u64::from(head & puppet.word(queues + layout.cq_mask)) * CQE_BYTES;
        let answer = queues + layout.cqes + place;
        assert_eq!(
            puppet.word(answer),
            0x5ea1,
            "nothing else has happened meanwhile"
        );
        let result = puppet.word(answer + 8).cast_signed();
        puppet.set_word(queues + layout.cq_head, head.wrapping_add(1));
        result
    };
    let here = libc::AT_FDCWD;
    for code in [
        opcode::OpenAt::CODE,
        opcode::OpenAt2::CODE,
        opcode::Socket::CODE,
        opcode::Connect::CODE,
        opcode::Accept::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::RecvMsg::CODE,
        opcode::Statx::CODE,
        opcode::UnlinkAt::CODE,
        opcode::RenameAt::CODE,
        opcode::MkDirAt::CODE,
        opcode::SymlinkAt::CODE,
        opcode::LinkAt::CODE,
        opcode::Close::CODE,
        opcode::Splice::CODE,
        opcode::EpollCtl::CODE,
        opcode::Madvise::CODE,
        opcode::ProvideBuffers::CODE,
        opcode::MsgRingData::CODE,
        opcode::Nop::CODE,
    ] {
        for flags in [0, FIXED_FILE] {
            assert_eq!(submit(code, flags, here, path), refused, "operation {code}");
        }
    }
    // What it may do, with a descriptor of the process that is not registered.
    for code in [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE] {
        assert_eq!(submit(code, 0, 2, path), refused, "operation {code}");
    }
    // The ring does what it is for, of which there is nothing in this place.
    let none = submit(opcode::Fsync::CODE, FIXED_FILE, 1000, 0);
    assert_eq!(none, -libc::EBADF);
    for (at, bytes) in [
        (queues, layout.bytes),
        (sqes, u64::from(layout.entries) * SQE_BYTES),
    ] {
        let gone = puppet.call(libc::SYS_munmap, &[at, bytes]);
        assert_eq!(gone, Answer::Returned(0));
    }
    // Personalities, eventfds, memory for others: the filter does not even ask the ring.
    for registration in [4, 7, 8, 9, 13, 16, 22, 30] {
        let answer = puppet.call(libc::SYS_io_uring_register, &[ring, registration, path, 1]);
        assert_eq!(answer, EPERM, "registration {registration} of {worker}");
    }
}
