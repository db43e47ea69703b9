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
//! - Compilers undo such an order (they take blocks through the rounds one
//!   after the other to save registers, and spill), so the loop is assembly.
//!   It also makes sure that guest memory is read once only.
//!
//! # Why the unsafe code is sound
//!
//! The functions here need CPU features. A [`Keys`] is made by
//! [`Keys::expand`] alone, whose caller has checked `Engine::runs_here`, so
//! whoever has one is on such a CPU. Memory is accessed inside what the
//! contract of [`Engine`] promises, without demands on its alignment: units by
//! their addresses, and the lists of a batch, of which the loops load up to two
//! tweaks past the end, inside of the array. Guest memory may change under the
//! loads; nothing depends on what was read but data.

use std::arch::asm;
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

/// Tweaks of a pass, register by register: of the current and of the next.
#[repr(C, align(64))]
struct Ahead([MaybeUninit<[u8; 2 * WIDTH * BYTES]>; 2]);

// Steps towards the tweaks of a pass, each in two halves so that they can be
// spread thinly between the rounds: shift apart, then put together and store.

/// zmm30: the tweak of a unit times x^i in lane i. The carry is in zmm22.
macro_rules! first_shift {
    ($tweak:literal) => {
        concat!(
            "vbroadcasti32x4 zmm21, xmmword ptr [{tweaks} + ",
            $tweak,
            "]\n",
            "vpsrlvq zmm22, zmm21, [{shifts} + 64]\n",
            "vpsllvq zmm30, zmm21, [{shifts}]\n",
        )
    };
}

/// zmm31: zmm30 times x^4. The carry is in zmm22.
macro_rules! second_shift {
    () => {
        "vpsrlq zmm22, zmm30, 60\nvpsllq zmm31, zmm30, 4\n"
    };
}

/// Ends either of them: the carry of the low half goes to the high half, that
/// of the high half comes around.
macro_rules! carry {
    ($register:literal => $slot:literal) => {
        concat!(
            "vpunpcklqdq zmm23, zmm17, zmm22\n",
            "vpclmulqdq zmm22, zmm22, zmm16, 0x01\n",
            "vpternlogq zmm",
            $register,
            ", zmm22, zmm23, 0x96\n",
            "vmovdqa64 [{next} + ",
            $slot,
            "], zmm",
            $register,
            "\n",
        )
    };
}

/// zmm25: zmm30 or zmm31 times a power of x^8. The carry is in zmm24.
macro_rules! bytes_shift {
    ($register:literal, $bytes:literal, $rest:literal) => {
        concat!(
            "vpsrldq zmm24, zmm",
            $register,
            ", ",
            $rest,
            "\n",
            "vpslldq zmm25, zmm",
            $register,
            ", ",
            $bytes,
            "\n",
        )
    };
}

/// Ends that.
macro_rules! bytes_carry {
    ($slot:literal) => {
        concat!(
            "vpclmulqdq zmm24, zmm24, zmm16, 0x00\n",
            "vpxorq zmm25, zmm25, zmm24\n",
            "vmovdqa64 [{next} + ",
            $slot,
            "], zmm25\n",
        )
    };
}

/// One round of 16 registers, with room for other work after every four.
macro_rules! round {
    ($op:literal, $key:literal) => {
        round!($op, $key, "", "", "", "")
    };
    ($op:literal, $key:literal, $a:expr, $b:expr, $c:expr, $d:expr) => {
        concat!(
            "vmovdqa64 zmm20, [{keys} + 64*",
            $key,
            "]\n",
            ".irp r,0,1,2,3\n",
            $op,
            " zmm\\r, zmm\\r, zmm20\n.endr\n",
            $a,
            ".irp r,4,5,6,7\n",
            $op,
            " zmm\\r, zmm\\r, zmm20\n.endr\n",
            $b,
            ".irp r,8,9,10,11\n",
            $op,
            " zmm\\r, zmm\\r, zmm20\n.endr\n",
            $c,
            ".irp r,12,13,14,15\n",
            $op,
            " zmm\\r, zmm\\r, zmm20\n.endr\n",
            $d,
        )
    };
}

