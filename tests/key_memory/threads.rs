//! Stops threads and processes with ptrace(2): to look at the registers that the
//! kernel keeps for a thread that waits, and at the memory of a process at the
//! instant before it gives it back.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;
use std::time::{Duration, Instant};

use super::key_needles::Needles;
use super::process_memory::{threads, wait_until_idle};
use super::support::server::DEADLINE;

const NT_PRSTATUS: libc::c_int = 1;
const NT_X86_XSTATE: libc::c_int = 0x202;

/// Enough for all vector registers there are, and for tiles.
const STATE_BYTES: usize = 16 << 10;

fn request(what: libc::c_uint, thread: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: the requests made here write to no memory of ours, but for that
    // of `registers_of`, which lives through the call.
    let result = unsafe { libc::ptrace(what, thread, address, data) };
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until a thread that we trace has stopped or ended: its status.
fn status_of(thread: i32) -> i32 {
    let start = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: the status is a place of ours.
        let found = unsafe { libc::waitpid(thread, &mut status, libc::__WALL | libc::WNOHANG) };
        if found == thread {
            return status;
        }
        assert!(found == 0, "{thread}: {}", io::Error::last_os_error());
        assert!(start.elapsed() < DEADLINE, "{thread} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A thread that is stopped, until this is dropped.
struct Stopped(i32);

impl Stopped {
    /// `None` when there is no such thread any more.
    fn new(thread: i32) -> Option<Stopped> {
        if let Err(error) = request(libc::PTRACE_SEIZE, thread, 0, 0) {
            assert_eq!(error.raw_os_error(), Some(libc::ESRCH), "{thread}: {error}");
            return None;
        }
        let stopped = Stopped(thread);
        request(libc::PTRACE_INTERRUPT, thread, 0, 0).unwrap();
        let status = status_of(thread);
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        Some(stopped)
    }

    fn registers(&self, set: libc::c_int) -> Vec<u8> {
        let mut state = vec![0u8; STATE_BYTES];
        let mut place = libc::iovec {
            iov_base: state.as_mut_ptr().cast(),
            iov_len: state.len(),
        };
        let at = ptr::from_mut(&mut place) as usize;
        request(libc::PTRACE_GETREGSET, self.0, set as usize, at).unwrap();
        assert!(place.iov_len < STATE_BYTES, "there is more");
        state.truncate(place.iov_len);
        state
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = request(libc::PTRACE_DETACH, self.0, 0, 0);
    }
}

/// What the registers of all threads of a process have of the needles: any block in
/// a vector register, or half of one in a general register.
pub fn search(pid: u32, needles: &Needles) -> Vec<String> {
    let mut found = Vec::new();
    let mut looked_at = 0;
    for thread in threads(pid) {
        // Threads of the kernel's that work for a ring run no code of ours.
        let name = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm"));
        if name.is_ok_and(|name| name.starts_with("iou-")) {
            continue;
        }
        let Some(stopped) = Stopped::new(thread) else {
            continue;
        };
        let general = stopped.registers(NT_PRSTATUS);
        let vector = stopped.registers(NT_X86_XSTATE);
        looked_at += vector.len();
        for what in needles.in_registers(&general) {
            found.push(format!("half of {what}: a register of thread {thread}"));
        }
        for (at, what) in needles.within(&vector) {
            found.push(format!(
                "{what}: vector registers of thread {thread}, at {at}"
            ));
        }
    }
    // 16 registers of 16 bytes are the least there is.
    assert!(looked_at > 512, "{looked_at} bytes of process {pid}");
    found
}

/// A process that stops when it is about to end, with all its memory.
pub struct Ending {
    pid: i32,
    child: Option<Child>,
}

impl Ending {
    /// Of a process that runs.
    pub fn of(pid: u32) -> Ending {
        let pid = pid as i32;
        let options = libc::PTRACE_O_TRACEEXIT as usize;
        request(libc::PTRACE_SEIZE, pid, 0, options).unwrap();
        Ending { pid, child: None }
    }

    /// Of a command that is started for it.
    pub fn start(command: &mut Command) -> Ending {
        let traced = || request(libc::PTRACE_TRACEME, 0, 0, 0);
        // SAFETY: between fork and exec there is one system call, and no memory
        // is allocated.
        unsafe { command.pre_exec(traced) };
        let child = command.spawn().unwrap();
        let pid = child.id() as i32;
        // It stops behind exec.
        let status = status_of(pid);
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        let options = libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_EXITKILL;
        request(libc::PTRACE_SETOPTIONS, pid, 0, options as usize).unwrap();
        request(libc::PTRACE_CONT, pid, 0, 0).unwrap();
        Ending {
            pid,
            child: Some(child),
        }
    }

    /// Waits for that, and gives `look` the process as it is then.
    pub fn look<T>(mut self, look: impl FnOnce(u32) -> T) -> T {
        loop {
            let status = status_of(self.pid);
            assert!(libc::WIFSTOPPED(status), "it has ended: {status:#x}");
            let event = status >> 8;
            if event == libc::SIGTRAP | (libc::PTRACE_EVENT_EXIT << 8) {
                break;
            }
            // A signal is passed on, unless it is the stop of a whole group.
            let signal = match status >> 16 {
                0 => libc::WSTOPSIG(status),
                _ => 0,
            };
            request(libc::PTRACE_CONT, self.pid, 0, signal as usize).unwrap();
        }
        let seen = look(self.pid as u32);
        request(libc::PTRACE_DETACH, self.pid, 0, 0).unwrap();
        if let Some(mut child) = self.child.take() {
            let status = child.wait().unwrap();
            assert!(status.success(), "{status}");
        }
        seen
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_key_in_a_register_is_found() {
    let mut key = [0u8; 64];
    getrandom::fill(&mut key).unwrap();
    let needles = Needles::new().dek("key", &key);
    let (low, high) = (key.as_ptr(), key[32..].as_ptr());
    // SAFETY: the child calls nothing but pause(2), for which nothing but
    // registers is needed, until it is killed.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: both addresses are of 16 readable bytes and more.
        unsafe {
            std::arch::asm!(
                "movdqu xmm3, [{low}]",
                "movdqu xmm9, [{high}]",
                "2:",
                "mov eax, 34",
                "syscall",
                "jmp 2b",
                low = in(reg) low,
                high = in(reg) high,
                options(noreturn)
            );
        }
    }
    let found = search_when_loaded(pid, &needles);
    // SAFETY: both are about the child alone.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, ptr::null_mut(), 0);
    }
    assert!(
        found.iter().any(|hit| hit.starts_with("key, data half")),
        "{found:?}"
    );
    assert!(
        found.iter().any(|hit| hit.starts_with("key, tweak half")),
        "{found:?}"
    );
}

#[cfg(target_arch = "x86_64")]
fn search_when_loaded(pid: i32, needles: &Needles) -> Vec<String> {
    wait_until_idle(pid as u32);
    search(pid as u32, needles)
}
