//! Leaves no key or data in vector registers, where later code, or whoever
//! reads the state of a thread, would find them.

/// Clears all vector registers that this CPU has and the engines or the copies
/// beside them use. What the caller's caller keeps in some is kept, as in any
/// call.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn clear() {
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
pub(super) fn clear() {}

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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::arch::asm;
    use std::collections::HashSet;

    use super::super::schedule::{self, ROUND_KEYS};
    use super::super::{Engine, Params, SectorCipher};
    use super::*;
    use crate::secret::{Dek, Secret};
    use crate::units::Sector;

    type Block = [u8; 16];

    /// All vector registers, in lanes of 16 bytes.
    #[inline(always)]
    fn all() -> [Block; 128] {
        let mut lanes = [[0; 16]; 128];
        let to = lanes.as_mut_ptr();
        // SAFETY: there is room for 32 registers of 64 bytes, and what the CPU
        // does not have is not stored.
        unsafe {
            if is_x86_feature_detected!("avx512f") {
                asm!(
                    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    "vmovdqu64 [{to} + 64*\\r], zmm\\r",
                    ".endr",
                    ".irp r,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                    "vmovdqu64 [{to} + 64*\\r], zmm\\r",
                    ".endr",
                    to = in(reg) to, options(nostack, preserves_flags)
                );
            } else if is_x86_feature_detected!("avx") {
                asm!(
                    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    "vmovdqu [{to} + 64*\\r], ymm\\r",
                    ".endr",
                    to = in(reg) to, options(nostack, preserves_flags)
                );
            } else {
                asm!(
                    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                    "movdqu [{to} + 64*\\r], xmm\\r",
                    ".endr",
                    to = in(reg) to, options(nostack, preserves_flags)
                );
            }
        }
        lanes
    }

    fn blocks(bytes: &[u8]) -> Vec<Block> {
        bytes.as_chunks().0.to_vec()
    }

    /// The key, its round keys for both directions, in both halves.
    fn round_keys(key: &[u8; 64]) -> Vec<Block> {
        let mut found = blocks(key);
        for half in key.as_chunks().0 {
            // SAFETY: zero bytes are valid vectors, which are 16 plain bytes;
            // who calls this has seen that the CPU has AES.
            unsafe {
                let mut forward: schedule::Schedule = std::mem::zeroed();
                let mut inverse: schedule::Schedule = std::mem::zeroed();
                schedule::expand(half, &mut forward);
                schedule::invert(&forward, &mut inverse);
                for schedule in [forward, inverse] {
                    found.extend(
                        std::mem::transmute::<schedule::Schedule, [Block; ROUND_KEYS]>(schedule),
                    );
                }
            }
        }
        found
    }

    #[test]
    fn what_is_cleared_is_zero() {
        // SAFETY: the registers are there, and declared.
        unsafe { asm!("pcmpeqd xmm7, xmm7", out("xmm7") _, options(nomem, nostack)) };
        clear();
        assert_eq!(all(), [[0; 16]; 128]);
    }

    #[test]
    fn no_engine_leaves_keys_or_data_in_registers() {
        if !is_x86_feature_detected!("aes") {
            return;
        }
        let key: [u8; 64] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        let plain: Vec<u8> = (0..64 * 512)
            .map(|i| (i * 7 + i / 256 * 3 + 1) as u8)
            .collect();
        let dek = Dek::try_from(Secret::copy_of(&key).unwrap()).unwrap();
        for engine in Engine::available() {
            let cipher = SectorCipher::untested(engine, &dek, Params::default()).unwrap();
            let mut buffer = plain.clone();
            cipher.encrypt_in_place(Sector(1), &mut buffer);
            let after_encryption = all();
            let encrypted = buffer.clone();
            cipher.decrypt_in_place(Sector(1), &mut buffer);
            let after_decryption = all();

            let mut secrets: HashSet<Block> = round_keys(&key).into_iter().collect();
            secrets.extend(blocks(&plain));
            secrets.extend(blocks(&encrypted));
            for lane in after_encryption.iter().chain(&after_decryption) {
                assert!(!secrets.contains(lane), "{engine} leaves {lane:02x?}");
            }
        }
    }
}
