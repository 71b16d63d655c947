//! What is in use of extents whose bitmap, or whose line of the catalogue, is lost: found out from
//! elsewhere (`recover/space`) and entered here.
//!
//! ```text
//!  unknown: nothing is given out ─ resolve(held, taken) ─► like any other, bitmap to be written
//! ```
//!
//! Both copies of its bitmap are written, so the one that a lost catalogue block named is gone
//! before the new point has committed. If a crash comes just then, that catalogue block must not be
//! good again at the next open: but a bad read may pass, and a torn write over a rotten block may
//! put right the very sector that was wrong. So its unusable copies are overwritten first
//! (`buried`), and durably; then the next open finds it lost as this one did.

use super::Space;
use crate::format::extent::{BITMAP_WORDS, CATALOGUE_ENTRIES, Entry, ExtentType, UNTRUSTED};
use crate::limits::EXTENT_HEAD_BLOCKS;

/// One bit for each block of an extent.
pub(crate) type Words = [u64; BITMAP_WORDS];

/// A set of blocks, with memory only for those extents that have any of it.
pub(crate) struct Marks {
    extents: Vec<Option<Box<Words>>>,
}

impl Marks {
    /// None of the blocks of `extents` extents.
    pub fn new(extents: usize) -> Marks {
        Marks { extents: (0..extents).map(|_| None).collect() }
    }

    /// Adds block `at` of an extent; true if it was there already.
    pub fn add(&mut self, extent: usize, at: usize) -> bool {
        let word = &mut self.words_mut(extent)[at / 64];
        let was = *word >> (at % 64) & 1 == 1;
        *word |= 1 << (at % 64);
        was
    }

    /// Those of an extent.
    pub fn words(&self, extent: usize) -> Words {
        self.extents[extent].as_ref().map_or([0; BITMAP_WORDS], |words| **words)
    }

    /// Those of an extent, to be added to.
    pub fn words_mut(&mut self, extent: usize) -> &mut Words {
        self.extents[extent].get_or_insert_with(|| Box::new([0; BITMAP_WORDS]))
    }
}

impl Space {
    /// True if it is not known what is free in the extent. Nothing has been given out of it then.
    pub fn is_unknown(&self, extent: usize) -> bool {
        self.maps[extent].is_none() && (self.sealed[extent] || self.is_untrusted(extent))
    }

    /// True if the catalogue says that neither copy of its bitmap counts.
    pub fn is_untrusted(&self, extent: usize) -> bool {
        self.entries[extent].bitmap == UNTRUSTED
    }

    /// All of those.
    pub fn unknown(&self) -> Vec<usize> {
        (0..self.entries.len()).filter(|&extent| self.is_unknown(extent)).collect()
    }

    /// It is known again: `held` is in use as of the last consistency point (the extent's head need
    /// not be among it), `taken` since then.
    pub fn resolve(&mut self, extent: usize, held: &Words, taken: &Words, kind: ExtentType) {
        assert!(self.is_unknown(extent));
        self.seal(extent);
        (self.sealed[extent], self.doubtful[extent]) = (false, true);
        let pair = extent / CATALOGUE_ENTRIES;
        self.catalogue[pair].1 = true;
        let first = self.geometry.pair_block(pair);
        let unusable = std::mem::take(&mut self.unusable[pair]);
        self.buried.extend((first..).zip(unusable).filter(|(_, is)| *is).map(|(at, _)| at));
        let fresh = (self.geometry.extent_blocks - EXTENT_HEAD_BLOCKS) as u32;
        if held.iter().chain(taken).all(|word| *word == 0) {
            self.entries[extent] = Entry { kind: ExtentType::Free, free: fresh, bitmap: 0 };
            self.set_avail(extent, fresh);
        } else {
            let mut words = *held;
            words[0] |= (1 << EXTENT_HEAD_BLOCKS) - 1;
            // Its line is complete once the bitmap has been written.
            self.entries[extent] = Entry { kind, free: 0, bitmap: UNTRUSTED };
            self.install(extent, words, 0);
            let map = self.maps[extent].as_mut().expect("just installed");
            for ((busy, disk), taken) in map.busy.iter_mut().zip(&mut map.disk).zip(taken) {
                *busy |= taken;
                *disk &= !taken;
            }
            map.dirty = true;
            let used: u32 = map.busy.iter().map(|word| word.count_ones()).sum();
            self.set_avail(extent, self.geometry.extent_blocks as u32 - used);
            self.dirty.push(extent);
        }
    }

