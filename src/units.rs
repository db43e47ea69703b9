//! Numbers that carry their unit.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The unit in which virtio-blk, LUKS2's `plain64` tweak and the block layer
/// of Linux count: 512 bytes, whatever the sector size of the disk is.
pub const SECTOR_BYTES: u64 = 512;

/// A position on the guest's disk, in 512-byte sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sector(pub u64);

impl Sector {
    /// The byte offset of this sector, unless it does not fit into 64 bits.
    pub fn checked_bytes(self) -> Option<u64> {
        self.0.checked_mul(SECTOR_BYTES)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {}", self.0)
    }
}

/// The size of one data unit: what is encrypted under one tweak, and the
/// smallest piece that a guest may read or write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SectorSize {
    /// 512 bytes: every firmware and guest boots from it.
    #[default]
    B512,
    /// 4096 bytes: less work per byte; SeaBIOS does not boot from it.
    B4096,
}

impl SectorSize {
    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            SectorSize::B512 => 512,
            SectorSize::B4096 => 4096,
        }
    }

    /// How many 512-byte sectors one data unit spans: 1 or 8.
    pub const fn sectors(self) -> u64 {
        match self {
            SectorSize::B512 => 1,
            SectorSize::B4096 => 8,
        }
    }

    /// The sector size of that many bytes, if it is one that sealblk has.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            512 => Some(SectorSize::B512),
            4096 => Some(SectorSize::B4096),
            _ => None,
        }
    }
}

impl fmt::Display for SectorSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

impl FromStr for SectorSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .ok()
            .and_then(SectorSize::from_bytes)
            .ok_or_else(|| format!("sector size {text:?} is neither 512 nor 4096"))
    }
}

/// A number of bytes, written by people as `4096`, `64K`, `10G`, `1.5T`…
/// (powers of 1024; `KiB`, `MiB`, … are the same).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a size: write a number and K, M, G, T or P");
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(split);
        let shift = match suffix.trim().to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            "P" | "PIB" => 50,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let unit = 1u128 << shift;
        let mut total = whole.parse::<u64>().map_err(|_| bad())? as u128 * unit;
        if !fraction.is_empty() {
            let digits = fraction.parse::<u64>().map_err(|_| bad())? as u128;
            let scale = 10u128.checked_pow(fraction.len() as u32).ok_or_else(bad)?;
            if !(digits * unit).is_multiple_of(scale) {
                return Err(format!("{text:?} is not a whole number of bytes"));
            }
            total += digits * unit / scale;
        }
        u64::try_from(total)
            .map(Bytes)
            .map_err(|_| format!("{text:?} is more than 64 bits can hold"))
    }
}

impl fmt::Display for Bytes {
    /// With the largest suffix that keeps at most two exact decimals, else in bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, suffix) in [
            (50, "PiB"),
            (40, "TiB"),
            (30, "GiB"),
            (20, "MiB"),
            (10, "KiB"),
        ] {
            let unit = 1u64 << shift;
            if self.0 >= unit && (self.0 as u128 * 100).is_multiple_of(unit as u128) {
                let hundredths = (self.0 % unit) as u128 * 100 / unit as u128;
                return match hundredths {
                    0 => write!(f, "{} {suffix}", self.0 / unit),
                    h => write!(f, "{}.{:02} {suffix}", self.0 / unit, h),
                };
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 65536),
            ("10G", 10 << 30),
            ("1.5T", 3 << 39),
            ("16 MiB", 16 << 20),
            ("0.5k", 512),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1X",
            "1.3",
            "99999999P",
            "1..5G",
            "1e3",
            ".5G",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_exactly() {
        assert_eq!(Bytes(10 << 30).to_string(), "10 GiB");
        assert_eq!(Bytes(3 << 39).to_string(), "1.50 TiB");
        assert_eq!(Bytes(4097).to_string(), "4097 bytes");
    }
}
