//! A small generator, seeded, so that every run asks for the same blocks in the same order.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    /// The same `seed`, the same numbers.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number below `limit`, which is not 0 and below 2^32.
    pub fn below(&mut self, limit: u64) -> u64 {
        assert!(limit > 0 && limit < 1 << 32);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 32) * limit) >> 32
    }

    /// 0 .. `count`, each once, in random order.
    pub fn permutation(&mut self, count: u32) -> Vec<u32> {
        let mut all: Vec<u32> = (0..count).collect();
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at as u64 + 1) as usize);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_and_permutations_are_whole() {
        let mut random = Random::new(1);
        assert!((0..10_000).all(|_| random.below(7) < 7));
        let mut all = random.permutation(1000);
        assert_ne!(all[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        all.sort_unstable();
        assert!(all.iter().enumerate().all(|(at, &value)| at == value as usize));
    }
}