/// A register of the pass before times x^64, from memory to memory: the low
/// half moves up, and what was there comes around as 71 bits.
macro_rules! x64_open {
    ($slot:literal) => {
        concat!(
            "vmovdqa64 zmm24, [{now} + ",
            $slot,
            "]\n",
            "vpunpcklqdq zmm25, zmm17, zmm24\n",
        )
    };
}

/// Ends that.
macro_rules! x64_close {
    ($slot:literal) => {
        concat!(
            "vpclmulqdq zmm24, zmm24, zmm16, 0x01\n",
            "vpxorq zmm25, zmm25, zmm24\n",
            "vmovdqa64 [{next} + ",
            $slot,
            "], zmm25\n",
        )
    };
}

// The 32 half steps to the tweaks of a pass, handed to another macro.

/// The next two units of 512 bytes.
macro_rules! two_units {
    ($then:ident!($($args:tt)*)) => {
        $then!($($args)*
            [first_shift!(32)] [carry!(30 => 0)] [second_shift!()] [carry!(31 => 64)]
            [bytes_shift!(30, 1, 15)] [bytes_carry!(128)] [bytes_shift!(31, 1, 15)] [bytes_carry!(192)]
            [bytes_shift!(30, 2, 14)] [bytes_carry!(256)] [bytes_shift!(31, 2, 14)] [bytes_carry!(320)]
            [bytes_shift!(30, 3, 13)] [bytes_carry!(384)] [bytes_shift!(31, 3, 13)] [bytes_carry!(448)]
            [first_shift!(48)] [carry!(30 => 512)] [second_shift!()] [carry!(31 => 576)]
            [bytes_shift!(30, 1, 15)] [bytes_carry!(640)] [bytes_shift!(31, 1, 15)] [bytes_carry!(704)]
            [bytes_shift!(30, 2, 14)] [bytes_carry!(768)] [bytes_shift!(31, 2, 14)] [bytes_carry!(832)]
            [bytes_shift!(30, 3, 13)] [bytes_carry!(896)] [bytes_shift!(31, 3, 13)] [bytes_carry!(960)]
        )
    };
}

/// The first quarter of the next unit of 4096 bytes.
macro_rules! new_unit {
    ($then:ident!($($args:tt)*)) => {
        $then!($($args)*
            [first_shift!(16)] [carry!(30 => 0)] [second_shift!()] [carry!(31 => 64)]
            [bytes_shift!(30, 1, 15)] [bytes_carry!(128)] [bytes_shift!(31, 1, 15)] [bytes_carry!(192)]
            [bytes_shift!(30, 2, 14)] [bytes_carry!(256)] [bytes_shift!(31, 2, 14)] [bytes_carry!(320)]
            [bytes_shift!(30, 3, 13)] [bytes_carry!(384)] [bytes_shift!(31, 3, 13)] [bytes_carry!(448)]
            [bytes_shift!(30, 4, 12)] [bytes_carry!(512)] [bytes_shift!(31, 4, 12)] [bytes_carry!(576)]
            [bytes_shift!(30, 5, 11)] [bytes_carry!(640)] [bytes_shift!(31, 5, 11)] [bytes_carry!(704)]
            [bytes_shift!(30, 6, 10)] [bytes_carry!(768)] [bytes_shift!(31, 6, 10)] [bytes_carry!(832)]
            [bytes_shift!(30, 7, 9)] [bytes_carry!(896)] [bytes_shift!(31, 7, 9)] [bytes_carry!(960)]
        )
    };
}

