//! Compact copies of leaves that have no slot, in pages that are slots of the node cache.
//!
//! ```text
//!  table ─ hash of the key ─► record: unit of a page     page = one slot's 4 KiB = 64 units
//!                                                        ┌ leaf ┬ leaf ┬ piece   ┬ ─ ┬ leaf ┐
//!                                                        │ 64 B │ 64 B │ 2 units │   │      │
//!                                                        └──────┴──────┴─────────┴───┴──────┘
//! ```
//!
//! A record is a whole leaf ([`runs`]) or a piece of one ([`pieces`]). A key has a node or compact
//! copies, never both: what is to be changed is taken out first. Copies whose tree is gone are not
//! looked for: each number of a tree has an era, and a copy of another era is none.

use crate::canary::{Canary, planted};
use crate::engine::VIEW_TREES;
use crate::limits::LINKS;
use crate::map::node_cache::Key;
use crate::map::pieces::{self, PIECE_LINKS, PIECES};
use crate::map::runs::{self, Packed, UNIT_WORDS};
use crate::slots::NONE;

/// Units of a page.
const UNITS: usize = LINKS / UNIT_WORDS;
/// Pages looked at for room.
const TRIES: usize = 8;
/// Places of the table for each slot of the cache, at least.
const PLACES_A_SLOT: usize = 32;

const _: () = assert!(UNITS == u64::BITS as usize);

/// The links of all slots.
type Links = [[u64; LINKS]];

/// What a page has, a bit for each unit.
#[derive(Clone, Copy, Default)]
struct Page {
    free: u64,
    /// Where records begin.
    heads: u64,
    /// Records used since the last look, and those used more than once.
    marks: u64,
    again: u64,
    /// One was used since CLOCK came by, which does not take the marks from those who look for
    /// room.
    used: bool,
    /// Its place in the list of pages.
    place: u32,
    /// Looks since one of its records was used.
    rounds: u32,
}

impl Page {
    /// Records used since the last look. Those used more than once count as used until the next.
    fn looked_at(&mut self) -> u64 {
        let again = std::mem::take(&mut self.again);
        std::mem::replace(&mut self.marks, again)
    }
}

pub(crate) struct Compact {
    /// Records by key, and for each place a byte of its key's hash, so that a probe looks at few
    /// records of others; 0 is an empty place. And how far behind the place where the search for
    /// the key begins it is, so that a gap is closed without a look at records.
    table: Vec<u32>,
    tags: Vec<u8>,
    behind: Vec<u8>,
    mask: usize,
    records: usize,
    /// Records that are pieces.
    piece_count: usize,
    records_max: usize,
    /// By slot of the cache.
    pages: Vec<Page>,
    /// Slots that are pages, and which of them is being filled.
    list: Vec<u32>,
    filling: usize,
    pages_max: usize,
    /// By number of a tree, as far as any has been purged.
    eras: Vec<u8>,
    /// Copies that were given up.
    pub evictions: u64,
}

/// Bytes of the table of a cache with so many slots.
pub(crate) fn table_bytes(slots: usize) -> usize {
    places(slots) * (size_of::<u32>() + 2 * size_of::<u8>())
}

fn places(slots: usize) -> usize {
    (PLACES_A_SLOT * slots).next_power_of_two()
}

/// Bytes of what is noted of each slot.
pub(crate) const SLOT_BYTES: usize = size_of::<Page>();

impl Compact {
    /// For a cache of so many slots.
    pub fn new(slots: usize) -> Compact {
        let places = places(slots);
        let pages_max = slots / 16 * 15;
        Compact {
            table: vec![NONE; places],
            tags: vec![0; places],
            behind: vec![0; places],
            mask: places - 1,
            records: 0,
            piece_count: 0,
            records_max: places / 4 * 3,
            pages: vec![Page::default(); slots],
            list: Vec::with_capacity(pages_max),
            filling: 0,
            pages_max,
            eras: Vec::new(),
            evictions: 0,
        }
    }

    /// The cache has more slots now.
    pub fn grow(&mut self, slots: usize) {
        // Records are named by 32 bits.
        assert!(slots <= 1 << 26, "more slots than compact copies have names for");
        self.pages.resize(slots, Page::default());
    }

    /// True if most records are pieces.
    #[inline]
    pub fn mostly_pieces(&self) -> bool {
        2 * self.piece_count > self.records
    }

