//! Ciphertext is what OpenSSL gives for AES-256-XTS with dm-crypt's plain64
//! tweak, with every engine and both unit sizes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use openssl::symm::{Cipher, decrypt, encrypt};
use proptest::prelude::*;
use sealblk::crypt::{Engine, Params, SectorCipher};
use sealblk::secret::{Dek, Secret};
use sealblk::units::{Sector, SectorSize};

/// The tweak as OpenSSL wants it: little-endian, padded with zeroes.
fn plain64(number: u64) -> [u8; 16] {
    u128::from(number).to_le_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn openssl_gives_the_same_bytes(
        key in prop::array::uniform(any::<u8>()).prop_filter("equal halves", |key: &[u8; 64]| key[..32] != key[32..]),
        data in prop::collection::vec(any::<u8>(), 4096),
        long in any::<bool>(),
        units in 1usize..70,
        first in prop_oneof![any::<u64>(), 0..100u64, (1u64 << 63) - 50..(1 << 63) + 50, u64::MAX - 100..=u64::MAX],
        iv_tweak in prop_oneof![Just(0), any::<u64>()],
    ) {
        let sector_size = if long { SectorSize::B4096 } else { SectorSize::B512 };
        let first = first / sector_size.sectors() * sector_size.sectors();
        let plain: Vec<u8> = (0..units * sector_size.bytes())
            .map(|i| data[i % 4096].wrapping_add((i / 4096) as u8))
            .collect();
        let number = |at: usize| {
            first.wrapping_add(iv_tweak).wrapping_add(at as u64 * sector_size.sectors())
        };
        let expected: Vec<u8> = plain
            .chunks_exact(sector_size.bytes())
            .enumerate()
            .flat_map(|(at, unit)| encrypt(Cipher::aes_256_xts(), &key, Some(&plain64(number(at))), unit).unwrap())
            .collect();
        // OpenSSL undoes what it did, so that a wrong use of it would show.
        let back = decrypt(Cipher::aes_256_xts(), &key, Some(&plain64(number(0))), &expected[..sector_size.bytes()]).unwrap();
        prop_assert_eq!(&back[..], &plain[..sector_size.bytes()]);

        let dek = Dek::try_from(Secret::copy_of(&key).unwrap()).unwrap();
        for engine in Engine::available() {
            let params = Params { sector_size, iv_tweak, zero_units: false };
            let cipher = SectorCipher::new(engine, &dek, params).unwrap();
            let mut buffer = plain.clone();
            cipher.encrypt_in_place(Sector(first), &mut buffer);
            prop_assert!(buffer == expected, "{} encrypts otherwise", engine);
            cipher.decrypt_in_place(Sector(first), &mut buffer);
            prop_assert!(buffer == plain, "{} decrypts otherwise", engine);
        }
    }
}
