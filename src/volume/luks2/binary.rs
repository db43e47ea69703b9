//! The binary header: the first 4096 bytes of each header copy ("Binary Header").
//!
//! All integers are big-endian; text is NUL-terminated within its field.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

use sha2::{Digest as _, Sha256};

/// Length of the binary header in bytes. The JSON area follows it directly.
pub const BINARY_BYTES: usize = 4096;

/// The lengths that a header copy (binary header and JSON area) may have,
/// and therefore also the offsets at which a secondary copy may start.
pub const COPY_BYTES: [u64; 9] = [
    0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
];

/// Length of the label and subsystem fields, with the terminating NUL.
pub const LABEL_BYTES: usize = 48;

/// What the primary copy, and a LUKS1 header, begin with.
pub const MAGIC_PRIMARY: [u8; 6] = *b"LUKS\xba\xbe";
/// What the secondary copy begins with.
pub const MAGIC_SECONDARY: [u8; 6] = *b"SKUL\xba\xbe";

const VERSION: u16 = 2;
const CHECKSUM_ALGORITHM: &[u8] = b"sha256";

/// Byte ranges of the fields in the binary header.
mod at {
    use std::ops::Range;
    pub const MAGIC: Range<usize> = 0..6;
    pub const VERSION: Range<usize> = 6..8;
    pub const HDR_SIZE: Range<usize> = 8..16;
    pub const SEQID: Range<usize> = 16..24;
    pub const LABEL: Range<usize> = 24..72;
    pub const CSUM_ALG: Range<usize> = 72..104;
    pub const SALT: Range<usize> = 104..168;
    pub const UUID: Range<usize> = 168..208;
    pub const SUBSYSTEM: Range<usize> = 208..256;
    pub const HDR_OFFSET: Range<usize> = 256..264;
    pub const CSUM: Range<usize> = 448..512;
}

/// One of the two header copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The copy at offset 0.
    Primary,
    /// The copy right after the primary one.
    Secondary,
}

impl Which {
    /// The first six bytes of this copy.
    pub fn magic(self) -> [u8; 6] {
        match self {
            Which::Primary => MAGIC_PRIMARY,
            Which::Secondary => MAGIC_SECONDARY,
        }
    }

    /// Where this copy starts when each copy has `copy_bytes` bytes.
    pub fn offset(self, copy_bytes: u64) -> u64 {
        match self {
            Which::Primary => 0,
            Which::Secondary => copy_bytes,
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Which::Primary => "primary",
            Which::Secondary => "secondary",
        })
    }
}

/// Why a header copy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The file ends before the copy does.
    #[error("cut off by the end of the file")]
    CutOff,
    /// Something else is there.
    #[error("no LUKS magic")]
    NoMagic,
    /// A LUKS header of another version.
    #[error("LUKS version {0}, not 2")]
    Version(u16),
    /// The length field is not one of [`COPY_BYTES`].
    #[error("impossible header length {0}")]
    Length(u64),
    /// The copy says that it belongs elsewhere.
    #[error("written for offset {0}")]
    Offset(u64),
    /// Not SHA-256.
    #[error("checksum algorithm {0:?}, not sha256")]
    Algorithm(String),
    /// The bytes were changed, or a write was cut short.
    #[error("wrong checksum")]
    Checksum,
    /// The checksum is right and the JSON is not.
    #[error("unreadable JSON: {0}")]
    Json(String),
    /// The storage failed.
    #[error("not readable: {0}")]
    Unreadable(String),
}

/// The fields of a binary header that both copies share.
#[derive(Clone, PartialEq, Eq)]
pub struct Binary {
    /// Length of one copy in bytes, with its JSON area.
    pub copy_bytes: u64,
    /// Counts header updates; the copy with the higher number is the newer.
    pub seqid: u64,
    /// The label field, padded with zeroes.
    pub label: [u8; LABEL_BYTES],
    /// The UUID field: text, padded with zeroes.
    pub uuid: [u8; 40],
    /// The subsystem field: a second label, padded with zeroes.
    pub subsystem: [u8; LABEL_BYTES],
}

