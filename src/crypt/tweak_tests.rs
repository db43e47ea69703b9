//! The tweak of each unit of a call is its own sector's plus the offset, modulo 2^64,
//! wherever in 64 bits that is, and however a call is cut.

use std::ptr::NonNull;

use super::*;
use crate::secret::Secret;
use crate::segment::Segment;

/// Units per call: more than any engine takes at once.
const UNITS: usize = 19;

fn dek() -> Dek {
    let bytes: [u8; 64] = std::array::from_fn(|at| (at * 29 + 3) as u8);
    Dek::try_from(Secret::copy_of(&bytes).unwrap()).unwrap()
}

/// For each engine and unit size, with the first sector and the offset around each
/// carry of 64 bits: calls of 1 to 19 units give what the oracle gives unit by
/// unit, with the sum as its sector and no offset.
#[test]
fn tweaks_are_those_of_their_sectors_across_every_carry() {
    let edges: [u64; 4] = [0, (1 << 32) - 8, u64::MAX - 63, 0xff80];
    for engine in Engine::available() {
        for sector_size in [SectorSize::B512, SectorSize::B4096] {
            let (unit, step) = (sector_size.bytes(), sector_size.sectors());
            let plain: Vec<u8> = (0..UNITS * unit).map(|at| (at / 3) as u8).collect();
            for iv_tweak in [0, 7, u64::MAX - 8, 1 << 63] {
                let params = |iv_tweak| Params {
                    sector_size,
                    iv_tweak,
                    zero_units: false,
                };
                let cipher = SectorCipher::untested(engine, &dek(), params(iv_tweak)).unwrap();
                for edge in edges {
                    let first = Sector(edge / step * step);
                    let wanted: Vec<u8> = plain
                        .chunks(unit)
                        .enumerate()
                        .flat_map(|(at, unit)| {
                            let sector = first.0.wrapping_add(at as u64 * step);
                            // The oracle alone, with the tweak as its offset.
                            let tweak = params(sector.wrapping_add(iv_tweak));
                            let oracle =
                                SectorCipher::untested(Engine::Portable, &dek(), tweak).unwrap();
                            let mut unit = unit.to_vec();
                            oracle.encrypt_in_place(Sector(0), &mut unit);
                            unit
                        })
                        .collect();
                    let large = sector_size == SectorSize::B4096;
                    for count in (1..=UNITS).filter(|count| !large || count % 4 == 1) {
                        let bytes = count * unit;
                        let what =
                            format!("{engine} {sector_size} {iv_tweak:#x} {edge:#x} {count}");
                        let mut buffer = plain[..bytes].to_vec();
                        cipher.encrypt_in_place(first, &mut buffer);
                        assert!(buffer == wanted[..bytes], "{what}");
                        cipher.decrypt_in_place(first, &mut buffer);
                        assert!(buffer == plain[..bytes], "{what}");
                        // From segments that end inside of units.
                        let mut source = plain[..bytes].to_vec();
                        let cut = bytes * 2 / 3 + 5;
                        let (left, right) = source.split_at_mut(cut);
                        let segments = [left, right]
                            .map(|part| Segment::new(NonNull::from(&mut part[0]), part.len()));
                        let mut cursor = SegmentCursor::new(&segments);
                        // SAFETY: the segments are of `source`, which lives on.
                        unsafe { cipher.encrypt(first, &mut cursor, &mut buffer) };
                        assert!(buffer == wanted[..bytes], "{what}");
                    }
                }
            }
        }
    }
}
