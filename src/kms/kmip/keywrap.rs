//! AES key unwrap (RFC 3394, NIST SP 800-38F KW): what a server does to a key
//! that it gives out under another one.

use aes::Aes256;
use aes::cipher::{Array, BlockCipherDecrypt, KeyInit};
use subtle::ConstantTimeEq;

use crate::secret::{Secret, scrubbed};

/// What all wrapped keys begin with before they are wrapped.
const CHECK: [u8; 8] = [0xa6; 8];

/// Unwraps `wrapped` with the AES-256 key `kek`. `None` when it was not
/// wrapped with that key, or when there is no secret memory.
pub fn unwrap(kek: &Secret, wrapped: &[u8]) -> Option<Secret> {
    scrubbed(|| unwrapped(kek, wrapped))
}

fn unwrapped(kek: &Secret, wrapped: &[u8]) -> Option<Secret> {
    let cipher = Aes256::new_from_slice(kek).ok()?;
    let blocks = (wrapped.len() / 8).checked_sub(1)?;
    if blocks < 2 || !wrapped.len().is_multiple_of(8) {
        return None;
    }
    // The check value and then the key, in secret memory from the beginning.
    let mut work = Secret::copy_of(wrapped).ok()?;
    let mut pair = Secret::zeroed(16).ok()?;
    for step in (0..6).rev() {
        for block in (1..=blocks).rev() {
            let at = block * 8;
            let count = u64::try_from(blocks * step + block).ok()?;
            pair[..8].copy_from_slice(&work[..8]);
            for (byte, count) in pair.iter_mut().zip(count.to_be_bytes()) {
                *byte ^= count;
            }
            pair[8..].copy_from_slice(&work[at..at + 8]);
            cipher.decrypt_block(<&mut Array<u8, _>>::try_from(&mut pair[..]).ok()?);
            work[..8].copy_from_slice(&pair[..8]);
            work[at..at + 8].copy_from_slice(&pair[8..]);
        }
    }
    let good: bool = work[..8].ct_eq(&CHECK).into();
    good.then(|| Secret::copy_of(&work[8..]).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3394, sections 4.3, 4.5 and 4.6.
    #[test]
    fn the_examples_of_the_rfc() {
        let kek: Vec<u8> = (0..32).collect();
        let kek = Secret::copy_of(&kek).unwrap();
        for (key, wrapped) in [
            (
                "00112233445566778899aabbccddeeff",
                "64e8c3f9ce0f5ba263e9777905818a2a93c8191e7d6e8ae7",
            ),
            (
                "00112233445566778899aabbccddeeff0001020304050607",
                "a8f9bc1612c68b3ff6e6f4fbe30e71e4769c8b80a32cb8958cd5d17d6b254da1",
            ),
            (
                "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f",
                "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21",
            ),
        ] {
            let wrapped = hex::decode(wrapped).unwrap();
            let unwrapped = unwrap(&kek, &wrapped).unwrap();
            assert_eq!(unwrapped[..], hex::decode(key).unwrap());
            for bit in 0..wrapped.len() * 8 {
                let mut changed = wrapped.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(unwrap(&kek, &changed), None, "bit {bit}");
            }
            for length in 0..wrapped.len() {
                assert_eq!(unwrap(&kek, &wrapped[..length]), None, "{length} bytes");
            }
        }
    }
}
