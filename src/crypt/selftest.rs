//! Known answers: an engine that does not give them on this CPU may not serve.
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use super::{Engine, Error, Params, SectorCipher};
use crate::secret::{DEK_BYTES, Dek, Secret};
use crate::units::{Sector, SectorSize};

/// One known answer.
struct Known {
    what: &'static str,
    unit: SectorSize,
    first: Sector,
    /// How many units; enough to reach every path of the engines' batching.
    units: usize,
    /// SHA-256 of the ciphertext of [`plaintext`] under [`KEY`].
    digest: [u8; 32],
}

/// The key of the XTS-AES-256 vectors of IEEE Std 1619-2007: digits of e and pi.
#[rustfmt::skip]
const KEY: [u8; DEK_BYTES] = [
    0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60, 0x28, 0x74, 0x71, 0x35, 0x26,
    0x62, 0x49, 0x77, 0x57, 0x24, 0x70, 0x93, 0x69, 0x99, 0x59, 0x57, 0x49, 0x66, 0x96, 0x76, 0x27,
    0x31, 0x41, 0x59, 0x26, 0x53, 0x58, 0x97, 0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95,
    0x02, 0x88, 0x41, 0x97, 0x16, 0x93, 0x99, 0x37, 0x51, 0x05, 0x82, 0x09, 0x74, 0x94, 0x45, 0x92,
];

/// The answers, from OpenSSL 3; the first is vector 10 of the standard.
#[rustfmt::skip]
const KNOWN: &[Known] = &[
    Known {
        what: "vector 10 of IEEE 1619",
        unit: SectorSize::B512,
        first: Sector(0xff),
        units: 1,
        digest: [
            0xe9, 0x7e, 0x97, 0x4f, 0xa3, 0x93, 0xaf, 0x79, 0x4f, 0x7a, 0x46, 0x84, 0x39, 0x58, 0x14, 0xcf,
            0x82, 0x0d, 0xe6, 0x0a, 0x01, 0xea, 0xec, 0x67, 0x7d, 0x87, 0xb4, 0x52, 0xe3, 0x16, 0xb3, 0x64,
        ],
    },
    Known {
        what: "a run of units of 512 bytes",
        unit: SectorSize::B512,
        first: Sector(u64::MAX - 39),
        units: 131,
        digest: [
            0x58, 0x9d, 0x9b, 0x53, 0x43, 0xf3, 0xd3, 0x77, 0xe9, 0x10, 0x6f, 0x89, 0x93, 0x99, 0xe8, 0xf5,
            0xde, 0x52, 0x70, 0xe1, 0x71, 0xfb, 0x19, 0x95, 0x2d, 0xbc, 0xd1, 0x9d, 0x31, 0xf1, 0x9d, 0xba,
        ],
    },
    Known {
        what: "a run of units of 4096 bytes",
        unit: SectorSize::B4096,
        first: Sector((1 << 63) - 40),
        units: 11,
        digest: [
            0x09, 0x81, 0x77, 0xeb, 0x73, 0x4f, 0x93, 0x3f, 0x11, 0x49, 0x3f, 0x23, 0x0b, 0xfe, 0x55, 0x58,
            0xd7, 0x8b, 0x78, 0x5e, 0x68, 0x08, 0x0f, 0xbb, 0xa5, 0x39, 0x26, 0x78, 0x58, 0x7e, 0x28, 0x3b,
        ],
    },
];

/// 00 01 … ff twice, as the standard has it; every further 512 bytes start
/// elsewhere, so that a unit taken from the wrong place shows.
fn plaintext(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i + (i >> 9) * 37) as u8).collect()
}

