//! A file system (FUSE) with one file, below a disk: what becomes of each read,
//! write, fsync and fallocate of it, a test decides. It may answer at once, in
//! its own time and from any thread, wrongly, or never.
//!
//! Reads and writes of up to 1 MiB come as one request each, as a disk opened
//! with O_DIRECT sends them; nothing is cached, neither data nor size.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
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
const FALLOCATE: u32 = 43;

const ROOT: u64 = 1;
const FILE: u64 = 2;

const HEADER: usize = 40;
const NAME: &[u8] = b"disk.img";

/// What a SETATTR is about (FATTR_SIZE).
const SIZE: u32 = 1 << 3;

/// What lies below the file: a test's idea of a disk.
pub trait Backing: Send + Sync + 'static {
    /// The size of the file, in bytes.
    fn bytes(&self) -> u64;

    /// Whether direct I/O goes on beside its caller. It is done one operation after
    /// the other where not, and a write that is short is said to be so: the kernel
    /// makes an error of that otherwise.
    fn is_asynchronous(&self) -> bool {
        true
    }

    /// Somebody wants something. It is called by one thread, one request after
    /// the other, in the order in which the kernel sent them; the request may be
    /// kept, and answered later and from another thread.
    fn request(&self, request: Request);
}

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// `fsync`, or `fdatasync`.
    Sync {
        data_only: bool,
    },
    /// With the flags of `fallocate(2)`.
    Allocate {
        mode: i32,
        offset: u64,
        len: u64,
    },
    /// Another size for the file.
    Resize {
        bytes: u64,
    },
}

/// What somebody wants, and the way to answer. One that is dropped unanswered
/// fails with EIO, so that nobody waits for a test that has failed.
pub struct Request {
    /// Who wants it. It is 0 for kernel threads.
    pub pid: u32,
    pub want: Want,
    reply: Option<Reply>,
}

struct Reply {
    wire: Arc<Wire>,
    unique: u64,
    backing: Arc<dyn Backing>,
}

