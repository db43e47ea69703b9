//! What to look for, given a key: its bytes, what ciphers and hashes make of it,
//! and texts of it. Computed here, from the standards, with no code of sealblk.

use std::collections::HashMap;

use aes::Aes256;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// So many bytes of a needle are looked for first.
const BEGIN: usize = 4;

/// The longest needle.
pub const LONGEST: usize = 64;

/// Byte strings, each with what it is.
#[derive(Default)]
pub struct Needles {
    by_begin: HashMap<[u8; BEGIN], Vec<(Vec<u8>, String)>>,
    /// Whether any begins with these two bytes.
    begins: Vec<bool>,
    /// Halves of blocks, as a general register has them.
    halves: HashMap<[u8; 8], String>,
}

impl Needles {
    pub fn new() -> Needles {
        Needles {
            begins: vec![false; 1 << 16],
            ..Needles::default()
        }
    }

    fn add(&mut self, what: String, bytes: &[u8]) {
        assert!((8..=LONGEST).contains(&bytes.len()), "{what}");
        let begin: [u8; BEGIN] = *bytes.first_chunk().unwrap();
        self.begins[two(&begin)] = true;
        for half in bytes.as_chunks::<8>().0 {
            self.halves.insert(*half, what.clone());
        }
        let same = self.by_begin.entry(begin).or_default();
        same.push((bytes.to_vec(), what));
    }

    /// A text, such as a token: any 16 bytes of it that begin at a multiple of 16.
    pub fn text(mut self, what: &str, text: &str) -> Needles {
        assert!(text.len() >= 16, "{what}");
        for piece in text.as_bytes().chunks_exact(16) {
            self.add(format!("{what} (text)"), piece);
        }
        self
    }

    /// A DEK: 64 bytes, of which each half is a key of AES-256.
    pub fn dek(self, what: &str, dek: &[u8]) -> Needles {
        let (data, tweak) = dek.split_at(32);
        let mut needles = self
            .aes(&format!("{what}, data half"), data)
            .aes(&format!("{what}, tweak half"), tweak)
            .texts(what, dek);
        // HMAC-SHA-256 with this key, which is as long as its block.
        for (pad, name) in [(0x36, "inner"), (0x5c, "outer")] {
            let padded: Vec<u8> = dek.iter().map(|byte| byte ^ pad).collect();
            for piece in padded.chunks_exact(16) {
                needles.add(format!("{what}, {name} pad of HMAC"), piece);
            }
        }
        needles
    }

    /// A key of AES-256: all round keys of both directions, in both orders of the
    /// bytes of a word, and the key of GHASH.
    pub fn aes(mut self, what: &str, key: &[u8]) -> Needles {
        let forward = expand(key.try_into().unwrap());
        for (round, words) in forward.iter().enumerate() {
            let name = match round {
                0 | 1 => format!("{what}, the key itself, block {round}"),
                _ => format!("{what}, round key {round}"),
            };
            self.add(name.clone(), words);
            self.add(format!("{name}, words turned"), &turned(words));
            if (1..14).contains(&round) {
                let inverse = inverse_mixed(words);
                let name = format!("{what}, inverse round key {round}");
                self.add(name.clone(), &inverse);
                self.add(format!("{name}, words turned"), &turned(&inverse));
            }
        }
        let mut hash = Array::from([0; 16]);
        Aes256::new(&Array::try_from(key).unwrap()).encrypt_block(&mut hash);
        self.add(format!("{what}, key of GHASH"), &hash);
        self
    }

    /// Bytes as they are, and as services write them.
    pub fn bytes(mut self, what: &str, bytes: &[u8]) -> Needles {
        for piece in bytes.chunks_exact(16) {
            self.add(what.to_owned(), piece);
        }
        self.texts(what, bytes)
    }

    fn texts(mut self, what: &str, bytes: &[u8]) -> Needles {
        for (text, form) in [
            (STANDARD.encode(bytes), "base64"),
            (URL_SAFE.encode(bytes), "base64url"),
            (hex::encode(bytes), "hex"),
            (hex::encode_upper(bytes), "HEX"),
        ] {
            for piece in text.as_bytes().chunks_exact(16) {
                self.add(format!("{what}, in {form}"), piece);
            }
        }
        self
    }

    /// The needles that begin at `at`, all of which are followed by [`LONGEST`]
    /// bytes or the end.
    pub fn at<'n>(&'n self, bytes: &[u8], at: usize) -> Option<&'n str> {
        let rest = &bytes[at..];
        let begin = rest.first_chunk::<BEGIN>()?;
        if !self.begins[two(begin)] {
            return None;
        }
        let same = self.by_begin.get(begin)?;
        same.iter()
            .find(|(needle, _)| rest.starts_with(needle))
            .map(|(_, what)| &what[..])
    }

    /// The halves of needles that registers of 8 bytes have.
    pub fn in_registers(&self, bytes: &[u8]) -> Vec<&str> {
        let registers = bytes.as_chunks::<8>().0.iter();
        registers
            .filter_map(|register| self.halves.get(register))
            .map(|what| &what[..])
            .collect()
    }

    /// All that are in `bytes`, with their places.
    pub fn within(&self, bytes: &[u8]) -> Vec<(usize, &str)> {
        (0..bytes.len())
            .filter_map(|at| Some((at, self.at(bytes, at)?)))
            .collect()
    }
}

