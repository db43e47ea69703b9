//! What is measured: our engines, and OpenSSL as a peer.

use std::hint::black_box;
use std::slice;

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use sealblk::crypt::{Engine, Params, SectorCipher};
use sealblk::secret::Dek;
use sealblk::segment::{Segment, SegmentCursor};
use sealblk::units::{Sector, SectorSize};

#[derive(Clone, Copy, PartialEq)]
pub enum Subject {
    Ours(Engine),
    /// Its EVP interface, with keys that stay expanded: one call per unit.
    OpenSsl,
}

impl Subject {
    pub fn all() -> Vec<Subject> {
        let mut all: Vec<_> = Engine::available().into_iter().map(Subject::Ours).collect();
        all.push(Subject::OpenSsl);
        all
    }

    /// Whether others use it too.
    pub fn is_peer(self) -> bool {
        self == Subject::OpenSsl
            || self
                .engine()
                .is_some_and(|engine| engine.name() == "aws-lc")
    }

    pub fn engine(self) -> Option<Engine> {
        match self {
            Subject::Ours(engine) => Some(engine),
            Subject::OpenSsl => None,
        }
    }

    pub fn name(self) -> String {
        match self {
            Subject::Ours(engine) => format!("`{engine}`"),
            Subject::OpenSsl => {
                let version = openssl::version::version();
                // "OpenSSL 3.0.17 1 Jul 2025": the first two words.
                let words: Vec<_> = version.split(' ').take(2).collect();
                words.join(" ")
            }
        }
    }
}

#[derive(Clone, Copy)]
pub enum Direction {
    Encrypt,
    Decrypt,
}

pub const DIRECTIONS: [(&str, Direction); 2] = [
    ("encrypt", Direction::Encrypt),
    ("decrypt", Direction::Decrypt),
];

/// A subject with a key.
pub enum Bench {
    Ours(SectorCipher),
    OpenSsl {
        encrypt: CipherCtx,
        decrypt: CipherCtx,
        unit: SectorSize,
    },
}

impl Bench {
    pub fn new(subject: Subject, sector_size: SectorSize) -> Self {
        let dek = Dek::generate().unwrap();
        match subject {
            Subject::Ours(engine) => {
                let params = Params {
                    sector_size,
                    iv_tweak: 0,
                    zero_units: true,
                };
                Bench::Ours(SectorCipher::new(engine, &dek, params).unwrap())
            }
            Subject::OpenSsl => {
                let (mut encrypt, mut decrypt) =
                    (CipherCtx::new().unwrap(), CipherCtx::new().unwrap());
                let (cipher, key) = (Some(Cipher::aes_256_xts()), Some(dek.bytes()));
                encrypt.encrypt_init(cipher, key, None).unwrap();
                decrypt.decrypt_init(cipher, key, None).unwrap();
                Bench::OpenSsl {
                    encrypt,
                    decrypt,
                    unit: sector_size,
                }
            }
        }
    }

    /// Encrypts the segments to `ours`, or decrypts that to them.
    ///
    /// # Safety
    /// The segments are mapped, and overlap `ours` nowhere. None of them cuts
    /// a unit.
    pub unsafe fn run(&mut self, direction: Direction, segments: &[Segment], ours: &mut [u8]) {
        let segments = black_box(segments);
        let mut cursor = SegmentCursor::new(segments);
        match self {
            // SAFETY: as the caller vouches.
            Bench::Ours(cipher) => unsafe {
                match direction {
                    Direction::Encrypt => cipher.encrypt(Sector(8), &mut cursor, ours),
                    Direction::Decrypt => cipher.decrypt(Sector(8), ours, &mut cursor),
                }
            },
            Bench::OpenSsl {
                encrypt,
                decrypt,
                unit,
            } => {
                let context = match direction {
                    Direction::Encrypt => encrypt,
                    Direction::Decrypt => decrypt,
                };
                let bytes = unit.bytes();
                let (mut number, mut ours) = (8u64, ours);
                for segment in segments {
                    // SAFETY: as the caller vouches, and nobody else has it.
                    let guest =
                        unsafe { slice::from_raw_parts_mut(segment.as_ptr(), segment.len()) };
                    let (now, later) = ours.split_at_mut(guest.len());
                    ours = later;
                    for (guest, ours) in guest
                        .chunks_exact_mut(bytes)
                        .zip(now.chunks_exact_mut(bytes))
                    {
                        let tweak = Some(&u128::from(number).to_le_bytes()[..]);
                        number += unit.sectors();
                        // SAFETY: each has the length of a unit, and XTS gives
                        // as much as it is given.
                        unsafe {
                            match direction {
                                Direction::Encrypt => {
                                    context.encrypt_init(None, None, tweak).unwrap();
                                    context.cipher_update_unchecked(guest, Some(ours)).unwrap();
                                }
                                Direction::Decrypt => {
                                    context.decrypt_init(None, None, tweak).unwrap();
                                    context.cipher_update_unchecked(ours, Some(guest)).unwrap();
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