impl fmt::Debug for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binary")
            .field("copy_bytes", &self.copy_bytes)
            .field("seqid", &self.seqid)
            .field("label", &text(&self.label))
            .field("uuid", &text(&self.uuid))
            .field("subsystem", &text(&self.subsystem))
            .finish()
    }
}

/// The text in a NUL-terminated field.
pub fn text(field: &[u8]) -> Cow<'_, str> {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end])
}

/// A field of `N` bytes that holds `text` and at least one NUL, if it fits.
pub fn field<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() >= N || bytes.contains(&0) {
        return None;
    }
    let mut field = [0; N];
    field[..bytes.len()].copy_from_slice(bytes);
    Some(field)
}

fn array<const N: usize>(bytes: &[u8], range: std::ops::Range<usize>) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[range]);
    out
}

impl Binary {
    /// Reads the fields of a copy that starts at `offset`, without the
    /// checksum: that also covers the JSON area, whose length is in here.
    ///
    /// # Errors
    /// When it is not a LUKS2 binary header of this copy for this offset.
    pub fn parse(bytes: &[u8; BINARY_BYTES], which: Which, offset: u64) -> Result<Self, Flaw> {
        if bytes[at::MAGIC] != which.magic() {
            return Err(Flaw::NoMagic);
        }
        match u16::from_be_bytes(array(bytes, at::VERSION)) {
            VERSION => {}
            other => return Err(Flaw::Version(other)),
        }
        let copy_bytes = u64::from_be_bytes(array(bytes, at::HDR_SIZE));
        if !COPY_BYTES.contains(&copy_bytes) {
            return Err(Flaw::Length(copy_bytes));
        }
        let written_for = u64::from_be_bytes(array(bytes, at::HDR_OFFSET));
        if written_for != offset || offset != which.offset(copy_bytes) {
            return Err(Flaw::Offset(written_for));
        }
        let algorithm = text(&bytes[at::CSUM_ALG]);
        if algorithm.as_bytes() != CHECKSUM_ALGORITHM {
            return Err(Flaw::Algorithm(algorithm.into_owned()));
        }
        Ok(Binary {
            copy_bytes,
            seqid: u64::from_be_bytes(array(bytes, at::SEQID)),
            label: array(bytes, at::LABEL),
            uuid: array(bytes, at::UUID),
            subsystem: array(bytes, at::SUBSYSTEM),
        })
    }

    /// One whole copy: this header, the JSON text, zeroes to the end of the
    /// area, and the checksum over all of it. `salt` makes each copy's
    /// checksum unique. `None` if the JSON and its final NUL do not fit.
    pub fn encode(&self, which: Which, json: &[u8], salt: &[u8; 64]) -> Option<Vec<u8>> {
        let length = self.copy_bytes as usize;
        if json.len() >= length - BINARY_BYTES {
            return None;
        }
        let mut out = vec![0; length];
        let mut put = |range: std::ops::Range<usize>, bytes: &[u8]| {
            out[range.start..range.start + bytes.len()].copy_from_slice(bytes);
        };
        put(at::MAGIC, &which.magic());
        put(at::VERSION, &VERSION.to_be_bytes());
        put(at::HDR_SIZE, &self.copy_bytes.to_be_bytes());
        put(at::SEQID, &self.seqid.to_be_bytes());
        put(at::LABEL, &self.label);
        put(at::CSUM_ALG, CHECKSUM_ALGORITHM);
        put(at::SALT, salt);
        put(at::UUID, &self.uuid);
        put(at::SUBSYSTEM, &self.subsystem);
        let offset = which.offset(self.copy_bytes);
        put(at::HDR_OFFSET, &offset.to_be_bytes());
        put(BINARY_BYTES..length, json);
        let checksum = Sha256::digest(&out);
        out[at::CSUM][..checksum.len()].copy_from_slice(&checksum);
        Some(out)
    }
}

/// Whether the checksum of a whole copy (binary header and JSON area) is right.
/// It is computed with its own field set to zero.
pub fn checksum_is_right(copy: &[u8]) -> bool {
    let mut hash = Sha256::new();
    hash.update(&copy[..at::CSUM.start]);
    hash.update([0; at::CSUM.end - at::CSUM.start]);
    hash.update(&copy[at::CSUM.end..]);
    hash.finalize()[..] == copy[at::CSUM][..32]
}

