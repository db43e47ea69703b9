//! Latencies in buckets whose width grows with the value: 64 to each power of
//! two, so that a quantile is right within 1.6 percent.

const STEPS: usize = 64;
const STEP_BITS: u32 = STEPS.ilog2();

/// Counts of nanoseconds.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u64,
    max: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Histogram {
            counts: vec![0; bucket(u64::MAX) + 1],
            total: 0,
            sum: 0,
            max: 0,
        }
    }

    pub fn add(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
        self.sum += nanoseconds;
        self.max = self.max.max(nanoseconds);
    }

    pub fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// The value that this share of all values does not exceed.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return upper_end(index).min(self.max);
            }
        }
        self.max
    }

    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.total).unwrap_or(0)
    }

    pub fn max(&self) -> u64 {
        self.max
    }
}

fn bucket(value: u64) -> usize {
    // Below STEPS each value has a bucket; then the top bits choose one.
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEP_BITS + 1);
    (shift as usize) * STEPS + (value >> shift) as usize
}

fn upper_end(bucket: usize) -> u64 {
    let shift = (bucket / STEPS).saturating_sub(1);
    let top = (bucket - shift * STEPS) as u64;
    (top << shift) + ((1 << shift) - 1)
}
