//! The engine for VAES and VPCLMULQDQ on the 256-bit registers of AVX2, for
//! CPUs that have no AVX-512: Zen 3, and Intel's from Alder Lake on where the
//! efficient cores lack it.
//!
//! As in `vaes512`, the throughput of VAESENC is the limit, and the rest has
//! to fit beside it. Eight registers go through the rounds side by side (a
//! *pass*, 256 bytes), and the tweaks of the pass that follows are computed
//! meanwhile. Within a unit they are those of the pass before times x^16 in
//! GF(2^128): two byte shifts, a carry-less multiplication for what leaves at
//! the top, and a sum. For a new unit the first four registers come from its
//! tweak by bit shifts, and the others from them by a byte. There are 16
//! registers only, so round keys and tweaks are read from memory where they
//! are needed.
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

/// Registers in a pass.
const WIDTH: usize = 8;
/// Bytes in a register.
const BYTES: usize = 32;

/// Round keys, each twice side by side.
type Wide = [__m256i; ROUND_KEYS];

/// Expanded keys.
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

#[target_feature(enable = "avx2")]
fn widen(from: &Schedule, to: &mut Wide) {
    for (from, to) in from.iter().zip(to) {
        *to = _mm256_broadcastsi128_si256(*from);
    }
}

/// Tweaks of a pass: of the current, and of the next.
#[repr(C, align(32))]
struct Ahead([MaybeUninit<[u8; WIDTH * BYTES]>; 2]);

/// How far each half of a unit's first register is shifted up, for block i has
/// the tweak of the unit times x^i; and down, to get what falls out.
#[repr(C, align(32))]
struct Shifts([[u64; 4]; 2]);
static SHIFTS: Shifts = Shifts([[0, 0, 1, 1], [64, 64, 63, 63]]);

// Steps towards the tweaks of the next pass. ymm14 is x^128, reduced.

/// A register of the pass before times x^16.
#[rustfmt::skip]
macro_rules! x16 {
    ($slot:literal) => {
        concat!(
            "vmovdqa ymm8, [{now} + 32*", $slot, "]\n",
            "vpsrldq ymm9, ymm8, 14\n",
            "vpslldq ymm8, ymm8, 2\n",
            "vpclmulqdq ymm9, ymm9, ymm14, 0x00\n",
            "vpxor ymm8, ymm8, ymm9\n",
            "vmovdqa [{next} + 32*", $slot, "], ymm8\n",
        )
    };
}

/// Ends a multiplication by a power of x: ymm8 is each half shifted up, ymm9
/// what fell out of it. The low half's goes to the high half; the high half's
/// comes around.
#[rustfmt::skip]
macro_rules! carry {
    ($to:literal) => {
        concat!(
            "vpslldq ymm11, ymm9, 8\n",
            "vpclmulqdq ymm9, ymm9, ymm14, 0x01\n",
            "vpxor ymm8, ymm8, ymm11\n",
            "vpxor ", $to, ", ymm8, ymm9\n",
        )
    };
}

/// ymm15: the tweak of the next unit, and that times x. The first slot.
#[rustfmt::skip]
macro_rules! first {
    () => {
        concat!(
            "vbroadcasti128 ymm8, [{tweaks} + 16]\n",
            "vpsrlvq ymm9, ymm8, [rip + {shifts} + 32]\n",
            "vpsllvq ymm8, ymm8, [rip + {shifts}]\n",
            carry!("ymm15"),
            "vmovdqa [{next}], ymm15\n",
        )
    };
}

/// ymm15 times x^`up`, which is less than x^8, into a slot.
#[rustfmt::skip]
macro_rules! bits {
    ($slot:literal, $up:literal, $down:literal) => {
        concat!(
            "vpsrlq ymm9, ymm15, ", $down, "\n",
            "vpsllq ymm8, ymm15, ", $up, "\n",
            carry!("ymm8"),
            "vmovdqa [{next} + 32*", $slot, "], ymm8\n",
        )
    };
}

/// `from` times x^8 into a slot.
#[rustfmt::skip]
macro_rules! byte {
    ($slot:literal, $from:literal) => {
        concat!(
            "vpsrldq ymm9, ", $from, ", 15\n",
            "vpslldq ymm11, ", $from, ", 1\n",
            "vpclmulqdq ymm9, ymm9, ymm14, 0x00\n",
            "vpxor ymm11, ymm11, ymm9\n",
            "vmovdqa [{next} + 32*", $slot, "], ymm11\n",
        )
    };
}

