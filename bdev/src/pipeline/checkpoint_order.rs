//! The order in which a consistency point writes its leaves, found in steps: thousands of them
//! sorted in one go would be one long turn.
//!
//! ```text
//!  entries  e0 e1 e2 e3 e4 e5 ...      stay where they are: their cache slots name their places
//!  order    │ run, sorted │ run, sorted │ run, ...     first the runs, one a step,
//!           └──────┬──────┘             then neighbours merged into twice as long ones,
//!  spare    │ merged, a piece a step │  until there is one; the two lists change places each time
//! ```

use super::checkpoint_state::DirtyLeaf;

/// Leaves of a run that is sorted in one step.
const RUN: usize = 64;
/// Leaves merged in one step.
const MERGED_STEP: usize = 256;

/// Places in the list of leaves, in the order of disk, version and index once it is found.
pub(crate) struct Order {
    now: Vec<u32>,
    spare: Vec<u32>,
    /// Places below this are in sorted runs.
    sorted: usize,
    /// Length of the runs; the last may be shorter.
    width: usize,
    /// Of the two runs being merged: where the first begins, and what was taken of each.
    pair: usize,
    taken: (usize, usize),
}

impl Order {
    /// With room for so many leaves.
    pub fn new(leaves: usize) -> Order {
        let (now, spare) = (Vec::with_capacity(leaves), Vec::with_capacity(leaves));
        Order { now, spare, sorted: 0, width: RUN, pair: 0, taken: (0, 0) }
    }

    /// Begins anew.
    pub fn begin(&mut self) {
        self.now.clear();
        self.spare.clear();
        (self.sorted, self.width) = (0, RUN);
        (self.pair, self.taken) = (0, (0, 0));
    }

    /// One step for the same leaves as ever since [`Order::begin`]; true if the order is found.
    pub fn step(&mut self, entries: &[DirtyLeaf]) -> bool {
        let count = entries.len();
        let key = |place: u32| {
            let leaf = &entries[place as usize];
            (leaf.disk, leaf.epoch, leaf.index)
        };
        if self.sorted < count {
            let end = (self.sorted + RUN).min(count);
            self.now.extend(self.sorted as u32..end as u32);
            self.now[self.sorted..].sort_unstable_by_key(|place| key(*place));
            self.sorted = end;
        } else if self.width < count {
            self.merge(key);
        }
        self.sorted == count && self.width >= count
    }

    /// Merges a piece of two neighbouring runs into the spare list.
    fn merge<K: Ord>(&mut self, key: impl Fn(u32) -> K) {
        let count = self.now.len();
        let middle = (self.pair + self.width).min(count);
        let end = (middle + self.width).min(count);
        let (mut left, mut right) = (self.pair + self.taken.0, middle + self.taken.1);
        for _ in 0..MERGED_STEP {
            let from = match (left < middle, right < end) {
                (true, true) if key(self.now[right]) < key(self.now[left]) => &mut right,
                (true, _) => &mut left,
                (false, true) => &mut right,
                (false, false) => break,
            };
            self.spare.push(self.now[*from]);
            *from += 1;
        }
        self.taken = (left - self.pair, right - middle);
        if left == middle && right == end {
            (self.pair, self.taken) = (end, (0, 0));
        }
        if self.pair == count {
            std::mem::swap(&mut self.now, &mut self.spare);
            self.spare.clear();
            (self.pair, self.width) = (0, self.width * 2);
        }
    }

    /// Once the order is found: the places from the one at `at` on.
    pub fn from(&self, at: usize) -> &[u32] {
        self.now.get(at..).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every count around the limits, of leaves in many orders, against a plain sort.
    #[test]
    fn the_order_is_that_of_a_sort_and_no_step_is_long() {
        let mut order = Order::new(16);
        let mut seed = 7u64;
        for count in [0, 1, 2, 63, 64, 65, 127, 128, 129, 255, 257, 1000, 4096, 5001] {
            for kind in 0..4 {
                let leaf = |at: usize| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let random = seed >> 33;
                    let index = [at as u64, (count - at) as u64, random, random % 1000][kind];
                    DirtyLeaf {
                        disk: (random % 3) as u32,
                        // Many alike, so that the index decides.
                        epoch: random >> 3 & 3,
                        index: index << 13 | at as u64,
                        slot: at as u32,
                    }
                };
                let entries: Vec<DirtyLeaf> = (0..count).map(leaf).collect();
                let key = |place: &u32| {
                    let leaf = &entries[*place as usize];
                    (leaf.disk, leaf.epoch, leaf.index)
                };
                let mut wanted: Vec<u32> = (0..count as u32).collect();
                wanted.sort_unstable_by_key(key);
                order.begin();
                let mut steps = 0;
                while !order.step(&entries) {
                    steps += 1;
                    assert!(steps <= count, "it ends");
                }
                assert_eq!(order.from(0), wanted);
                let passes = count.div_ceil(RUN).next_power_of_two().trailing_zeros() as usize;
                let pieces = count / MERGED_STEP + count / RUN + 1;
                assert!(steps <= count.div_ceil(RUN) + passes * pieces, "{steps} for {count}");
            }
        }
    }

    #[test]
    fn what_lies_behind_the_end_is_nothing() {
        let mut order = Order::new(4);
        order.begin();
        let leaf = |index| DirtyLeaf { disk: 0, epoch: 1, index, slot: 0 };
        assert!(order.step(&[leaf(5), leaf(6)]));
        assert_eq!((order.from(1), order.from(2), order.from(3)), (&[1][..], &[][..], &[][..]));
    }
}
