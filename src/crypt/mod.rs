//! The cipher of the data path: AES-256-XTS over data units, as dm-crypt's
//! `aes-xts-plain64` has it.
//!
//! The cipher is the only copy that a request's data takes: encrypting reads
//! guest memory once and writes our buffer, decrypting reads our buffer and
//! writes guest memory, so that neither ciphertext nor a half-decrypted unit
//! ever stands where the guest can see it.
//!
//! - [`SectorCipher`] is what the rest of the program uses: one per disk, keys
//!   expanded once, shared by the queue threads.
//! - `engine` knows which implementations there are and which this CPU runs.
//! - `portable` is the oracle: the `aes` and `xts-mode` crates, unit by unit.
//! - `vaes512`, `vaes256` and `aesni` are built on AES instructions; `walk` takes
//!   requests apart for them, and `schedule` expands keys.
//! - `aws_lc` is there for rules that ask for such a module, if it is built in.
//! - `registers` looks that a request leaves nothing in registers.
//! - `selftest` proves an engine on this CPU before it may serve.
//!
//! No guest, no I/O and no key service is known here; only `units`, `segment`,
//! `secret` and `error` are used. Calls neither allocate nor lock, and nothing
//! branches on, or looks up tables by, secret data.
//!
//! The mode is that of IEEE Std 1619-2007 (NIST SP 800-38E). The tweak of a
//! unit is the number of its first 512-byte sector plus `iv_tweak`, 64 bits,
//! little-endian, padded with zeroes: it steps by 8 with units of 4096 bytes
//! (<https://gitlab.com/cryptsetup/cryptsetup/-/wikis/DMCrypt>, `plain64`).

#[cfg(target_arch = "x86_64")]
mod aesni;
#[cfg(any(feature = "aws-lc", feature = "fips"))]
mod aws_lc;
mod engine;
mod portable;
#[cfg(all(test, target_arch = "x86_64"))]
mod registers;
#[cfg(target_arch = "x86_64")]
mod schedule;
mod selftest;
mod transform;
#[cfg(test)]
mod tweak_tests;
#[cfg(target_arch = "x86_64")]
mod vaes256;
#[cfg(target_arch = "x86_64")]
mod vaes512;
#[cfg(any(target_arch = "x86_64", feature = "aws-lc", feature = "fips"))]
mod walk;

use std::io;

pub use engine::{Engine, UnknownEngine};
pub use transform::Transform;

use crate::error::{Explain, Kind};
use crate::secret::{Dek, SecretBox, scrub_stack};
use crate::segment::SegmentCursor;
use crate::units::{Sector, SectorSize};

/// What the format of a volume says about its encryption, beside the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// The size of a data unit.
    pub sector_size: SectorSize,
    /// Added to the sector number for the tweak, modulo 2^64: `iv_tweak` of
    /// the LUKS2 segment.
    pub iv_tweak: u64,
    /// A unit whose stored bytes are all zero reads as zeroes, so that
    /// deallocated units do. Off means plain dm-crypt behaviour.
    pub zero_units: bool,
}

/// Why a cipher cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine needs CPU features that are not there.
    #[error("the cipher engine {engine} needs {needs}, which this CPU does not have")]
    Unavailable {
        /// The engine asked for.
        engine: Engine,
        /// The features that it needs.
        needs: &'static str,
    },
    /// The engine gave wrong bytes on this CPU.
    #[error("the cipher engine {engine} failed its self test on this CPU: {what} gave wrong bytes")]
    SelfTest {
        /// The engine that failed.
        engine: Engine,
        /// Which known answer it missed.
        what: &'static str,
    },
    /// No locked memory for the round keys.
    #[error("no locked memory for the round keys")]
    Memory(#[from] io::Error),
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Unavailable { .. } | Error::SelfTest { .. } => Kind::Unsupported,
            Error::Memory(_) => Kind::Permission,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Error::Unavailable { .. } => {
                let names: Vec<_> = Engine::available().iter().map(|e| e.name()).collect();
                format!("leave the choice to sealblk (auto), or take one of: {}", names.join(", "))
            }
            Error::SelfTest { .. } => {
                "serve no data from this machine before its CPU and memory are checked; if they are sound, report this as a bug and use another engine meanwhile".into()
            }
            Error::Memory(_) => {
                "raise the limit of locked memory (LimitMEMLOCK= in the unit, or ulimit -l)".into()
            }
        })
    }
}

/// Expanded keys, in the form that the engine wants.
enum Keys {
    Portable(SecretBox<portable::Keys>),
    #[cfg(target_arch = "x86_64")]
    Vaes512(SecretBox<vaes512::Keys>),
    #[cfg(target_arch = "x86_64")]
    Vaes256(SecretBox<vaes256::Keys>),
    #[cfg(target_arch = "x86_64")]
    Aesni(SecretBox<aesni::Keys>),
    #[cfg(any(feature = "aws-lc", feature = "fips"))]
    AwsLc(SecretBox<aws_lc::Keys>),
}

