//! The engine on AWS-LC, for those whose rules ask for a validated module
//! (feature `fips`) or for a library that others maintain (`aws-lc`). It is
//! never chosen by itself: `vaes512` and `vaes256` are faster.
//!
//! The library knows AES-256-XTS behind its EVP interface alone, which takes
//! one data unit a call: the tweak is set, which keeps the expanded keys, and
//! then the whole unit goes through. A unit in pieces would restart the tweak,
//! so `walk` makes it contiguous first. A context keeps the direction that it
//! was made for: turning it around without its key gives garbage.
//!
//! # Why there are many contexts
//!
//! A context holds the tweak, so two threads cannot use one at a time; and the
//! queue threads of a disk share its cipher without a lock. There is one pair
//! of contexts for each queue that a disk can have: a thread takes the first
//! free one from a place of its own on, and only if all are taken, by more
//! threads than that, it waits for one.
//!
//! # Why the unsafe code is sound
//!
//! The library is called as its headers say: contexts are initialised once by
//! `Keys::expand`, are used by one thread at a time ([`Pair::busy`]), and are
//! cleaned up when they are dropped; they never move, since they are made and
//! dropped in the box that they live in. Input and output of a call are whole
//! units at addresses that the contract of [`Engine`] vouches for, and are
//! apart from each other or the same, which the library allows. It reads
//! guest memory as data only, and writes each block of the result once.
//!
//! Expanded keys are to live in secret memory, and the library takes its own
//! from the heap. The context is a public structure, so before a key is set,
//! its pointer to the state of the cipher is turned to memory of ours, and
//! turned back before the library frees it. Nothing in the state refers to
//! itself before the key is there. [`STATE`] is nearly twice what is needed,
//! and a test sees if that changes.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[cfg(feature = "fips")]
use aws_lc_fips_sys as sys;
#[cfg(not(feature = "fips"))]
use aws_lc_sys as sys;

use super::walk::{Batch, Engine, Tweaks};
use crate::secret::{self, Dek, SecretBox};

/// Pairs of contexts: as many as a disk can have queues.
const PAIRS: usize = 64;

/// Bytes for the state of a cipher: two key schedules of 244, and pointers.
const STATE: usize = 1024;

/// Expanded keys.
pub(super) struct Keys([Pair; PAIRS]);

// SAFETY: a context is used only by who has set `busy` of its pair, and is
// bound to no thread.
unsafe impl Send for Keys {}
// SAFETY: as above.
unsafe impl Sync for Keys {}

/// A context for each direction, which one thread uses at a time.
struct Pair {
    busy: AtomicBool,
    encrypt: UnsafeCell<Context>,
    decrypt: UnsafeCell<Context>,
}

/// A context of the library, with the state of its cipher. Zeroes are one that
/// was not initialised, and may be dropped as well.
#[repr(C, align(64))]
struct Context {
    state: [u8; STATE],
    evp: sys::EVP_CIPHER_CTX,
    /// What the library had allocated for the state.
    allocated: *mut c_void,
}

impl Context {
    /// Sets the key and the direction: 1 is encryption, 0 decryption. The
    /// context may not move after that.
    fn initialise(&mut self, dek: &Dek, direction: c_int) -> io::Result<()> {
        let (none, no_engine) = (ptr::null(), ptr::null_mut());
        let evp = &raw mut self.evp;
        // SAFETY: zeroes are what EVP_CIPHER_CTX_init leaves; the key has the
        // 64 bytes of this cipher.
        unsafe {
            let cipher = sys::EVP_aes_256_xts();
            let made = sys::EVP_CipherInit_ex(evp, cipher, no_engine, none, none, direction);
            succeeded(made)?;
            self.allocated = (*evp).cipher_data;
            (*evp).cipher_data = (&raw mut self.state).cast();
            let key = dek.bytes().as_ptr();
            let keyed = sys::EVP_CipherInit_ex(evp, ptr::null(), no_engine, key, none, direction);
            succeeded(keyed)
        }
    }

    /// Encrypts or decrypts a unit with its number as the library wants it.
    ///
    /// # Safety
    /// `from` is readable and `to` writable for `len` bytes.
    unsafe fn update(&mut self, number: &[u8; 16], from: *const u8, to: *mut u8, len: usize) {
        const KEEP_DIRECTION: c_int = -1;
        let evp = &raw mut self.evp;
        let mut written = 0;
        // SAFETY: the context was initialised; the rest as the caller vouches.
        let done = unsafe {
            let (cipher, key) = (ptr::null(), ptr::null());
            let number = number.as_ptr();
            sys::EVP_CipherInit_ex(evp, cipher, ptr::null_mut(), key, number, KEEP_DIRECTION) == 1
                && sys::EVP_CipherUpdate(evp, to, &mut written, from, len as c_int) == 1
        };
        // There is no way on: what is in the buffer may be anything. A module
        // that has failed must give nothing out, whatever that costs.
        assert!(
            done && written as usize == len,
            "AWS-LC refuses to encrypt or decrypt"
        );
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.allocated.is_null() {
            return;
        }
        self.evp.cipher_data = self.allocated;
        // SAFETY: the context is as the library had made it, but for the key
        // in the state, which is wiped with the box.
        unsafe { sys::EVP_CIPHER_CTX_cleanup(&mut self.evp) };
    }
}

