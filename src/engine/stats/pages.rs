//! The mapping: memory of our own, or a memfd that is shared with another
//! process and that cannot shrink.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::error::Error;
use super::layout::{self, HEADER_BYTES, MAGIC, QUEUES_MAX, QueueStats, VERSION};

/// `TMPFS_MAGIC` of linux/magic.h: the file system that memfds are files of.
const TMPFS: i64 = 0x0102_1994;

/// A mapping that holds the blocks of `queues` queues, at least one.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
    queues: u16,
}

// SAFETY: the mapping is owned by this value and has no thread affinity.
unsafe impl Send for Pages {}
// SAFETY: what is in it is atomic.
unsafe impl Sync for Pages {}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// A sealed memfd with a header for so many queues.
pub fn create(queues: u16) -> Result<OwnedFd, Error> {
    if u64::from(queues) > QUEUES_MAX {
        return Err(Error::Layout("there are too many queues"));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know that memory need not be executable.
    let memory = rustix::fs::memfd_create("sealblk-stats", flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create("sealblk-stats", flags))
        .map_err(|error| system("create")(error.into()))?;
    let file = File::from(memory);
    file.set_len(rounded(queues) as u64)
        .map_err(system("size"))?;
    let header = layout::header(queues).map(u64::to_ne_bytes);
    file.write_all_at(header.as_flattened(), 0)
        .map_err(system("write"))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|error| system("seal")(error.into()))?;
    Ok(file.into())
}

/// The bytes of the memory for so many queues.
fn rounded(queues: u16) -> usize {
    layout::bytes(queues).next_multiple_of(rustix::param::page_size())
}

impl Pages {
    /// Memory of our own.
    pub fn anonymous(queues: u16) -> Result<Self, Error> {
        let len = rounded(queues);
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), len, protection, flags)
                .map_err(|error| system("map")(error.into()))?
        };
        Self::at(start.cast(), len, queues)
    }

    /// What [`create`] made, perhaps in another process.
    pub fn shared(memory: BorrowedFd<'_>, writable: bool) -> Result<Self, Error> {
        let queues = check(memory)?;
        let len = rounded(queues);
        let protection = match writable {
            true => ProtFlags::READ | ProtFlags::WRITE,
            false => ProtFlags::READ,
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice. The
        // memory is at least that long, and is sealed against shrinking, so
        // that touching it never faults.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                memory,
                0,
            )
            .map_err(|error| system("map")(error.into()))?
        };
        Self::at(start.cast(), len, queues)
    }

    fn at(start: *mut u8, len: usize, queues: u16) -> Result<Self, Error> {
        let start =
            NonNull::new(start).ok_or_else(|| system("map")(io::ErrorKind::OutOfMemory.into()))?;
        Ok(Pages { start, len, queues })
    }

    /// The blocks. There is at least one.
    pub fn queues(&self) -> &[QueueStats] {
        // SAFETY: the mapping is page-aligned and has room for the header and
        // so many blocks. Any bytes make valid blocks: they are made of atomic
        // words, which other threads and processes may change at any time.
        unsafe {
            let first = self.start.add(HEADER_BYTES).cast::<QueueStats>();
            std::slice::from_raw_parts(first.as_ptr(), self.queues.into())
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more. An
        // unmapping that fails leaks memory, which is all it can do.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// How many queues the memory is for, if it is safe to touch and laid out as
/// here. The other side may be hostile: the header is copied out, looked at
/// once, and never again.
fn check(memory: BorrowedFd<'_>) -> Result<u16, Error> {
    // Only files in memory have seals. Huge pages have them too, and fault when
    // there are none left.
    let seals = rustix::fs::fcntl_get_seals(memory)
        .map_err(|_| Error::Unsafe("it is no file in memory"))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(Error::Unsafe("it could be made smaller"));
    }
    let system_of = rustix::fs::fstatfs(memory).map_err(|error| system("look at")(error.into()))?;
    if system_of.f_type as i64 != TMPFS {
        return Err(Error::Unsafe("it is not made of ordinary pages"));
    }
    let copy = memory.as_fd().try_clone_to_owned();
    let file = File::from(copy.map_err(system("look at"))?);
    let len = file.metadata().map_err(system("look at"))?.len();
    let mut header = [[0; 8]; 4];
    match file.read_exact_at(header.as_flattened_mut(), 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Error::Layout("it is too short"));
        }
        Err(error) => return Err(system("read")(error)),
    }
    let [magic, version, queues, block] = header.map(u64::from_ne_bytes);
    if magic != MAGIC {
        return Err(Error::Layout("it does not begin as statistics do"));
    }
    if version != VERSION || block != size_of::<QueueStats>() as u64 {
        return Err(Error::Layout("it is of another version"));
    }
    if queues == 0 || queues > QUEUES_MAX || len != rounded(queues as u16) as u64 {
        return Err(Error::Layout("its size does not fit its queues"));
    }
    Ok(queues as u16)
}
