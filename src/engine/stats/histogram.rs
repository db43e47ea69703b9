//! Latencies in buckets: four to each doubling, from a microsecond to 17
//! seconds, so that any quantile is known to within a fifth.
#![forbid(unsafe_code)]

/// Bits of the first bound: 2^10 ns are about one microsecond.
const FIRST_BITS: u32 = 10;
/// Bits of the last bound: 2^34 ns are about 17 seconds.
const LAST_BITS: u32 = 34;
/// Bits by which a doubling is divided.
const PART_BITS: u32 = 2;

/// How many buckets there are: one below the first bound, four to each
/// doubling, and one above the last bound.
pub const BUCKETS: usize = (((LAST_BITS - FIRST_BITS) << PART_BITS) + 2) as usize;

/// The bucket of a time. Its bounds are exclusive below and inclusive above.
pub(super) fn bucket(nanoseconds: u64) -> usize {
    // The bound itself still belongs to the bucket below it.
    let below = nanoseconds.saturating_sub(1);
    let bits = 63 - (below | 1).leading_zeros();
    if bits < FIRST_BITS {
        return 0;
    }
    if bits >= LAST_BITS {
        return BUCKETS - 1;
    }
    let part = (below >> (bits - PART_BITS)) as usize & ((1 << PART_BITS) - 1);
    1 + (((bits - FIRST_BITS) as usize) << PART_BITS) + part
}

/// The upper bounds of all buckets but the last, which has none, in nanoseconds.
pub fn bounds() -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
    (0..BUCKETS - 1).map(bound)
}

fn bound(bucket: usize) -> u64 {
    let parts = 1 << PART_BITS;
    let (octave, part) = (bucket >> PART_BITS, bucket as u64 & (parts - 1));
    (parts + part) << (FIRST_BITS as usize + octave - PART_BITS as usize)
}

/// Whether the upper bound of this bucket is a power of two.
pub(super) fn ends_octave(bucket: usize) -> bool {
    bucket & ((1 << PART_BITS) - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_grow_and_double_every_fourth_time() {
        let bounds: Vec<u64> = bounds().collect();
        assert_eq!(bounds.len(), 97);
        assert_eq!((bounds[0], bounds[96]), (1 << 10, 1 << 34));
        assert_eq!(bounds[..6], [1024, 1280, 1536, 1792, 2048, 2560]);
        for (place, bound) in bounds.iter().enumerate() {
            assert_eq!(ends_octave(place), bound.is_power_of_two());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_time_lies_between_the_bounds_of_its_bucket(shift in 0u32..64, low: u64) {
            let bounds: Vec<u64> = bounds().collect();
            for time in [low >> shift, 1 << shift, (1u64 << shift).wrapping_add(1), 0, u64::MAX] {
                let bucket = bucket(time);
                prop_assert!(bucket == BUCKETS - 1 || time <= bounds[bucket]);
                prop_assert!(bucket == 0 || time > bounds[bucket - 1]);
            }
        }
    }
}
