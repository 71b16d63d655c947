//! Space: which blocks of the region are free.
//!
//! ```text
//!           allocate                 record applied            freeing applied, checkpoint done
//!  free ───────────────► busy ───────────────────────► busy ───────────────────────────► free
//!                          │ on disk: free               on disk at the next checkpoint: used
//!                          └── crash here: free again, nothing leaks
//! ```
//!
//! Each extent has two bitmaps in RAM once it is loaded: `busy` (not to be given out now) and
//! `disk` (what the next checkpoint writes). Only the checkpoint changes `disk`, from the lists of
//! what was allocated and freed before its freeze.

mod index;

use self::index::{Index, Room};
use crate::format::extent::{self, BITMAP_WORDS, CATALOGUE_ENTRIES, Entry, ExtentType};
use crate::format::superblock::Geometry;
use crate::format::{Block, Damage};
use crate::limits::EXTENT_HEAD_BLOCKS;
use crate::types::Uuid;

pub(crate) mod rebuild;

/// What a block is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    Data = 0,
    Metadata = 1,
}

impl Use {
    /// What an extent for it is called.
    fn extent(self) -> ExtentType {
        match self {
            Use::Data => ExtentType::Data,
            Use::Metadata => ExtentType::Metadata,
        }
    }

    /// Where it is looked for, the best first.
    fn rooms(self) -> [Room; 5] {
        use Room::{Fresh, RoomyData, RoomyMetadata, SomeData, SomeMetadata};
        match self {
            Use::Data => [RoomyData, Fresh, SomeData, RoomyMetadata, SomeMetadata],
            Use::Metadata => [RoomyMetadata, Fresh, SomeMetadata, RoomyData, SomeData],
        }
    }
}

/// Answer of the allocator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Grant {
    /// First block and how many (at least one, at most what was asked for).
    Run(u64, u64),
    /// An extent's bitmap has to be read first; it has been asked for.
    Wait,
    /// Nothing is free.
    Full,
}

/// The bitmaps of a loaded extent.
struct Bitmaps {
    busy: [u64; BITMAP_WORDS],
    disk: [u64; BITMAP_WORDS],
    /// Copy that counts on disk.
    side: usize,
    dirty: bool,
}

impl Bitmaps {
    const EMPTY: Bitmaps =
        Bitmaps { busy: [0; BITMAP_WORDS], disk: [0; BITMAP_WORDS], side: 0, dirty: false };
}

/// Neighbouring blocks of an extent, in one word of its bitmaps.
struct Bits {
    extent: usize,
    word: usize,
    mask: u64,
    /// Bits of the mask, at least one.
    count: u64,
}

/// Bitmaps (4 KiB each) set aside at open, and the least kept ready later.
const SPARE_START: usize = 2048;
const SPARE_MIN: usize = 16;

pub(crate) struct Space {
    pub geometry: Geometry,
    entries: Vec<Entry>,
    /// Blocks of each extent that can be given out.
    avail: Vec<u32>,
    /// Those with any, by kind and by how many; kept by [`Space::set_avail`].
    index: Index,
    maps: Vec<Option<Box<Bitmaps>>>,
    /// Memory for extents still to be loaded, so that a request that opens one allocates nothing.
    spare: Vec<Box<Bitmaps>>,
    /// Extents not loaded yet.
    unloaded: usize,
    /// Extents whose bitmap is damaged: nothing is given out of them or taken back.
    sealed: Vec<bool>,
    /// Extents of which it is not known which copy of the bitmap counted: one may be of the very
    /// point that is to be written, left by a recovery that was cut off. So both are written.
    doubtful: Vec<bool>,
    current: [Option<usize>; 2],
    cursor: [usize; 2],
    /// Sum of `avail`.
    pub free: u64,
    /// Extent whose bitmap should be read next.
    pub wanted: Option<usize>,
    /// Extent whose bitmap has been found to be wrong, and a block that showed it.
    pub lie: Option<(usize, u64)>,
    /// Which copy of each catalogue pair counts, and whether it must be written.
    catalogue: Vec<(usize, bool)>,
    /// Which copies of each catalogue pair could not be used when they were read.
    unusable: Vec<[bool; 2]>,
    /// Blocks that the running checkpoint must overwrite before any bitmap ([`rebuild`]).
    pub buried: Vec<u64>,
    /// Extents that the running checkpoint must write.
    pub dirty: Vec<usize>,
}

