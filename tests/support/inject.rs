//! Has another process make system calls, as an intruder would who runs code of
//! his own in it: by ptrace(2), which root may.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use libc::{c_long, c_void, pid_t, user_regs_struct};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It returned that: a number, or a negated errno.
    Returned(i64),
    /// The process was ended by that signal.
    Killed(i32),
}

/// A thread of another process that is stopped, and goes on when this is dropped
/// as if nothing had been.
pub struct Puppet {
    thread: pid_t,
    registers: user_regs_struct,
    /// The code that is exchanged: where the process began once.
    entry: u64,
    code: i64,
    /// How much of its stack is in use by what it was given.
    used: u64,
    alive: bool,
}

impl Puppet {
    /// Stops the thread, once it is let.
    pub fn take(thread: u32) -> Puppet {
        let thread = pid_t::try_from(thread).unwrap();
        request(libc::PTRACE_SEIZE, thread, 0, 0).unwrap();
        request(libc::PTRACE_INTERRUPT, thread, 0, 0).unwrap();
        let stopped = wait(thread);
        assert!(libc::WIFSTOPPED(stopped), "{stopped:#x}");
        let entry = entry(thread);
        let registers = registers(thread);
        Puppet {
            thread,
            registers,
            entry,
            code: peek(thread, entry),
            used: 0,
            alive: true,
        }
    }

    /// Gives it these bytes, and says where they are.
    pub fn give(&mut self, bytes: &[u8]) -> u64 {
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            i64::from_ne_bytes(word)
        });
        let words: Vec<i64> = words.chain([0]).collect();
        self.used += words.len() as u64 * 8;
        // Below what it uses, and what the compiler keeps below that.
        let start = (self.registers.rsp & !15) - 4096 - self.used;
        for (index, word) in words.into_iter().enumerate() {
            poke(self.thread, start + index as u64 * 8, word);
        }
        start
    }

    /// A path, or another text.
    pub fn text(&mut self, text: &str) -> u64 {
        self.give(format!("{text}\0").as_bytes())
    }

    /// What is in its memory there, of 32 bits.
    #[allow(dead_code, reason = "not all look at rings")]
    pub fn word(&self, address: u64) -> u32 {
        let word = peek(self.thread, address & !7).cast_unsigned();
        (word >> ((address & 4) * 8)) as u32
    }

    /// Writes that there.
    #[allow(dead_code, reason = "not all look at rings")]
    pub fn set_word(&mut self, address: u64, value: u32) {
        let shift = (address & 4) * 8;
        let word = peek(self.thread, address & !7).cast_unsigned();
        let word = (word & !(u64::from(u32::MAX) << shift)) | (u64::from(value) << shift);
        self.set(address & !7, word);
    }

    /// The same, of 64 bits.
    #[allow(dead_code, reason = "not all look at rings")]
    pub fn set(&mut self, address: u64, value: u64) {
        poke(self.thread, address, value.cast_signed());
    }

    /// Has it make a system call.
    pub fn call(&mut self, number: c_long, arguments: &[u64]) -> Answer {
        self.prepare(number, arguments);
        request(libc::PTRACE_CONT, self.thread, 0, 0).unwrap();
        let ended = wait(self.thread);
        if libc::WIFSIGNALED(ended) {
            self.alive = false;
            return Answer::Killed(libc::WTERMSIG(ended));
        }
        assert!(libc::WIFSTOPPED(ended), "{ended:#x}");
        assert_eq!(libc::WSTOPSIG(ended), libc::SIGTRAP, "{ended:#x}");
        Answer::Returned(registers(self.thread).rax.cast_signed())
    }

    /// The same of one by which it ends: nobody looks on. If it does not end by that,
    /// it does by SIGTRAP.
    #[allow(dead_code, reason = "not all ask who was told")]
    pub fn leave_to(mut self, number: c_long, arguments: &[u64]) {
        self.prepare(number, arguments);
        self.alive = false;
        request(libc::PTRACE_DETACH, self.thread, 0, 0).unwrap();
    }

    fn prepare(&mut self, number: c_long, arguments: &[u64]) {
        assert!(self.alive);
        let argument = |index| arguments.get(index).copied().unwrap_or(0);
        // syscall; int3
        let code = 0x00cc_050f | (self.code & !0x00ff_ffff);
        poke(self.thread, self.entry, code);
        let mut regs = self.registers;
        regs.rip = self.entry;
        regs.rsp = (self.registers.rsp & !15) - 4096 - self.used - 4096;
        regs.rax = number as u64;
        // It is in no system call that the kernel would begin again.
        regs.orig_rax = u64::MAX;
        regs.rdi = argument(0);
        regs.rsi = argument(1);
        regs.rdx = argument(2);
        regs.r10 = argument(3);
        regs.r8 = argument(4);
        regs.r9 = argument(5);
        set_registers(self.thread, &regs);
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if self.alive && !std::thread::panicking() {
            poke(self.thread, self.entry, self.code);
            set_registers(self.thread, &self.registers);
            let _ = request(libc::PTRACE_DETACH, self.thread, 0, 0);
        }
    }
}