/// The cipher of one disk. Shared by all its queue threads.
pub struct SectorCipher {
    keys: Keys,
    params: Params,
}

impl SectorCipher {
    /// Expands the key for an engine.
    ///
    /// # Errors
    /// When this CPU lacks what the engine needs; when the engine fails its
    /// known-answer test here (run once per process and engine); or when there
    /// is no locked memory for the round keys.
    pub fn new(engine: Engine, dek: &Dek, params: Params) -> Result<Self, Error> {
        selftest::passed(engine)?;
        Self::untested(engine, dek, params)
    }

    /// The same before, or during, the self test.
    fn untested(engine: Engine, dek: &Dek, params: Params) -> Result<Self, Error> {
        engine.check()?;
        let keys = match engine {
            Engine::Portable => Keys::Portable(portable::Keys::expand(dek)?),
            // SAFETY: `check` found that this CPU has what the engine needs.
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes512 => Keys::Vaes512(unsafe { vaes512::Keys::expand(dek)? }),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Engine::Vaes256 => Keys::Vaes256(unsafe { vaes256::Keys::expand(dek)? }),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Engine::Aesni => Keys::Aesni(unsafe { aesni::Keys::expand(dek)? }),
            #[cfg(any(feature = "aws-lc", feature = "fips"))]
            Engine::AwsLc => Keys::AwsLc(aws_lc::Keys::expand(dek)?),
        };
        // Round keys went through registers, and by value over the stack.
        scrub_stack();
        Ok(SectorCipher { keys, params })
    }

    /// The engine that does the work.
    pub fn engine(&self) -> Engine {
        match self.keys {
            Keys::Portable(_) => Engine::Portable,
            #[cfg(target_arch = "x86_64")]
            Keys::Vaes512(_) => Engine::Vaes512,
            #[cfg(target_arch = "x86_64")]
            Keys::Vaes256(_) => Engine::Vaes256,
            #[cfg(target_arch = "x86_64")]
            Keys::Aesni(_) => Engine::Aesni,
            #[cfg(any(feature = "aws-lc", feature = "fips"))]
            Keys::AwsLc(_) => Engine::AwsLc,
        }
    }

    /// What the cipher was made for.
    pub fn params(&self) -> Params {
        self.params
    }

    /// Encrypts the next `to.len()` bytes of the guest's data into our buffer,
    /// and steps the cursor over them. `first` is where they belong on the
    /// disk. Guest memory is read once; if the guest changes it meanwhile, the
    /// result is garbage to that guest alone.
    ///
    /// # Panics
    /// When `to` is not a whole number of units or longer than what the cursor
    /// has left, or `first` is not the start of a unit.
    ///
    /// # Safety
    /// The memory of the segments is mapped and readable, and overlaps `to` nowhere.
    pub unsafe fn encrypt(&self, first: Sector, from: &mut SegmentCursor<'_>, to: &mut [u8]) {
        let tweak = self.check(first, to.len(), from.remaining());
        let unit = self.params.sector_size;
        // SAFETY: as the caller vouches, and by the check of the lengths.
        unsafe {
            match &self.keys {
                Keys::Portable(keys) => {
                    from.copy_to(to);
                    keys.encrypt(tweak, unit, to);
                }
                #[cfg(target_arch = "x86_64")]
                Keys::Vaes512(keys) => {
                    walk::encrypt(&**keys, unit, tweak, from, to.as_mut_ptr(), to.len());
                }
                #[cfg(target_arch = "x86_64")]
                Keys::Vaes256(keys) => {
                    walk::encrypt(&**keys, unit, tweak, from, to.as_mut_ptr(), to.len());
                }
                #[cfg(target_arch = "x86_64")]
                Keys::Aesni(keys) => {
                    walk::encrypt(&**keys, unit, tweak, from, to.as_mut_ptr(), to.len());
                }
                #[cfg(any(feature = "aws-lc", feature = "fips"))]
                Keys::AwsLc(keys) => {
                    walk::encrypt(&**keys, unit, tweak, from, to.as_mut_ptr(), to.len());
                }
            }
        }
    }

