//! Memory for keys: locked, kept out of core dumps, wiped when dropped.
//!
//! Keys live in pages of their own. Where the kernel has `memfd_secret(2)`
//! the pages are not even in the kernel's direct map; elsewhere they are
//! anonymous pages. Either way they are locked (`mlock`), excluded from core
//! dumps (`MADV_DONTDUMP`), not inherited by `fork` (`MADV_DONTFORK`), and
//! overwritten before they are given back.
//!
//! `traces` is about what using a key leaves elsewhere in a thread, `heap` about
//! what is freed; `docs/key-hygiene.md` about all of it.

mod heap;
mod passing;
pub mod private_key;
pub(crate) mod registers;
mod traces;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

pub use heap::WipingHeap;
pub use traces::{before_rest, scrub_stack, scrubbed};

/// The length of a data encryption key: two AES-256 keys for XTS.
pub const DEK_BYTES: usize = 64;

/// A page-aligned mapping that holds secrets.
struct SecretPages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned by this value alone and has no thread affinity.
unsafe impl Send for SecretPages {}
// SAFETY: shared access only ever reads.
unsafe impl Sync for SecretPages {}

impl SecretPages {
    /// Zeroed pages for at least `len` bytes.
    fn new(len: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let len = len.max(1).next_multiple_of(page);
        let start = match Self::map_secret(len) {
            Ok(start) => start,
            Err(_) => Self::map_anonymous(len)?,
        };
        let pages = SecretPages { start, len };
        // SAFETY: the range is the mapping just made.
        unsafe {
            // Refused for secretmem, which is never dumped nor copied anyway.
            libc::madvise(start.as_ptr().cast(), len, libc::MADV_DONTDUMP);
            libc::madvise(start.as_ptr().cast(), len, libc::MADV_DONTFORK);
        }
        Ok(pages)
    }

    fn map_secret(len: usize) -> io::Result<NonNull<u8>> {
        let fd = memfd_secret(len)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                &fd,
                0,
            )?
        };
        NonNull::new(start.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
    }

    fn map_anonymous(len: usize) -> io::Result<NonNull<u8>> {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )?
        };
        let start: NonNull<u8> = NonNull::new(start.cast())
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: the range is the mapping just made.
        if let Err(error) = unsafe { rustix::mm::mlock(start.as_ptr().cast(), len) } {
            // SAFETY: as above; nothing refers to it yet.
            let _ = unsafe { rustix::mm::munmap(start.as_ptr().cast(), len) };
            return Err(error.into());
        }
        Ok(start)
    }
}

/// Memory of `len` bytes that is in nobody's direct map, not even the kernel's.
fn memfd_secret(len: usize) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; the result is checked.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just returned to us and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    rustix::fs::ftruncate(&fd, len as u64)?;
    Ok(fd)
}

impl Drop for SecretPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and readable and writable for `len` bytes.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len).zeroize();
            // Failing to unmap leaks wiped pages, which harms nobody.
            let _ = rustix::mm::munmap(self.start.as_ptr().cast(), self.len);
        }
    }
}

/// Bytes that nobody else may see: key material, and what is decrypted from
/// an envelope. Not `Clone`; `Debug` shows the length alone; `==` takes the
/// same time wherever the difference is.
pub struct Secret {
    pages: SecretPages,
    len: usize,
}

impl Secret {
    /// `len` zero bytes, to be filled in.
    ///
    /// # Errors
    /// When no page can be mapped or locked (`RLIMIT_MEMLOCK`).
    pub fn zeroed(len: usize) -> io::Result<Self> {
        Ok(Secret {
            pages: SecretPages::new(len)?,
            len,
        })
    }

    /// `len` bytes from the kernel's random number generator.
    ///
    /// # Errors
    /// As [`Secret::zeroed`], or when the generator fails.
    pub fn random(len: usize) -> io::Result<Self> {
        let mut secret = Self::zeroed(len)?;
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        Ok(secret)
    }