/// The next quarter of the same unit.
macro_rules! same_unit {
    ($then:ident!($($args:tt)*)) => {
        $then!($($args)*
            [x64_open!(0)] [x64_close!(0)] [x64_open!(64)] [x64_close!(64)]
            [x64_open!(128)] [x64_close!(128)] [x64_open!(192)] [x64_close!(192)]
            [x64_open!(256)] [x64_close!(256)] [x64_open!(320)] [x64_close!(320)]
            [x64_open!(384)] [x64_close!(384)] [x64_open!(448)] [x64_close!(448)]
            [x64_open!(512)] [x64_close!(512)] [x64_open!(576)] [x64_close!(576)]
            [x64_open!(640)] [x64_close!(640)] [x64_open!(704)] [x64_close!(704)]
            [x64_open!(768)] [x64_close!(768)] [x64_open!(832)] [x64_close!(832)]
            [x64_open!(896)] [x64_close!(896)] [x64_open!(960)] [x64_close!(960)]
        )
    };
}

/// The steps by themselves.
macro_rules! alone {
    ($([$step:expr])*) => { concat!($($step),*) };
}

/// One pass over 16 registers: half of it at {a}, half at {b}.
macro_rules! rounds {
    ($op:literal
        [$s0:expr] [$s1:expr] [$s2:expr] [$s3:expr]
        [$s4:expr] [$s5:expr] [$s6:expr] [$s7:expr]
        [$s8:expr] [$s9:expr] [$s10:expr] [$s11:expr]
        [$s12:expr] [$s13:expr] [$s14:expr] [$s15:expr]
        [$s16:expr] [$s17:expr] [$s18:expr] [$s19:expr]
        [$s20:expr] [$s21:expr] [$s22:expr] [$s23:expr]
        [$s24:expr] [$s25:expr] [$s26:expr] [$s27:expr]
        [$s28:expr] [$s29:expr] [$s30:expr] [$s31:expr]
    ) => {
        concat!(
            round!($op, 1),
            round!($op, 2),
            round!($op, 3, $s0, $s1, $s2, $s3),
            round!($op, 4, $s4, $s5, $s6, $s7),
            round!($op, 5, $s8, $s9, $s10, $s11),
            round!($op, 6, $s12, $s13, $s14, $s15),
            round!($op, 7, $s16, $s17, $s18, $s19),
            round!($op, 8, $s20, $s21, $s22, $s23),
            round!($op, 9, $s24, $s25, $s26, $s27),
            round!($op, 10, $s28, $s29, $s30, $s31),
            round!($op, 11),
            round!($op, 12),
            round!($op, 13),
        )
    };
}

/// Loads a pass, half from {a} and half from {b}, and adds tweaks and first
/// round key. Before it, what was computed ahead becomes current.
macro_rules! load {
    () => {
        "xchg {now}, {next}
        .irp r,0,1,2,3,4,5,6,7
        vmovdqu64 zmm\\r, [{a} + 64*\\r]
        vpternlogq zmm\\r, zmm18, [{now} + 64*\\r], 0x96
        .endr
        .irp r,8,9,10,11,12,13,14,15
        vmovdqu64 zmm\\r, [{b} + 64*\\r - 512]
        vpternlogq zmm\\r, zmm18, [{now} + 64*\\r], 0x96
        .endr
        "
    };
}

/// The last round, whose key goes in together with the tweak; stores the pass,
/// half at {a} and half at {b}.
macro_rules! store {
    ($last:literal) => {
        concat!(
            ".irp r,0,1,2,3,4,5,6,7\n",
            "vpxorq zmm20, zmm19, [{now} + 64*\\r]\n",
            $last,
            " zmm\\r, zmm\\r, zmm20\n",
            "vmovdqu64 [{a} + 64*\\r], zmm\\r\n",
            ".endr\n",
            ".irp r,8,9,10,11,12,13,14,15\n",
            "vpxorq zmm20, zmm19, [{now} + 64*\\r]\n",
            $last,
            " zmm\\r, zmm\\r, zmm20\n",
            "vmovdqu64 [{b} + 64*\\r - 512], zmm\\r\n",
            ".endr\n",
        )
    };
}