    /// A catalogue pair was read: which copies cannot be used, and which is the next to be written,
    /// if none is adopted.
    pub fn pair_read(&mut self, pair: usize, unusable: [bool; 2], side: usize) {
        self.unusable[pair] = unusable;
        self.catalogue[pair] = (1 - side, false);
    }

    /// Catalogue blocks are written as a whole: what is still unknown in those that now will be
    /// must not look known.
    pub fn resolved(&mut self) {
        for pair in 0..self.catalogue.len() {
            let listed = self.geometry.listed(pair);
            if self.catalogue[pair].1 && !listed.is_empty() {
                self.distrust(listed.start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::superblock::Geometry;
    use crate::space::{Grant, Use};
    use crate::types::Uuid;

    /// Four extents of 256 blocks, all of them sealed.
    fn space() -> Space {
        let geometry = Geometry {
            region_blocks: 2000,
            extents: 100,
            extent_blocks: 256,
            extent_count: 4,
            catalogue_pairs: 1,
            ..Geometry::default()
        };
        let mut space = Space::new(geometry);
        space.seal_catalogue(0);
        space
    }

    #[test]
    fn an_extent_that_is_known_again_gives_out_what_nothing_holds() {
        let mut space = space();
        assert_eq!(
            (space.unknown(), space.allocate(Use::Data, 1)),
            (vec![0, 1, 2, 3], Grant::Full)
        );
        let (mut held, mut taken) = (Marks::new(4), Marks::new(4));
        for at in 2..200 {
            assert!(!held.add(1, at) && held.add(1, at));
        }
        taken.add(1, 255);
        let kind = ExtentType::Data;
        space.resolve(1, &held.words(1), &taken.words(1), kind);
        assert_eq!((space.unknown(), space.free), (vec![0, 2, 3], 55));
        assert_eq!(space.allocate(Use::Data, 99), Grant::Run(100 + 256 + 200, 55));
        assert_eq!(space.allocate(Use::Data, 1), Grant::Full);
        // The journal's block is entered by the checkpoint, as always.
        assert_eq!(space.mark(100 + 256 + 255, 1, true), Some(1));
        space.resolve(2, &held.words(2), &taken.words(2), kind);
        assert_eq!(space.free, 254, "never used");
        space.resolved();
        for extent in [0, 3] {
            assert_eq!(space.entries[extent].bitmap, UNTRUSTED);
        }
        assert_eq!((space.entries[2].bitmap, space.unknown()), (0, vec![0, 3]));
    }

    #[test]
    fn both_copies_of_its_bitmap_are_written_and_from_then_on_one() {
        let mut space = space();
        let mut held = Marks::new(4);
        held.add(0, 7);
        space.resolve(0, &held.words(0), &held.words(1), ExtentType::Metadata);
        let mut written = Vec::new();
        for (generation, free) in [(9, 253), (10, 252)] {
            while let Some(&extent) = space.dirty.last() {
                let mut block = [0; 4096];
                let store = Uuid([1; 16]);
                written.push(space.write_bitmap(extent, &mut block, store, 0, generation));
            }
            assert_eq!((space.entries[0].bitmap, space.entries[0].free), (generation, free));
            space.mark(108, 1, generation == 9).unwrap();
        }
        assert_eq!(written.len(), 3);
        assert_ne!(written[0], written[1]);
    }
}