/// Passes if the engine gives the known answers. Tried once per process; the
/// outcome is remembered.
pub(super) fn passed(engine: Engine) -> Result<(), Error> {
    static OUTCOMES: [OnceLock<Result<(), &'static str>>; Engine::COUNT] =
        [const { OnceLock::new() }; Engine::COUNT];
    engine.check()?;
    let outcome = &OUTCOMES[engine as usize];
    if outcome.get().is_none() {
        // Two threads may both get here; they find the same.
        let missed = run(engine, KNOWN)?;
        let _ = outcome.set(missed.map_or(Ok(()), Err));
    }
    match outcome.get() {
        Some(Err(what)) => Err(Error::SelfTest { engine, what }),
        _ => Ok(()),
    }
}

/// The name of the first answer that the engine misses, if any.
fn run(engine: Engine, known: &[Known]) -> Result<Option<&'static str>, Error> {
    let Ok(dek) = Dek::try_from(Secret::copy_of(&KEY)?) else {
        unreachable!("the vectors' key has 64 bytes and two halves");
    };
    for case in known {
        let params = Params {
            sector_size: case.unit,
            ..Params::default()
        };
        let cipher = SectorCipher::untested(engine, &dek, params)?;
        let plaintext = plaintext(case.units * case.unit.bytes());
        let mut buffer = plaintext.clone();
        cipher.encrypt_in_place(case.first, &mut buffer);
        let right = Sha256::digest(&buffer).0 == case.digest;
        cipher.decrypt_in_place(case.first, &mut buffer);
        if !right || buffer != plaintext {
            return Ok(Some(case.what));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ciphertexts of the published vectors: unit number and bytes.
    fn published() -> Vec<(u64, Vec<u8>)> {
        include_str!("ieee1619.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let (unit, ciphertext) = line.split_once(' ').unwrap();
                (
                    u64::from_str_radix(unit, 16).unwrap(),
                    hex::decode(ciphertext).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn every_engine_gives_the_published_vectors() {
        let dek = Dek::try_from(Secret::copy_of(&KEY).unwrap()).unwrap();
        let vectors = published();
        assert_eq!(vectors.len(), 5);
        for engine in Engine::available() {
            let cipher = SectorCipher::untested(engine, &dek, Params::default()).unwrap();
            for (unit, ciphertext) in &vectors {
                let mut buffer = plaintext(512);
                cipher.encrypt_in_place(Sector(*unit), &mut buffer);
                assert_eq!(&buffer, ciphertext, "{engine}, unit {unit:x}");
                cipher.decrypt_in_place(Sector(*unit), &mut buffer);
                assert_eq!(buffer, plaintext(512), "{engine}, unit {unit:x}");
            }
        }
    }

    /// NIST's data units are shorter than ours. But a block's ciphertext depends
    /// on its own plaintext and place alone, so they are how ours start.
    #[test]
    fn every_engine_gives_the_vectors_of_the_validation_system() {
        let vectors: Vec<Vec<&str>> = include_str!("xtsvs.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(' ').collect())
            .collect();
        assert_eq!(vectors.len(), 64);
        for vector in vectors {
            let [number, key, plain, encrypted] = vector[..] else {
                panic!("a line has four words");
            };
            let first = Sector(number.parse().unwrap());
            let [key, plain, encrypted] = [key, plain, encrypted].map(|w| hex::decode(w).unwrap());
            let dek = Dek::try_from(Secret::copy_of(&key).unwrap()).unwrap();
            for engine in Engine::available() {
                let cipher = SectorCipher::untested(engine, &dek, Params::default()).unwrap();
                let mut buffer = vec![0; 512];
                buffer[..plain.len()].copy_from_slice(&plain);
                cipher.encrypt_in_place(first, &mut buffer);
                assert_eq!(buffer[..plain.len()], encrypted, "{engine}, {key:02x?}");
                buffer[encrypted.len()..].fill(0);
                cipher.decrypt_in_place(first, &mut buffer);
                assert_eq!(buffer[..plain.len()], plain, "{engine}, {key:02x?}");
            }
        }
    }

    #[test]
    fn the_first_known_answer_is_the_published_one() {
        let (unit, ciphertext) = &published()[0];
        assert_eq!(KNOWN[0].first, Sector(*unit));
        assert_eq!(Sha256::digest(ciphertext).0, KNOWN[0].digest);
    }

    #[test]
    fn the_self_test_passes_here_and_can_fail() {
        for engine in Engine::available() {
            assert!(passed(engine).is_ok());
            for case in KNOWN {
                let mut wrong = Known { ..*case };
                wrong.digest[31] ^= 1;
                assert_eq!(run(engine, &[wrong]).unwrap(), Some(case.what));
            }
        }
    }
}
