//! The engine for AVX-512 with VAES and VPCLMULQDQ.
//!
//! The limit that binds is the throughput of VAESENC: 14 of them for every 64
//! bytes. The rest has to fit beside them:
//!
//! - 1024 bytes, 16 registers, go through the rounds side by side: a *pass*.
//!   That hides the latency of VAESENC even if some wait for a port.
//! - The tweaks of the pass that follows are computed meanwhile, between the
//!   rounds, and wait in a small buffer. Within a unit they are those of the
//!   pass before times x^64 in GF(2^128), which is little work. For a new unit
//!   each register comes from its first or second by a multiplication with
//!   x^8k: two byte shifts, a carry-less multiplication for what leaves at the
//!   top, and a sum. Next to none of it needs the port of VAESENC on Intel
//!   CPUs, and on Zen 5 it can run elsewhere.
//! - Guest memory is fetched into the cache 8 KiB ahead, along the list of
//!   places; so is our buffer where it is read, since a device may have filled
//!   it past the caches. Fetching our buffer for writing only costs.
//! - Compilers undo such an order (they take blocks through the rounds one
//!   after the other to save registers, and spill), so the loops are assembly
//!   (`pass`). It also makes sure that guest memory is read once only.
//!
//! # Why the unsafe code is sound
//!
//! The functions here need CPU features. A [`Keys`] is made by
//! [`Keys::expand`] alone, whose caller has checked `Engine::runs_here`, so
//! whoever has one is on such a CPU. Memory is accessed inside what the
//! contract of [`Engine`] promises, without demands on its alignment: units by
//! their addresses, and the lists of a batch, of which the loops load past the
//! end what the lists have to spare. Prefetching never faults. Guest memory
//! may change under the loads; nothing depends on what was read but data.

mod pass;

use std::arch::x86_64::*;
use std::io;
use std::mem::MaybeUninit;

use super::schedule::{self, ROUND_KEYS, Schedule};
use super::walk::{BATCH, Batch, Engine, Tweak, Tweaks};
use crate::secret::{Dek, SecretBox};

/// Registers in a unit of 512 bytes.
const WIDTH: usize = 8;
/// Bytes in a register.
const BYTES: usize = 64;

/// How far each lane of a unit's first register is shifted up, for block i has
/// the tweak of the unit times x^i; and down, to get what falls out of a half.
#[repr(C, align(64))]
struct Shifts([[u64; 8]; 2]);
static SHIFTS: Shifts = Shifts([[0, 0, 1, 1, 2, 2, 3, 3], [64, 64, 63, 63, 62, 62, 61, 61]]);

/// Round keys, each four times side by side.
type Wide = [__m512i; ROUND_KEYS];

/// Expanded keys.
#[repr(C, align(64))]
pub(super) struct Keys {
    encrypt: Wide,
    decrypt: Wide,
    tweak: Wide,
}

impl Keys {
    /// Expands the keys in place.
    ///
    /// # Safety
    /// The CPU has what the module needs.
    pub(super) unsafe fn expand(dek: &Dek) -> io::Result<SecretBox<Self>> {
        // Narrow schedules are needed on the way, and are secret as well.
        let mut narrow = SecretBox::init(|slot| {
            // SAFETY: zero bytes are valid vectors.
            slot.write(unsafe { MaybeUninit::<[Schedule; 3]>::zeroed().assume_init() })
        })?;
        let [encrypt, decrypt, tweak] = &mut *narrow;
        let (data_key, tweak_key) = dek.halves();
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            schedule::expand(data_key, encrypt);
            schedule::invert(encrypt, decrypt);
            schedule::expand(tweak_key, tweak);
        }
        SecretBox::init(|slot| {
            // SAFETY: zero bytes are valid vectors.
            let keys = slot.write(unsafe { MaybeUninit::<Keys>::zeroed().assume_init() });
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                widen(encrypt, &mut keys.encrypt);
                widen(decrypt, &mut keys.decrypt);
                widen(tweak, &mut keys.tweak);
            }
            keys
        })
    }
}

