//! Looking for a key in the memory of a process: for one that is known only by
//! what it decrypts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use aes::Aes256;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

/// The first bytes of a disk, as the guest and as the host see them.
pub struct Sample {
    pub plain: [u8; 16],
    pub stored: [u8; 16],
}

/// Whether these 64 bytes are the key: XTS of the first block of unit 0.
fn opens(key: &[u8], sample: &Sample) -> bool {
    // Random bytes have hardly any zeroes; nearly all of memory has.
    if key.iter().filter(|byte| **byte == 0).count() > 4 {
        return false;
    }
    let cipher = |half: &[u8]| Aes256::new(&Array::try_from(half).unwrap());
    let mut tweak = Array::from([0; 16]);
    cipher(&key[32..]).encrypt_block(&mut tweak);
    let mut block = Array::from(sample.stored);
    block.iter_mut().zip(&tweak).for_each(|(b, t)| *b ^= t);
    cipher(&key[..32]).decrypt_block(&mut block);
    block.iter_mut().zip(&tweak).for_each(|(b, t)| *b ^= t);
    block[..] == sample.plain
}

/// Whether the key is in `bytes`, at a multiple of 8.
pub fn has_key(bytes: &[u8], sample: &Sample) -> bool {
    let places = (0..bytes.len().saturating_sub(63)).step_by(8);
    places
        .into_iter()
        .any(|at| opens(&bytes[at..at + 64], sample))
}

/// Whether the key is in the memory of a process that it can write. Needs the
/// right to look there, as root has it.
pub fn process_has_key(pid: u32, sample: &Sample) -> bool {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut searched = 0;
    let mut found = false;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (from, to) = (number(from), number(to));
        let mut bytes = vec![0; (to - from) as usize];
        // What is gone by now, or cannot be read (secret memory, devices).
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            searched += bytes.len();
            found = found || has_key(&bytes, sample);
        }
    }
    assert!(searched > 1 << 16, "the memory of {pid} cannot be searched");
    found
}

/// Has the processes that `command` starts keep their keys in memory that root
/// can read: without memfd_secret(2), as kernels without it do.
pub fn without_secret_memory(command: &mut Command) {
    let filter = || -> io::Result<()> {
        let step = |code: u32, jump_true, k| libc::sock_filter {
            code: code as u16,
            jt: jump_true,
            jf: 0,
            k,
        };
        let number = libc::SYS_memfd_secret as u32;
        let mut filter = [
            // The number of the call is at the start of what a filter sees.
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
            step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
            step(
                libc::BPF_RET | libc::BPF_K,
                0,
                libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
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
        match failed {
            true => Err(io::Error::last_os_error()),
            false => Ok(()),
        }
    };
    // SAFETY: between fork and exec only `prctl` is called, which is
    // async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(filter) };
}
