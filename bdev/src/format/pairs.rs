//! Which generation of each pair a superblock has committed, so that an older copy can never pass
//! for the one that was lost.
//!
//! ```text
//!  pairs:   catalogue 0 1 .. c-1, record slots c c+1 ..      group of pair i: i mod 240
//!  group:   sum = Σ generation,  mix = Σ hash(i, generation)                     (wrapping)
//!  found at recovery: sum - Σ found = d;  d = 0 and the hashes agree: all as committed
//!      one pair of the group is wrong: only for that one does hash(i, found + d) agree
//!      more than one: none of the group can be told from the wrong ones
//! ```
//!
//! Up to 240 pairs, each is a group of its own. A pair that was never written has generation 0.

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Groups that fit a superblock.
pub(crate) const GROUPS: usize = 240;

/// Sums over one group of pairs; over the blocks of one snapshot log too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sums {
    pub sum: u64,
    pub mix: u64,
}

/// Sums as they lie on disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawSums {
    sum: U64,
    mix: U64,
}
const _: () = assert!(size_of::<RawSums>() == 16);

impl Sums {
    /// Pair `index` had generation `from` and has `to`; 0 = it is not there.
    pub fn change(&mut self, index: usize, from: u64, to: u64) {
        self.sum = self.sum.wrapping_sub(from).wrapping_add(to);
        self.mix = self.mix.wrapping_sub(hash(index, from)).wrapping_add(hash(index, to));
    }

    /// As it lies on disk.
    pub fn raw(self) -> RawSums {
        RawSums { sum: U64::new(self.sum), mix: U64::new(self.mix) }
    }

    /// Back from there.
    pub fn of(raw: RawSums) -> Sums {
        Sums { sum: raw.sum.get(), mix: raw.mix.get() }
    }

    /// What is wrong with the pairs found, as (index, generation); generation 0 for those of which
    /// no copy can be used. No pair is newer than `committed`.
    pub fn judge(self, found: &[(usize, u64)], committed: u64) -> Verdict {
        let mut left = self;
        found.iter().for_each(|&(index, generation)| left.change(index, generation, 0));
        let unusable = found.iter().filter(|(_, generation)| *generation == 0).count();
        if left == Sums::default() && unusable == 0 {
            return Verdict::Committed;
        }
        let wrong = found.iter().find(|&&(index, generation)| {
            let due = generation.wrapping_add(left.sum);
            let mut mended = left;
            mended.change(index, due, generation);
            let only = unusable == 0 || (unusable == 1 && generation == 0);
            only && due > generation && due <= committed && mended == Sums::default()
        });
        match wrong {
            Some(&(index, generation)) => {
                Verdict::One { index, due: generation.wrapping_add(left.sum) }
            }
            None => Verdict::Unclear,
        }
    }
}

/// What the sums say of a group of pairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// All are as they were committed.
    Committed,
    /// This one should have that generation; the others are as they were committed.
    One { index: usize, due: u64 },
    /// More than one is not as it was committed, and none can be told from the others.
    Unclear,
}

/// The sums of all pairs in the system area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PairSums(pub [Sums; GROUPS]);

impl Default for PairSums {
    fn default() -> PairSums {
        PairSums([Sums::default(); GROUPS])
    }
}

/// What is to be done about a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Amiss {
    pub index: usize,
    /// Generation found, 0 = no copy can be used.
    pub found: u64,
    /// Generation that was committed, if that is known.
    pub due: Option<u64>,
}

impl Amiss {
    /// For people; the pair's first block is `block`.
    pub fn text(&self, block: u64) -> String {
        let found = self.found;
        let at = format!("blocks {block} and {}", block + 1);
        match self.due {
            Some(due) => {
                format!("{at}: only consistency point {found} is left, {due} was committed")
            }
            None => format!(
                "{at}: consistency point {found}, or others with it, is not the one that was committed"
            ),
        }
    }
}

