//! Which extents have something free, by how much and for what: the next one to allocate from is
//! found without a walk through the catalogue, which at 64 TiB has a million lines.
//!
//! ```text
//!  a set of extents, 64 to a word, and above each word one bit that says "not empty":
//!
//!      ┌ 0000010 ┐               level 2: one bit a word of level 1
//!      ┌ 00..0 ┬ 1000..1 ┐       level 1
//!      ┌ ... ┬ ... ┬ 0010..0 ┐   level 0: one bit an extent
//! ```

/// What an extent is good for, the best first for those who look for its kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    /// Never used.
    Fresh,
    /// For data: a quarter or more of it is free.
    RoomyData,
    /// For data: something is free.
    SomeData,
    /// For metadata: a quarter or more of it is free.
    RoomyMetadata,
    /// For metadata: something is free.
    SomeMetadata,
}

/// Sets there are.
const ROOMS: usize = 5;

/// The extents of each room.
pub(super) struct Index {
    sets: [Set; ROOMS],
}

impl Index {
    /// For `count` extents, of which none is in any set yet.
    pub fn new(count: usize) -> Index {
        Index { sets: std::array::from_fn(|_| Set::new(count)) }
    }

    /// An extent goes from one room to another; `None`: nothing of it is free.
    pub fn change(&mut self, extent: usize, from: Option<Room>, to: Option<Room>) {
        if from == to {
            return;
        }
        if let Some(room) = from {
            self.sets[room as usize].remove(extent);
        }
        if let Some(room) = to {
            self.sets[room as usize].insert(extent);
        }
    }

    /// The first extent of this room from `from` on.
    pub fn next(&self, room: Room, from: usize) -> Option<usize> {
        self.sets[room as usize].next(from)
    }
}

/// A set of numbers below a bound.
struct Set {
    /// From the numbers themselves up to a single word.
    levels: Vec<Vec<u64>>,
}

impl Set {
    fn new(count: usize) -> Set {
        let mut levels = Vec::new();
        let mut words = count.div_ceil(64).max(1);
        loop {
            levels.push(vec![0; words]);
            if words == 1 {
                return Set { levels };
            }
            words = words.div_ceil(64);
        }
    }

    fn insert(&mut self, number: usize) {
        let mut at = number;
        for level in &mut self.levels {
            level[at / 64] |= 1 << (at % 64);
            at /= 64;
        }
    }

    fn remove(&mut self, number: usize) {
        let mut at = number;
        for level in &mut self.levels {
            level[at / 64] &= !(1 << (at % 64));
            if level[at / 64] != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// The smallest that is not below `from`: up until a word has one, then down to it.
    fn next(&self, from: usize) -> Option<usize> {
        let mut at = from;
        for (height, level) in self.levels.iter().enumerate() {
            let word = *level.get(at / 64)? & (u64::MAX << (at % 64));
            if word != 0 {
                let mut found = at / 64 * 64 + word.trailing_zeros() as usize;
                for below in self.levels[..height].iter().rev() {
                    found = found * 64 + below[found].trailing_zeros() as usize;
                }
                return Some(found);
            }
            at = at / 64 + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_finds_what_a_sorted_tree_finds() {
        for count in [1, 63, 64, 65, 4096, 4097, 300_000] {
            let (mut set, mut tree) = (Set::new(count), BTreeSet::new());
            let mut random = 7u64;
            for _ in 0..4000 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                let (number, from) = ((random >> 33) as usize % count, (random >> 12) as usize);
                if random >> 62 == 0 {
                    set.remove(number);
                    tree.remove(&number);
                } else {
                    set.insert(number);
                    tree.insert(number);
                }
                for from in [0, number, number + 1, from % (count + 1)] {
                    assert_eq!(set.next(from), tree.range(from..).next().copied(), "of {count}");
                }
            }
            tree.iter().for_each(|&number| set.remove(number));
            assert_eq!(set.next(0), None);
        }
    }

    #[test]
    fn an_extent_is_in_one_room_at_a_time() {
        let mut index = Index::new(100);
        index.change(70, None, Some(Room::Fresh));
        index.change(70, Some(Room::Fresh), Some(Room::SomeData));
        assert_eq!((index.next(Room::Fresh, 0), index.next(Room::SomeData, 0)), (None, Some(70)));
        index.change(70, Some(Room::SomeData), Some(Room::SomeData));
        assert_eq!(index.next(Room::SomeData, 71), None);
        index.change(70, Some(Room::SomeData), None);
        assert_eq!(index.next(Room::SomeData, 0), None);
    }
}