/// The tweaks of the next pass of the same unit, handed to another macro.
#[rustfmt::skip]
macro_rules! same_unit {
    ($then:ident!($($args:tt)*)) => {
        $then!($($args)*
            [x16!(0)] [x16!(1)] [x16!(2)] [x16!(3)]
            [x16!(4)] [x16!(5)] [x16!(6)] [x16!(7)]
        )
    };
}

/// Those of the first pass of the next unit.
#[rustfmt::skip]
macro_rules! new_unit {
    ($then:ident!($($args:tt)*)) => {
        $then!($($args)*
            [first!()] [byte!(4, "ymm15")]
            [bits!(1, 2, 62)] [byte!(5, "ymm8")]
            [bits!(2, 4, 60)] [byte!(6, "ymm8")]
            [bits!(3, 6, 58)] [byte!(7, "ymm8")]
        )
    };
}

/// The steps by themselves.
#[rustfmt::skip]
macro_rules! alone {
    ($([$step:expr])*) => { concat!($($step),*) };
}

/// One round of a pass, and other work in its midst.
#[rustfmt::skip]
macro_rules! round {
    ($op:literal, $key:literal, $beside:expr) => {
        concat!(
            "vmovdqa ymm10, [{keys} + 32*", $key, "]\n",
            ".irp r,0,1,2,3\n", $op, " ymm\\r, ymm\\r, ymm10\n.endr\n",
            $beside,
            ".irp r,4,5,6,7\n", $op, " ymm\\r, ymm\\r, ymm10\n.endr\n",
        )
    };
}

