//! How far the moving of a disk is: one sector, which is written whole or not.
#![forbid(unsafe_code)]

use ring::{hkdf, hmac};
use uuid::Uuid;

use crate::rekey::{Facts, Kind};
use crate::secret::{Dek, scrub_stack};

/// The length of a record.
pub const RECORD_BYTES: usize = 512;

const MAGIC: &[u8; 8] = b"SBLKSHFT";
const VERSION: u32 = 1;
const TAG_BYTES: usize = 32;
const INFO: &[u8] = b"sealblk shift v1";

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Records are counted from 1.
    pub sequence: u64,
    /// Up: from this byte of the disk on, everything is at its new place. Down:
    /// everything below is.
    pub boundary: u64,
}

/// What records of one operation are authenticated with.
pub struct Key {
    id: Uuid,
    key: hmac::Key,
}

impl Key {
    /// Derived from the key of the volume, and from all that must not be edited.
    pub fn derive(facts: &Facts, dek: &Dek) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, facts.id.as_bytes());
        let kind = match facts.kind {
            Kind::Rekey => [1],
            Kind::Encrypt => [2],
            Kind::Decrypt => [3],
        };
        let numbers = [facts.data_offset, facts.size].map(u64::to_be_bytes);
        let fields: [&[u8]; 5] = [INFO, &facts.binding, &kind, &numbers[0], &numbers[1]];
        let mut info = Vec::new();
        for field in fields {
            info.extend((field.len() as u32).to_be_bytes());
            info.extend(field);
        }
        let secret = salt.extract(dek.bytes());
        // It fails for outputs of more than 8160 bytes alone: then no record
        // would ever be authentic.
        let key = secret
            .expand(&[&info], hmac::HMAC_SHA256)
            .map_or_else(|_| hmac::Key::new(hmac::HMAC_SHA256, &[]), hmac::Key::from);
        scrub_stack();
        Key { id: facts.id, key }
    }

    /// The bytes of a record.
    pub fn seal(&self, record: Record) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_be_bytes());
        bytes[16..32].copy_from_slice(self.id.as_bytes());
        bytes[32..40].copy_from_slice(&record.sequence.to_be_bytes());
        bytes[40..48].copy_from_slice(&record.boundary.to_be_bytes());
        let (body, tag) = bytes.split_at_mut(RECORD_BYTES - TAG_BYTES);
        tag.copy_from_slice(hmac::sign(&self.key, body).as_ref());
        bytes
    }

    /// What a record says, if it is authentic.
    pub fn open(&self, bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        let (body, tag) = bytes.split_at(RECORD_BYTES - TAG_BYTES);
        hmac::verify(&self.key, body, tag).ok()?;
        let number = |at: usize| {
            let field = body[at..at + 8].try_into().ok()?;
            Some(u64::from_be_bytes(field))
        };
        let version = body[8..12] == VERSION.to_be_bytes();
        let ours = body[..8] == *MAGIC && body[16..32] == *self.id.as_bytes();
        match version && ours {
            true => Some(Record {
                sequence: number(32)?,
                boundary: number(40)?,
            }),
            false => None,
        }
    }
}

/// The boundary that a record says, authentic or not.
pub fn boundary_in(bytes: &[u8; RECORD_BYTES]) -> Option<u64> {
    let field = bytes[40..48].try_into().ok()?;
    looks_like_one(bytes).then(|| u64::from_be_bytes(field))
}

/// Whether bytes begin as a record does, authentic or not.
pub fn looks_like_one(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            id: Uuid::from_u128(7),
            kind: Kind::Encrypt,
            binding: vec![1, 2, 3],
            data_offset: 1 << 20,
            size: 1 << 30,
        }
    }

    #[test]
    fn no_bit_of_a_record_can_be_changed() {
        let key = Key::derive(&facts(), &Dek::generate().unwrap());
        let record = Record {
            sequence: 3,
            boundary: 1 << 20,
        };
        let bytes = key.seal(record);
        assert_eq!(key.open(&bytes), Some(record));
        assert!(looks_like_one(&bytes));
        for bit in 0..RECORD_BYTES * 8 {
            let mut edited = bytes;
            edited[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.open(&edited), None, "bit {bit}");
        }
    }

    #[test]
    fn each_fact_makes_another_key() {
        let dek = Dek::generate().unwrap();
        let record = Record {
            sequence: 1,
            boundary: 0,
        };
        let bytes = Key::derive(&facts(), &dek).seal(record);
        let edits: [fn(&mut Facts); 5] = [
            |facts| facts.id = Uuid::from_u128(8),
            |facts| facts.kind = Kind::Decrypt,
            |facts| facts.binding = vec![1, 2, 4],
            |facts| facts.data_offset += 4096,
            |facts| facts.size += 4096,
        ];
        for edit in edits {
            let mut other = facts();
            edit(&mut other);
            assert_eq!(Key::derive(&other, &dek).open(&bytes), None, "{other:?}");
        }
        let other = Dek::generate().unwrap();
        assert_eq!(Key::derive(&facts(), &other).open(&bytes), None);
        assert!(Key::derive(&facts(), &dek).open(&bytes).is_some());
    }
}