impl Space {
    pub fn new(geometry: Geometry) -> Space {
        let count = geometry.extent_count as usize;
        Space {
            geometry,
            entries: vec![Entry::default(); count],
            avail: vec![0; count],
            index: Index::new(count),
            maps: (0..count).map(|_| None).collect(),
            spare: (0..count.min(SPARE_START)).map(|_| Box::new(Bitmaps::EMPTY)).collect(),
            unloaded: count,
            sealed: vec![false; count],
            doubtful: vec![false; count],
            current: [None; 2],
            cursor: [0; 2],
            free: 0,
            wanted: None,
            lie: None,
            catalogue: vec![(0, false); geometry.catalogue_pairs as usize],
            unusable: vec![[false; 2]; geometry.catalogue_pairs as usize],
            buried: Vec::new(),
            dirty: Vec::new(),
        }
    }

    /// Takes over a catalogue block read at open.
    pub fn adopt_catalogue(
        &mut self,
        pair: usize,
        block: &Block,
        side: usize,
        rewrite: bool,
    ) -> Result<(), Damage> {
        let listed = self.geometry.listed(pair);
        let max = (self.geometry.extent_blocks - EXTENT_HEAD_BLOCKS) as u32;
        extent::read_entries(block, &mut self.entries[listed.clone()], max)?;
        for i in listed {
            let lawful = self.entries[i].bitmap != 0 || self.entries[i].free == max;
            self.set_avail(i, if lawful { self.entries[i].free } else { 0 });
            self.sealed[i] = !lawful;
        }
        self.catalogue[pair] = (side, rewrite);
        Ok(())
    }

    /// A catalogue pair was lost: its extents are left alone for good.
    pub fn seal_catalogue(&mut self, pair: usize) {
        self.geometry.listed(pair).for_each(|extent| self.seal(extent));
    }

    /// Gives nothing out of the extent any more, nor takes anything back.
    pub fn seal(&mut self, extent: usize) {
        self.sealed[extent] = true;
        self.set_avail(extent, 0);
    }

    /// Where the index has an extent that now has `avail` free blocks.
    fn room(&self, extent: usize, avail: u32) -> Option<Room> {
        let roomy = self.roomy(avail);
        match self.entries[extent].kind {
            _ if avail == 0 => None,
            ExtentType::Free => Some(Room::Fresh),
            ExtentType::Data if roomy => Some(Room::RoomyData),
            ExtentType::Data => Some(Room::SomeData),
            ExtentType::Metadata if roomy => Some(Room::RoomyMetadata),
            ExtentType::Metadata => Some(Room::SomeMetadata),
        }
    }

    /// True of an extent with this many free blocks, if it is to be preferred.
    fn roomy(&self, avail: u32) -> bool {
        u64::from(avail) >= self.geometry.extent_blocks / 4
    }

    #[inline]
    fn set_avail(&mut self, extent: usize, avail: u32) {
        let old = std::mem::replace(&mut self.avail[extent], avail);
        self.free = self.free - u64::from(old) + u64::from(avail);
        // Hardly ever: most are given out one after the other, far from both ends.
        if (old == 0) != (avail == 0) || self.roomy(old) != self.roomy(avail) {
            self.index.change(extent, self.room(extent, old), self.room(extent, avail));
        }
    }

    /// An extent that was never used gets what it is for.
    fn dedicate(&mut self, extent: usize, kind: ExtentType) {
        if self.entries[extent].kind == ExtentType::Free {
            let before = self.room(extent, self.avail[extent]);
            self.entries[extent].kind = kind;
            self.index.change(extent, before, self.room(extent, self.avail[extent]));
        }
    }

    /// True once the extent's bitmaps are in RAM (or never will be).
    pub fn loaded(&self, extent: usize) -> bool {
        self.maps[extent].is_some() || self.sealed[extent]
    }

    /// Loads an extent that was never used, without I/O; false if its bitmap must be read.
    pub fn load_fresh(&mut self, extent: usize) -> bool {
        if self.entries[extent].bitmap != 0 {
            return false;
        }
        let mut words = [0; BITMAP_WORDS];
        words[0] = (1 << EXTENT_HEAD_BLOCKS) - 1;
        self.install(extent, words, 1);
        true
    }

    /// True if one of the copies, of which one may not have been read, is the bitmap that counts.
    pub fn knows(&self, extent: usize, copies: [&Block; 2], store: Uuid, shard: u16) -> bool {
        let address = self.geometry.extent_start(extent as u64);
        let generation = self.entries[extent].bitmap;
        extent::read_bitmap(copies, store, shard, address, extent as u64, generation, &mut [])
            .is_ok()
    }