/// The UUID text in something that begins like a header copy, damaged or
/// not: a hint at whose header it was.
pub fn uuid_hint(bytes: &[u8]) -> Option<Cow<'_, str>> {
    let magic = bytes.get(at::MAGIC)?;
    (magic == MAGIC_PRIMARY || magic == MAGIC_SECONDARY)
        .then(|| bytes.get(at::UUID).map(text))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Binary {
        Binary {
            copy_bytes: 0x4000,
            seqid: 0x0102_0304_0506_0708,
            label: field("disk one").unwrap(),
            uuid: field("00112233-4455-6677-8899-aabbccddeeff").unwrap(),
            subsystem: field("sealblk").unwrap(),
        }
    }

    fn head(copy: &[u8]) -> &[u8; BINARY_BYTES] {
        copy.first_chunk().unwrap()
    }

    #[test]
    fn fields_are_where_the_specification_says() {
        let copy = sample()
            .encode(Which::Secondary, b"{}", &[0xaa; 64])
            .unwrap();
        assert_eq!(copy.len(), 0x4000);
        assert_eq!(&copy[..8], b"SKUL\xba\xbe\0\x02");
        assert_eq!(copy[8..16], 0x4000u64.to_be_bytes());
        assert_eq!(copy[16..24], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(&copy[24..33], b"disk one\0");
        assert_eq!(&copy[72..79], b"sha256\0");
        assert_eq!(copy[104..168], [0xaa; 64]);
        assert_eq!(&copy[168..204], b"00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(&copy[208..216], b"sealblk\0");
        assert_eq!(copy[256..264], 0x4000u64.to_be_bytes());
        assert_eq!(&copy[4096..4099], b"{}\0");
        assert!(copy[4098..].iter().all(|&b| b == 0));
        assert!(copy[480..512].iter().all(|&b| b == 0));
    }

    #[test]
    fn what_was_encoded_is_parsed_again() {
        for which in [Which::Primary, Which::Secondary] {
            let copy = sample().encode(which, b"{}", &[1; 64]).unwrap();
            let offset = which.offset(0x4000);
            assert_eq!(Binary::parse(head(&copy), which, offset), Ok(sample()));
            assert!(checksum_is_right(&copy));
        }
    }

    #[test]
    fn any_flipped_bit_breaks_the_checksum() {
        let copy = sample().encode(Which::Primary, b"{}", &[1; 64]).unwrap();
        for byte in (0..copy.len()).filter(|byte| !(480..512).contains(byte)) {
            let mut flipped = copy.clone();
            flipped[byte] ^= 1 << (byte % 8);
            assert!(!checksum_is_right(&flipped), "byte {byte}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let copy = sample().encode(Which::Primary, b"{}", &[1; 64]).unwrap();
        let broken = |at: usize, byte: u8| {
            let mut copy = copy.clone();
            copy[at] = byte;
            Binary::parse(head(&copy), Which::Primary, 0).unwrap_err()
        };
        assert_eq!(broken(0, b'l'), Flaw::NoMagic);
        assert_eq!(broken(7, 1), Flaw::Version(1));
        assert_eq!(broken(14, 0x41), Flaw::Length(0x4100));
        assert_eq!(broken(263, 9), Flaw::Offset(9));
        assert_eq!(broken(75, b'5'), Flaw::Algorithm("sha556".into()));
        let secondary = sample().encode(Which::Secondary, b"{}", &[1; 64]).unwrap();
        assert_eq!(
            Binary::parse(head(&secondary), Which::Secondary, 0x8000),
            Err(Flaw::Offset(0x4000)),
        );
    }

    #[test]
    fn the_json_area_keeps_room_for_its_nul() {
        let room = 0x4000 - BINARY_BYTES;
        let full = vec![b' '; room];
        assert!(sample().encode(Which::Primary, &full, &[0; 64]).is_none());
        assert!(
            sample()
                .encode(Which::Primary, &full[1..], &[0; 64])
                .is_some()
        );
    }

    #[test]
    fn a_field_needs_room_for_its_nul() {
        assert!(field::<4>("abc").is_some());
        assert!(field::<4>("abcd").is_none());
        assert!(field::<4>("a\0").is_none());
        assert_eq!(text(b"ab\0c"), "ab");
    }
}
