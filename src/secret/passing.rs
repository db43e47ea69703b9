//! Giving a data encryption key to another process by a file descriptor.
//!
//! The descriptor is that of `memfd_secret(2)` where the kernel has it: its
//! page is in no direct map, cannot be swapped, and keeps its size. Elsewhere
//! it is a memfd whose size is sealed. It is not sealed against writing: the
//! receiver overwrites the page as soon as it has its copy, for everybody who
//! has the descriptor, so that no freed page holds a key.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use zeroize::Zeroize;

use super::{DEK_BYTES, Dek, Secret, memfd_secret, registers};

/// What `fstatfs` says of a descriptor of `memfd_secret(2)`.
const SECRETMEM_MAGIC: u64 = 0x5345_434d;

/// Seals without which somebody could cut off the page that we are reading.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::SEAL);

impl Dek {
    /// A descriptor that another process can [receive](Self::receive) the key
    /// from, once.
    ///
    /// # Errors
    /// When there is no memory or descriptor for it.
    pub fn pass(&self) -> io::Result<OwnedFd> {
        let fd = match memfd_secret(DEK_BYTES) {
            Ok(fd) => fd,
            Err(_) => sealed_memfd()?,
        };
        let mut page = Page::map(&fd)?;
        page.bytes().copy_from_slice(self.bytes());
        registers::clear();
        Ok(fd)
    }

    /// The key in a descriptor that [`pass`](Self::pass) made. What the
    /// descriptor refers to is overwritten.
    ///
    /// # Errors
    /// When it is not such a descriptor, or was received from before, or
    /// there is no memory.
    pub fn receive(fd: OwnedFd) -> io::Result<Dek> {
        let bad = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
        if rustix::fs::fstat(&fd)?.st_size != DEK_BYTES as i64 {
            return Err(bad("a descriptor of another size was given for a key"));
        }
        let secret = rustix::fs::fstatfs(&fd)?.f_type as u64 == SECRETMEM_MAGIC;
        let fixed = |fd| rustix::fs::fcntl_get_seals(fd).is_ok_and(|is| is.contains(SIZE_SEALS));
        if !secret && !fixed(&fd) {
            return Err(bad("a descriptor that is not sealed was given for a key"));
        }
        let mut page = Page::map(&fd)?;
        let copy = Secret::copy_of(page.bytes());
        page.bytes().zeroize();
        Dek::try_from(copy?).map_err(io::Error::other)
    }
}

/// Memory of the size of a key, for kernels without `memfd_secret(2)`.
fn sealed_memfd() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("sealblk", flags)?;
    rustix::fs::ftruncate(&fd, DEK_BYTES as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SIZE_SEALS | SealFlags::GROW)?;
    Ok(fd)
}

/// The mapped bytes of such a descriptor.
struct Page(NonNull<u8>);

impl Page {
    fn map(fd: &OwnedFd) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                DEK_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        let start = NonNull::new(start.cast());
        let page = Page(start.ok_or(io::ErrorKind::OutOfMemory)?);
        // A precaution: memory of `memfd_secret` is locked as it is, and a
        // limit must not keep the other kind from being used for an instant.
        // SAFETY: the range is the mapping just made.
        let _ = unsafe { rustix::mm::mlock(page.0.as_ptr().cast(), DEK_BYTES) };
        Ok(page)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has this many bytes, and its file cannot shrink:
        // secret memory never does, and the other kind is sealed. Whoever else
        // has it mapped is the other end of the hand-over, which is done with
        // it when we are given the descriptor.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), DEK_BYTES) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference to it is left.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), DEK_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_received_once() {
        let dek = Dek::generate().unwrap();
        let fd = dek.pass().unwrap();
        let again = fd.try_clone().unwrap();
        assert!(Dek::receive(fd).unwrap() == dek);
        // All that is left there is zeroes, which are no key.
        let mut page = Page::map(&again).unwrap();
        assert_eq!(page.bytes(), [0; DEK_BYTES]);
        drop(page);
        assert!(Dek::receive(again).is_err());
    }

    #[test]
    fn kernels_without_secret_memory_pass_keys_too() {
        let dek = Dek::generate().unwrap();
        let fd = sealed_memfd().unwrap();
        Page::map(&fd).unwrap().bytes().copy_from_slice(dek.bytes());
        assert!(rustix::fs::ftruncate(&fd, 0).is_err(), "it can be cut off");
        let again = fd.try_clone().unwrap();
        assert!(Dek::receive(fd).unwrap() == dek);
        assert!(Dek::receive(again).is_err(), "it was not wiped");
    }

    #[test]
    fn other_descriptors_hold_no_key() {
        let file = tempfile::tempfile().unwrap();
        assert!(Dek::receive(file.try_clone().unwrap().into()).is_err());
        file.set_len(DEK_BYTES as u64).unwrap();
        let error = Dek::receive(file.into()).unwrap_err();
        assert!(error.to_string().contains("not sealed"), "{error}");
    }
}