    /// Takes over the two bitmap copies of an extent as read from disk.
    pub fn load(
        &mut self,
        extent: usize,
        copies: [&Block; 2],
        store: Uuid,
        shard: u16,
    ) -> Result<(), Damage> {
        let mut words = [0; BITMAP_WORDS];
        let address = self.geometry.extent_start(extent as u64);
        let generation = self.entries[extent].bitmap;
        let used = (self.geometry.extent_blocks / 64) as usize;
        let found = extent::read_bitmap(
            copies,
            store,
            shard,
            address,
            extent as u64,
            generation,
            &mut words[..used],
        );
        let lawful = found.and_then(|side| {
            let ones: u32 = words[..used].iter().map(|w| w.count_ones()).sum();
            let free = self.geometry.extent_blocks as u32 - ones;
            let head = words[0] & 3 == 3;
            if head && free == self.entries[extent].free { Ok(side) } else { Err(Damage::Content) }
        });
        match lawful {
            Ok(side) => {
                self.install(extent, words, side);
                Ok(())
            }
            Err(damage) => {
                self.seal(extent);
                Err(damage)
            }
        }
    }

    fn install(&mut self, extent: usize, words: [u64; BITMAP_WORDS], side: usize) {
        assert!(self.maps[extent].is_none());
        let mut map = self.spare.pop().unwrap_or_else(|| Box::new(Bitmaps::EMPTY));
        *map = Bitmaps { busy: words, disk: words, side, dirty: false };
        self.maps[extent] = Some(map);
        self.unloaded -= 1;
        if self.wanted == Some(extent) {
            self.wanted = None;
        }
    }

    /// Off the path of requests: keeps memory ready for extents to come.
    pub fn refill(&mut self) {
        if self.spare.len() < SPARE_MIN && self.spare.len() < self.unloaded {
            self.spare.push(Box::new(Bitmaps::EMPTY));
        }
    }

    /// Up to `max` contiguous blocks.
    #[inline(always)]
    pub fn allocate(&mut self, kind: Use, max: u64) -> Grant {
        if let Some(extent) = self.current[kind as usize]
            && let Some((at, len)) = self.take_run(extent, kind, max)
        {
            return Grant::Run(self.geometry.extent_start(extent as u64) + at as u64, len);
        }
        self.allocate_elsewhere(kind, max)
    }

    /// The same where the current extent has nothing, or none has been chosen.
    #[cold]
    fn allocate_elsewhere(&mut self, kind: Use, max: u64) -> Grant {
        loop {
            let Some(extent) = self.current[kind as usize] else {
                match self.choose(kind) {
                    Some(extent) if self.loaded(extent) || self.load_fresh(extent) => {
                        self.current[kind as usize] = Some(extent);
                        self.cursor[kind as usize] = 0;
                        continue;
                    }
                    Some(extent) => {
                        self.wanted = self.wanted.or(Some(extent));
                        return Grant::Wait;
                    }
                    None => return Grant::Full,
                }
            };
            if let Some((at, len)) = self.take_run(extent, kind, max) {
                let pba = self.geometry.extent_start(extent as u64) + at as u64;
                return Grant::Run(pba, len);
            }
            self.current[kind as usize] = None;
        }
    }

    #[inline(always)]
    fn take_run(&mut self, extent: usize, kind: Use, max: u64) -> Option<(usize, u64)> {
        if self.avail[extent] == 0 {
            return None;
        }
        let blocks = self.geometry.extent_blocks as usize;
        let map = self.maps[extent].as_mut()?;
        let start = self.cursor[kind as usize];
        let at = next_zero(&map.busy, start, blocks).or_else(|| next_zero(&map.busy, 0, start))?;
        let mut len = 0;
        // Word by word: as many as are free in a row, and wanted.
        loop {
            let (word, bit) = ((at + len) / 64, (at + len) % 64);
            let row = (!map.busy[word] >> bit).trailing_ones() as usize;
            let took = row.min(max as usize - len);
            if took > 0 {
                map.busy[word] |= u64::MAX >> (64 - took) << bit;
            }
            len += took;
            if bit + took < 64 || at + len == blocks {
                break;
            }
        }
        self.cursor[kind as usize] = at + len;
        self.dedicate(extent, kind.extent());
        self.set_avail(extent, self.avail[extent] - len as u32);
        Some((at, len as u64))
    }

