//! The AES-256 key schedule on AES instructions (FIPS 197, section 5.2), for
//! the engines that are written on them.
//!
//! All of it is done in registers and in the place where the result lives;
//! nothing depends on the key but data.

use std::arch::x86_64::*;

/// How many round keys AES-256 has: one before each of 14 rounds, one after.
pub(super) const ROUND_KEYS: usize = 15;

/// Round keys, one to a register.
pub(super) type Schedule = [__m128i; ROUND_KEYS];

/// Expands a key for encryption.
#[target_feature(enable = "aes")]
pub(super) fn expand(key: &[u8; 32], to: &mut Schedule) {
    // SAFETY: unaligned loads of the two halves of a 32-byte array.
    unsafe {
        to[0] = _mm_loadu_si128(key.as_ptr().cast());
        to[1] = _mm_loadu_si128(key.as_ptr().add(16).cast());
    }
    for i in 2..ROUND_KEYS {
        // AESENCLAST under a zero key is ShiftRows and SubBytes; with the same
        // word in all columns, ShiftRows changes nothing, so it is SubWord.
        let last = _mm_shuffle_epi32::<0xff>(to[i - 1]);
        let mut word = _mm_aesenclast_si128(last, _mm_setzero_si128());
        if i % 2 == 0 {
            let rotated = _mm_or_si128(_mm_srli_epi32::<8>(word), _mm_slli_epi32::<24>(word));
            word = _mm_xor_si128(rotated, _mm_set1_epi32(1 << (i / 2 - 1)));
        }
        // Each word of a round key is the sum of those before it in the
        // round key two back, and of `word`.
        let mut sum = to[i - 2];
        sum = _mm_xor_si128(sum, _mm_slli_si128::<4>(sum));
        sum = _mm_xor_si128(sum, _mm_slli_si128::<8>(sum));
        to[i] = _mm_xor_si128(sum, word);
    }
}

/// Turns the schedule for encryption into that of the equivalent inverse
/// cipher (FIPS 197, section 5.3.5), in the order in which AESDEC takes it.
#[target_feature(enable = "aes")]
pub(super) fn invert(from: &Schedule, to: &mut Schedule) {
    to[0] = from[ROUND_KEYS - 1];
    for i in 1..ROUND_KEYS - 1 {
        to[i] = _mm_aesimc_si128(from[ROUND_KEYS - 1 - i]);
    }
    to[ROUND_KEYS - 1] = from[0];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 197, appendix A.3: the first, third and last round key of its example.
    #[test]
    fn the_schedule_is_that_of_the_standard() {
        if !is_x86_feature_detected!("aes") {
            return;
        }
        let key: [u8; 32] =
            hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
                .unwrap()
                .try_into()
                .unwrap();
        let mut schedule = [_mm_setzero(); ROUND_KEYS];
        // SAFETY: the feature was detected above.
        unsafe { expand(&key, &mut schedule) };
        for (index, words) in [
            (0, "603deb1015ca71be2b73aef0857d7781"),
            (2, "9ba354118e6925afa51a8b5f2067fcde"),
            (14, "fe4890d1e6188d0b046df344706c631e"),
        ] {
            // SAFETY: both types are 16 plain bytes.
            let bytes: [u8; 16] = unsafe { std::mem::transmute(schedule[index]) };
            assert_eq!(hex::encode(bytes), words, "round key {index}");
        }
    }

    fn _mm_setzero() -> __m128i {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_setzero_si128() }
    }
}
