//! The engine for AES-NI without VAES: 128-bit registers, in the encoding of
//! AVX, which does not depend on what other code left in the upper halves.
//!
//! As in `vaes512`, the throughput of AESENC is the limit, and the rest fits
//! beside it: eight blocks go through the rounds side by side (a *pass*), and
//! the tweaks of the pass that follows are computed meanwhile, one per round,
//! by doubling the one before in GF(2^128). There are 16 registers only, so
//! round keys and tweaks are read from memory where they are needed.
//!
//! # Why the unsafe code is sound
//!
//! The functions here need CPU features. A [`Keys`] is made by
//! [`Keys::expand`] alone, whose caller has checked `Engine::runs_here`, so
//! whoever has one is on such a CPU. Memory is accessed inside what the
//! contract of [`Engine`] promises: units by unaligned loads and stores, and
//! the lists of a batch, of which the loops load past the end what the lists
//! have to spare; round keys and tweaks are aligned, as their types say.
//! Prefetching never faults. Guest memory may change under the loads; nothing
//! depends on what was read but data.

use std::arch::asm;
use std::arch::x86_64::*;
use std::io;
use std::mem::MaybeUninit;

use super::schedule::{self, ROUND_KEYS, Schedule};
use super::walk::{BATCH, Batch, Engine, Tweaks};
use crate::secret::{Dek, SecretBox};

/// Blocks in a pass.
const WIDTH: usize = 8;

/// Expanded keys.
pub(super) struct Keys {
    encrypt: Schedule,
    decrypt: Schedule,
    tweak: Schedule,
}

impl Keys {
    /// Expands the keys in place.
    ///
    /// # Safety
    /// The CPU has what the module needs.
    pub(super) unsafe fn expand(dek: &Dek) -> io::Result<SecretBox<Self>> {
        SecretBox::init(|slot| {
            // SAFETY: zero bytes are valid vectors.
            let keys = slot.write(unsafe { MaybeUninit::<Keys>::zeroed().assume_init() });
            let (data_key, tweak_key) = dek.halves();
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                schedule::expand(data_key, &mut keys.encrypt);
                schedule::invert(&keys.encrypt, &mut keys.decrypt);
                schedule::expand(tweak_key, &mut keys.tweak);
            }
            keys
        })
    }
}

/// Tweaks of a pass: of the current, and of the next.
#[repr(C, align(16))]
struct Ahead([MaybeUninit<[u8; 16 * WIDTH]>; 2]);

/// x^128, reduced, and the carry from the low half to the high half: what is
/// added where the topmost bit of a half falls out.
#[repr(C, align(16))]
struct Carry([u32; 4]);
static CARRY: Carry = Carry([0x87, 0, 1, 0]);

/// xmm8, the tweak computed last, doubled, and stored.
#[rustfmt::skip]
macro_rules! double {
    ($slot:literal) => {
        concat!(
            "vpshufd xmm9, xmm8, 0x13\n",
            "vpsrad xmm9, xmm9, 31\n",
            "vpaddq xmm8, xmm8, xmm8\n",
            "vpand xmm9, xmm9, xmm15\n",
            "vpxor xmm8, xmm8, xmm9\n",
            "vmovdqa [{next} + 16*", $slot, "], xmm8\n",
        )
    };
}

/// xmm8: the first tweak of the next unit, stored.
macro_rules! fresh {
    () => {
        "vmovdqu xmm8, [{tweaks} + 16]\nvmovdqa [{next}], xmm8\n"
    };
}

/// One round of a pass, and other work in its midst.
#[rustfmt::skip]
macro_rules! round {
    ($op:literal, $key:literal, $beside:expr) => {
        concat!(
            "vmovdqa xmm10, [{keys} + 16*", $key, "]\n",
            ".irp r,0,1,2,3\n", $op, " xmm\\r, xmm\\r, xmm10\n.endr\n",
            $beside,
            ".irp r,4,5,6,7\n", $op, " xmm\\r, xmm\\r, xmm10\n.endr\n",
        )
    };
}

