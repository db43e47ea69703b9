//! What a request leaves in vector registers: nothing.

use std::arch::asm;
use std::collections::HashSet;

use super::schedule::{self, ROUND_KEYS};
use super::{Engine, Params, SectorCipher};
use crate::secret::registers::clear;
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
