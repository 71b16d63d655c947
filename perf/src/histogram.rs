//! Latencies in a table of fixed size: 32 steps to each doubling, so within 3 % of the truth.

const STEPS: usize = 32;
const STEP_BITS: u32 = 5;

/// Counts by duration.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; STEPS * 60], count: 0, max: 0 }
    }
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS as u64 {
        return ns as usize;
    }
    let shift = ns.ilog2() - STEP_BITS;
    (shift as usize + 1) * STEPS + ((ns >> shift) as usize - STEPS)
}

/// The longest duration that falls into a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let shift = bucket / STEPS - 1;
    ((STEPS + bucket % STEPS + 1) as u64) << shift
}

impl Histogram {
    /// Counts one duration in nanoseconds.
    pub fn add(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.count += 1;
        self.max = self.max.max(ns);
    }

    /// Counts all of another one.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest, nanoseconds.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The duration that `share` (0 to 1) of all do not exceed, nanoseconds; 0 if there are none.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(at).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_meet_without_gap_and_quantiles_are_near() {
        let mut last = 0;
        for ns in 0..100_000 {
            let at = bucket(ns);
            assert!(at == last || at == last + 1, "{ns}");
            assert!(ns <= upper(at), "{ns}");
            last = at;
        }
        assert!(bucket(u64::MAX) < STEPS * 60);
        let mut histogram = Histogram::default();
        (1..=10_000).for_each(|ns| histogram.add(ns));
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        assert_eq!((twice.count(), twice.max()), (20_000, 10_000));
        for (share, truth) in [(0.5, 5000.0), (0.99, 9900.0), (0.999, 9990.0)] {
            let found = twice.quantile(share) as f64;
            assert!((found / truth - 1.0).abs() < 0.04, "{share}: {found}");
        }
    }
}