/// A pass from {from} to {to}; `first` makes the first tweak of the next.
#[rustfmt::skip]
macro_rules! pass {
    ($op:literal, $last:literal, $from:literal, $to:literal, $first:expr, $fetch:expr) => {
        concat!(
            "xchg {now}, {next}\n",
            ".irp r,0,1,2,3,4,5,6,7\n",
            "vpxor xmm\\r, xmm12, [{", $from, "} + 16*\\r]\n",
            "vpxor xmm\\r, xmm\\r, [{now} + 16*\\r]\n",
            ".endr\n",
            round!($op, 1, $first),
            round!($op, 2, double!(1)),
            round!($op, 3, double!(2)),
            round!($op, 4, double!(3)),
            round!($op, 5, double!(4)),
            round!($op, 6, double!(5)),
            round!($op, 7, double!(6)),
            round!($op, 8, double!(7)),
            round!($op, 9, $fetch),
            round!($op, 10, ""),
            round!($op, 11, ""),
            round!($op, 12, ""),
            round!($op, 13, ""),
            ".irp r,0,1,2,3,4,5,6,7\n",
            "vpxor xmm11, xmm13, [{now} + 16*\\r]\n",
            $last, " xmm\\r, xmm\\r, xmm11\n",
            "vmovdqu [{", $to, "} + 16*\\r], xmm\\r\n",
            ".endr\n",
            "add {place}, 128\n",
            "add {ours}, 128\n",
        )
    };
}

/// Leaves, if the unit in our buffer may be zero and that matters.
macro_rules! stop_at_zero {
    () => {
        "mov {ahead}, [{ours}]\nor {ahead}, {any}\njz 3f\n"
    };
}

/// Encrypts or decrypts units from `at` to before `end`, of which there is at
/// least one. Gives how many were left when it stopped at one that starts with
/// zeroes, if `any` is zero.
macro_rules! units {
    ($op:literal, $last:literal, $from:literal, $to:literal, $fetch:expr, $stop:expr, $keys:expr, $batch:expr, $unit:expr, $at:expr, $end:expr, $any:expr) => {{
        let mut ahead = Ahead([MaybeUninit::uninit(); 2]);
        let [now, next] = &mut ahead.0;
        let left: usize;
        asm!(
            // xmm12, xmm13: first and last round key; xmm15: carries.
            "vmovdqa xmm12, [{keys}]",
            "vmovdqa xmm13, [{keys} + 16*14]",
            "vmovdqa xmm15, [{passes}]",
            "sub {tweaks}, 16",
            fresh!(),
            double!(1), double!(2), double!(3), double!(4), double!(5), double!(6), double!(7),
            "/* {any} */",
            "2:",
            "mov {place}, [{places}]",
            $stop,
            "add {tweaks}, 16",
            "mov {passes}, {most}",
            "4:",
            pass!($op, $last, $from, $to, double!(0), $fetch),
            "dec {passes}",
            "jnz 4b",
            pass!($op, $last, $from, $to, fresh!(), $fetch),
            "add {places}, 8",
            "dec {count}",
            "jnz 2b",
            "3:",
            passes = inout(reg) &raw const CARRY => _,
            most = in(reg) $unit / (16 * WIDTH) - 1,
            any = in(reg) $any,
            keys = in(reg) $keys.as_ptr(),
            tweaks = inout(reg) $batch.tweaks($at) => _,
            ours = inout(reg) $batch.ours::<$unit>($at) => _,
            places = inout(reg) $batch.places($at) => _,
            place = out(reg) _,
            ahead = out(reg) _,
            count = inout(reg) $end - $at => left,
            now = inout(reg) now.as_mut_ptr() => _,
            next = inout(reg) next.as_mut_ptr() => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack),
        );
        left
    }};
}

/// Fetches two lines of what is 8 KiB ahead in our buffer, or at the place of
/// the unit that is so far up the list.
#[rustfmt::skip]
macro_rules! fetch {
    ($op:literal, ours) => {
        concat!(
            $op, " byte ptr [{ours} + 8192]\n",
            $op, " byte ptr [{ours} + 8192 + 64]\n",
        )
    };
    // As far into that unit as {place} is into the current one.
    ($op:literal, $ahead:literal) => {
        concat!(
            "mov {ahead}, [{places} + ", $ahead, "]\n",
            "sub {ahead}, [{places}]\n",
            $op, " byte ptr [{place} + {ahead}]\n",
            $op, " byte ptr [{place} + {ahead} + 64]\n",
        )
    };
}

impl Engine for Keys {
    fn tweaks(&self, first: u64, step: u64, count: usize, to: &mut Tweaks) {
        // SAFETY: a `Keys` exists only where the CPU has the features.
        unsafe { tweaks(&self.tweak, first, step, count, to) }
    }

    unsafe fn encrypt<const UNIT: usize>(&self, batch: &Batch) {
        let (keys, count) = (&self.encrypt, batch.count());
        // SAFETY: as above; the rest is the contract of this function.
        unsafe {
            if UNIT == 512 {
                units!(
                    "vaesenc",
                    "vaesenclast",
                    "place",
                    "ours",
                    fetch!("prefetcht0", 128),
                    "",
                    keys,
                    batch,
                    512,
                    0,
                    count,
                    1u64
                );
            } else {
                units!(
                    "vaesenc",
                    "vaesenclast",
                    "place",
                    "ours",
                    fetch!("prefetcht0", 16),
                    "",
                    keys,
                    batch,
                    4096,
                    0,
                    count,
                    1u64
                );
            }
        }
    }

