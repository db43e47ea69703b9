//! Leaves no key or data in vector registers, where later code, or whoever
//! reads the state of a thread, would find them. `crypt` does it after each
//! request, [`super::scrub_stack`] after other uses of keys.

/// Clears all vector registers that this CPU has and the engines or the copies
/// beside them use. What the caller's caller keeps in some is kept, as in any
/// call.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn clear() {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has the registers.
        unsafe { clear_avx512() };
    } else if is_x86_feature_detected!("avx") {
        // SAFETY: as above.
        unsafe { clear_avx() };
    } else {
        clear_sse();
    }
}

/// Other engines than `portable` and AWS-LC are for x86-64, and these two
/// leave registers on other CPUs as they are.
#[cfg(not(target_arch = "x86_64"))]
pub fn clear() {}

/// Clears registers by some instructions that touch no memory.
#[cfg(target_arch = "x86_64")]
macro_rules! clear {
    ($($instruction:literal),+; $($register:tt)+) => {
        // SAFETY: nothing but declared registers is written, and those that
        // the instructions need are there, as the caller vouches.
        unsafe {
            std::arch::asm!(
                $($instruction,)+
                $(out($register) _,)+
                options(nomem, nostack, preserves_flags),
            );
        }
    };
}

/// # Safety
/// The CPU has AVX-512F.
#[cfg(target_arch = "x86_64")]
unsafe fn clear_avx512() {
    clear!(
        "vzeroall",
        ".irp r,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vpxord zmm\\r, zmm\\r, zmm\\r",
        ".endr";
        "zmm0" "zmm1" "zmm2" "zmm3" "zmm4" "zmm5" "zmm6" "zmm7"
        "zmm8" "zmm9" "zmm10" "zmm11" "zmm12" "zmm13" "zmm14" "zmm15"
        "zmm16" "zmm17" "zmm18" "zmm19" "zmm20" "zmm21" "zmm22" "zmm23"
        "zmm24" "zmm25" "zmm26" "zmm27" "zmm28" "zmm29" "zmm30" "zmm31"
    );
}

/// # Safety
/// The CPU has AVX.
#[cfg(target_arch = "x86_64")]
unsafe fn clear_avx() {
    clear!(
        "vzeroall";
        "ymm0" "ymm1" "ymm2" "ymm3" "ymm4" "ymm5" "ymm6" "ymm7"
        "ymm8" "ymm9" "ymm10" "ymm11" "ymm12" "ymm13" "ymm14" "ymm15"
    );
}

#[cfg(target_arch = "x86_64")]
fn clear_sse() {
    clear!(
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "xorps xmm\\r, xmm\\r",
        ".endr";
        "xmm0" "xmm1" "xmm2" "xmm3" "xmm4" "xmm5" "xmm6" "xmm7"
        "xmm8" "xmm9" "xmm10" "xmm11" "xmm12" "xmm13" "xmm14" "xmm15"
    );
}
