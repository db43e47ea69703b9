//! Where the data of a volume may be, and where the units next to a boundary are.

use super::*;

/// Offsets and sizes around each power of two where something could overflow, in both
/// units, against 128 bits.
#[test]
fn data_ends_where_a_file_can_for_all_numbers_near_an_edge() {
    let near = |edge: u64| {
        let steps = [0, 1, 511, 512, 513, 4095, 4096, 4097, 8192];
        steps
            .into_iter()
            .flat_map(move |step| [edge.wrapping_add(step), edge.wrapping_sub(step)])
    };
    let edges = [
        0,
        1 << 24,
        1 << 32,
        1 << 62,
        1 << 63,
        i64::MAX as u64,
        u64::MAX,
    ];
    let numbers: Vec<u64> = edges.into_iter().flat_map(near).collect();
    for unit in [SectorSize::B512, SectorSize::B4096] {
        for &data_offset in &numbers {
            for &size in &numbers {
                let facts = Facts {
                    data_offset,
                    size,
                    ..facts()
                };
                let end = u128::from(data_offset) + u128::from(size);
                let fits = size.is_multiple_of(unit.bytes() as u64)
                    && data_offset.is_multiple_of(512)
                    && end <= i64::MAX as u128;
                let geometry = Geometry::new(&facts, unit);
                assert_eq!(geometry.is_ok(), fits, "{size} at {data_offset}");
                if let Ok(geometry) = geometry {
                    assert_eq!(u128::from(geometry.in_file(size)), end);
                }
            }
        }
    }
}

/// Each boundary of a disk of 24 units, each length that is left and each number of
/// units that are passed over: what is next is on the right side, touches what was
/// passed over, and the boundary comes to lie behind it.
#[test]
fn what_is_next_to_a_boundary_is_on_its_side() {
    const UNITS: u64 = 24;
    for boundary in 0..=UNITS {
        for direction in [Direction::Forward, Direction::Back] {
            let position = Position {
                direction,
                boundary,
            };
            let left = match direction {
                Direction::Forward => UNITS - boundary,
                Direction::Back => boundary,
            };
            for skip in 0..=left {
                for length in 0..=left - skip {
                    let first = position.next(skip, length);
                    let (start, end) = match direction {
                        Direction::Forward => (boundary + skip, boundary + skip + length),
                        Direction::Back => (boundary - skip - length, boundary - skip),
                    };
                    assert_eq!((first, first + length), (start, end));
                    assert!(end <= UNITS);
                    let beyond = position.beyond(skip + length);
                    assert_eq!(beyond.direction, direction);
                    let edge = match direction {
                        Direction::Forward => end,
                        Direction::Back => start,
                    };
                    assert_eq!(beyond.boundary, edge);
                }
            }
        }
    }
}
