//! Looks for bytes in the memory of another process, waits until it rests, and
//! keeps it from having memory that nobody can look into.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// So much is read at once.
const CHUNK: usize = 1 << 20;

/// How long a process may be at work that nobody asks anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// In how many places the memory of a process has `needle`. Panics if it may
/// have memory that cannot be read.
pub fn count(pid: u32, needle: &[u8]) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(!maps.contains("secretmem"), "nobody can look into that");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("tests run as root");
    let mut found = 0;
    let mut looked_at = 0;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        // What belongs to the kernel cannot be read.
        if !rest.starts_with('r') || rest.contains("[v") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|it| u64::from_str_radix(it, 16).unwrap());
        looked_at += end - start;
        found += count_within(&memory, start, end, needle);
    }
    assert!(looked_at > 1 << 20, "{looked_at} bytes of process {pid}");
    found
}

fn count_within(memory: &File, start: u64, end: u64, needle: &[u8]) -> usize {
    let mut found = 0;
    let mut at = start;
    let mut bytes = vec![0; CHUNK + needle.len() - 1];
    while at < end {
        let whole = usize::try_from(end - at).unwrap().min(bytes.len());
        // A part of a mapping of io_uring or of a file that is shorter.
        let Ok(read) = memory.read_at(&mut bytes[..whole], at) else {
            at += 4096;
            continue;
        };
        let first = needle[0];
        let mut from = 0;
        while let Some(next) = bytes[from..read].iter().position(|byte| *byte == first) {
            let place = from + next;
            if place < CHUNK && bytes[place..read].starts_with(needle) {
                found += 1;
            }
            from = place + 1;
        }
        at += read.clamp(1, CHUNK) as u64;
    }
    found
}

/// Has the process that `command` starts, and all that it starts, find a kernel
/// without `memfd_secret(2)`: then keys are in locked memory, into which root
/// can look.
pub fn without_secret_memory(command: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, which is
    // async-signal-safe, with a program that lives until then.
    unsafe { command.pre_exec(refuse_memfd_secret) };
}

fn refuse_memfd_secret() -> io::Result<()> {
    let op = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        // The number of the call is the first member of `seccomp_data`.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_memfd_secret as u32,
        ),
        op(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        ),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is valid for the call, which copies it.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
    };
    match done {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}

/// The threads of a process.
pub fn threads(pid: u32) -> Vec<i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    entries
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
}

/// Waits until all threads of a process sleep, and have done so for a while.
pub fn wait_until_idle(pid: u32) {
    let quiet = || {
        threads(pid).into_iter().all(|thread| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"));
            // Behind the name, which may have any characters.
            stat.is_ok_and(|stat| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('S'))
            })
        })
    };
    let start = Instant::now();
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_millis(50) {
        if !quiet() {
            since = Instant::now();
        }
        assert!(start.elapsed() < PATIENCE, "{pid} does not come to rest");
        std::thread::sleep(Duration::from_millis(1));
    }
}
