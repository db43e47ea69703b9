//! The loops: assembly, put together from macros.
//!
//! Registers: zmm0 to zmm15 are the pass, zmm16 is x^128 reduced, zmm17 zero,
//! zmm18 and zmm19 the first and the last round key, zmm20 that of the round;
//! zmm21 to zmm25, zmm30 and zmm31 are used on the way to the next tweaks.

use std::arch::asm;
use std::mem::MaybeUninit;

use super::{BYTES, SHIFTS, WIDTH, Wide};
use crate::crypt::walk::Batch;

/// Tweaks of a pass, register by register: of the current and of the next.
#[repr(C, align(64))]
struct Ahead([MaybeUninit<[u8; 2 * WIDTH * BYTES]>; 2]);

// Steps towards the tweaks of a pass, each in two halves so that they can be
// spread thinly between the rounds: shift apart, then put together and store.

/// zmm30: the tweak of a unit times x^i in lane i. The carry is in zmm22.
#[rustfmt::skip]
macro_rules! first_shift {
    ($tweak:literal) => {
        concat!(
            "vbroadcasti32x4 zmm21, xmmword ptr [{tweaks} + ", $tweak, "]\n",
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
#[rustfmt::skip]
macro_rules! carry {
    ($register:literal => $slot:literal) => {
        concat!(
            "vpunpcklqdq zmm23, zmm17, zmm22\n",
            "vpclmulqdq zmm22, zmm22, zmm16, 0x01\n",
            "vpternlogq zmm", $register, ", zmm22, zmm23, 0x96\n",
            "vmovdqa64 [{next} + ", $slot, "], zmm", $register, "\n",
        )
    };
}

/// zmm25: zmm30 or zmm31 times a power of x^8. The carry is in zmm24.
#[rustfmt::skip]
macro_rules! bytes_shift {
    ($register:literal, $bytes:literal, $rest:literal) => {
        concat!(
            "vpsrldq zmm24, zmm", $register, ", ", $rest, "\n",
            "vpslldq zmm25, zmm", $register, ", ", $bytes, "\n",
        )
    };
}

/// Ends that.
#[rustfmt::skip]
macro_rules! bytes_carry {
    ($slot:literal) => {
        concat!(
            "vpclmulqdq zmm24, zmm24, zmm16, 0x00\n",
            "vpxorq zmm25, zmm25, zmm24\n",
            "vmovdqa64 [{next} + ", $slot, "], zmm25\n",
        )
    };
}

/// One round of 16 registers, with room for other work after every four.
#[rustfmt::skip]
macro_rules! round {
    ($op:literal, $key:literal) => {
        round!($op, $key, "", "", "", "")
    };
    ($op:literal, $key:literal, $a:expr, $b:expr, $c:expr, $d:expr) => {
        concat!(
            "vmovdqa64 zmm20, [{keys} + 64*", $key, "]\n",
            ".irp r,0,1,2,3\n", $op, " zmm\\r, zmm\\r, zmm20\n.endr\n",
            $a,
            ".irp r,4,5,6,7\n", $op, " zmm\\r, zmm\\r, zmm20\n.endr\n",
            $b,
            ".irp r,8,9,10,11\n", $op, " zmm\\r, zmm\\r, zmm20\n.endr\n",
            $c,
            ".irp r,12,13,14,15\n", $op, " zmm\\r, zmm\\r, zmm20\n.endr\n",
            $d,
        )
    };
}

/// A register of the pass before times x^64, from memory to memory: the low
/// half moves up, and what was there comes around as 71 bits.
#[rustfmt::skip]
macro_rules! x64_open {
    ($slot:literal) => {
        concat!(
            "vmovdqa64 zmm24, [{now} + ", $slot, "]\n",
            "vpunpcklqdq zmm25, zmm17, zmm24\n",
        )
    };
}

/// Ends that.
#[rustfmt::skip]
macro_rules! x64_close {
    ($slot:literal) => {
        concat!(
            "vpclmulqdq zmm24, zmm24, zmm16, 0x01\n",
            "vpxorq zmm25, zmm25, zmm24\n",
            "vmovdqa64 [{next} + ", $slot, "], zmm25\n",
        )
    };
}

// The 32 half steps to the tweaks of a pass, handed to another macro.

/// The next two units of 512 bytes.
#[rustfmt::skip]
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
#[rustfmt::skip]
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
#[rustfmt::skip]
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
#[rustfmt::skip]
macro_rules! alone {
    ($([$step:expr])*) => { concat!($($step),*) };
}

/// One pass over 16 registers: half of it at {a}, half at {b}.
#[rustfmt::skip]
macro_rules! rounds {
    ($op:literal, ($f0:expr, $f1:expr, $f2:expr, $f3:expr)
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
            round!($op, 1), $f0,
            round!($op, 2), $f1,
            round!($op, 3, $s0, $s1, $s2, $s3),
            round!($op, 4, $s4, $s5, $s6, $s7),
            round!($op, 5, $s8, $s9, $s10, $s11),
            round!($op, 6, $s12, $s13, $s14, $s15),
            round!($op, 7, $s16, $s17, $s18, $s19),
            round!($op, 8, $s20, $s21, $s22, $s23),
            round!($op, 9, $s24, $s25, $s26, $s27),
            round!($op, 10, $s28, $s29, $s30, $s31),
            round!($op, 11), $f2,
            round!($op, 12), $f3,
            round!($op, 13),
        )
    };
}

/// Loads a pass, half from {a} and half from {b}, and adds tweaks and first
/// round key. Before it, what was computed ahead becomes current.
#[rustfmt::skip]
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
#[rustfmt::skip]
macro_rules! store {
    ($last:literal) => {
        concat!(
            ".irp r,0,1,2,3,4,5,6,7\n",
            "vpxorq zmm20, zmm19, [{now} + 64*\\r]\n",
            $last, " zmm\\r, zmm\\r, zmm20\n",
            "vmovdqu64 [{a} + 64*\\r], zmm\\r\n",
            ".endr\n",
            ".irp r,8,9,10,11,12,13,14,15\n",
            "vpxorq zmm20, zmm19, [{now} + 64*\\r]\n",
            $last, " zmm\\r, zmm\\r, zmm20\n",
            "vmovdqu64 [{b} + 64*\\r - 512], zmm\\r\n",
            ".endr\n",
        )
    };
}

/// {a}, {b}: two units at their own places.
#[rustfmt::skip]
macro_rules! places {
    () => {
        "mov {a}, [{places}]\nmov {b}, [{places} + 8]\nadd {places}, 16\n"
    };
}

/// {a}, {b}: 512 bytes each, next to each other in our buffer.
#[rustfmt::skip]
macro_rules! ours {
    () => {
        "mov {a}, {ours}\nlea {b}, [{ours} + 512]\nadd {ours}, 1024\n"
    };
}

/// {a}, {b}: a quarter of a unit at its own place.
#[rustfmt::skip]
macro_rules! place {
    ($offset:literal) => {
        concat!("mov {a}, [{places}]\nadd {a}, ", $offset, "\nlea {b}, [{a} + 512]\n")
    };
}

/// Leaves, if the unit at {a} or {b} may be zero and that matters.
#[rustfmt::skip]
macro_rules! stop_at_zero {
    ($at:literal) => {
        concat!("mov {c}, [{", $at, "}]\nor {c}, {any}\njz 3f\n")
    };
}

/// Assembly over units from `at` on, `count` (not zero) times. Gives how many
/// times were left when it stopped. `any` is not zero if zero units are none.
#[rustfmt::skip]
macro_rules! kernel {
    (($keys:expr, $batch:expr, $unit:expr), $at:expr, $count:expr, $any:expr, $($body:expr),* $(,)?) => {{
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

/// Fetches half of what the pass 8 KiB further on will load or store: in our
/// buffer, or at the place that is found so far up the list.
#[rustfmt::skip]
macro_rules! fetch {
    ($op:literal, ours + $($offset:literal)+) => {
        concat!(
            ".irp r,0,1,2,3,4,5,6,7\n",
            $op, " byte ptr [{ours} + 64*\\r + 8192 + ", $($offset,)+ "]\n",
            ".endr\n",
        )
    };
    ($op:literal, [places + $ahead:literal] + $($offset:literal)+) => {
        concat!(
            "mov {a}, [{places} + ", $ahead, "]\n",
            ".irp r,0,1,2,3,4,5,6,7\n",
            $op, " byte ptr [{a} + 64*\\r + ", $($offset,)+ "]\n",
            ".endr\n",
        )
    };
}

/// Two units of 512 bytes, and the tweaks of the next two meanwhile.
#[rustfmt::skip]
macro_rules! encrypt_pair {
    () => {
        concat!(
            places!(),
            load!(),
            two_units!(rounds!("vaesenc", (
                fetch!("prefetcht0", [places + 128] + 0),
                fetch!("prefetcht0", [places + 136] + 0),
                "", ""
            ))),
            ours!(),
            store!("vaesenclast"),
        )
    };
}

/// The same the other way, or out of the loop if one may be zero.
#[rustfmt::skip]
macro_rules! decrypt_pair {
    () => {
        concat!(
            ours!(),
            stop_at_zero!("a"),
            stop_at_zero!("b"),
            load!(),
            two_units!(rounds!("vaesdec", (
                fetch!("prefetcht0", ours + 0),
                fetch!("prefetcht0", ours + 512),
                fetch!("prefetchw", [places + 128] + 0),
                fetch!("prefetchw", [places + 136] + 0)
            ))),
            places!(),
            store!("vaesdeclast"),
        )
    };
}

/// A quarter of a unit of 4096 bytes, and what is computed ahead meanwhile.
#[rustfmt::skip]
macro_rules! encrypt_quarter {
    ($offset:literal, $ahead:ident) => {
        concat!(
            place!($offset),
            load!(),
            $ahead!(rounds!("vaesenc", (
                fetch!("prefetcht0", [places + 16] + $offset),
                fetch!("prefetcht0", [places + 16] + "512 + " $offset),
                "", ""
            ))),
            ours!(),
            store!("vaesenclast"),
        )
    };
}

/// The same the other way.
#[rustfmt::skip]
macro_rules! decrypt_quarter {
    ($offset:literal, $ahead:ident $(, $at_zero:expr)?) => {
        concat!(
            ours!(),
            $($at_zero,)?
            load!(),
            $ahead!(rounds!("vaesdec", (
                fetch!("prefetcht0", ours + 0),
                fetch!("prefetcht0", ours + 512),
                fetch!("prefetchw", [places + 16] + $offset),
                fetch!("prefetchw", [places + 16] + "512 + " $offset)
            ))),
            place!($offset),
            store!("vaesdeclast"),
        )
    };
}

/// Encrypts the first `pairs` (not zero) pairs of units of 512 bytes.
///
/// # Safety
/// As `Engine::encrypt`, on a CPU that has what the engine needs.
pub(super) unsafe fn encrypt_pairs(keys: &Wide, batch: &Batch, pairs: usize) {
    // SAFETY: as the caller vouches; see the top of `vaes512`.
    unsafe {
        kernel!(
            (keys, batch, 512),
            0,
            pairs,
            1u64,
            "sub {tweaks}, 32",
            two_units!(alone!()),
            "2:",
            "add {tweaks}, 32",
            encrypt_pair!(),
            "dec {count}",
            "jnz 2b",
        );
    }
}

/// Decrypts units of 512 bytes in pairs from `at` on. Gives the first that it
/// did not do: because it is odd, or it or the next starts with zeroes and
/// `any` is zero.
///
/// # Safety
/// As `Engine::decrypt`, on a CPU that has what the engine needs; there are
/// at least two units.
pub(super) unsafe fn decrypt_pairs(keys: &Wide, batch: &Batch, at: usize, any: u64) -> usize {
    let pairs = (batch.count() - at) / 2;
    // SAFETY: as the caller vouches; see the top of `vaes512`.
    let left = unsafe {
        kernel!(
            (keys, batch, 512),
            at,
            pairs,
            any,
            "sub {tweaks}, 32",
            two_units!(alone!()),
            "2:",
            "add {tweaks}, 32",
            decrypt_pair!(),
            "dec {count}",
            "jnz 2b",
            "3:",
        )
    };
    at + 2 * (pairs - left)
}

/// Encrypts all units of 4096 bytes, of which there is at least one.
///
/// # Safety
/// As `Engine::encrypt`, on a CPU that has what the engine needs.
pub(super) unsafe fn encrypt_long(keys: &Wide, batch: &Batch) {
    // SAFETY: as the caller vouches; see the top of `vaes512`.
    unsafe {
        kernel!(
            (keys, batch, 4096),
            0,
            batch.count(),
            1u64,
            "sub {tweaks}, 16",
            new_unit!(alone!()),
            "2:",
            "add {tweaks}, 16",
            encrypt_quarter!(0, same_unit),
            encrypt_quarter!(1024, same_unit),
            encrypt_quarter!(2048, same_unit),
            encrypt_quarter!(3072, new_unit),
            "add {places}, 8",
            "dec {count}",
            "jnz 2b",
        );
    }
}

/// Decrypts units of 4096 bytes from `at` to before `end`. Gives the first
/// that it did not do, because it starts with zeroes and `any` is zero.
///
/// # Safety
/// As `Engine::decrypt`, on a CPU that has what the engine needs; `end` is
/// at most the number of units, and more than `at`.
pub(super) unsafe fn decrypt_long(
    keys: &Wide,
    batch: &Batch,
    at: usize,
    end: usize,
    any: u64,
) -> usize {
    // SAFETY: as the caller vouches; see the top of `vaes512`.
    let left = unsafe {
        kernel!(
            (keys, batch, 4096),
            at,
            end - at,
            any,
            "sub {tweaks}, 16",
            new_unit!(alone!()),
            "2:",
            "add {tweaks}, 16",
            decrypt_quarter!(0, same_unit, stop_at_zero!("a")),
            decrypt_quarter!(1024, same_unit),
            decrypt_quarter!(2048, same_unit),
            decrypt_quarter!(3072, new_unit),
            "add {places}, 8",
            "dec {count}",
            "jnz 2b",
            "3:",
        )
    };
    end - left
}
