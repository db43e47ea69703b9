//! The oracle: the `aes` and `xts-mode` crates, one unit after the other.
//!
//! The `aes` crate finds AES instructions by itself, and is constant-time
//! without them.
#![forbid(unsafe_code)]

use std::io;

use aes::Aes256;
use aes::cipher::{Array, KeyInit};
use xts_mode::{Xts128, get_tweak_default};

use crate::secret::{self, Dek, SecretBox, registers};
use crate::units::SectorSize;

/// Expanded keys.
pub(super) struct Keys(Xts128<Aes256>);

impl Keys {
    pub(super) fn expand(dek: &Dek) -> io::Result<SecretBox<Self>> {
        let keys = SecretBox::init(|slot| {
            let (data, tweak) = dek.halves();
            let key = |half: &[u8; 32]| Aes256::new(half.into());
            slot.write(Keys(Xts128::new(key(data), key(tweak))))
        });
        // The crates return expanded keys by value, through the stack.
        secret::scrub_stack();
        keys
    }

    /// Encrypts whole units in place; `tweak` is that of the first.
    pub(super) fn encrypt(&self, tweak: u64, unit: SectorSize, buffer: &mut [u8]) {
        for (unit, tweak) in buffer
            .chunks_exact_mut(unit.bytes())
            .zip(tweaks(tweak, unit))
        {
            self.0.encrypt_sector(unit, tweak_block(tweak));
        }
        registers::clear();
    }

    /// Decrypts whole units in place; `tweak` is that of the first.
    pub(super) fn decrypt(
        &self,
        tweak: u64,
        unit: SectorSize,
        zero_units: bool,
        buffer: &mut [u8],
    ) {
        for (unit, tweak) in buffer
            .chunks_exact_mut(unit.bytes())
            .zip(tweaks(tweak, unit))
        {
            if zero_units && unit.iter().all(|&byte| byte == 0) {
                continue;
            }
            self.0.decrypt_sector(unit, tweak_block(tweak));
        }
        registers::clear();
    }
}

/// The numbers of consecutive units: modulo 2^64, as dm-crypt counts.
fn tweaks(first: u64, unit: SectorSize) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(first), move |tweak| {
        Some(tweak.wrapping_add(unit.sectors()))
    })
}

/// The unencrypted tweak block of a unit.
fn tweak_block(tweak: u64) -> Array<u8, aes::cipher::consts::U16> {
    get_tweak_default(tweak.into())
}