    /// Two neighbouring blocks; in extents of `kind` if there are any. `Grant::Full`: all that is
    /// free are single blocks.
    pub fn allocate_pair(&mut self, kind: Use) -> Grant {
        let mut unloaded = None;
        for room in kind.rooms() {
            let mut from = 0;
            while let Some(extent) = self.index.next(room, from) {
                from = extent + 1;
                if !self.loaded(extent) && !self.load_fresh(extent) {
                    unloaded = unloaded.or(Some(extent));
                    continue;
                }
                if let Some(at) = self.take_pair(extent, kind.extent()) {
                    return Grant::Run(self.geometry.extent_start(extent as u64) + at as u64, 2);
                }
            }
        }
        if unloaded.is_none() {
            return Grant::Full;
        }
        self.wanted = self.wanted.or(unloaded);
        Grant::Wait
    }

    fn take_pair(&mut self, extent: usize, kind: ExtentType) -> Option<usize> {
        let words = (self.geometry.extent_blocks / 64) as usize;
        let map = self.maps[extent].as_mut()?;
        let at = (0..words).find_map(|i| {
            let next = if i + 1 < words { map.busy[i + 1] } else { u64::MAX };
            let pairs = !map.busy[i] & !(map.busy[i] >> 1 | next << 63);
            (pairs != 0).then(|| i * 64 + pairs.trailing_zeros() as usize)
        })?;
        for bit in [at, at + 1] {
            map.busy[bit / 64] |= 1 << (bit % 64);
        }
        self.dedicate(extent, kind);
        self.set_avail(extent, self.avail[extent] - 2);
        Some(at)
    }

    /// The extent to allocate from next: one of the right kind with room, else a fresh one, else
    /// one of the right kind with anything, else any.
    fn choose(&self, kind: Use) -> Option<usize> {
        kind.rooms().into_iter().find_map(|room| self.first_idle(room)).or_else(|| {
            // The other kind's current extent is the very last resort.
            self.current.iter().flatten().copied().find(|&extent| self.avail[extent] > 0)
        })
    }

    /// The first extent of a room that nothing is being allocated from.
    fn first_idle(&self, room: Room) -> Option<usize> {
        let mut from = 0;
        while let Some(extent) = self.index.next(room, from) {
            if !self.current.contains(&Some(extent)) {
                return Some(extent);
            }
            from = extent + 1;
        }
        None
    }

    /// What of `block .. end` lies in the word of a bitmap that `block` lies in.
    #[inline]
    fn within_word(&self, block: u64, end: u64) -> Option<Bits> {
        let extent = self.geometry.extent_of(block)? as usize;
        let at = (block - self.geometry.extent_start(extent as u64)) as usize;
        let count = (end - block).min(64 - at as u64 % 64);
        Some(Bits { extent, word: at / 64, mask: u64::MAX >> (64 - count) << (at % 64), count })
    }

    /// Gives back blocks that were allocated, or whose freeing has been committed.
    pub fn release(&mut self, pba: u64, len: u64) {
        let (mut block, end) = (pba, pba + len);
        while block < end {
            let Some(Bits { extent, word, mask, count }) = self.within_word(block, end) else {
                unreachable!("a block outside every extent is released")
            };
            block += count;
            let sealed = self.sealed[extent];
            let Some(map) = self.maps[extent].as_mut() else {
                assert!(sealed, "a block of an unloaded extent is released");
                continue;
            };
            let busy = map.busy[word] & mask;
            assert!(busy == mask || sealed, "some of the {count} before {block} are freed twice");
            map.busy[word] &= !mask;
            if !sealed {
                self.set_avail(extent, self.avail[extent] + count as u32);
            }
        }
    }

    /// Recovery: a journal record holds these blocks. False if they were taken already.
    pub fn claim(&mut self, block: u64) -> bool {
        let Some(extent) = self.geometry.extent_of(block).map(|e| e as usize) else { return false };
        let at = (block - self.geometry.extent_start(extent as u64)) as usize;
        let Some(map) = self.maps[extent].as_mut() else { return self.sealed[extent] };
        if map.busy[at / 64] >> (at % 64) & 1 == 1 {
            return false;
        }
        map.busy[at / 64] |= 1 << (at % 64);
        self.set_avail(extent, self.avail[extent] - 1);
        true
    }

