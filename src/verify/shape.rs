//! Whether bytes have a shape: text, code, tables, patterns; or are such as
//! encryption leaves, each value as likely as any other.
//!
//! For a unit a few models are asked how much better than blind chance they
//! predict its bytes. Each model is a probability distribution over all units of
//! that length, so that the mean of their predictions divided by blind chance
//! has, over bytes that really are noise, an expected value of 1; by Markov's
//! inequality it reaches 2^k with a probability of at most 2^-k (it is an
//! *e-value*). Nothing is approximated, for short units either, which is what
//! the chi-square distribution would do. [`bits`] is a lower bound of that k.
//!
//! The models:
//! - two of unevenly distributed bytes (Dirichlet-multinomial distributions):
//!   text, code, tables, all that has favourite bytes;
//! - five of regular ones: what a byte differs by from the one 1, 2, 4, 8 or 16
//!   places before is what that one differed by. So counters and patterns that
//!   repeat are found, which may have all bytes equally often.
//!
//! Compressed or encrypted plaintext has no shape. Nobody tells it from
//! ciphertext who has nothing but the bytes.
#![forbid(unsafe_code)]

/// How far a regular byte's forerunner is away.
const LAGS: [usize; 5] = [1, 2, 4, 8, 16];

/// What the two models of uneven bytes take each byte to have been seen before
/// they see any: little, for text; more, for what is nearly even.
const PRIORS: [f64; 2] = [0.25, 8.0];

/// log2 of the number of models: the mean is at least the best of them, less this.
const MODELS: f64 = 2.807_354_922_057_604;

/// How often each byte is there.
pub type Counts = [u16; 256];

/// The models, for units of one length.
#[derive(Debug)]
pub struct Shape {
    /// For each prior and count: log2 of what so many bytes of a kind add.
    seen: [Vec<f32>; 2],
    /// What the length adds.
    base: [f64; 2],
    unit: usize,
}

impl Shape {
    /// Models for units of `unit` bytes, at most 65,535.
    pub fn new(unit: usize) -> Self {
        let seen = PRIORS.map(|prior| {
            let mut sum = 0.0;
            let mut table = vec![0.0];
            for count in 0..unit {
                sum += (prior + count as f64).log2();
                table.push(sum as f32);
            }
            table
        });
        let base = PRIORS.map(|prior| {
            let blind = 8.0 * unit as f64;
            let all: f64 = (0..unit)
                .map(|count| (256.0 * prior + count as f64).log2())
                .sum();
            blind - all
        });
        Shape { seen, base, unit }
    }

    /// How many times, as a power of 2, a model predicts `bytes` better than
    /// blind chance, at least. `counts` are theirs.
    ///
    /// # Panics
    /// When it is not one unit.
    pub fn bits(&self, bytes: &[u8], counts: &Counts) -> f64 {
        assert_eq!(bytes.len(), self.unit, "one unit");
        self.uneven(counts).max(regular(bytes)) - MODELS
    }

    fn uneven(&self, counts: &Counts) -> f64 {
        let mut sums = [0.0_f32; 2];
        for &count in counts {
            for (sum, table) in sums.iter_mut().zip(&self.seen) {
                *sum += table[usize::from(count)];
            }
        }
        let [little, more] = [0, 1].map(|model| self.base[model] + f64::from(sums[model]));
        little.max(more)
    }
}

/// The best of the models of regular bytes.
fn regular(bytes: &[u8]) -> f64 {
    LAGS.into_iter()
        .map(|lag| regular_at(bytes, lag))
        .fold(f64::MIN, f64::max)
}

/// Each byte is as expected with a probability of a half, and else any other.
fn regular_at(bytes: &[u8], lag: usize) -> f64 {
    // log2 of a half by 1/256, and of a half by 255/256.
    const AS_EXPECTED: f64 = 7.0;
    const OTHERWISE: f64 = -0.994_353_436_858_858;
    let Some(rest) = bytes.len().checked_sub(2 * lag) else {
        return f64::MIN;
    };
    let (old, middle, new) = (&bytes[..rest], &bytes[lag..][..rest], &bytes[2 * lag..]);
    // In pieces whose sums fit into a byte, so that the loop is one of vectors.
    let mut expected = 0_u32;
    for ((old, middle), new) in old.chunks(128).zip(middle.chunks(128)).zip(new.chunks(128)) {
        let mut found = 0_u8;
        for ((old, middle), new) in old.iter().zip(middle).zip(new) {
            let step = middle.wrapping_sub(*old);
            found += u8::from(new.wrapping_sub(*middle) == step);
        }
        expected += u32::from(found);
    }
    let expected = f64::from(expected);
    expected * AS_EXPECTED + (rest as f64 - expected) * OTHERWISE
}

