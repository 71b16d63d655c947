//! The only source of chance in the simulator: xoshiro256++, seeded by SplitMix64.
//!
//! Written out here, and not taken from a crate, so that a seed means the same run for ever.

/// A deterministic stream of numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
    /// Draws to come, two bytes each, the last one first; then the stream goes on by itself.
    tape: Vec<[u8; 2]>,
}

/// One SplitMix64 step: a good 64-bit mix of `value`.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Rng {
        let mut at = seed;
        let state = std::array::from_fn(|_| {
            at = at.wrapping_add(0x9E37_79B9_7F4A_7C15);
            mix(at)
        });
        Rng { state, tape: Vec::new() }
    }

    /// The stream of `seed`, but the upper 16 bits of its first numbers are two bytes of `tape`
    /// each: a fuzzer's hand on every choice.
    pub fn on_tape(seed: u64, tape: &[u8]) -> Rng {
        let mut rng = Rng::new(seed);
        rng.tape = tape.chunks_exact(2).rev().map(|pair| [pair[0], pair[1]]).collect();
        rng
    }

    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "a stream of numbers has no end")]
    pub fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        match self.tape.pop() {
            Some(upper) => u64::from(u16::from_le_bytes(upper)) << 48 | out >> 16,
            None => out,
        }
    }

    /// A number below `bound` (which is not 0). The tiny bias does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a draw needs at least one outcome");
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number from `low` to `high`, both possible.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `permille` of 1,000 draws.
    pub fn chance(&mut self, permille: u32) -> bool {
        self.below(1000) < u64::from(permille)
    }

    /// One of `items`.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.index(items.len())]
    }

    /// An index drawn in proportion to `weights`.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let mut at = self.below(total);
        for (index, weight) in weights.iter().enumerate() {
            if at < u64::from(*weight) {
                return index;
            }
            at -= u64::from(*weight);
        }
        unreachable!("the draw lies below the sum of the weights")
    }

    /// Roughly exponential with the given mean, at least 1.
    pub fn around(&mut self, mean: u64) -> u64 {
        let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        let drawn = -(1.0 - uniform).ln() * mean as f64;
        (drawn as u64).clamp(1, mean.saturating_mul(20).max(1))
    }

    /// Puts `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_stream_and_bounds_hold() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        for bound in 1..2000 {
            let value = a.below(bound);
            assert_eq!(value, b.below(bound));
            assert!(value < bound);
        }
        assert_ne!(Rng::new(8).next(), Rng::new(7).next());
    }

    #[test]
    fn a_tape_draws_first() {
        let mut rng = Rng::on_tape(7, &[0xff, 0xff, 0, 0x80, 0, 0, 1]);
        let mut free = Rng::new(7);
        assert_eq!((rng.below(1000), rng.below(1000), rng.below(1000)), (999, 500, 0));
        free.next();
        free.next();
        free.next();
        assert_eq!(rng.next(), free.next());
    }

    #[test]
    fn weights_are_kept() {
        let mut rng = Rng::new(1);
        let mut counts = [0; 3];
        for _ in 0..4000 {
            counts[rng.weighted(&[1, 0, 3])] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!(counts[2] > 2 * counts[0], "{counts:?}");
    }
}