    /// Checkpoint: blocks count as used (or free) on disk from this checkpoint on. Returns for how
    /// many of the first ones that was entered, at least one; `None` if their extent has to be
    /// loaded first.
    pub fn mark(&mut self, pba: u64, len: u64, used: bool) -> Option<u64> {
        let bits = self.within_word(pba, pba + len).expect("links were checked");
        let Bits { extent, word, mask, count } = bits;
        if !self.loaded(extent) && !self.load_fresh(extent) {
            self.wanted = Some(extent);
            return None;
        }
        if self.sealed[extent] {
            self.distrust(extent);
            return Some(count);
        }
        let map = self.maps[extent].as_mut().expect("loaded or sealed");
        let before = map.disk[word];
        if used {
            assert!(before & mask == 0, "some of {count} blocks from {pba} are allocated twice");
            map.disk[word] |= mask;
        } else {
            map.disk[word] &= !mask;
            if before & mask != mask {
                // The bitmap lay on disk as if the block were free: others may be given out
                // that are not. Nothing more of it is trusted.
                let free = (!before & mask).trailing_zeros() - mask.trailing_zeros();
                self.lie = Some((extent, pba + u64::from(free)));
                self.seal(extent);
                self.distrust(extent);
                return Some(count);
            }
        }
        if !map.dirty {
            map.dirty = true;
            self.dirty.push(extent);
        }
        Some(count)
    }

    /// A sealed extent's blocks change, which its bitmap will not say: it must not be believed at a
    /// later open either, should it be readable then. Nor may the others that were lost with it,
    /// since the catalogue block is written as a whole.
    fn distrust(&mut self, extent: usize) {
        let pair = extent / CATALOGUE_ENTRIES;
        for i in self.geometry.listed(pair) {
            if !self.sealed[i] {
                continue;
            }
            self.entries[i] = Entry { kind: ExtentType::Data, free: 0, bitmap: extent::UNTRUSTED };
        }
        self.catalogue[pair].1 = true;
    }

    /// Checkpoint: writes the bitmap of the last dirty extent into `block`; returns its address.
    pub fn write_bitmap(
        &mut self,
        extent: usize,
        block: &mut Block,
        store: Uuid,
        shard: u16,
        generation: u64,
    ) -> u64 {
        let words = (self.geometry.extent_blocks / 64) as usize;
        let map = self.maps[extent].as_mut().expect("a dirty extent is loaded");
        assert!(map.dirty && self.dirty.last() == Some(&extent));
        map.dirty = std::mem::take(&mut self.doubtful[extent]);
        if !map.dirty {
            self.dirty.pop();
        }
        map.side = 1 - map.side;
        let address = self.geometry.extent_start(extent as u64) + map.side as u64;
        let bits = &map.disk[..words];
        extent::write_bitmap(block, store, shard, address, extent as u64, generation, bits);
        let used: u32 = bits.iter().map(|w| w.count_ones()).sum();
        if !self.sealed[extent] {
            self.entries[extent].free = self.geometry.extent_blocks as u32 - used;
            self.entries[extent].bitmap = generation;
        }
        self.catalogue[extent / CATALOGUE_ENTRIES].1 = true;
        address
    }

    /// Checkpoint: the next catalogue pair that must be written.
    pub fn dirty_catalogue(&self) -> Option<usize> {
        self.catalogue.iter().position(|&(_, dirty)| dirty)
    }

    /// Checkpoint: writes a catalogue pair's next copy; returns its address.
    pub fn write_catalogue(
        &mut self,
        pair: usize,
        block: &mut Block,
        store: Uuid,
        shard: u16,
        generation: u64,
    ) -> u64 {
        let side = 1 - self.catalogue[pair].0;
        self.catalogue[pair] = (side, false);
        let address = self.geometry.catalogue + 2 * pair as u64 + side as u64;
        let entries = &self.entries[self.geometry.listed(pair)];
        extent::write_catalogue(block, store, shard, address, pair as u64, generation, entries);
        address
    }

    /// Blocks that could ever be free.
    pub fn capacity(&self) -> u64 {
        self.geometry.extent_count * (self.geometry.extent_blocks - EXTENT_HEAD_BLOCKS)
    }
}

/// First zero bit in `start .. end`.
fn next_zero(words: &[u64], start: usize, end: usize) -> Option<usize> {
    let mut at = start;
    while at < end {
        let free = !words[at / 64] >> (at % 64);
        if free != 0 {
            let found = at + free.trailing_zeros() as usize;
            return (found < end).then_some(found);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

/// An error sentence for a damaged bitmap.
pub(crate) fn sealed_text(extent: usize, damage: Damage) -> String {
    format!("the bitmap of extent {extent} is damaged ({damage}); its free blocks are not used")
}

#[cfg(test)]
mod tests;