impl Request {
    /// Does it to a file, whole, and answers.
    pub fn carry_out(self, file: &File) {
        match self.perform(file) {
            Ok(data) => self.succeed(&data),
            Err(error) => self.fail(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    /// Does it to a file, whole, and does not answer: the data of a read, and
    /// nothing for all else.
    pub fn perform(&self, file: &File) -> io::Result<Vec<u8>> {
        let done = |result: i32| match result {
            0 => Ok(Vec::new()),
            _ => Err(io::Error::last_os_error()),
        };
        match &self.want {
            Want::Read { offset, len } => {
                let mut data = vec![0; *len];
                let mut read = 0;
                while read < *len {
                    match file.read_at(&mut data[read..], offset + read as u64)? {
                        0 => break,
                        more => read += more,
                    }
                }
                data.truncate(read);
                Ok(data)
            }
            Want::Write { offset, data } => {
                file.write_all_at(data, *offset)?;
                Ok(Vec::new())
            }
            Want::Sync { .. } => file.sync_data().map(|()| Vec::new()),
            Want::Allocate { mode, offset, len } => {
                let (offset, len) = (*offset as i64, *len as i64);
                // SAFETY: a plain system call on a file that stays open.
                done(unsafe { libc::fallocate(file.as_raw_fd(), *mode, offset, len) })
            }
            Want::Resize { bytes } => file.set_len(*bytes).map(|()| Vec::new()),
        }
    }

    /// It has been done, with this data for a read.
    pub fn succeed(self, data: &[u8]) {
        let written = match &self.want {
            Want::Write { data, .. } => data.len(),
            _ => 0,
        };
        self.finish(data, written);
    }

    /// A write has stored no more than so many bytes.
    pub fn wrote(self, bytes: usize) {
        self.finish(&[], bytes);
    }

    /// It has failed.
    pub fn fail(mut self, errno: i32) {
        if let Some(reply) = self.reply.take() {
            reply.wire.reply(reply.unique, errno, &[]);
        }
    }

    fn finish(mut self, data: &[u8], written: usize) {
        let Some(Reply {
            wire,
            unique,
            backing,
        }) = self.reply.take()
        else {
            return;
        };
        match &self.want {
            Want::Read { .. } => wire.reply(unique, 0, &[data]),
            Want::Write { .. } => {
                wire.reply(unique, 0, &[&(written as u32).to_le_bytes(), &[0; 4]]);
            }
            Want::Sync { .. } | Want::Allocate { .. } => wire.reply(unique, 0, &[]),
            Want::Resize { .. } => {
                let attributes = attributes(FILE, backing.bytes());
                wire.reply(unique, 0, &[&[0; 16], &attributes]);
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply.wire.reply(reply.unique, libc::EIO, &[]);
        }
    }
}

/// The file system, mounted as long as this lives.
pub struct Fuse {
    place: PathBuf,
}

impl Fuse {
    /// Shows `backing` as `disk.img` in the new directory `place`.
    pub fn mount(backing: Arc<dyn Backing>, place: &Path) -> Fuse {
        let wire = Arc::new(Wire {
            device: mount(place),
        });
        std::thread::spawn(move || wire.serve(&backing));
        Fuse {
            place: place.to_owned(),
        }
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        self.place.join("disk.img")
    }

    /// Ends the file system under those who use it, as when a device is pulled
    /// out: what they wait for fails, and all they do from now on.
    pub fn pull_out(&self) {
        self.unmount(libc::MNT_FORCE | libc::MNT_DETACH);
    }

    fn unmount(&self, flags: i32) {
        unmount(&self.place, flags);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.unmount(libc::MNT_DETACH);
    }
}

/// Mounts a file system on the new directory `place`: its connection.
pub fn mount(place: &Path) -> File {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let device = device.expect("this host has FUSE");
    std::fs::create_dir(place).unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let c_string = |text: &str| std::ffi::CString::new(text).unwrap();
    let target = c_string(place.to_str().unwrap());
    let (name, kind, options) = (c_string("test"), c_string("fuse"), c_string(&options));
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
    let error = io::Error::last_os_error();
    assert_eq!(mounted, 0, "tests run as root: {error}");
    device
}

/// Takes the file system away again; who serves it is told.
pub fn unmount(place: &Path, flags: i32) {
    let target = std::ffi::CString::new(place.to_str().unwrap()).unwrap();
    // SAFETY: a string that ends with a zero.
    unsafe { libc::umount2(target.as_ptr(), flags) };
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn attributes(node: u64, file_bytes: u64) -> [u8; 88] {
    let (mode, size) = match node {
        ROOT => (libc::S_IFDIR | 0o755, 0),
        _ => (libc::S_IFREG | 0o600, file_bytes),
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

/// The connection with the kernel.
pub struct Wire {
    pub device: File,
}

impl Wire {
    /// Answers until the file system is not mounted any more.
    fn serve(self: &Arc<Self>, backing: &Arc<dyn Backing>) {
        let mut buffer = vec![0; (1 << 20) + 4096];
        loop {
            match (&self.device).read(&mut buffer) {
                Ok(len) if len >= HEADER => self.handle(&buffer[..len], backing),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                _ => return,
            }
        }
    }

    fn handle(self: &Arc<Self>, message: &[u8], backing: &Arc<dyn Backing>) {
        let (opcode, unique) = (u32_at(message, 4), u64_at(message, 8));
        let (node, pid) = (u64_at(message, 16), u32_at(message, 32));
        let body = &message[HEADER..];
        let pass = |want| {
            backing.request(Request {
                pid,
                want,
                reply: Some(Reply {
                    wire: self.clone(),
                    unique,
                    backing: backing.clone(),
                }),
            });
        };
        let show = |node, before: &[u8]| {
            self.reply(unique, 0, &[before, &attributes(node, backing.bytes())]);
        };
        match opcode {
            INIT => self.init(unique, body, backing.is_asynchronous()),
            LOOKUP if node == ROOT && body.starts_with(NAME) => {
                let mut entry = [0; 40];
                entry[..8].copy_from_slice(&FILE.to_le_bytes());
                show(FILE, &entry);
            }
            LOOKUP => self.reply(unique, libc::ENOENT, &[]),
            GETATTR => show(node, &[0; 16]),
            SETATTR if u32_at(body, 0) & SIZE != 0 => pass(Want::Resize {
                bytes: u64_at(body, 16),
            }),
            SETATTR => show(node, &[0; 16]),
            OPEN => self.reply(unique, 0, &[&[0; 16]]),
            STATFS => self.reply(unique, 0, &[&[0; 80]]),
            READ => pass(Want::Read {
                offset: u64_at(body, 8),
                len: u32_at(body, 16) as usize,
            }),
            WRITE => pass(Want::Write {
                offset: u64_at(body, 8),
                data: body[40..40 + u32_at(body, 16) as usize].to_vec(),
            }),
            FSYNC => pass(Want::Sync {
                data_only: u32_at(body, 8) & 1 != 0,
            }),
            FALLOCATE => pass(Want::Allocate {
                offset: u64_at(body, 8),
                len: u64_at(body, 16),
                mode: u32_at(body, 24) as i32,
            }),
            // Nothing waits for a flush then, above all not a test that is killed: it would
            // wait for itself as it ends.
            FLUSH => self.reply(unique, libc::ENOSYS, &[]),
            RELEASE => self.reply(unique, 0, &[]),
            // They want no answer.
            FORGET | BATCH_FORGET | INTERRUPT => {}
            _ => self.reply(unique, libc::ENOSYS, &[]),
        }
    }

    pub fn init(&self, unique: u64, body: &[u8], asynchronous: bool) {
        const ASYNC_READ: u32 = 1 << 0;
        const BIG_WRITES: u32 = 1 << 5;
        const ASYNC_DIO: u32 = 1 << 15;
        const MAX_PAGES: u32 = 1 << 22;
        let mut flags = ASYNC_READ | BIG_WRITES | MAX_PAGES;
        if asynchronous {
            flags |= ASYNC_DIO;
        }
        let mut reply = [0; 64];
        let words = [7, 31, u32_at(body, 8), flags];
        for (at, word) in reply.chunks_exact_mut(4).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        reply[16..18].copy_from_slice(&64u16.to_le_bytes());
        reply[18..20].copy_from_slice(&64u16.to_le_bytes());
        reply[20..24].copy_from_slice(&(1u32 << 20).to_le_bytes());
        reply[24..28].copy_from_slice(&1u32.to_le_bytes());
        reply[28..30].copy_from_slice(&256u16.to_le_bytes());
        self.reply(unique, 0, &[&reply]);
    }

    pub fn reply(&self, unique: u64, error: i32, parts: &[&[u8]]) {
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
