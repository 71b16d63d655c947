//! A clean leaf written down as runs: what most leaves are, since blocks are given out in a row.
//!
//! ```text
//!  512 links (4 KiB)                      words of 64 bits
//!  ┌ 800 ┬ 801 ┬ ... ┬ 0 ┬ 0 ┬ ... ┐      ┌ key ┬ birth ┬ shared ┬ 0: 800 ┬ 300: hole ┬ ...
//!  └─────┴─────┴─────┴───┴───┴─────┘      │     │ count │ era    │  runs: first link, its value
//! ```
//!
//! A link is told by its run: the run's first link plus the distance, or a hole. All 48 bits that a
//! leaf has on disk come back as they were. Of the bits above, which say after which freeze a link
//! was set, only those matter in a clean leaf that name the consistency point under way: one bit
//! for the whole leaf keeps that some link has them.

use crate::format::node::{ADDRESS, LOST, ON_DISK, READ_ONLY};
use crate::limits::LINKS;
use crate::map::node_cache::Key;

/// Words of a unit, in which records are kept: 64 bytes.
pub(crate) const UNIT_WORDS: usize = 8;
/// Units of the longest record.
const UNITS_MAX: usize = 5;
const WORDS_MAX: usize = UNITS_MAX * UNIT_WORDS;
/// Words before the runs.
const HEAD_WORDS: usize = 3;
/// Runs of the longest record.
pub(crate) const RUNS_MAX: usize = WORDS_MAX - HEAD_WORDS;
/// In a run: where the place of its first link stands, above that link.
const FIRST_SHIFT: u32 = 48;
/// In the second and third word: where something stands above a number of 56 bits.
const ABOVE_SHIFT: u32 = 56;
const COUNTER: u64 = (1 << ABOVE_SHIFT) - 1;
/// In the second word: a link was set after the freeze before the last.
const UNSEALED: u64 = 1 << 63;
const COUNT_BITS: u64 = 0x3f;

const _: () = assert!(RUNS_MAX as u64 <= COUNT_BITS);
const _: () = assert!(ON_DISK >> FIRST_SHIFT == 0);

/// What a leaf is beside its links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LeafInfo {
    pub key: Key,
    pub birth: u64,
    pub shared_with: u64,
    /// Which life of its tree's number it is from.
    pub era: u8,
}

/// A leaf as runs.
#[derive(Clone)]
pub(crate) struct Packed {
    words: [u64; WORDS_MAX],
}

impl Packed {
    /// Writes a leaf down. `None` if it takes too many runs, maps nothing, or has something lost.
    /// `unsealed`: the mark of links whose records a replay would still check, 0 if none are.
    pub fn of(links: &[u64; LINKS], leaf: LeafInfo, unsealed: u64) -> Option<Packed> {
        if (leaf.birth | leaf.shared_with) > COUNTER {
            return None;
        }
        let mut words = [0; WORDS_MAX];
        let (mut at, mut count, mut mapped) = (0, 0, 0);
        while at < LINKS {
            let first = links[at] & ON_DISK;
            if count == RUNS_MAX || first & ADDRESS == LOST {
                return None;
            }
            words[HEAD_WORDS + count] = first | (at as u64) << FIRST_SHIFT;
            count += 1;
            mapped |= first & ADDRESS;
            at += run_len(&links[at..], first);
        }
        if mapped == 0 {
            return None;
        }
        let set_late = |link: &u64| link & READ_ONLY == 0 && link & !ON_DISK == unsealed;
        let late = unsealed != 0 && links.iter().any(set_late);
        words[0] = leaf.key.0;
        words[1] = leaf.birth | (count as u64) << ABOVE_SHIFT | if late { UNSEALED } else { 0 };
        words[2] = leaf.shared_with | u64::from(leaf.era) << ABOVE_SHIFT;
        Some(Packed { words })
    }

    /// A copy of the record that `words` begin with.
    pub fn copy(words: &[u64]) -> Packed {
        let mut copy = [0; WORDS_MAX];
        let len = units(words) * UNIT_WORDS;
        copy[..len].copy_from_slice(&words[..len]);
        Packed { words: copy }
    }