fn succeeded(status: c_int) -> io::Result<()> {
    match status {
        1 => Ok(()),
        _ => Err(io::Error::other("AWS-LC refuses the cipher or the key")),
    }
}

/// Whether the module may be used: a validated one must have passed the tests
/// of its own that it runs when it is loaded.
pub(super) fn usable() -> bool {
    // SAFETY: it only looks at how the library was built.
    !cfg!(feature = "fips") || unsafe { sys::FIPS_mode() } == 1
}

impl Keys {
    /// Expands the keys in place.
    pub(super) fn expand(dek: &Dek) -> io::Result<SecretBox<Self>> {
        let mut keys = SecretBox::init(|slot: &mut MaybeUninit<Self>| {
            // SAFETY: zeroes are contexts that were not initialised, of which
            // nobody is using any.
            unsafe {
                ptr::write_bytes(slot.as_mut_ptr(), 0, 1);
                slot.assume_init_mut()
            }
        })?;
        for pair in &mut keys.0 {
            pair.encrypt.get_mut().initialise(dek, 1)?;
            pair.decrypt.get_mut().initialise(dek, 0)?;
        }
        secret::scrub_stack();
        Ok(keys)
    }

    /// Has `work` done with a pair that nobody else uses meanwhile.
    fn with_pair(&self, work: impl FnOnce(&Pair)) {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: Cell<Option<usize>> = const { Cell::new(None) };
        }
        let mut at = OWN.get().unwrap_or_else(|| {
            let own = THREADS.fetch_add(1, Ordering::Relaxed) % PAIRS;
            OWN.set(Some(own));
            own
        });
        let free = |pair: &Pair| !pair.busy.swap(true, Ordering::Acquire);
        let mut tried = 0;
        while !free(&self.0[at]) {
            at = (at + 1) % PAIRS;
            tried += 1;
            if tried % PAIRS == 0 {
                std::thread::yield_now();
            }
        }
        work(&self.0[at]);
        self.0[at].busy.store(false, Ordering::Release);
    }
}

impl Engine for Keys {
    /// The numbers themselves: the library encrypts them.
    fn tweaks(&self, first: u64, step: u64, count: usize, to: &mut Tweaks) {
        for at in 0..count {
            let number = first.wrapping_add(step.wrapping_mul(at as u64));
            to.set(at, u128::from(number).to_le_bytes());
        }
    }

    unsafe fn encrypt<const UNIT: usize>(&self, batch: &Batch) {
        self.with_pair(|pair| {
            for at in 0..batch.count() {
                let unit = batch.unit::<UNIT>(at);
                // SAFETY: the pair is ours for now; the rest is the contract
                // of this function.
                unsafe {
                    let context = &mut *pair.encrypt.get();
                    context.update(&unit.tweak, unit.place, unit.ours, UNIT);
                }
            }
        });
    }

    unsafe fn decrypt<const UNIT: usize>(&self, batch: &Batch, zero_units: bool) {
        self.with_pair(|pair| {
            for at in 0..batch.count() {
                // SAFETY: as above.
                unsafe {
                    if zero_units && batch.settle_zero::<UNIT>(at) {
                        continue;
                    }
                    let unit = batch.unit::<UNIT>(at);
                    let context = &mut *pair.decrypt.get();
                    context.update(&unit.tweak, unit.ours, unit.place, UNIT);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    /// In our memory alone, and with room to spare.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn expanded_keys_are_in_secret_memory_and_fit() {
        if !is_x86_feature_detected!("aes") {
            return;
        }
        let key: [u8; 64] = std::array::from_fn(|i| i as u8 + 1);
        let dek = Dek::try_from(Secret::copy_of(&key).unwrap()).unwrap();
        let mut keys = Keys::expand(&dek).unwrap();
        for pair in &mut keys.0 {
            for context in [pair.encrypt.get_mut(), pair.decrypt.get_mut()] {
                // A schedule for encryption starts with its key.
                let tweak_key = &key[32..];
                assert!(context.state.windows(32).any(|bytes| bytes == tweak_key));
                assert_eq!(context.state[768..], [0; STATE - 768]);
                assert!(!context.allocated.is_null());
            }
        }
    }

    #[test]
    fn more_threads_than_pairs_wait_for_each_other() {
        let key: [u8; 64] = std::array::from_fn(|i| i as u8 + 1);
        let dek = Dek::try_from(Secret::copy_of(&key).unwrap()).unwrap();
        let keys = Keys::expand(&dek).unwrap();
        let (most, now) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 * PAIRS {
                scope.spawn(|| {
                    keys.with_pair(|_| {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
        });
        assert!((1..=PAIRS).contains(&most.into_inner()));
        assert!(keys.0.iter().all(|pair| !pair.busy.load(Ordering::SeqCst)));
    }
}