    /// Slots that are pages.
    pub fn page_count(&self) -> usize {
        self.list.len()
    }

    /// The page that was opened last, or was moved to its place in the list.
    pub fn last_page(&self) -> Option<u32> {
        self.list.last().copied()
    }

    /// True if one more page is worth having.
    pub fn wants_page(&self) -> bool {
        self.list.len() < self.pages_max && self.records < self.records_max
    }

    /// Which life of a tree's number is now.
    pub fn era(&self, tree: u32) -> u8 {
        self.eras.get(tree as usize).copied().unwrap_or(0)
    }

    /// Where the search for a key begins, and its tag.
    #[inline]
    fn home(&self, key: u64) -> (usize, u8) {
        let hash = Key(key).hash();
        (hash as usize & self.mask, (hash >> 56) as u8 | 1)
    }

    /// Where in the table a key is, of whichever era.
    #[inline]
    fn probe(&self, links: &Links, key: Key) -> Option<usize> {
        let (mut at, tag) = self.home(key.0);
        loop {
            let found = self.tags[at];
            if found == 0 {
                return None;
            }
            if found == tag && words_of(links, self.table[at])[0] == key.0 {
                return Some(at);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// The record of a leaf or piece, if there is one.
    #[inline]
    pub fn find(&self, links: &Links, key: Key) -> Option<u32> {
        let record = self.table[self.probe(links, key)?];
        (era_of(words_of(links, record)) == self.era(key.tree())).then_some(record)
    }

    /// The block that link `index` of a record leads to (0: a hole) and how many links of its run
    /// are left. Marks the record as used.
    #[inline]
    pub fn run_at(&mut self, links: &Links, record: u32, index: u16) -> (u64, usize) {
        self.mark(record);
        runs::run_at(words_of(links, record), index)
    }

    /// The same of a piece, as far as the run goes in it; no more than `want` links are looked at.
    pub fn piece_run_at(
        &mut self,
        links: &Links,
        record: u32,
        index: u16,
        want: usize,
    ) -> (u64, usize) {
        self.mark(record);
        pieces::run_at(words_of(links, record), usize::from(index) % PIECE_LINKS, want)
    }

    #[inline]
    fn mark(&mut self, record: u32) {
        let (page, bit) =
            (&mut self.pages[record as usize / UNITS], 1 << (record as usize % UNITS));
        page.again |= page.marks & bit;
        page.marks |= bit;
        page.used = true;
    }

    /// Gives up what there is of pieces of a leaf, which is to be a node.
    pub fn drop_pieces(&mut self, links: &Links, leaf: Key) {
        if self.piece_count == 0 || planted(Canary::PiecesKept) {
            return;
        }
        for piece in 0..PIECES {
            if let Some(at) = self.probe(links, leaf.piece(piece)) {
                self.remove(links, self.table[at]);
            }
        }
    }

    /// Takes a record out.
    pub fn take(&mut self, links: &Links, record: u32) -> Packed {
        let packed = Packed::copy(words_of(links, record));
        if !planted(Canary::CompactKept) {
            self.remove(links, record);
        }
        packed
    }

    /// Makes a slot of the cache a page.
    pub fn open_page(&mut self, slot: u32) {
        let place = self.list.len() as u32;
        self.pages[slot as usize] = Page { free: u64::MAX, place, ..Page::default() };
        self.filling = self.list.len();
        self.list.push(slot);
    }

    /// Gives up what a page has, which is a slot of the cache again.
    pub fn close_page(&mut self, links: &Links, slot: u32) {
        self.drop_of(links, slot, u64::MAX);
        let place = self.pages[slot as usize].place as usize;
        self.list.swap_remove(place);
        if let Some(&moved) = self.list.get(place) {
            self.pages[moved as usize].place = place as u32;
        }
    }

    /// Whether a page is worth less than the node that could be in its slot: none of its records
    /// has been used for as many looks as there are, where a node gets one. And whether one has
    /// been used since the last look.
    pub fn look_at(&mut self, slot: u32) -> (bool, bool) {
        let page = &mut self.pages[slot as usize];
        let used = std::mem::take(&mut page.used);
        page.rounds = if used { 0 } else { page.rounds + 1 };
        (page.rounds > page.heads.count_ones(), used)
    }

    /// Puts a record into a page that has room. False: none was found.
    pub fn place(&mut self, links: &mut Links, words: &[u64]) -> bool {
        if let Some(at) = self.probe(links, Key(words[0])) {
            if planted(Canary::CompactKept) || planted(Canary::PiecesKept) {
                return true;
            }
            let old = self.table[at];
            assert_ne!(era_of(words_of(links, old)), era_of(words), "two copies have one key");
            self.remove(links, old);
        }
        if self.records == self.records_max {
            return false;
        }
        for _ in 0..TRIES.min(self.list.len()) {
            if self.filling >= self.list.len() {
                self.filling = 0;
            }
            if self.put(links, words) {
                return true;
            }
            self.filling += 1;
        }
        false
    }

    /// Gives up records that have not been used, until one of so many units may find room.
    pub fn make_room(&mut self, links: &Links, words: &[u64]) {
        let units = words.len() / UNIT_WORDS;
        // If it is the table that is full, this page may have room for ever: all take their turn.
        self.filling += usize::from(self.records == self.records_max);
        for _ in 0..TRIES.min(self.list.len()) {
            if self.filling >= self.list.len() {
                self.filling = 0;
            }
            let slot = self.list[self.filling];
            let cold = !self.pages[slot as usize].looked_at();
            self.drop_of(links, slot, cold);
            let room = room(self.pages[slot as usize].free, units).is_some();
            if room && self.records < self.records_max {
                return;
            }
            self.filling += 1;
        }
    }

    /// Into the page that is being filled.
    fn put(&mut self, links: &mut Links, words: &[u64]) -> bool {
        let slot = self.list[self.filling];
        let units = words.len() / UNIT_WORDS;
        let Some(unit) = room(self.pages[slot as usize].free, units) else { return false };
        let (home, tag) = self.home(words[0]);
        let mut at = home;
        while self.tags[at] != 0 {
            at = (at + 1) & self.mask;
        }
        let Ok(behind) = u8::try_from(at.wrapping_sub(home) & self.mask) else { return false };
        let page = &mut self.pages[slot as usize];
        page.free &= !(span(units) << unit);
        page.heads |= 1 << unit;
        let from = unit * UNIT_WORDS;
        links[slot as usize][from..from + words.len()].copy_from_slice(words);
        self.records += 1;
        self.piece_count += usize::from(Key(words[0]).is_piece());
        self.table[at] = slot * UNITS as u32 + unit as u32;
        (self.tags[at], self.behind[at]) = (tag, behind);
        true
    }

    /// Removes those records of a page that `which` has.
    fn drop_of(&mut self, links: &Links, slot: u32, which: u64) {
        let all = self.pages[slot as usize].heads & which;
        if all == 0 {
            return;
        }
        // They are seldom in a near cache: their lines are asked for together.
        let mut heads = [(0, 0); UNITS];
        let mut left = all;
        while left != 0 {
            let unit = left.trailing_zeros();
            left &= left - 1;
            let words = words_of(links, slot * UNITS as u32 + unit);
            heads[unit as usize] = (words[0], words[1]);
        }
        left = all;
        while left != 0 {
            let unit = left.trailing_zeros();
            left &= left - 1;
            let (key, word) = heads[unit as usize];
            self.remove_of(slot * UNITS as u32 + unit, Key(key), units_of(&[key, word]));
            self.evictions += 1;
        }
    }

    fn remove(&mut self, links: &Links, record: u32) {
        let words = words_of(links, record);
        self.remove_of(record, Key(words[0]), units_of(words));
    }

    /// Removes a record with that key of so many units.
    fn remove_of(&mut self, record: u32, key: Key, units: usize) {
        let (slot, unit) = (record as usize / UNITS, record as usize % UNITS);
        let page = &mut self.pages[slot];
        assert!(page.heads >> unit & 1 == 1, "a compact copy was removed twice");
        page.heads &= !(1 << unit);
        page.marks &= !(1 << unit);
        page.again &= !(1 << unit);
        page.free |= span(units) << unit;
        self.records -= 1;
        self.piece_count -= usize::from(key.is_piece());
        let (mut at, _) = self.home(key.0);
        while self.table[at] != record {
            assert_ne!(self.tags[at], 0, "a compact copy is not in the table");
            at = (at + 1) & self.mask;
        }
        // Close the gap, so that probes never need tombstones.
        let mut next = (at + 1) & self.mask;
        while self.tags[next] != 0 {
            let by = next.wrapping_sub(at) & self.mask;
            if usize::from(self.behind[next]) >= by {
                (self.table[at], self.tags[at]) = (self.table[next], self.tags[next]);
                self.behind[at] = self.behind[next] - by as u8;
                at = next;
            }
            next = (next + 1) & self.mask;
        }
        (self.table[at], self.tags[at]) = (NONE, 0);
    }

    /// Forgets the copies of a tree that is gone.
    pub fn purge(&mut self, links: &Links, tree: u32) {
        if planted(Canary::CompactPurgeForgotten) {
            return;
        }
        assert!(tree < VIEW_TREES, "only disks' trees are purged");
        let at = tree as usize;
        if at >= self.eras.len() {
            self.eras.resize(at + 1, 0);
        }
        self.eras[at] = self.eras[at].wrapping_add(1);
        if self.eras[at] == 0 {
            self.sweep(links, tree);
        }
    }

    /// Eras of that tree's number begin anew: those left of older ones go.
    fn sweep(&mut self, links: &Links, tree: u32) {
        for at in 0..self.list.len() {
            let slot = self.list[at];
            let heads = self.pages[slot as usize].heads;
            let of_tree = |unit: &u32| {
                let record = slot * UNITS as u32 + unit;
                Key(words_of(links, record)[0]).tree() == tree
            };
            let found = (0..UNITS as u32).filter(|unit| heads >> unit & 1 == 1).filter(of_tree);
            let which = found.fold(0, |which, unit| which | 1 << unit);
            self.drop_of(links, slot, which);
        }
    }

    /// Proves that the table, the pages and the records agree. Returns the number of pages.
    #[cfg(test)]
    pub fn check(&self, links: &Links) -> usize {
        let (mut records, mut pieces) = (0, 0);
        for (place, &slot) in self.list.iter().enumerate() {
            let page = self.pages[slot as usize];
            assert_eq!(page.place as usize, place);
            let (mut used, mut left) = (0, page.heads);
            while left != 0 {
                let unit = left.trailing_zeros();
                left &= left - 1;
                let record = slot * UNITS as u32 + unit;
                let words = words_of(links, record);
                let span = span(units_of(words)) << unit;
                assert_eq!(used & span, 0, "two records overlap");
                used |= span;
                records += 1;
                pieces += usize::from(Key(words[0]).is_piece());
                let at = self.probe(links, Key(words[0])).expect("it is in the table");
                assert_eq!(self.table[at], record, "a key has two records");
                let behind = at.wrapping_sub(self.home(words[0]).0) & self.mask;
                assert_eq!(behind, usize::from(self.behind[at]));
            }
            assert_eq!((used, page.marks & !page.heads), (!page.free, 0));
            assert_eq!(page.again & !page.marks, 0);
        }
        assert_eq!((records, pieces), (self.records, self.piece_count));
        assert_eq!(self.table.iter().filter(|record| **record != NONE).count(), records);
        assert_eq!(self.tags.iter().filter(|tag| **tag != 0).count(), records);
        self.list.len()
    }
}

/// The words of a record, and what comes behind it in its page.
#[inline]
fn words_of(links: &Links, record: u32) -> &[u64] {
    &links[record as usize / UNITS][record as usize % UNITS * UNIT_WORDS..]
}

/// Units that the record at the head of `words` takes.
fn units_of(words: &[u64]) -> usize {
    if Key(words[0]).is_piece() { pieces::units(words) } else { runs::units(words) }
}

/// Which life of its tree's number the record is from.
#[inline]
fn era_of(words: &[u64]) -> u8 {
    if Key(words[0]).is_piece() { pieces::era(words) } else { runs::info(words).era }
}

fn span(units: usize) -> u64 {
    (1 << units) - 1
}

/// The first of so many free units in a row.
fn room(free: u64, units: usize) -> Option<usize> {
    let all = (1..units).fold(free, |all, n| all & free >> n);
    (all != 0).then(|| all.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_the_first_row_of_free_units() {
        for free in [0, 1, 1 << 63, 0b1011_0111, 0b11 << 62, u64::MAX, 0x00ff_0f00_0000_0003] {
            for units in 1..=5usize {
                let fits = |at: &usize| (0..units).all(|unit| free >> (at + unit) & 1 == 1);
                let slow = (0..=UNITS - units).find(fits);
                assert_eq!(room(free, units), slow, "{free:#x} {units}");
            }
        }
    }
}