    /// The record, in whole units.
    pub fn words(&self) -> &[u64] {
        &self.words[..units(&self.words) * UNIT_WORDS]
    }

    /// What the leaf is beside its links.
    pub fn info(&self) -> LeafInfo {
        info(&self.words)
    }

    /// Writes the links out. `unsealed`: the mark for those that may need one, as it is now.
    pub fn unpack(&self, links: &mut [u64; LINKS], unsealed: u64) {
        let mark = if self.words[1] & UNSEALED != 0 { unsealed } else { 0 };
        let runs = runs(&self.words);
        for (i, run) in runs.iter().enumerate() {
            let (from, first) = ((run >> FIRST_SHIFT) as usize, run & ON_DISK);
            let end = runs.get(i + 1).map_or(LINKS, |next| (next >> FIRST_SHIFT) as usize);
            let writable = first & ADDRESS != 0 && first & READ_ONLY == 0;
            let (first, step) = (first | if writable { mark } else { 0 }, step(first));
            for (link, n) in links[from..end].iter_mut().zip(0..) {
                *link = first + step * n;
            }
        }
    }
}

/// For how many links the run goes on that `links` begin with.
#[inline]
fn run_len(links: &[u64], first: u64) -> usize {
    let step = step(first);
    let mut len = 1;
    // Leaves that have no compact copy are mostly runs of one.
    if links.get(1).is_none_or(|link| link & ON_DISK != first + step) {
        return len;
    }
    for eight in links[1..].chunks_exact(8) {
        let next = first + step * len as u64;
        let differ = (0..8).fold(0, |all, n| all | (eight[n] & ON_DISK) ^ (next + step * n as u64));
        if differ != 0 {
            break;
        }
        len += 8;
    }
    let rest = links[len..].iter().zip(len as u64..);
    len + rest.take_while(|(link, n)| **link & ON_DISK == first + step * n).count()
}

/// How links of a run differ: holes do not.
fn step(first: u64) -> u64 {
    u64::from(first & ADDRESS != 0)
}

/// What the leaf of a record is beside its links.
pub(crate) fn info(words: &[u64]) -> LeafInfo {
    LeafInfo {
        key: Key(words[0]),
        birth: words[1] & COUNTER,
        shared_with: words[2] & COUNTER,
        era: (words[2] >> ABOVE_SHIFT) as u8,
    }
}

/// Units that the record at the head of `words` takes.
pub(crate) fn units(words: &[u64]) -> usize {
    (HEAD_WORDS + count(words)).div_ceil(UNIT_WORDS)
}

fn count(words: &[u64]) -> usize {
    (words[1] >> ABOVE_SHIFT & COUNT_BITS) as usize
}

fn runs(words: &[u64]) -> &[u64] {
    &words[HEAD_WORDS..HEAD_WORDS + count(words)]
}

