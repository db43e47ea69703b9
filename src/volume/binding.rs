//! What every wrap of a volume's key is bound to.
//!
//! Whoever can write the disk can edit the header: its checksum proves
//! nothing. So the facts whose change would make a correct key do something
//! else than it was meant for go into the additional authenticated data of
//! each wrap, and a header in which one of them was edited yields no key.
#![forbid(unsafe_code)]

use uuid::Uuid;

use crate::units::SectorSize;

/// Says what the bytes are for, so that they are never taken for the
/// additional data of anything else, and which layout follows.
pub const PURPOSE: &str = "sealblk DEK wrap v1";

/// How many fields there are.
const FIELDS: usize = 6;

/// The facts that a wrapped key is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The volume.
    pub uuid: Uuid,
    /// The cipher, mode and tweak in dm-crypt's notation: `aes-xts-plain64`.
    pub encryption: String,
    /// The size of a data unit.
    pub sector_size: SectorSize,
    /// What is added to the sector number before it becomes the tweak.
    pub iv_tweak: u64,
    /// Whether an all-zero unit reads as zeroes.
    pub zero_units: bool,
}

impl Binding {
    /// The canonical bytes: each field is its length in bytes as a 32-bit
    /// big-endian number, then its bytes; numbers are big-endian. The order
    /// is purpose, UUID (16 bytes), encryption, sector size (4 bytes),
    /// iv_tweak (8 bytes), zero units (1 byte: 0 or 1).
    pub fn bytes(&self) -> Vec<u8> {
        let fields: [&[u8]; FIELDS] = [
            PURPOSE.as_bytes(),
            self.uuid.as_bytes(),
            self.encryption.as_bytes(),
            &(self.sector_size.bytes() as u32).to_be_bytes(),
            &self.iv_tweak.to_be_bytes(),
            &[u8::from(self.zero_units)],
        ];
        let mut out = Vec::with_capacity(128);
        for field in fields {
            out.extend_from_slice(&(field.len() as u32).to_be_bytes());
            out.extend_from_slice(field);
        }
        out
    }
}

/// The volume that `bytes` are the binding of, if they are one. For those who
/// decide by it, before a key is used: that the bytes are what a key was bound
/// to is shown by its opening.
pub fn volume_in(bytes: &[u8]) -> Option<Uuid> {
    let (purpose, rest) = field(bytes)?;
    let (uuid, mut rest) = field(rest)?;
    for _ in 2..FIELDS {
        (_, rest) = field(rest)?;
    }
    let uuid = Uuid::from_slice(uuid).ok()?;
    (purpose == PURPOSE.as_bytes() && rest.is_empty()).then_some(uuid)
}

/// The field that `bytes` begin with, and what follows it.
fn field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Binding {
        Binding {
            uuid: Uuid::from_u128(0x00112233_4455_6677_8899_aabbccddeeff),
            encryption: "aes-xts-plain64".into(),
            sector_size: SectorSize::B4096,
            iv_tweak: 0x0102,
            zero_units: true,
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let expected = concat!(
            "00000013",
            "7365616c626c6b2044454b2077726170207631",
            "00000010",
            "00112233445566778899aabbccddeeff",
            "0000000f",
            "6165732d7874732d706c61696e3634",
            "00000004",
            "00001000",
            "00000008",
            "0000000000000102",
            "00000001",
            "01",
        );
        assert_eq!(hex::encode(sample().bytes()), expected);
        // The same as on the page, which has blanks and line breaks in it.
        let page = include_str!("../../docs/format.md");
        let page: String = page.split_whitespace().collect();
        assert!(page.contains(expected));
    }

    #[test]
    fn the_volume_is_found_in_a_binding_and_in_nothing_else() {
        let bytes = sample().bytes();
        assert_eq!(volume_in(&bytes), Some(sample().uuid));
        for cut in 0..bytes.len() {
            assert_eq!(volume_in(&bytes[..cut]), None, "cut at {cut}");
        }
        assert_eq!(volume_in(&[&bytes[..], b"\0"].concat()), None);
        let other = String::from_utf8_lossy(&bytes).replace("DEK wrap", "KEY wrap");
        assert_eq!(volume_in(other.as_bytes()), None);
        let group = [
            &25u32.to_be_bytes()[..],
            b"sealblk group key wrap v1",
            &16u32.to_be_bytes(),
            &[7; 16],
        ];
        assert_eq!(volume_in(&group.concat()), None);
        assert_eq!(volume_in(&[0xff; 64]), None);
    }

    #[test]
    fn every_field_changes_the_bytes() {
        let base = sample();
        let mut edited = vec![base.clone(); 5];
        edited[0].uuid = Uuid::nil();
        edited[1].encryption = "aes-xts-plain".into();
        edited[2].sector_size = SectorSize::B512;
        edited[3].iv_tweak = 0;
        edited[4].zero_units = false;
        for other in edited {
            assert_ne!(other.bytes(), base.bytes(), "{other:?}");
        }
    }
}
