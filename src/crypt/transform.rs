//! What data goes through between a guest and the disk: a cipher, or nothing.
//!
//! While a plain disk is encrypted in place, or a volume decrypted, one part of
//! it is plain (`docs/rekey.md`); otherwise everything goes through a cipher.

use super::{Params, SectorCipher};
use crate::segment::SegmentCursor;
use crate::units::{Sector, SectorSize};

/// How the units of a part of a disk are stored.
#[derive(Debug)]
pub enum Transform {
    /// Encrypted.
    Cipher(SectorCipher),
    /// As the guest has them, in units of this size.
    Plain(SectorSize),
}

impl Transform {
    /// The cipher, if it is one.
    pub fn cipher(&self) -> Option<&SectorCipher> {
        match self {
            Transform::Cipher(cipher) => Some(cipher),
            Transform::Plain(_) => None,
        }
    }

    /// What a cipher would have been made for. Plain units of zeroes are zeroes.
    pub fn params(&self) -> Params {
        match self {
            Transform::Cipher(cipher) => cipher.params(),
            Transform::Plain(sector_size) => Params {
                sector_size: *sector_size,
                iv_tweak: 0,
                zero_units: true,
            },
        }
    }

    /// As [`SectorCipher::encrypt`].
    ///
    /// # Panics
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn encrypt(&self, first: Sector, from: &mut SegmentCursor<'_>, to: &mut [u8]) {
        // SAFETY: as the caller vouches.
        unsafe {
            match self {
                Transform::Cipher(cipher) => cipher.encrypt(first, from, to),
                Transform::Plain(_) => from.copy_to(to),
            }
        }
    }

    /// As [`SectorCipher::decrypt`].
    ///
    /// # Panics
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn decrypt(&self, first: Sector, from: &mut [u8], to: &mut SegmentCursor<'_>) {
        // SAFETY: as the caller vouches.
        unsafe {
            match self {
                Transform::Cipher(cipher) => cipher.decrypt(first, from, to),
                Transform::Plain(_) => to.copy_from(from),
            }
        }
    }

    /// As [`SectorCipher::encrypt_in_place`].
    ///
    /// # Panics
    /// As there.
    pub fn encrypt_in_place(&self, first: Sector, buffer: &mut [u8]) {
        if let Transform::Cipher(cipher) = self {
            cipher.encrypt_in_place(first, buffer);
        }
    }

    /// As [`SectorCipher::decrypt_in_place`].
    ///
    /// # Panics
    /// As there.
    pub fn decrypt_in_place(&self, first: Sector, buffer: &mut [u8]) {
        if let Transform::Cipher(cipher) = self {
            cipher.decrypt_in_place(first, buffer);
        }
    }

    /// As [`SectorCipher::encrypt_zeroes`].
    ///
    /// # Panics
    /// As there.
    pub fn encrypt_zeroes(&self, first: Sector, to: &mut [u8]) {
        to.fill(0);
        self.encrypt_in_place(first, to);
    }
}