    unsafe fn decrypt<const UNIT: usize>(&self, batch: &Batch, zero_units: bool) {
        let mut at = 0;
        while at < batch.count() {
            // SAFETY: as above; the rest is the contract of this function.
            unsafe {
                at = self.decrypt_units::<UNIT>(batch, at, batch.count(), zero_units);
                // What stopped it may be zero, or only look so.
                if at < batch.count() && !batch.settle_zero::<UNIT>(at) {
                    self.decrypt_units::<UNIT>(batch, at, at + 1, false);
                }
            }
            at += 1;
        }
    }
}

impl Keys {
    /// Decrypts units from `at` to before `end`, or to before one that starts
    /// with zeroes, if these matter. Gives where it stopped.
    ///
    /// # Safety
    /// As [`Engine::decrypt`]; `at` is less than `end`, and that at most the count.
    unsafe fn decrypt_units<const UNIT: usize>(
        &self,
        batch: &Batch,
        at: usize,
        end: usize,
        zero_units: bool,
    ) -> usize {
        let (keys, any) = (&self.decrypt, u64::from(!zero_units));
        // SAFETY: as the caller vouches.
        let left = unsafe {
            if UNIT == 512 {
                units!(
                    "vaesdec",
                    "vaesdeclast",
                    "ours",
                    "place",
                    concat!(fetch!("prefetcht0", ours), fetch!("prefetchw", 128)),
                    stop_at_zero!(),
                    keys,
                    batch,
                    512,
                    at,
                    end,
                    any
                )
            } else {
                units!(
                    "vaesdec",
                    "vaesdeclast",
                    "ours",
                    "place",
                    concat!(fetch!("prefetcht0", ours), fetch!("prefetchw", 16)),
                    stop_at_zero!(),
                    keys,
                    batch,
                    4096,
                    at,
                    end,
                    any
                )
            }
        };
        end - left
    }
}

/// Encrypts the numbers of `count` units into their tweaks, eight at a time.
/// Writes up to the next multiple of eight, which there is room for.
#[target_feature(enable = "aes,avx")]
fn tweaks(mut keys: &Schedule, first: u64, step: u64, count: usize, to: &mut Tweaks) {
    assert!(count <= BATCH);
    const { assert!(BATCH.is_multiple_of(WIDTH)) };
    let to = to.as_mut_ptr().cast::<__m128i>();
    for done in (0..count).step_by(WIDTH) {
        keys = afresh(keys);
        let mut blocks: [__m128i; WIDTH] = std::array::from_fn(|i| {
            let number = first.wrapping_add(step.wrapping_mul((done + i) as u64));
            _mm_xor_si128(_mm_set_epi64x(0, number as i64), keys[0])
        });
        for key in &keys[1..ROUND_KEYS - 1] {
            side_by_side(&mut blocks);
            for block in &mut blocks {
                *block = _mm_aesenc_si128(*block, *key);
            }
        }
        for (i, block) in blocks.iter().enumerate() {
            let tweak = _mm_aesenclast_si128(*block, keys[ROUND_KEYS - 1]);
            // SAFETY: `done` is a multiple of eight, as `BATCH` is.
            unsafe { _mm_store_si128(to.add(done + i), tweak) };
        }
    }
}

/// Keeps the compiler from loading round keys ahead of the loop: there are too
/// few registers for them, and it would leave copies on the stack.
#[inline]
fn afresh(keys: &Schedule) -> &Schedule {
    let mut keys: *const Schedule = keys;
    // SAFETY: there is no instruction in it, so the reference stays what it is.
    unsafe {
        asm!("/* {} */", inout(reg) keys, options(pure, readonly, nostack, preserves_flags));
        &*keys
    }
}

/// Keeps the compiler from taking one block through its rounds after the
/// other, which saves registers but waits for every round.
#[inline]
#[target_feature(enable = "aes,avx")]
fn side_by_side(blocks: &mut [__m128i; WIDTH]) {
    let [a, b, c, d, e, f, g, h] = blocks;
    // SAFETY: there is no instruction in it.
    unsafe {
        asm!(
            "/* {} {} {} {} {} {} {} {} */",
            inout(xmm_reg) * a,
            inout(xmm_reg) * b,
            inout(xmm_reg) * c,
            inout(xmm_reg) * d,
            inout(xmm_reg) * e,
            inout(xmm_reg) * f,
            inout(xmm_reg) * g,
            inout(xmm_reg) * h,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}
