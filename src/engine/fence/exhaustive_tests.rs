//! Every boundary, everything that can be closed and every piece on a disk of eight
//! units; and every region next to a boundary.

use std::ops::Range;

use super::super::plan::Plan;
use super::super::view::{Access, Cut, View};
use super::*;

const DISK: u64 = 8;

/// Nothing, and all ranges of units.
fn ranges() -> impl Iterator<Item = Range<u64>> {
    let some =
        (0..DISK).flat_map(|start| (start + 1..=DISK).map(move |end| start * UNIT..end * UNIT));
    std::iter::once(0..0).chain(some)
}

/// What a view says of each piece is what can be said of each of its units, and as
/// much at once as there can be. 9 boundaries, 37 times 37 ranges, 72 pieces.
#[test]
fn a_piece_is_cut_where_its_units_differ() {
    let transforms: Transforms = std::array::from_fn(|_| Arc::new(plain()));
    for boundary in 0..=DISK {
        for reading in ranges() {
            for writing in ranges() {
                let plan = Plan {
                    moving: true,
                    boundary: boundary * UNIT,
                    size: DISK * UNIT,
                    unit: UNIT,
                    closed: [reading.clone(), writing.clone()],
                    ..Plan::default()
                };
                let view = View::new(&plan, &transforms);
                for (access, closed) in [(Access::Read, &reading), (Access::Write, &writing)] {
                    let is_closed = |unit: u64| closed.contains(&(unit * UNIT));
                    let is_below = |unit: u64| unit < boundary;
                    for start in 0..DISK {
                        for len in 1..=DISK - start {
                            let same = |unit: &u64| {
                                is_closed(*unit) == is_closed(start)
                                    && (is_closed(start) || is_below(*unit) == is_below(start))
                            };
                            let units = (start..start + len).take_while(same).count() as u64;
                            let wanted = match is_closed(start) {
                                true => Cut::Closed(units * UNIT),
                                false => Cut::Open(units * UNIT),
                            };
                            let cut = view.cut(access, start * UNIT, len * UNIT);
                            assert_eq!(cut, wanted, "{plan:?}: {start} {len}");
                            let touches = (start..start + len).any(is_closed);
                            let says = view.is_closed(access, start * UNIT, len * UNIT);
                            assert_eq!(says, touches, "{plan:?}: {start} {len}");
                        }
                    }
                }
            }
        }
    }
}

/// The region next to a boundary is whole units of the disk, for each boundary, size
/// and length, also one that overflows.
#[test]
fn a_region_next_to_a_boundary_stays_on_the_disk() {
    let lengths = (0..=10 * 4).map(|quarter| quarter * UNIT / 4);
    let lengths: Vec<u64> = lengths.chain([u64::MAX, u64::MAX - 511, 1 << 63]).collect();
    for size in 0..=DISK {
        for boundary in 0..=size {
            for &bytes in &lengths {
                let plan = Plan {
                    boundary: boundary * UNIT,
                    size: size * UNIT,
                    unit: UNIT,
                    ..Plan::default()
                };
                for direction in [Direction::Forward, Direction::Back] {
                    let wanted = match direction {
                        Direction::Forward => {
                            let end = u128::from(plan.boundary) + u128::from(bytes);
                            plan.boundary..end.min(u128::from(plan.size)) as u64
                        }
                        Direction::Back => plan.boundary - bytes.min(plan.boundary)..plan.boundary,
                    };
                    let whole = wanted.start % UNIT == 0 && wanted.end % UNIT == 0;
                    let region = plan.region(direction, bytes);
                    assert_eq!(region, whole.then_some(wanted), "{plan:?} {bytes}");
                }
            }
        }
    }
}