/// {a}, {b}: two units at their own places, or next to each other in our buffer.
macro_rules! places {
    () => {
        "mov {a}, [{places}]\nmov {b}, [{places} + 8]\nadd {places}, 16\n"
    };
}
macro_rules! ours {
    () => {
        "mov {a}, {ours}\nlea {b}, [{ours} + 512]\nadd {ours}, 1024\n"
    };
}

/// {a}, {b}: a quarter of a unit at its own place.
macro_rules! place {
    ($offset:literal) => {
        concat!(
            "mov {a}, [{places}]\nadd {a}, ",
            $offset,
            "\nlea {b}, [{a} + 512]\n"
        )
    };
}

/// Leaves, if the unit at {a} or {b} may be zero and that matters.
macro_rules! stop_at_zero {
    ($at:literal) => {
        concat!("mov {c}, [{", $at, "}]\nor {c}, {any}\njz 3f\n")
    };
}

/// Assembly over units from `at` on, `count` (not zero) times. Gives how many
/// times were left when it stopped. `any` is not zero if zero units are none.
macro_rules! kernel {
    ($keys:expr, $batch:expr, $unit:expr, $at:expr, $count:expr, $any:expr, $($body:expr),* $(,)?) => {{
        let mut ahead = Ahead([MaybeUninit::uninit(); 2]);
        let [now, next] = &mut ahead.0;
        let left: usize;
        asm!(
            "/* {c} {any} */",
            // zmm16: x^128, reduced; zmm17: zero; zmm18, zmm19: first and last round key.
            "vpbroadcastq zmm16, {c}",
            "vpxord xmm17, xmm17, xmm17",
            "vmovdqa64 zmm18, [{keys}]",
            "vmovdqa64 zmm19, [{keys} + 64*14]",
            $($body,)*
            c = inout(reg) 0x87u64 => _,
            any = in(reg) $any,
            keys = in(reg) $keys.as_ptr(),
            shifts = in(reg) &raw const SHIFTS,
            tweaks = inout(reg) $batch.tweaks($at) => _,
            ours = inout(reg) $batch.ours::<$unit>($at) => _,
            places = inout(reg) $batch.places($at) => _,
            count = inout(reg) $count => left,
            now = inout(reg) now.as_mut_ptr() => _,
            next = inout(reg) next.as_mut_ptr() => _,
            a = out(reg) _,
            b = out(reg) _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
            out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
            out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            options(nostack),
        );
        left
    }};
}

/// Two units of 512 bytes at a time.
macro_rules! short_units {
    ($op:literal, $last:literal, $from:expr, $to:expr, $keys:expr, $batch:expr, $at:expr, $pairs:expr, $any:expr) => {
        kernel!(
            $keys,
            $batch,
            512,
            $at,
            $pairs,
            $any,
            "sub {tweaks}, 32",
            two_units!(alone!()),
            "2:",
            "add {tweaks}, 32",
            $from,
            load!(),
            two_units!(rounds!($op)),
            $to,
            store!($last),
            "dec {count}",
            "jnz 2b",
            "3:",
        )
    };
}