#[target_feature(enable = "avx512f")]
fn widen(from: &Schedule, to: &mut Wide) {
    for (from, to) in from.iter().zip(to) {
        *to = _mm512_broadcast_i32x4(*from);
    }
}

impl Engine for Keys {
    fn tweaks(&self, first: u64, step: u64, count: usize, to: &mut Tweaks) {
        // SAFETY: a `Keys` exists only where the CPU has the features.
        unsafe { tweaks(&self.tweak, first, step, count, to) }
    }

    unsafe fn encrypt<const UNIT: usize>(&self, batch: &Batch) {
        let (count, keys) = (batch.count(), &self.encrypt);
        // SAFETY: as above; the rest is the contract of this function.
        unsafe {
            if UNIT == 4096 {
                pass::encrypt_long(keys, batch);
                return;
            }
            let pairs = count / 2;
            if pairs > 0 {
                pass::encrypt_pairs(keys, batch, pairs);
            }
            if 2 * pairs < count {
                let unit = batch.unit::<UNIT>(2 * pairs);
                one_short_unit::<false>(keys, unit.tweak, unit.place, unit.ours);
            }
        }
    }

    unsafe fn decrypt<const UNIT: usize>(&self, batch: &Batch, zero_units: bool) {
        let (count, keys) = (batch.count(), &self.decrypt);
        let any = u64::from(!zero_units);
        let mut at = 0;
        // SAFETY: as above; the rest is the contract of this function.
        unsafe {
            while at < count {
                if UNIT == 4096 {
                    at = pass::decrypt_long(keys, batch, at, count, any);
                } else if count - at >= 2 {
                    at = pass::decrypt_pairs(keys, batch, at, any);
                }
                // What is left: an odd one, or one of these may be zero.
                for _ in 0..2 {
                    if at == count || zero_units && batch.settle_zero::<UNIT>(at) {
                        // Nothing to decrypt.
                    } else if UNIT == 4096 {
                        pass::decrypt_long(keys, batch, at, at + 1, 1);
                    } else {
                        let unit = batch.unit::<UNIT>(at);
                        one_short_unit::<true>(keys, unit.tweak, unit.ours, unit.place);
                    }
                    at = count.min(at + 1);
                }
                while zero_units && at < count && batch.settle_zero::<UNIT>(at) {
                    at += 1;
                }
            }
        }
    }
}

/// Encrypts or decrypts one unit of 512 bytes.
///
/// # Safety
/// `from` is readable and `to` writable, for a unit.
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
unsafe fn one_short_unit<const DECRYPT: bool>(
    keys: &Wide,
    tweak: Tweak,
    from: *const u8,
    to: *mut u8,
) {
    let [left, right] = &SHIFTS.0;
    // SAFETY: a tweak has 16 bytes; the shifts are 64 bytes each.
    let (tweak, left, right) = unsafe {
        (
            _mm512_broadcast_i32x4(_mm_loadu_si128(tweak.as_ptr().cast())),
            _mm512_loadu_si512(left.as_ptr().cast()),
            _mm512_loadu_si512(right.as_ptr().cast()),
        )
    };
    let first = put_together(
        _mm512_sllv_epi64(tweak, left),
        _mm512_srlv_epi64(tweak, right),
    );
    let second = put_together(
        _mm512_slli_epi64::<4>(first),
        _mm512_srli_epi64::<60>(first),
    );
    let tweaks: [__m512i; WIDTH] = [
        first,
        second,
        times_bytes::<1, 15>(first),
        times_bytes::<1, 15>(second),
        times_bytes::<2, 14>(first),
        times_bytes::<2, 14>(second),
        times_bytes::<3, 13>(first),
        times_bytes::<3, 13>(second),
    ];
    let mut blocks = tweaks;
    for (i, block) in blocks.iter_mut().enumerate() {
        // SAFETY: `i < WIDTH`.
        let data = unsafe { _mm512_loadu_si512(from.add(i * BYTES).cast()) };
        *block = xor3(data, tweaks[i], keys[0]);
    }
    for key in &keys[1..ROUND_KEYS - 1] {
        for block in &mut blocks {
            *block = match DECRYPT {
                false => _mm512_aesenc_epi128(*block, *key),
                true => _mm512_aesdec_epi128(*block, *key),
            };
        }
    }
    for (i, block) in blocks.iter().enumerate() {
        let key = _mm512_xor_si512(keys[ROUND_KEYS - 1], tweaks[i]);
        let data = match DECRYPT {
            false => _mm512_aesenclast_epi128(*block, key),
            true => _mm512_aesdeclast_epi128(*block, key),
        };
        // SAFETY: `i < WIDTH`.
        unsafe { _mm512_storeu_si512(to.add(i * BYTES).cast(), data) };
    }
}

