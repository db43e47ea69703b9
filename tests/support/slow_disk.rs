//! A file system (FUSE) with one file, below a disk: a write to it may be kept as
//! long as the test likes, as by a disk that does not answer, and reaches the
//! file only then. Who wrote or read is known.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::server::eventually;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const ROOT: u64 = 1;
const FILE: u64 = 2;

const HEADER: usize = 40;
const NAME: &[u8] = b"disk.img";

/// Someone's access to the file: the process, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub pid: u32,
    pub offset: u64,
    pub write: bool,
}

struct Kept {
    unique: u64,
    offset: u64,
    data: Vec<u8>,
}

#[derive(Default)]
struct State {
    keeping: bool,
    kept: Vec<Kept>,
    seen: Vec<Access>,
}

struct Shared {
    device: File,
    below: File,
    state: Mutex<State>,
}

/// The file system, mounted as long as this lives.
pub struct SlowDisk {
    shared: Arc<Shared>,
    place: PathBuf,
}

impl SlowDisk {
    /// Shows `below` as `disk.img` in the new directory `place`.
    pub fn mount(below: &Path, place: &Path) -> SlowDisk {
        let open = |path: &Path| File::options().read(true).write(true).open(path);
        let device = open(Path::new("/dev/fuse")).expect("this host has FUSE");
        std::fs::create_dir(place).unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let c_string = |text: &str| std::ffi::CString::new(text).unwrap();
        let target = c_string(place.to_str().unwrap());
        let (name, kind, options) = (c_string("slow"), c_string("fuse"), c_string(&options));
        // SAFETY: all are strings that end with a zero.
        let mounted = unsafe {
            libc::mount(
                name.as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        };
        let error = std::io::Error::last_os_error();
        assert_eq!(mounted, 0, "tests run as root: {error}");
        let shared = Arc::new(Shared {
            device,
            below: open(below).unwrap(),
            state: Mutex::default(),
        });
        let serving = shared.clone();
        std::thread::spawn(move || serving.serve());
        SlowDisk {
            shared,
            place: place.to_owned(),
        }
    }

    pub fn file(&self) -> PathBuf {
        self.place.join("disk.img")
    }

    /// From now on keeps all writes, and forgets who has been there.
    pub fn keep_writes(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.keeping = true;
        state.seen.clear();
    }

    /// Waits until so many writes are kept.
    pub fn await_writes(&self, count: usize) {
        eventually("writes are kept", || {
            let state = self.shared.state.lock().unwrap();
            (state.kept.len() >= count).then_some(())
        });
    }

    /// Who has been there since writes are kept.
    pub fn seen(&self) -> Vec<Access> {
        self.shared.state.lock().unwrap().seen.clone()
    }

    /// Carries out what was kept, and keeps nothing any more.
    pub fn release(&self) {
        let kept = {
            let mut state = self.shared.state.lock().unwrap();
            state.keeping = false;
            std::mem::take(&mut state.kept)
        };
        for write in kept {
            self.shared.write(write.unique, write.offset, &write.data);
        }
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.release();
        let target = std::ffi::CString::new(self.place.to_str().unwrap()).unwrap();
        // SAFETY: a string that ends with a zero. The serving thread ends with it.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Shared {
    /// Answers until the file system is not mounted any more.
    fn serve(&self) {
        let mut buffer = vec![0; (1 << 20) + 4096];
        loop {
            match (&self.device).read(&mut buffer) {
                Ok(len) if len >= HEADER => self.handle(&buffer[..len]),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                _ => return,
            }
        }
    }

    fn handle(&self, message: &[u8]) {
        let (opcode, unique) = (u32_at(message, 4), u64_at(message, 8));
        let (node, pid) = (u64_at(message, 16), u32_at(message, 32));
        let body = &message[HEADER..];
        match opcode {
            INIT => self.init(unique, body),
            LOOKUP if node == ROOT && body.starts_with(NAME) => {
                let mut entry = [0; 40];
                entry[..8].copy_from_slice(&FILE.to_le_bytes());
                self.reply(unique, 0, &[&entry, &self.attributes(FILE)]);
            }
            LOOKUP => self.reply(unique, libc::ENOENT, &[]),
            GETATTR => self.reply(unique, 0, &[&[0; 16], &self.attributes(node)]),
            OPEN => self.reply(unique, 0, &[&[0; 16]]),
            STATFS => self.reply(unique, 0, &[&[0; 80]]),
            READ => {
                let (offset, len) = (u64_at(body, 8), u32_at(body, 16) as usize);
                self.note(pid, offset, false);
                let mut data = vec![0; len];
                let read = self.below.read_at(&mut data, offset).unwrap();
                self.reply(unique, 0, &[&data[..read]]);
            }
            WRITE => {
                let (offset, len) = (u64_at(body, 8), u32_at(body, 16) as usize);
                self.note(pid, offset, true);
                let data = &body[40..40 + len];
                let mut state = self.state.lock().unwrap();
                if state.keeping {
                    state.kept.push(Kept {
                        unique,
                        offset,
                        data: data.to_vec(),
                    });
                    return;
                }
                drop(state);
                self.write(unique, offset, data);
            }
            FSYNC | FLUSH | RELEASE => self.reply(unique, 0, &[]),
            // They want no answer.
            FORGET | BATCH_FORGET | INTERRUPT => {}
            _ => self.reply(unique, libc::ENOSYS, &[]),
        }
    }

    fn init(&self, unique: u64, body: &[u8]) {
        const ASYNC_READ: u32 = 1 << 0;
        const BIG_WRITES: u32 = 1 << 5;
        const ASYNC_DIO: u32 = 1 << 15;
        let mut reply = [0; 64];
        let words = [7, 31, u32_at(body, 8), ASYNC_READ | BIG_WRITES | ASYNC_DIO];
        for (at, word) in reply.chunks_exact_mut(4).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        reply[16..18].copy_from_slice(&64u16.to_le_bytes());
        reply[18..20].copy_from_slice(&64u16.to_le_bytes());
        reply[20..24].copy_from_slice(&(1u32 << 20).to_le_bytes());
        reply[24..28].copy_from_slice(&1u32.to_le_bytes());
        self.reply(unique, 0, &[&reply]);
    }

    fn attributes(&self, node: u64) -> [u8; 88] {
        let (mode, size) = match node {
            ROOT => (libc::S_IFDIR | 0o700, 0),
            _ => (libc::S_IFREG | 0o600, self.below.metadata().unwrap().len()),
        };
        let mut bytes = [0; 88];
        bytes[..8].copy_from_slice(&node.to_le_bytes());
        bytes[8..16].copy_from_slice(&size.to_le_bytes());
        bytes[16..24].copy_from_slice(&(size / 512).to_le_bytes());
        bytes[60..64].copy_from_slice(&mode.to_le_bytes());
        bytes[64..68].copy_from_slice(&1u32.to_le_bytes());
        bytes[80..84].copy_from_slice(&4096u32.to_le_bytes());
        bytes
    }

    fn note(&self, pid: u32, offset: u64, write: bool) {
        let access = Access { pid, offset, write };
        self.state.lock().unwrap().seen.push(access);
    }

    fn write(&self, unique: u64, offset: u64, data: &[u8]) {
        self.below.write_all_at(data, offset).unwrap();
        let len = (data.len() as u32).to_le_bytes();
        self.reply(unique, 0, &[&len, &[0; 4]]);
    }

    fn reply(&self, unique: u64, error: i32, parts: &[&[u8]]) {
        let len = 16 + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut message = Vec::with_capacity(len);
        message.extend((len as u32).to_le_bytes());
        message.extend((-error).to_le_bytes());
        message.extend(unique.to_le_bytes());
        parts.iter().for_each(|part| message.extend(*part));
        // Who asked may be gone.
        let _ = (&self.device).write(&message);
    }
}