    /// Decrypts our buffer into the next `from.len()` bytes of the guest's
    /// memory, and steps the cursor over them. `from` is used as scratch, and
    /// holds no defined bytes afterwards.
    ///
    /// # Panics
    /// As [`SectorCipher::encrypt`].
    ///
    /// # Safety
    /// The memory of the segments is mapped and writable, and overlaps `from` nowhere.
    pub unsafe fn decrypt(&self, first: Sector, from: &mut [u8], to: &mut SegmentCursor<'_>) {
        let tweak = self.check(first, from.len(), to.remaining());
        let Params {
            sector_size: unit,
            zero_units,
            ..
        } = self.params;
        // SAFETY: as the caller vouches, and by the check of the lengths.
        unsafe {
            match &self.keys {
                Keys::Portable(keys) => {
                    keys.decrypt(tweak, unit, zero_units, from);
                    to.copy_from(from);
                }
                #[cfg(target_arch = "x86_64")]
                Keys::Vaes512(keys) => {
                    walk::decrypt(
                        &**keys,
                        unit,
                        tweak,
                        zero_units,
                        from.as_mut_ptr(),
                        from.len(),
                        to,
                    );
                }
                #[cfg(target_arch = "x86_64")]
                Keys::Vaes256(keys) => {
                    walk::decrypt(
                        &**keys,
                        unit,
                        tweak,
                        zero_units,
                        from.as_mut_ptr(),
                        from.len(),
                        to,
                    );
                }
                #[cfg(target_arch = "x86_64")]
                Keys::Aesni(keys) => {
                    walk::decrypt(
                        &**keys,
                        unit,
                        tweak,
                        zero_units,
                        from.as_mut_ptr(),
                        from.len(),
                        to,
                    );
                }
                #[cfg(any(feature = "aws-lc", feature = "fips"))]
                Keys::AwsLc(keys) => {
                    walk::decrypt(
                        &**keys,
                        unit,
                        tweak,
                        zero_units,
                        from.as_mut_ptr(),
                        from.len(),
                        to,
                    );
                }
            }
        }
    }

    /// Encrypts a buffer of our own where it stands.
    ///
    /// # Panics
    /// As [`SectorCipher::encrypt`].
    pub fn encrypt_in_place(&self, first: Sector, buffer: &mut [u8]) {
        let tweak = self.check(first, buffer.len(), buffer.len());
        let unit = self.params.sector_size;
        match &self.keys {
            Keys::Portable(keys) => keys.encrypt(tweak, unit, buffer),
            #[cfg(target_arch = "x86_64")]
            Keys::Vaes512(keys) => walk::encrypt_in_place(&**keys, unit, tweak, buffer),
            #[cfg(target_arch = "x86_64")]
            Keys::Vaes256(keys) => walk::encrypt_in_place(&**keys, unit, tweak, buffer),
            #[cfg(target_arch = "x86_64")]
            Keys::Aesni(keys) => walk::encrypt_in_place(&**keys, unit, tweak, buffer),
            #[cfg(any(feature = "aws-lc", feature = "fips"))]
            Keys::AwsLc(keys) => walk::encrypt_in_place(&**keys, unit, tweak, buffer),
        }
        scrub_stack();
    }

    /// Decrypts a buffer of our own where it stands.
    ///
    /// # Panics
    /// As [`SectorCipher::encrypt`].
    pub fn decrypt_in_place(&self, first: Sector, buffer: &mut [u8]) {
        let tweak = self.check(first, buffer.len(), buffer.len());
        let Params {
            sector_size: unit,
            zero_units,
            ..
        } = self.params;
        match &self.keys {
            Keys::Portable(keys) => keys.decrypt(tweak, unit, zero_units, buffer),
            #[cfg(target_arch = "x86_64")]
            Keys::Vaes512(keys) => walk::decrypt_in_place(&**keys, unit, tweak, zero_units, buffer),
            #[cfg(target_arch = "x86_64")]
            Keys::Vaes256(keys) => walk::decrypt_in_place(&**keys, unit, tweak, zero_units, buffer),
            #[cfg(target_arch = "x86_64")]
            Keys::Aesni(keys) => walk::decrypt_in_place(&**keys, unit, tweak, zero_units, buffer),
            #[cfg(any(feature = "aws-lc", feature = "fips"))]
            Keys::AwsLc(keys) => walk::decrypt_in_place(&**keys, unit, tweak, zero_units, buffer),
        }
        scrub_stack();
    }

    /// Fills our buffer with encrypted zeroes: what WRITE_ZEROES stores.
    ///
    /// # Panics
    /// As [`SectorCipher::encrypt`].
    pub fn encrypt_zeroes(&self, first: Sector, to: &mut [u8]) {
        to.fill(0);
        self.encrypt_in_place(first, to);
    }

    /// Holds the callers to their side, and gives the tweak of the first unit.
    fn check(&self, first: Sector, len: usize, available: usize) -> u64 {
        let size = self.params.sector_size;
        assert!(len.is_multiple_of(size.bytes()), "whole data units only");
        assert!(len <= available, "the segments hold the whole buffer");
        assert!(
            first.0.is_multiple_of(size.sectors()),
            "the first sector starts a unit"
        );
        first.0.wrapping_add(self.params.iv_tweak)
    }
}

impl std::fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SectorCipher")
            .field("engine", &self.engine())
            .field("params", &self.params)
            .finish_non_exhaustive()
    }
}