/// Encrypts the numbers of `count` units into their tweaks, four to a
/// register. Writes up to the next multiple of four, which there is room for.
#[target_feature(enable = "avx512f,vaes")]
fn tweaks(keys: &Wide, first: u64, step: u64, count: usize, to: &mut Tweaks) {
    assert!(count <= BATCH);
    let to = to.as_mut_ptr().cast::<u8>();
    let number = |unit: u64| first.wrapping_add(step.wrapping_mul(unit)) as i64;
    let mut numbers = _mm512_set_epi64(0, number(3), 0, number(2), 0, number(1), 0, number(0));
    let four = _mm512_maskz_set1_epi64(0x55, step.wrapping_mul(4) as i64);
    let registers = count.div_ceil(4);
    let mut done = 0;
    while done < registers {
        // SAFETY: at most `registers` are written, each with four tweaks, and
        // `BATCH` is a multiple of four.
        unsafe {
            let to = to.add(done * BYTES);
            (numbers, done) = match registers - done {
                8.. => (encrypt_numbers::<8>(keys, numbers, four, to), done + 8),
                4.. => (encrypt_numbers::<4>(keys, numbers, four, to), done + 4),
                2.. => (encrypt_numbers::<2>(keys, numbers, four, to), done + 2),
                _ => (encrypt_numbers::<1>(keys, numbers, four, to), done + 1),
            };
        }
    }
}

/// Encrypts `N` registers of numbers, and returns those that come after them.
///
/// # Safety
/// `to` is writable for `N` registers.
#[inline]
#[target_feature(enable = "avx512f,vaes")]
unsafe fn encrypt_numbers<const N: usize>(
    keys: &Wide,
    mut numbers: __m512i,
    four: __m512i,
    to: *mut u8,
) -> __m512i {
    let mut blocks = [numbers; N];
    for block in &mut blocks {
        *block = _mm512_xor_si512(numbers, keys[0]);
        numbers = _mm512_add_epi64(numbers, four);
    }
    for key in &keys[1..ROUND_KEYS - 1] {
        for block in &mut blocks {
            *block = _mm512_aesenc_epi128(*block, *key);
        }
    }
    for (i, block) in blocks.iter().enumerate() {
        let tweak = _mm512_aesenclast_epi128(*block, keys[ROUND_KEYS - 1]);
        // SAFETY: `i < N`.
        unsafe { _mm512_storeu_si512(to.add(i * BYTES).cast(), tweak) };
    }
    numbers
}

/// Each lane times x^(8 `N`) in GF(2^128), for `N` up to 7; `REST` is 16 - `N`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn times_bytes<const N: i32, const REST: i32>(value: __m512i) -> __m512i {
    const { assert!(0 < N && N < 8 && N + REST == 16) };
    let top = _mm512_bsrli_epi128::<REST>(value);
    let around = _mm512_clmulepi64_epi128::<0x00>(top, _mm512_set1_epi64(0x87));
    _mm512_xor_si512(_mm512_bslli_epi128::<N>(value), around)
}

/// Ends a multiplication by a power of x: `shifted` is each half shifted up,
/// `carry` is what fell out of it. The low half's carry goes to the high half;
/// the high half's is worth x^128 = x^7 + x^2 + x + 1 each, and the product
/// fits into the low half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn put_together(shifted: __m512i, carry: __m512i) -> __m512i {
    let up = _mm512_bslli_epi128::<8>(carry);
    let around = _mm512_clmulepi64_epi128::<0x01>(carry, _mm512_set1_epi64(0x87));
    xor3(shifted, up, around)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}