impl PairSums {
    /// Pair `index` had generation `from` and has `to`; 0 = it is not there.
    pub fn change(&mut self, index: usize, from: u64, to: u64) {
        self.0[index % GROUPS].change(index, from, to);
    }

    /// The pairs that are not as they were committed, or may not be, by the generations found.
    pub fn amiss(&self, found: &[u64], committed: u64) -> Vec<Amiss> {
        let mut all = Vec::new();
        for (group, sums) in self.0.iter().enumerate() {
            let numbers = (group..found.len()).step_by(GROUPS);
            let members: Vec<(usize, u64)> = numbers.map(|i| (i, found[i])).collect();
            match sums.judge(&members, committed) {
                Verdict::Committed => {}
                Verdict::One { index, due } => {
                    all.push(Amiss { index, found: found[index], due: Some(due) });
                }
                Verdict::Unclear => all.extend(members.iter().map(|&(index, found)| Amiss {
                    index,
                    found,
                    due: None,
                })),
            }
        }
        all.sort_unstable_by_key(|a| a.index);
        all
    }
}

/// Spreads a pair and its generation over 64 bits, so that no two changes cancel.
fn hash(index: usize, generation: u64) -> u64 {
    if generation == 0 {
        return 0;
    }
    let mut x = generation.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(generations: &[u64]) -> PairSums {
        let mut sums = PairSums::default();
        for (index, &generation) in generations.iter().enumerate() {
            sums.change(index, 0, generation);
        }
        sums
    }

    #[test]
    fn pairs_as_committed_are_fine_however_they_got_there() {
        let mut sums = sums(&[1; 700]);
        let mut now = [1u64; 700];
        for step in 2..3000u64 {
            let index = (step * 7919 % 700) as usize;
            sums.change(index, now[index], step);
            now[index] = step;
        }
        assert_eq!(sums.amiss(&now, 3000), []);
    }

    #[test]
    fn one_wrong_pair_of_a_group_is_named_with_what_it_should_be() {
        let now: Vec<u64> = (0..900u64).map(|i| 50 + i * 13 % 41).collect();
        let sums = sums(&now);
        for index in 0..now.len() {
            for older in [0, 1, 49] {
                let mut found = now.clone();
                found[index] = older;
                let due = Some(now[index]);
                assert_eq!(sums.amiss(&found, 100), [Amiss { index, found: older, due }]);
            }
        }
        // One in each of many groups.
        let found: Vec<u64> =
            now.iter().enumerate().map(|(i, &g)| g - u64::from(i < 240)).collect();
        let amiss = sums.amiss(&found, 100);
        assert_eq!(amiss.len(), 240);
        assert!(amiss.iter().all(|a| a.due == Some(now[a.index])));
    }

    #[test]
    fn two_wrong_pairs_of_a_group_never_blame_a_third() {
        let now: Vec<u64> = vec![60; 240 * 5];
        let sums = sums(&now);
        // The mean of the two is the one between them.
        let mut found = now.clone();
        (found[7], found[7 + 2 * GROUPS]) = (59, 59);
        let amiss = sums.amiss(&found, 100);
        let group: Vec<usize> = (0..5).map(|i| 7 + i * GROUPS).collect();
        assert_eq!(amiss.iter().map(|a| a.index).collect::<Vec<_>>(), group);
        assert!(amiss.iter().all(|a| a.due.is_none()));
        // Each alone in its group is.
        let alone = super::tests::sums(&now[..240]);
        let amiss = alone.amiss(&[&[0, 59][..], &now[2..240]].concat(), 100);
        assert!(amiss.len() == 2 && amiss.iter().all(|a| a.due == Some(60)), "{amiss:?}");
    }

    #[test]
    fn generations_that_were_never_committed_explain_nothing() {
        let sums = sums(&[60, 61]);
        let unclear = |index, found| Amiss { index, found, due: None };
        assert_eq!(sums.amiss(&[40, 61], 50), [unclear(0, 40)]);
        assert_eq!(sums.amiss(&[62, 61], 100), [unclear(0, 62)]);
    }
}