    /// A copy of `bytes`. The caller wipes the original.
    ///
    /// # Errors
    /// As [`Secret::zeroed`].
    pub fn copy_of(bytes: &[u8]) -> io::Result<Self> {
        let mut secret = Self::zeroed(bytes.len())?;
        secret.copy_from_slice(bytes);
        // Copies go through registers.
        registers::clear();
        Ok(secret)
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` is at most the length of the mapping, which is initialised.
        unsafe { std::slice::from_raw_parts(self.pages.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.pages.start.as_ptr(), self.len) }
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.len)
    }
}

/// A data encryption key: exactly [`DEK_BYTES`] secret bytes whose two halves differ.
#[derive(Debug, PartialEq)]
pub struct Dek(Secret);

/// Why some bytes are not a usable data encryption key.
#[derive(Debug, thiserror::Error)]
pub enum BadDek {
    /// The length is wrong.
    #[error("a data encryption key has {DEK_BYTES} bytes, not {0}")]
    Length(usize),
    /// Both AES keys are the same, which FIPS 140 (IG C.I) forbids for XTS.
    #[error("the two halves of the data encryption key are equal")]
    EqualHalves,
}

impl Dek {
    /// A new random key.
    ///
    /// # Errors
    /// As [`Secret::random`].
    pub fn generate() -> io::Result<Self> {
        loop {
            // Equal halves come once in 2^256 tries; the loop costs nothing.
            if let Ok(dek) = Dek::try_from(Secret::random(DEK_BYTES)?) {
                return Ok(dek);
            }
        }
    }

    /// The 64 bytes: the data key, then the tweak key (as dm-crypt has them).
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The data key and the tweak key: 32 bytes each.
    pub fn halves(&self) -> (&[u8; DEK_BYTES / 2], &[u8; DEK_BYTES / 2]) {
        let (halves, _) = self.0.as_chunks();
        (&halves[0], &halves[1])
    }

    /// The same, in the memory they are in: what a provider wraps.
    pub fn as_secret(&self) -> &Secret {
        &self.0
    }
}

impl TryFrom<Secret> for Dek {
    type Error = BadDek;

    fn try_from(secret: Secret) -> Result<Self, BadDek> {
        if secret.len() != DEK_BYTES {
            return Err(BadDek::Length(secret.len()));
        }
        let (data, tweak) = secret.split_at(DEK_BYTES / 2);
        if data.ct_eq(tweak).into() {
            return Err(BadDek::EqualHalves);
        }
        Ok(Dek(secret))
    }
}

/// One value, such as expanded round keys, that lives in secret memory. It is
/// dropped where it lies, and the pages are wiped afterwards.
pub struct SecretBox<T> {
    pages: SecretPages,
    _value: PhantomData<T>,
}

// SAFETY: the box owns its value, as `Box` does.
unsafe impl<T: Send> Send for SecretBox<T> {}
// SAFETY: a shared box gives shared access to the value alone.
unsafe impl<T: Sync> Sync for SecretBox<T> {}

impl<T> SecretBox<T> {
    /// Builds a value in secret memory: `make` writes it into the slot and
    /// returns the reference that it got from that. A value that is built
    /// elsewhere first leaves a copy on the stack, so key schedules are
    /// written through the slot where their type allows it.
    ///
    /// # Errors
    /// As [`Secret::zeroed`].
    ///
    /// # Panics
    /// When `make` returns a reference to something else than the slot.
    pub fn init(make: impl FnOnce(&mut MaybeUninit<T>) -> &mut T) -> io::Result<Self> {
        assert!(align_of::<T>() <= 4096, "secret pages are page-aligned");
        let pages = SecretPages::new(size_of::<T>())?;
        // SAFETY: the mapping is large and aligned enough for a `T`, and a
        // slot that need not be initialised may hold any bytes.
        let slot = unsafe { pages.start.cast::<MaybeUninit<T>>().as_mut() };
        let value = ptr::from_mut(make(slot));
        assert!(
            ptr::addr_eq(value, pages.start.as_ptr()),
            "the value is built in the slot"
        );
        Ok(SecretBox {
            pages,
            _value: PhantomData,
        })
    }
}

impl<T> Drop for SecretBox<T> {
    fn drop(&mut self) {
        // SAFETY: `init` left a valid `T` there, and it is not used again;
        // the pages are wiped and unmapped after this.
        unsafe { self.pages.start.cast::<T>().drop_in_place() };
    }
}

impl<T> Deref for SecretBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `init` left a valid `T` at the start of the mapping.
        unsafe { self.pages.start.cast().as_ref() }
    }
}

impl<T> DerefMut for SecretBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes it the only access.
        unsafe { self.pages.start.cast().as_mut() }
    }
}

impl<T> fmt::Debug for SecretBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBox")
    }
}

/// Whether the kernel gives secret memory that is not even in its own map,
/// by taking a page of it. Without, keys are in locked memory all the same.
///
/// # Errors
/// Why it does not.
pub fn try_memfd_secret() -> io::Result<()> {
    let len = rustix::param::page_size();
    let start = SecretPages::map_secret(len)?;
    drop(SecretPages { start, len });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_compared_by_value_and_shows_nothing() {
        let a = Secret::copy_of(b"top secret").unwrap();
        let b = Secret::copy_of(b"top secret").unwrap();
        let c = Secret::copy_of(b"top sacred").unwrap();
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(format!("{a:?}"), "Secret(10 bytes)");
    }

    #[test]
    fn a_dek_has_64_bytes_and_two_different_halves() {
        assert!(matches!(
            Dek::try_from(Secret::random(32).unwrap()),
            Err(BadDek::Length(32))
        ));
        assert!(matches!(
            Dek::try_from(Secret::zeroed(64).unwrap()),
            Err(BadDek::EqualHalves)
        ));
        let (a, b) = (Dek::generate().unwrap(), Dek::generate().unwrap());
        assert_ne!(a, b);
    }

    #[test]
    fn a_boxed_value_is_dropped_in_place() {
        let counted = std::rc::Rc::new(());
        let boxed = SecretBox::init(|slot| slot.write(counted.clone())).unwrap();
        assert_eq!(std::rc::Rc::strong_count(&boxed), 2);
        drop(boxed);
        assert_eq!(std::rc::Rc::strong_count(&counted), 1);
    }

    #[test]
    #[should_panic(expected = "built in the slot")]
    fn a_boxed_value_cannot_be_left_out() {
        let _ = SecretBox::<u8>::init(|_| Box::leak(Box::new(1)));
    }
}