/// Where the program of a process begins, which has long been behind it.
fn entry(thread: pid_t) -> u64 {
    let vector = std::fs::read(format!("/proc/{thread}/auxv")).unwrap();
    let words = vector.as_chunks::<8>().0.iter();
    let words: Vec<u64> = words.map(|word| u64::from_ne_bytes(*word)).collect();
    let pairs = words.as_chunks::<2>().0.iter();
    let mut found = pairs.filter(|pair| pair[0] == libc::AT_ENTRY);
    found.next().unwrap()[1]
}

fn request(what: libc::c_uint, thread: pid_t, address: u64, data: u64) -> io::Result<c_long> {
    // SAFETY: the requests that come here read and write no memory of ours.
    let result = unsafe { libc::ptrace(what, thread, address as *mut c_void, data as *mut c_void) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn peek(thread: pid_t, address: u64) -> i64 {
    // -1 is a word as well.
    // SAFETY: the C library keeps errno for each thread.
    unsafe { *libc::__errno_location() = 0 };
    request(libc::PTRACE_PEEKDATA, thread, address, 0).unwrap_or(-1)
}

fn poke(thread: pid_t, address: u64, word: i64) {
    request(libc::PTRACE_POKEDATA, thread, address, word.cast_unsigned()).unwrap();
}

fn registers(thread: pid_t) -> user_regs_struct {
    let mut registers = MaybeUninit::<user_regs_struct>::uninit();
    // SAFETY: the kernel fills all of it, if it succeeds.
    unsafe {
        let result = libc::ptrace(
            libc::PTRACE_GETREGS,
            thread,
            ptr::null_mut::<c_void>(),
            registers.as_mut_ptr(),
        );
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        registers.assume_init()
    }
}

fn set_registers(thread: pid_t, registers: &user_regs_struct) {
    // SAFETY: the kernel reads the structure.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGS,
            thread,
            ptr::null_mut::<c_void>(),
            ptr::from_ref(registers),
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// What has become of it. The end of a child of ours is left for whoever waits for
/// that; of others, their parents are told when we have taken it.
fn wait(thread: pid_t) -> i32 {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let what = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL;
    // SAFETY: the kernel fills it, and zeroes are one of its values.
    let (waited, info) = unsafe {
        let id = thread.cast_unsigned();
        let waited = libc::waitid(libc::P_PID, id, info.as_mut_ptr(), what);
        (waited, info.assume_init())
    };
    assert_eq!(waited, 0, "{}", io::Error::last_os_error());
    let ended = [libc::CLD_KILLED, libc::CLD_DUMPED].contains(&info.si_code);
    if ended && is_child(thread) {
        // SAFETY: that is what `waitid` fills.
        return unsafe { info.si_status() };
    }
    let mut status = 0;
    // SAFETY: the kernel writes the status.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert_eq!(waited, thread, "{}", io::Error::last_os_error());
    status
}

fn is_child(process: pid_t) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"));
    let parent = format!("PPid:\t{}\n", std::process::id());
    status.is_ok_and(|status| status.contains(&parent))
}

/// Has the process that `command` starts, and all that it starts, find a kernel
/// without this system call.
pub fn without_call(command: &mut Command, number: c_long) {
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    let rules = [(number, vec![])].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, unknown, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    let apply =
        move || seccompiler::apply_filter(&program).map_err(|_| io::ErrorKind::Other.into());
    // SAFETY: between fork and exec only prctl and seccomp are called, with a
    // program that was compiled before.
    unsafe { command.pre_exec(apply) };
}