/// A pass from {from} to {to}, with eight steps towards the next beside it.
#[rustfmt::skip]
macro_rules! pass {
    ($op:literal, $last:literal, $from:literal, $to:literal, ($fetch:expr, $fetch_too:expr)
        [$s0:expr] [$s1:expr] [$s2:expr] [$s3:expr]
        [$s4:expr] [$s5:expr] [$s6:expr] [$s7:expr]
    ) => {
        concat!(
            "xchg {now}, {next}\n",
            ".irp r,0,1,2,3,4,5,6,7\n",
            "vpxor ymm\\r, ymm12, [{", $from, "} + 32*\\r]\n",
            "vpxor ymm\\r, ymm\\r, [{now} + 32*\\r]\n",
            ".endr\n",
            round!($op, 1, $fetch),
            round!($op, 2, $s0),
            round!($op, 3, $s1),
            round!($op, 4, $s2),
            round!($op, 5, $s3),
            round!($op, 6, $s4),
            round!($op, 7, $s5),
            round!($op, 8, $s6),
            round!($op, 9, $s7),
            round!($op, 10, $fetch_too),
            round!($op, 11, ""),
            round!($op, 12, ""),
            round!($op, 13, ""),
            ".irp r,0,1,2,3,4,5,6,7\n",
            "vpxor ymm10, ymm13, [{now} + 32*\\r]\n",
            $last, " ymm\\r, ymm\\r, ymm10\n",
            "vmovdqu [{", $to, "} + 32*\\r], ymm\\r\n",
            ".endr\n",
            "add {place}, 256\n",
            "add {ours}, 256\n",
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
    ($op:literal, $last:literal, $from:literal, $to:literal, $fetch:tt, $stop:expr, $keys:expr, $batch:expr, $unit:literal, $at:expr, $end:expr, $any:expr) => {{
        let mut ahead = Ahead([MaybeUninit::uninit(); 2]);
        let [now, next] = &mut ahead.0;
        let left: usize;
        asm!(
            // ymm12, ymm13: first and last round key; ymm14: x^128, reduced.
            "vmovdqa ymm12, [{keys}]",
            "vmovdqa ymm13, [{keys} + 32*14]",
            "vmovq xmm14, {passes}",
            "vpbroadcastq ymm14, xmm14",
            "sub {tweaks}, 16",
            new_unit!(alone!()),
            "/* {any} */",
            "2:",
            "mov {place}, [{places}]",
            $stop,
            "add {tweaks}, 16",
            "mov {passes:e}, {most}",
            "4:",
            same_unit!(pass!($op, $last, $from, $to, $fetch)),
            "dec {passes}",
            "jnz 4b",
            new_unit!(pass!($op, $last, $from, $to, $fetch)),
            "add {places}, 8",
            "dec {count}",
            "jnz 2b",
            "3:",
            passes = inout(reg) 0x87u64 => _,
            most = const $unit / (WIDTH * BYTES) - 1,
            shifts = sym SHIFTS,
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
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
        left
    }};
}

/// Fetches four lines of what is 8 KiB ahead in our buffer, or at the place of
/// the unit that is so far up the list.
#[rustfmt::skip]
macro_rules! fetch {
    ($op:literal, ours) => {
        concat!(
            ".irp r,0,1,2,3\n",
            $op, " byte ptr [{ours} + 8192 + 64*\\r]\n",
            ".endr\n",
        )
    };
    // As far into that unit as {place} is into the current one.
    ($op:literal, $ahead:literal) => {
        concat!(
            "mov {ahead}, [{places} + ", $ahead, "]\n",
            "sub {ahead}, [{places}]\n",
            ".irp r,0,1,2,3\n",
            $op, " byte ptr [{place} + {ahead} + 64*\\r]\n",
            ".endr\n",
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
                    (fetch!("prefetcht0", 128), ""),
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
                    (fetch!("prefetcht0", 16), ""),
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
                    (fetch!("prefetcht0", ours), fetch!("prefetchw", 128)),
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
                    (fetch!("prefetcht0", ours), fetch!("prefetchw", 16)),
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

/// Encrypts the numbers of `count` units into their tweaks, two to a register.
/// Writes up to the next multiple of two, which there is room for.
#[target_feature(enable = "avx2,vaes")]
fn tweaks(mut keys: &Wide, first: u64, step: u64, count: usize, to: &mut Tweaks) {
    assert!(count <= BATCH);
    const { assert!(BATCH.is_multiple_of(2 * WIDTH)) };
    let to = to.as_mut_ptr().cast::<__m256i>();
    let mut numbers = _mm256_set_epi64x(0, first.wrapping_add(step) as i64, 0, first as i64);
    let two = _mm256_set_epi64x(
        0,
        step.wrapping_mul(2) as i64,
        0,
        step.wrapping_mul(2) as i64,
    );
    let registers = count.div_ceil(2);
    let mut done = 0;
    while done < registers {
        keys = afresh(keys);
        // SAFETY: at most `registers` are written, each with two tweaks, and
        // `BATCH` is a multiple of two.
        unsafe {
            let to = to.add(done);
            (numbers, done) = match registers - done {
                8.. => (encrypt_numbers::<8>(keys, numbers, two, to), done + 8),
                4.. => (encrypt_numbers::<4>(keys, numbers, two, to), done + 4),
                2.. => (encrypt_numbers::<2>(keys, numbers, two, to), done + 2),
                _ => (encrypt_numbers::<1>(keys, numbers, two, to), done + 1),
            };
        }
    }
}

/// Encrypts `N` registers of numbers, and returns those that come after them.
///
/// # Safety
/// `to` is writable for `N` registers.
#[inline]
#[target_feature(enable = "avx2,vaes")]
unsafe fn encrypt_numbers<const N: usize>(
    keys: &Wide,
    mut numbers: __m256i,
    two: __m256i,
    to: *mut __m256i,
) -> __m256i {
    let mut blocks = [numbers; N];
    for block in &mut blocks {
        *block = _mm256_xor_si256(numbers, keys[0]);
        numbers = _mm256_add_epi64(numbers, two);
    }
    for key in &keys[1..ROUND_KEYS - 1] {
        side_by_side(&mut blocks);
        for block in &mut blocks {
            *block = _mm256_aesenc_epi128(*block, *key);
        }
    }
    for (i, block) in blocks.iter().enumerate() {
        let tweak = _mm256_aesenclast_epi128(*block, keys[ROUND_KEYS - 1]);
        // SAFETY: `i < N`, and tweaks are aligned to more than a register.
        unsafe { _mm256_store_si256(to.add(i), tweak) };
    }
    numbers
}

/// Keeps the compiler from loading round keys ahead of the loop: there are too
/// few registers for them, and it would leave copies on the stack.
#[inline]
fn afresh(keys: &Wide) -> &Wide {
    let mut keys: *const Wide = keys;
    // SAFETY: there is no instruction in it, so the reference stays what it is.
    unsafe {
        asm!("/* {} */", inout(reg) keys, options(pure, readonly, nostack, preserves_flags));
        &*keys
    }
}

/// Keeps the compiler from taking one block through its rounds after the
/// other, which saves registers but waits for every round.
#[inline]
#[target_feature(enable = "avx2,vaes")]
fn side_by_side<const N: usize>(blocks: &mut [__m256i; N]) {
    for block in blocks {
        // SAFETY: there is no instruction in it. Not being `pure`, these stay
        // in order, and so do the rounds around them.
        unsafe {
            asm!(
                "/* {} */",
                inout(ymm_reg) * block,
                options(nomem, nostack, preserves_flags)
            )
        };
    }
}
