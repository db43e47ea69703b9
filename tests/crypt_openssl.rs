//! Ciphertext is what OpenSSL gives for AES-256-XTS with dm-crypt's plain64
//! tweak, with every engine and both unit sizes: in place, and out of and into
//! memory in pieces that cut units anywhere. So are the published vectors,
//! wherever they are cut.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ptr::NonNull;

use openssl::symm::{Cipher, decrypt, encrypt};
use proptest::prelude::*;
use sealblk::crypt::{Engine, Params, SectorCipher};
use sealblk::secret::{Dek, Secret};
use sealblk::segment::{Segment, SegmentCursor};
use sealblk::units::{Sector, SectorSize};

/// The tweak as OpenSSL wants it: little-endian, padded with zeroes.
fn plain64(number: u64) -> [u8; 16] {
    u128::from(number).to_le_bytes()
}

/// The bytes as segments that end at the cuts, which are anywhere in them.
fn segments(bytes: &mut [u8], cuts: &[usize]) -> Vec<Segment> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    let (mut segments, mut rest) = (vec![], bytes);
    let mut done = 0;
    for cut in cuts {
        let (piece, more) = rest.split_at_mut(cut - done);
        segments.push(Segment::new(NonNull::from(&mut *piece).cast(), piece.len()));
        (rest, done) = (more, cut);
    }
    segments.push(Segment::new(NonNull::from(&mut *rest).cast(), rest.len()));
    segments
}

/// Checks what a cipher makes of memory in pieces, in both directions.
fn check_pieces(
    cipher: &SectorCipher,
    first: Sector,
    cuts: &[usize],
    plain: &[u8],
    encrypted: &[u8],
) {
    let engine = cipher.engine();
    let mut guest = plain.to_vec();
    let pieces = segments(&mut guest, cuts);
    let mut ours = vec![0; plain.len()];
    // SAFETY: the pieces lie in a vector that nobody touches meanwhile.
    unsafe { cipher.encrypt(first, &mut SegmentCursor::new(&pieces), &mut ours) };
    assert!(
        ours == encrypted,
        "{engine} encrypts otherwise with cuts at {cuts:?}"
    );
    assert!(guest == plain, "{engine} changes the guest's memory");
    guest.fill(0);
    let pieces = segments(&mut guest, cuts);
    // SAFETY: as above.
    unsafe { cipher.decrypt(first, &mut ours, &mut SegmentCursor::new(&pieces)) };
    assert!(
        guest == plain,
        "{engine} decrypts otherwise with cuts at {cuts:?}"
    );
}

#[test]
fn published_vectors_may_be_cut_at_any_byte() {
    // The key and plaintext that src/crypt/ieee1619.txt tells of.
    let key = hex::decode(
        "2718281828459045235360287471352662497757247093699959574966967627\
         3141592653589793238462643383279502884197169399375105820974944592",
    )
    .unwrap();
    let plain: Vec<u8> = (0..512).map(|i| i as u8).collect();
    let dek = Dek::try_from(Secret::copy_of(&key).unwrap()).unwrap();
    let vectors: Vec<&str> = include_str!("../src/crypt/ieee1619.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    assert_eq!(vectors.len(), 5);
    for engine in Engine::available() {
        let cipher = SectorCipher::new(engine, &dek, Params::default()).unwrap();
        for vector in &vectors {
            let (number, encrypted) = vector.split_once(' ').unwrap();
            let first = Sector(u64::from_str_radix(number, 16).unwrap());
            let encrypted = hex::decode(encrypted).unwrap();
            for cut in 0..=512 {
                check_pieces(&cipher, first, &[cut], &plain, &encrypted);
            }
        }
    }
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
        cuts in prop::collection::vec(any::<usize>(), 0..40),
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
            check_pieces(&cipher, Sector(first), &cuts, &plain, &expected);
        }
    }
}