/// Counts bytes: in four tables, because an even count in one would wait for
/// itself.
pub fn count(bytes: &[u8]) -> Counts {
    let mut tables = [[0_u16; 256]; 4];
    let mut fours = bytes.chunks_exact(4);
    for four in &mut fours {
        for (table, byte) in tables.iter_mut().zip(four) {
            table[usize::from(*byte)] += 1;
        }
    }
    let [mut sum, one, two, three] = tables;
    for byte in 0..256 {
        sum[byte] += one[byte] + two[byte] + three[byte];
    }
    for byte in fours.remainder() {
        sum[usize::from(*byte)] += 1;
    }
    sum
}

/// How many bits are needed so that of `units` units of noise one in 2^30
/// verifications takes any for shaped.
pub fn needed(units: u64) -> f64 {
    30.0 + (units.max(1) as f64).log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(bytes: &[u8]) -> f64 {
        Shape::new(bytes.len()).bits(bytes, &count(bytes))
    }

    fn random(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        getrandom::fill(&mut bytes).unwrap();
        bytes
    }

    /// As many as a disk of 8 PiB has.
    const MANY: u64 = 1 << 44;

    #[test]
    fn counts_are_right_for_any_length() {
        for length in [0, 1, 3, 4, 511, 512, 4096] {
            let bytes = random(length);
            let counts = count(&bytes);
            for value in 0..=255 {
                let expected = bytes.iter().filter(|byte| **byte == value).count();
                assert_eq!(usize::from(counts[usize::from(value)]), expected);
            }
        }
    }

    /// What the bound promises, where it can be tried: over noise, 2^k is
    /// reached at most every 2^k-th time.
    #[test]
    fn noise_has_no_shape() {
        for unit in [512, 4096] {
            let shape = Shape::new(unit);
            let bytes = random(unit * 500);
            let found = bytes
                .chunks(unit)
                .map(|unit| shape.bits(unit, &count(unit)));
            let most = found.fold(f64::MIN, f64::max);
            // Once in eight million runs by the bound, and far rarer in truth.
            assert!(most < 32.0, "{unit}: {most}");
        }
    }

    /// Each model is a distribution: over all units of two bytes the
    /// predictions add up to 1.
    #[test]
    fn models_are_distributions() {
        let shape = Shape::new(2);
        for model in 0..2 {
            let mut total = 0.0;
            for first in 0..=255_u8 {
                for second in 0..=255_u8 {
                    let gain: f64 = count(&[first, second])
                        .iter()
                        .map(|count| f64::from(shape.seen[model][usize::from(*count)]))
                        .sum();
                    total += (shape.base[model] + gain - 16.0).exp2();
                }
            }
            assert!((total - 1.0).abs() < 1e-4, "{model}: {total}");
        }
        // And of the regular ones, over all third bytes after two.
        let total: f64 = (0..=255)
            .map(|third| (regular_at(&[7, 9, third], 1) - 8.0).exp2())
            .sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
    }

    #[test]
    fn what_disks_hold_has_a_shape() {
        let text = include_bytes!("../../docs/architecture.md");
        let ramp: Vec<u8> = (0..4096).map(|i| i as u8).collect();
        let table: Vec<u8> = (0..1024_u32)
            .flat_map(|i| (0x0a3b_0000 + 13 * i).to_le_bytes())
            .collect();
        let pattern: Vec<u8> = random(16).repeat(256);
        let mut boot = vec![0; 4096];
        boot[510..512].copy_from_slice(&[0x55, 0xaa]);
        for unit in [512, 4096] {
            for (what, bytes) in [
                ("text", &text[..unit]),
                ("a ramp", &ramp[..unit]),
                ("a table", &table[..unit]),
                ("a pattern", &pattern[..unit]),
                ("a boot sector", &boot[..unit]),
                ("ones", &vec![0xff; unit][..]),
            ] {
                let found = bits(bytes);
                assert!(found > needed(MANY), "{what} of {unit}: {found}");
            }
        }
    }

    /// In nearly all noises: in a sector of 512 bytes some outweigh so much of the
    /// text that it is not enough for a disk of 8 PiB.
    #[test]
    fn a_part_of_a_unit_is_enough() {
        // A third of text in noise.
        let text = include_bytes!("../../docs/architecture.md");
        for (unit, share) in [(512, 80), (4096, 100)] {
            let found = (0..100).filter(|_| {
                let mut bytes = random(unit);
                let part = unit / 3;
                bytes[..part].copy_from_slice(&text[..part]);
                bits(&bytes) > needed(MANY)
            });
            let found = found.count();
            assert!(found >= share, "{unit}: {found} of 100");
        }
    }

    /// Nearly all units of a program, which is denser than most, are told from
    /// noise.
    #[test]
    fn programs_have_a_shape() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        for (unit, share) in [(512, 0.9), (4096, 0.97)] {
            let shape = Shape::new(unit);
            let units = program.chunks_exact(unit).step_by(16).take(2000);
            let total = units.len() as f64;
            let bound = needed(MANY);
            let found = units.filter(|unit| shape.bits(unit, &count(unit)) > bound);
            let found = found.count() as f64;
            assert!(found > share * total, "{unit}: {found} of {total}");
        }
    }
}
