//! Core dumps, children and swap: what the kernel does with secret memory by
//! itself. Looked at in processes of this test program, which hold a key as sealblk
//! does, and permit what sealblk forbids for all of its memory.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit};
use sealblk::secret::Secret;

use super::key_needles::Needles;
use super::process_memory::without_secret_memory;

/// Set for the process that holds a key.
const HOLDER: &str = "SEALBLK_TEST_HOLDS_A_KEY";

/// Reads 64 bytes: a key, which is put into secret memory and wiped elsewhere, and
/// 64 more, which are not. Then dies as by a defect.
#[test]
fn holder() {
    if std::env::var_os(HOLDER).is_none() {
        return;
    }
    let mut key = Secret::zeroed(64).unwrap();
    let mut other = vec![0; 64];
    // Not through the buffer of standard input.
    let mut input = std::fs::File::open("input").unwrap();
    input.read_exact(&mut key).unwrap();
    input.read_exact(&mut other).unwrap();
    assert!(a_child_has_no(&key));
    let limit = rustix::process::getrlimit(Resource::Core).maximum;
    let most = Rlimit {
        current: limit,
        maximum: limit,
    };
    rustix::process::setrlimit(Resource::Core, most).unwrap();
    std::hint::black_box((&key, &other));
    // With what it holds as it is.
    std::process::abort();
}

/// Whether a child finds nothing where its parent has a secret.
fn a_child_has_no(secret: &Secret) -> bool {
    let (mut ours, theirs) = std::io::pipe().unwrap();
    use std::os::fd::AsRawFd;
    let (pipe, address) = (theirs.as_raw_fd(), secret.as_ptr());
    // SAFETY: the child makes two system calls, both of which are
    // async-signal-safe; that there is no memory at the address is an error of
    // the first.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            let written = libc::write(pipe, address.cast(), 64);
            libc::_exit(i32::from(written >= 0));
        }
    }
    drop(theirs);
    let mut status = 0;
    // SAFETY: the child is ours, and the status a place of ours.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    let mut found = Vec::new();
    ours.read_to_end(&mut found).unwrap();
    status == 0 && found.is_empty()
}

#[test]
fn secret_memory_is_in_no_core_dump_and_in_no_child() {
    for hidden in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = [0; 128];
        getrandom::fill(&mut bytes).unwrap();
        let mut input = std::fs::File::create(directory.path().join("input")).unwrap();
        input.write_all(&bytes).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "dumps::holder",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(HOLDER, "1")
            .current_dir(directory.path())
            .stdin(Stdio::null());
        if !hidden {
            without_secret_memory(&mut command);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
        let files = std::fs::read_dir(directory.path()).unwrap();
        let core = files
            .map(|file| file.unwrap().path())
            .find(|path| path.file_name().unwrap().to_str().unwrap().contains("core"));
        let (true, Some(core)) = (output.status.core_dumped(), core) else {
            eprintln!("this host puts core dumps elsewhere, or makes none");
            continue;
        };
        let dump = std::fs::read(core).unwrap();
        let key = Needles::new().dek("the key", &bytes[..64]);
        let other = Needles::new().bytes("what is not in secret memory", &bytes[64..]);
        assert!(!other.within(&dump).is_empty(), "{} bytes", dump.len());
        assert_eq!(key.within(&dump), []);
    }
}