/// A unit of 4096 bytes in four passes.
macro_rules! long_units {
    ([$(($op:literal, $last:literal, $from:expr, $to:expr, $ahead:ident))*], $keys:expr, $batch:expr, $at:expr, $units:expr, $any:expr) => {
        kernel!($keys, $batch, 4096, $at, $units, $any,
            "sub {tweaks}, 16",
            new_unit!(alone!()),
            "2:",
            "add {tweaks}, 16",
            $(concat!($from, load!(), $ahead!(rounds!($op)), $to, store!($last)),)*
            "add {places}, 8",
            "dec {count}",
            "jnz 2b",
            "3:",
        )
    };
}

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
                encrypt_long(keys, batch);
                return;
            }
            let pairs = count / 2;
            if pairs > 0 {
                encrypt_pairs(keys, batch, pairs);
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
                    at = decrypt_long(keys, batch, at, count, any);
                } else if count - at >= 2 {
                    at = decrypt_pairs(keys, batch, at, any);
                }
                // What is left: an odd one, or one of these may be zero.
                for _ in 0..2 {
                    if at == count || zero_units && batch.settle_zero::<UNIT>(at) {
                        // Nothing to decrypt.
                    } else if UNIT == 4096 {
                        decrypt_long(keys, batch, at, at + 1, 1);
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

    fn clear_registers(&self) {
        // SAFETY: a `Keys` exists only where the CPU has the features; the
        // instructions touch nothing but registers that are declared.
        unsafe {
            asm!(
                "vzeroall",
                ".irp r,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "vpxord xmm\\r, xmm\\r, xmm\\r",
                ".endr",
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
                out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
                out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

/// Encrypts the first `pairs` (not zero) pairs of units of 512 bytes.
///
/// # Safety
/// As [`Engine::encrypt`], on a CPU that has what the module needs.
unsafe fn encrypt_pairs(keys: &Wide, batch: &Batch, pairs: usize) {
    // SAFETY: as the caller vouches; see the top of the module.
    unsafe {
        short_units!(
            "vaesenc",
            "vaesenclast",
            places!(),
            ours!(),
            keys,
            batch,
            0,
            pairs,
            1u64
        );
    }
}

/// Decrypts units of 512 bytes in pairs from `at` on. Gives the first that it
/// did not do: because it is odd, or it or the next starts with zeroes and
/// `any` is zero.
///
/// # Safety
/// As [`Engine::decrypt`], on a CPU that has what the module needs; there are
/// at least two units.
unsafe fn decrypt_pairs(keys: &Wide, batch: &Batch, at: usize, any: u64) -> usize {
    let pairs = (batch.count() - at) / 2;
    // SAFETY: as the caller vouches; see the top of the module.
    let left = unsafe {
        short_units!(
            "vaesdec",
            "vaesdeclast",
            concat!(ours!(), stop_at_zero!("a"), stop_at_zero!("b")),
            places!(),
            keys,
            batch,
            at,
            pairs,
            any
        )
    };
    at + 2 * (pairs - left)
}

/// Encrypts all units of 4096 bytes, of which there is at least one.
///
/// # Safety
/// As [`Engine::encrypt`], on a CPU that has what the module needs.
unsafe fn encrypt_long(keys: &Wide, batch: &Batch) {
    // SAFETY: as the caller vouches; see the top of the module.
    unsafe {
        long_units!(
            [("vaesenc", "vaesenclast", place!(0), ours!(), same_unit)(
                "vaesenc",
                "vaesenclast",
                place!(1024),
                ours!(),
                same_unit
            )(
                "vaesenc", "vaesenclast", place!(2048), ours!(), same_unit
            )(
                "vaesenc", "vaesenclast", place!(3072), ours!(), new_unit
            )],
            keys,
            batch,
            0,
            batch.count(),
            1u64
        );
    }
}

/// Decrypts units of 4096 bytes from `at` to before `end`. Gives the first
/// that it did not do, because it starts with zeroes and `any` is zero.
///
/// # Safety
/// As [`Engine::decrypt`], on a CPU that has what the module needs; `end` is
/// at most the number of units, and more than `at`.
unsafe fn decrypt_long(keys: &Wide, batch: &Batch, at: usize, end: usize, any: u64) -> usize {
    // SAFETY: as the caller vouches; see the top of the module.
    let left = unsafe {
        long_units!(
            [(
                "vaesdec",
                "vaesdeclast",
                concat!(ours!(), stop_at_zero!("a")),
                place!(0),
                same_unit
            )(
                "vaesdec", "vaesdeclast", ours!(), place!(1024), same_unit
            )(
                "vaesdec", "vaesdeclast", ours!(), place!(2048), same_unit
            )(
                "vaesdec", "vaesdeclast", ours!(), place!(3072), new_unit
            )],
            keys,
            batch,
            at,
            end - at,
            any
        )
    };
    end - left
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