/// The block that link `index` of a record leads to (0: a hole), and for how many links from there
/// on the run goes on.
#[inline]
pub(crate) fn run_at(words: &[u64], index: u16) -> (u64, usize) {
    let (runs, index) = (runs(words), u64::from(index));
    let next = runs.partition_point(|run| run >> FIRST_SHIFT <= index);
    let run = runs[next - 1];
    let end = runs.get(next).map_or(LINKS as u64, |run| run >> FIRST_SHIFT);
    let block = (run & ADDRESS) + step(run) * (index - (run >> FIRST_SHIFT));
    (block, (end - index) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::radix::freeze_tag;

    fn leaf(seed: u64) -> LeafInfo {
        let (birth, shared_with) = (seed >> 8, seed >> 9);
        LeafInfo { key: Key::new(7, 0, seed >> 40), birth, shared_with, era: seed as u8 }
    }

    fn next(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *seed >> 33
    }

    /// A leaf of `runs` runs at most: data, shared data and holes, some of them in a row.
    fn random_links(seed: &mut u64, runs: u64) -> [u64; LINKS] {
        let mut links = [0; LINKS];
        for _ in 0..runs.saturating_sub(1).div_ceil(2) {
            let from = next(seed) as usize % LINKS;
            let len = next(seed) as usize % (LINKS - from).min(40) + 1;
            let block = next(seed) % (1 << 30) + 1;
            let bits = [0, READ_ONLY][next(seed) as usize % 2];
            match next(seed) % 4 {
                0 => links[from..from + len].fill(0),
                _ => (links[from..from + len].iter_mut().zip(block..))
                    .for_each(|(link, block)| *link = block | bits),
            }
        }
        links
    }

    /// How many runs a leaf has, counted another way.
    fn count_runs(links: &[u64; LINKS]) -> usize {
        let goes_on = |pair: &[u64]| match pair[0] & ADDRESS {
            0 => pair[1] == pair[0],
            _ => pair[1] == pair[0] + 1,
        };
        1 + links.windows(2).filter(|pair| !goes_on(pair)).count()
    }

    #[test]
    fn links_come_back_as_they_were_and_each_is_found() {
        let mut seed = 5;
        let (mut packed_ones, mut refused) = (0, 0);
        for round in 0..20_000u64 {
            let links = random_links(&mut seed, round % 120 + 1);
            let info = leaf(next(&mut seed) << 20);
            let runs = count_runs(&links);
            let fits = runs <= RUNS_MAX && links.iter().any(|link| *link != 0);
            let Some(packed) = Packed::of(&links, info, 0) else {
                assert!(!fits, "{runs} runs were refused");
                refused += 1;
                continue;
            };
            assert!(fits, "{runs} runs");
            packed_ones += 1;
            assert_eq!(packed.info(), info);
            assert_eq!(packed.words().len(), (3 + runs).div_ceil(8) * 8);
            let mut copy = packed.words().to_vec();
            copy.extend([u64::MAX; 8]);
            let copy = Packed::copy(&copy);
            let mut out = [u64::MAX; LINKS];
            copy.unpack(&mut out, freeze_tag(1));
            assert_eq!(out, links);
            for index in 0..LINKS {
                let (block, len) = run_at(packed.words(), index as u16);
                assert_eq!(block, links[index] & ADDRESS);
                assert!(len > 0 && index + len <= LINKS);
                let more = |n: usize| if block == 0 { 0 } else { block + n as u64 };
                assert!((0..len).all(|n| links[index + n] & ADDRESS == more(n)));
            }
        }
        assert!(packed_ones > 5000 && refused > 1000, "{packed_ones} {refused}");
    }

    #[test]
    fn what_is_lost_or_too_large_is_not_packed() {
        let mut links = [0; LINKS];
        assert!(Packed::of(&links, leaf(1), 0).is_none(), "nothing mapped");
        links[3] = 9;
        assert!(Packed::of(&links, leaf(1), 0).is_some());
        let old = LeafInfo { birth: 1 << 56, ..leaf(1) };
        assert!(Packed::of(&links, old, 0).is_none());
        links[511] = LOST | READ_ONLY;
        assert!(Packed::of(&links, leaf(1), 0).is_none());
    }

    #[test]
    fn marks_of_the_point_under_way_are_kept_and_others_dropped() {
        let (before, older) = (freeze_tag(8), freeze_tag(7));
        let mut links = [0; LINKS];
        links[5] = 70 | older;
        links[6] = 71 | READ_ONLY | before;
        let unpacked = |links: &[u64; LINKS], then: u64, now: u64| {
            let mut out = [1; LINKS];
            Packed::of(links, leaf(1), then).unwrap().unpack(&mut out, now);
            out
        };
        let plain = unpacked(&links, before, before);
        assert_eq!((plain[4], plain[5], plain[6], plain[7]), (0, 70, 71 | READ_ONLY, 0));
        links[5] = 70 | before;
        let marked = unpacked(&links, before, before);
        assert_eq!((marked[4], marked[5], marked[6]), (0, 70 | before, 71 | READ_ONLY));
        // The point has committed since.
        assert_eq!(unpacked(&links, before, 0), plain);
        // None was under way.
        assert_eq!(unpacked(&links, 0, before), plain);
    }
}
