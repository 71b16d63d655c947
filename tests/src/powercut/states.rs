//! Which states a power cut may leave, of all the ways in which what is uncertain may be there.
//!
//! | blocks uncertain | tried |
//! |---|---|
//! | up to `subsets` | every subset |
//! | more | every prefix; each block alone missing; each alone there; pairs of metadata blocks |
//! |      | missing, and alone there; some subsets at random |
//! | any, where 4 KiB | each block torn at each sector, with all before it, with all others, |
//! | writes may tear  | and alone |

use super::image::{Image, PAGE, Pool};
use super::log::Unit;
use crate::sim::rng::{Rng, mix};

/// Most uncertain blocks at one moment.
const UNITS_MAX: usize = 128;

/// How thorough to be.
#[derive(Clone, Copy, Debug)]
pub struct Thorough {
    /// Up to so many uncertain blocks every subset is tried.
    pub subsets: usize,
    /// Beyond: so many subsets at random.
    pub random: usize,
}

/// One way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Blocks that are there, by their place among the uncertain ones.
    pub keep: u128,
    /// A block of which only the first sectors are there: its place, and how many.
    pub torn: Option<(usize, usize)>,
}

/// The first `n` of them.
fn prefix(n: usize) -> u128 {
    if n >= UNITS_MAX { u128::MAX } else { (1 << n) - 1 }
}

/// All ways to try.
pub fn shapes(units: &[Unit], tears: bool, thorough: Thorough) -> Vec<Shape> {
    let n = units.len();
    assert!(n <= UNITS_MAX, "{n} blocks are uncertain at one moment");
    let all = prefix(n);
    let mut found = Vec::new();
    let mut add = |keep: u128| found.push(Shape { keep, torn: None });
    if n <= thorough.subsets {
        (0..=all).for_each(&mut add);
    } else {
        (0..=n).for_each(|count| add(prefix(count)));
        (0..n).for_each(|one| add(all & !(1 << one)));
        (0..n).for_each(|one| add(1 << one));
        let metadata: Vec<usize> = (0..n).filter(|i| units[*i].metadata).collect();
        for (at, one) in metadata.iter().enumerate() {
            for other in &metadata[at + 1..] {
                let pair = 1 << one | 1 << other;
                add(all & !pair);
                add(pair);
            }
        }
        let seed = units.iter().fold(n as u64, |sum, unit| mix(sum ^ unit.block));
        let mut rng = Rng::new(seed);
        for _ in 0..thorough.random {
            add((u128::from(rng.next()) << 64 | u128::from(rng.next())) & all);
        }
    }
    if tears {
        for one in 0..n {
            for sectors in 1..8 {
                let torn = Some((one, sectors));
                for keep in [prefix(one), all & !(1 << one), 0] {
                    found.push(Shape { keep, torn });
                }
            }
        }
    }
    found
}

/// The ways to cut a recovery short: at each of its writes, and with each of them lost.
pub fn nested_shapes(units: &[Unit], tears: bool) -> Vec<Shape> {
    let n = units.len();
    let all = prefix(n);
    let mut keeps: Vec<u128> = (0..=n).map(prefix).collect();
    keeps.extend((0..n).map(|one| all & !(1 << one)));
    let mut found: Vec<Shape> =
        keeps.iter().map(|keep| Shape { keep: *keep, torn: None }).collect();
    if tears {
        let torn = |one: usize| Shape { keep: prefix(one), torn: Some((one, 1 + one % 7)) };
        found.extend((0..n).map(torn));
    }
    found
}

/// Makes `image`, which holds what is certain, into the state of `shape`.
pub fn apply(pool: &mut Pool, image: &mut Image, units: &[Unit], shape: Shape) {
    for (at, unit) in units.iter().enumerate() {
        if shape.keep >> at & 1 == 1 {
            image.put(pool, unit.block, unit.page);
        } else if let Some((_, sectors)) = shape.torn.filter(|(torn, _)| *torn == at) {
            let mut page = *pool.page(image.at(unit.block));
            page[..sectors * PAGE / 8].copy_from_slice(&pool.page(unit.page)[..sectors * PAGE / 8]);
            let page = pool.add(&page);
            image.put(pool, unit.block, page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(n: u64) -> Vec<Unit> {
        (0..n).map(|i| Unit { block: i, page: 0, metadata: i % 2 == 0 }).collect()
    }

    #[test]
    fn few_blocks_are_tried_in_all_ways_and_many_by_the_rules() {
        let thorough = Thorough { subsets: 4, random: 10 };
        assert_eq!(shapes(&units(4), false, thorough).len(), 16);
        let many = shapes(&units(6), false, thorough);
        // Prefixes 7, drops 6, keeps 6, pairs of 3 metadata blocks twice 3, random 10.
        assert_eq!(many.len(), 7 + 6 + 6 + 6 + 10);
        assert_eq!(many, shapes(&units(6), false, thorough), "the same each time");
        assert_eq!(shapes(&units(2), true, thorough).len(), 4 + 2 * 7 * 3);
        assert_eq!(nested_shapes(&units(3), false).len(), 4 + 3);
    }

    #[test]
    fn a_torn_block_is_new_at_its_head_and_old_behind() {
        let mut pool = Pool::new();
        let new = pool.add(&[9; PAGE]);
        let unit = [Unit { block: 1, page: new, metadata: true }];
        let mut image = Image::new(2);
        apply(&mut pool, &mut image, &unit, Shape { keep: 0, torn: Some((0, 3)) });
        let page = pool.page(image.at(1));
        assert_eq!((page[1535], page[1536]), (9, 0));
    }
}