fn two(begin: &[u8; BEGIN]) -> usize {
    usize::from(u16::from_be_bytes([begin[0], begin[1]]))
}

fn turned(words: &[u8; 16]) -> [u8; 16] {
    let mut turned = *words;
    turned.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    turned
}

/// A product in the field of FIPS 197, section 4.2.
fn product(mut a: u8, mut b: u8) -> u8 {
    let mut sum = 0;
    while b != 0 {
        if b & 1 != 0 {
            sum ^= a;
        }
        a = (a << 1) ^ (0x1b * (a >> 7));
        b >>= 1;
    }
    sum
}

/// SubBytes of one byte (FIPS 197, section 5.1.1).
fn substituted(byte: u8) -> u8 {
    let inverse = (1..=255).find(|other| product(byte, *other) == 1);
    let b: u8 = inverse.unwrap_or(0);
    let turn = |by| b.rotate_left(by);
    b ^ turn(1) ^ turn(2) ^ turn(3) ^ turn(4) ^ 0x63
}

/// The key schedule of AES-256 (FIPS 197, section 5.2).
fn expand(key: &[u8; 32]) -> [[u8; 16]; 15] {
    let mut words: Vec<[u8; 4]> = key.as_chunks().0.to_vec();
    let mut constant = 1;
    for i in 8..60 {
        let mut word = words[i - 1];
        if i % 8 == 0 {
            word.rotate_left(1);
        }
        if i % 4 == 0 {
            word = word.map(substituted);
        }
        if i % 8 == 0 {
            word[0] ^= constant;
            constant = product(constant, 2);
        }
        let before = words[i - 8];
        words.push([0, 1, 2, 3].map(|at| word[at] ^ before[at]));
    }
    let bytes = words.concat();
    bytes.as_chunks().0.try_into().unwrap()
}

/// InvMixColumns (FIPS 197, section 5.3.3), as the equivalent inverse cipher has
/// its round keys.
fn inverse_mixed(words: &[u8; 16]) -> [u8; 16] {
    let mut mixed = [0; 16];
    for (column, to) in words.chunks_exact(4).zip(mixed.chunks_exact_mut(4)) {
        for (row, to) in to.iter_mut().enumerate() {
            for (at, factor) in [14, 11, 13, 9].into_iter().enumerate() {
                *to ^= product(column[(row + at) % 4], factor);
            }
        }
    }
    mixed
}

#[test]
fn schedules_are_those_of_the_standard() {
    // FIPS 197, appendix A.3.
    let key =
        hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
    let found = expand(&key[..].try_into().unwrap());
    assert_eq!(hex::encode(found[0]), hex::encode(&key[..16]));
    assert_eq!(hex::encode(found[2]), "9ba354118e6925afa51a8b5f2067fcde");
    assert_eq!(hex::encode(found[14]), "fe4890d1e6188d0b046df344706c631e");
    // FIPS 197, section 4.3: the two matrices are each other's inverse.
    let column = [0xdb, 0x13, 0x53, 0x45];
    let mixed = [0x8e, 0x4d, 0xa1, 0xbc];
    assert_eq!(
        inverse_mixed(&[mixed; 4].concat().try_into().unwrap())[..4],
        column
    );
}

#[test]
fn each_form_of_a_key_is_found() {
    let dek: Vec<u8> = (0..64u8).map(|n| n.wrapping_mul(37) ^ 0x5a).collect();
    let needles = Needles::new().dek("dek", &dek);
    let schedule = expand(dek[32..].try_into().unwrap());
    for form in [
        dek[16..32].to_vec(),
        schedule[7].to_vec(),
        inverse_mixed(&schedule[7]).to_vec(),
        turned(&schedule[14]).to_vec(),
        dek.iter().map(|byte| byte ^ 0x36).collect(),
        hex::encode(&dek).into_bytes(),
        STANDARD.encode(&dek).into_bytes(),
    ] {
        let bytes = [&[7; 1001][..], &form, &[9; 100]].concat();
        let found = needles.within(&bytes);
        assert!(
            found.iter().any(|(at, _)| *at == 1001),
            "{form:02x?}: {found:?}"
        );
    }
    assert!(needles.within(&[0; 4096]).is_empty());
    let mut other = [0u8; 64];
    getrandom::fill(&mut other).unwrap();
    let other = Needles::new().dek("other", &other);
    assert!(other.within(&schedule.concat()).is_empty());
}
