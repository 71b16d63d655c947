//! The node cache: a fixed number of nodes in RAM, found by (tree, level, index).
//!
//! A slot is `Loading` (being read), `Clean` (same as on disk, or empty and absent there), `Dirty`
//! (a checkpoint must write it), `Frozen` (an older version of a leaf kept for a checkpoint, not
//! found by key), `Open` (an upper node the checkpoint is changing) or `Page`. Clean nodes that
//! nobody pins are evicted by CLOCK, and only by a second chance earned after insertion: a scan
//! passes through without pushing out what is used again.
//!
//! ```text
//!  Clean leaf ── evicted ──► compact copy, 64 bytes or a few more, in a `Page` ── evicted ──► gone
//!       ▲                        │ reads are answered from it
//!       └─────── promoted ───────┘ for anything else
//!
//!  Loading ── only reads of single blocks wait, too many runs ──► a piece for each, no node
//! ```
//!
//! A page is a slot like any other for CLOCK, but for being left alone longer the more copies it
//! has: it stands for as many nodes.

use crate::canary::{Canary, planted};
use crate::format::node::{ADDRESS, NodeRef, READ_ONLY};
use crate::limits::LINKS;
use crate::map::compact::{self, Compact};
pub(crate) use crate::map::key::Key;
use crate::map::pieces;
use crate::map::reading::Reading;
use crate::map::runs::{LeafInfo, Packed};
use crate::slots::{List, NONE};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Free,
    Loading,
    Clean,
    Dirty,
    Frozen,
    Open,
    /// Holds compact copies; its key means nothing.
    Page,
}

/// What became of a leaf that was evicted.
#[derive(PartialEq)]
enum Kept {
    No,
    /// Its compact copy is in some page.
    Elsewhere,
    /// Its slot has become a page.
    Here,
}

/// A leaf that was wanted as a node and had a compact copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Promoted {
    /// It is in this slot now.
    Slot(u32),
    /// Too few slots could be had.
    NoRoom,
}

/// All of a slot but its links.
pub(crate) struct Meta {
    pub key: Key,
    pub state: State,
    pub pins: u32,
    /// Epoch in which the node became its tree's own.
    pub birth: u64,
    /// Birth of the version that the parent links to on disk.
    pub prev_birth: u64,
    /// Newest snapshot at the time it was copied.
    pub shared_with: u64,
    /// Dirty: disk epoch and freeze counter it was dirtied in, and its entry in the dirty list.
    pub epoch: u64,
    pub freeze: u64,
    pub entry: u32,
    /// Blocks that a write-like request holds.
    pub busy: [u64; LINKS / 64],
    pub waiters: List,
    /// Loading: what leads to it.
    pub node: NodeRef,
    /// Loading: somebody wants the node itself, not only a block of it.
    pub whole: bool,
    /// Loading: pieces that reads wait for, a bit each.
    pub pieces: u8,
}

pub(crate) struct NodeCache {
    pub links: Vec<[u64; LINKS]>,
    pub meta: Vec<Meta>,
    /// What reads need of a slot beside its links, in a byte, so that the slots in use share a few
    /// lines: [`REFERENCED`], [`LOADING`].
    pub(super) marks: Vec<u8>,
    table: Vec<(u64, u32)>,
    mask: usize,
    pub(super) free: Vec<u32>,
    hand: usize,
    /// Clean, unpinned slots.
    pub(super) idle: usize,
    /// Slots promised to admitted requests for copies at apply time.
    promised: usize,
    pub(super) compact: Compact,
    /// Where a piece is written before there is a place for it.
    pub(super) room: pieces::Room,
    /// The mark of links whose records a replay would still check although their leaf is clean:
    /// that of the freeze before the last until its consistency point has committed, else 0.
    pub unsealed: u64,
    /// Leaves of which a compact copy was made when they were evicted.
    pub compactions: u64,
    /// Slots emptied of a node or of a page.
    taken: u64,
    pub(super) reading: Reading,
}

const EMPTY: (u64, u32) = (u64::MAX, NONE);
/// Used since the hand came by.
const REFERENCED: u8 = 1;
/// Its state is [`State::Loading`].
const LOADING: u8 = 2;

impl NodeCache {
    /// Slots for which so many bytes suffice, with all that compact copies take.
    pub fn slots_in(bytes: usize) -> usize {
        let each = size_of::<[u64; LINKS]>();
        let table = compact::table_bytes(bytes / each);
        (bytes - table) / (each + compact::SLOT_BYTES)
    }

    pub fn new(slots: usize) -> NodeCache {
        let mut cache = NodeCache {
            links: Vec::new(),
            meta: Vec::new(),
            marks: Vec::new(),
            table: Vec::new(),
            mask: 0,
            free: Vec::new(),
            hand: 0,
            idle: 0,
            promised: 0,
            compact: Compact::new(slots),
            room: pieces::EMPTY,
            unsealed: 0,
            compactions: 0,
            taken: 0,
            reading: Reading::default(),
        };
        cache.grow(slots);
        cache
    }

    /// Adds slots (at start, and in a recovery that needs more than the budget).
    pub fn grow(&mut self, more: usize) {
        let count = self.meta.len() + more;
        self.free.extend((self.meta.len() as u32..count as u32).rev());
        self.links.resize(count, [0; LINKS]);
        self.compact.grow(count);
        self.marks.resize(count, 0);
        self.meta.resize_with(count, || Meta {
            key: Key(u64::MAX),
            state: State::Free,
            pins: 0,
            birth: 0,
            prev_birth: 0,
            shared_with: 0,
            epoch: 0,
            freeze: 0,
            entry: NONE,
            busy: [0; LINKS / 64],
            waiters: List::EMPTY,
            node: NodeRef::of_link(0),
            whole: true,
            pieces: 0,
        });
        let table = (count * 2).next_power_of_two();
        self.table = vec![EMPTY; table];
        self.mask = table - 1;
        for slot in 0..count as u32 {
            let m = &self.meta[slot as usize];
            if !matches!(m.state, State::Free | State::Frozen | State::Page) {
                self.link(slot);
            }
        }
    }

    fn home(&self, key: u64) -> usize {
        Key(key).hash() as usize & self.mask
    }

    fn link(&mut self, slot: u32) {
        let key = self.meta[slot as usize].key.0;
        let mut at = self.home(key);
        while self.table[at].1 != NONE {
            assert_ne!(self.table[at].0, key, "a node is cached twice");
            at = (at + 1) & self.mask;
        }
        self.table[at] = (key, slot);
    }

    pub(super) fn unlink(&mut self, slot: u32) {
        let key = self.meta[slot as usize].key.0;
        let mut at = self.home(key);
        while self.table[at].0 != key {
            assert_ne!(self.table[at].1, NONE, "a cached node is not in the table");
            at = (at + 1) & self.mask;
        }
        // Close the gap, so that probes never need tombstones.
        let mut next = (at + 1) & self.mask;
        while self.table[next].1 != NONE {
            let home = self.home(self.table[next].0);
            let reach = next.wrapping_sub(home) & self.mask;
            if reach >= next.wrapping_sub(at) & self.mask {
                self.table[at] = self.table[next];
                at = next;
            }
            next = (next + 1) & self.mask;
        }
        self.table[at] = EMPTY;
    }

    pub fn find(&self, key: Key) -> Option<u32> {
        let mut at = self.home(key.0);
        loop {
            let (found, slot) = self.table[at];
            if slot == NONE {
                return None;
            }
            if found == key.0 {
                return Some(slot);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Slots that could be had now, beside those promised.
    pub fn spare(&self) -> usize {
        let pages = self.compact.page_count();
        (self.free.len() + self.idle + pages).saturating_sub(self.promised)
    }

    /// Nodes and compact copies that were given up.
    pub fn evictions(&self) -> u64 {
        self.taken - self.compactions + self.compact.evictions
    }

    pub fn promised(&self) -> usize {
        self.promised
    }

    /// Promises one slot for a copy; `reserve` slots are left to the checkpoint.
    pub fn promise(&mut self, reserve: usize) -> bool {
        let granted = self.spare() > reserve;
        self.promised += usize::from(granted);
        granted
    }

    pub fn unpromise(&mut self) {
        assert!(self.promised > 0);
        self.promised -= 1;
    }

    /// A free slot, evicting a clean node or a page if need be. It belongs to nobody until
    /// `install`ed.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        self.clock()
    }

    /// Evicts an idle node or a page that nobody needs the slot of. False: there is no idle node.
    pub fn squeeze(&mut self) -> bool {
        if self.idle == 0 {
            return false;
        }
        let slot = self.clock();
        self.free.extend(slot);
        true
    }

    /// The slot of what CLOCK chooses, empty; `None` if there is nothing, or if the last idle node
    /// has become a page while others are free.
    fn clock(&mut self) -> Option<u32> {
        if self.idle == 0 && self.compact.page_count() == 0 {
            return None;
        }
        // Two rounds suffice: the first may only clear marks. A slot that becomes a page is one
        // among others, of which there is at least one more; and so is a page that is left alone.
        for step in 0..2 * self.meta.len() + 1 {
            if self.idle == 0 && !self.free.is_empty() {
                return None;
            }
            let slot = self.hand as u32;
            self.hand = (self.hand + 1) % self.meta.len();
            let m = &mut self.meta[slot as usize];
            let taken = match m.state {
                State::Clean if m.pins == 0 => {
                    let marks = std::mem::take(&mut self.marks[slot as usize]);
                    marks & REFERENCED == 0 && self.evict(slot)
                }
                State::Page => self.reclaim(slot, step >= self.meta.len()),
                _ => false,
            };
            if taken {
                self.meta[slot as usize].state = State::Free;
                return Some(slot);
            }
        }
        unreachable!("an idle node was counted but not found")
    }

    /// CLOCK's next slot, empty, if its node has not been used since the last look at it.
    pub(super) fn next_idle(&mut self) -> Option<u32> {
        let slot = self.hand as u32;
        self.hand = (self.hand + 1) % self.meta.len();
        let m = &mut self.meta[slot as usize];
        if m.state != State::Clean || m.pins > 0 {
            return None;
        }
        let marks = std::mem::take(&mut self.marks[slot as usize]);
        let taken = marks & REFERENCED == 0 && self.evict(slot);
        taken.then(|| {
            self.meta[slot as usize].state = State::Free;
            slot
        })
    }

    /// Takes an idle node out of its slot. False: the slot has become a page.
    fn evict(&mut self, slot: u32) -> bool {
        self.idle -= 1;
        self.taken += 1;
        self.unlink(slot);
        let kept = self.keep(slot);
        self.compactions += u64::from(kept != Kept::No);
        kept != Kept::Here
    }

    /// Gives a page up if it is cold, or has not been used lately and there is no node to evict
    /// instead, or if it is asked for `again` since everything has been.
    fn reclaim(&mut self, slot: u32, again: bool) -> bool {
        let (cold, used) = self.compact.look_at(slot);
        let reclaimed = cold || again || self.idle == 0 && !used;
        if reclaimed {
            self.compact.close_page(&self.links, slot);
        }
        reclaimed
    }

    /// Makes a compact copy of a leaf that is being evicted, if it is worth one.
    fn keep(&mut self, slot: u32) -> Kept {
        let m = &self.meta[slot as usize];
        // What has never been written is not as it would be read.
        if m.key.level() > 0 || m.prev_birth != m.birth {
            return Kept::No;
        }
        let era = self.compact.era(m.key.tree());
        let leaf = LeafInfo { key: m.key, birth: m.birth, shared_with: m.shared_with, era };
        let links = &self.links[slot as usize];
        let Some(packed) = Packed::of(links, leaf, self.unsealed) else { return Kept::No };
        if self.compact.place(&mut self.links, packed.words()) {
            return Kept::Elsewhere;
        }
        // There must be another slot for whoever wants this one.
        let another = self.idle > 0 || !self.free.is_empty();
        if another && self.compact.wants_page() {
            self.meta[slot as usize].state = State::Page;
            self.compact.open_page(slot);
            // It is one even if the table has no place for this copy.
            self.compact.place(&mut self.links, packed.words());
            return Kept::Here;
        }
        self.compact.make_room(&self.links, packed.words());
        match self.compact.place(&mut self.links, packed.words()) {
            true => Kept::Elsewhere,
            false => Kept::No,
        }
    }

    /// The compact copy of a leaf, if there is one.
    #[inline]
    pub fn find_compact(&self, key: Key) -> Option<u32> {
        self.compact.find(&self.links, key)
    }

    /// Makes a compact copy a node again, which is then as if it had been read; `reserve` slots are
    /// left.
    pub fn promote(&mut self, copy: u32, reserve: usize) -> Promoted {
        if self.spare() <= reserve {
            return Promoted::NoRoom;
        }
        let packed = self.compact.take(&self.links, copy);
        let LeafInfo { key, birth, shared_with, .. } = packed.info();
        let slot = self.insert(key, State::Loading, reserve).expect("there was room");
        packed.unpack(&mut self.links[slot as usize], self.unsealed);
        let m = &mut self.meta[slot as usize];
        (m.birth, m.prev_birth, m.shared_with) = (birth, birth, shared_with);
        self.set_state(slot, State::Clean);
        self.unpin(slot);
        Promoted::Slot(slot)
    }

    /// A new node under `key`, pinned once; `None` if at most `reserve` slots could be had.
    pub fn insert(&mut self, key: Key, state: State, reserve: usize) -> Option<u32> {
        if self.spare() <= reserve {
            return None;
        }
        let twice = key.level() == 0 && self.find_compact(key).is_some();
        assert!(!twice || planted(Canary::CompactKept), "a leaf is to be cached beside its copy");
        let slot = self.take()?;
        let m = &mut self.meta[slot as usize];
        assert!(m.waiters.is_empty() && m.busy == [0; LINKS / 64]);
        m.key = key;
        m.state = state;
        self.marks[slot as usize] = if state == State::Loading { LOADING } else { 0 };
        if state == State::Loading {
            self.reading.begin();
        }
        m.pins = 1;
        (m.whole, m.pieces) = (true, 0);
        m.birth = 0;
        m.prev_birth = 0;
        m.shared_with = 0;
        m.entry = NONE;
        // What is being read will be overwritten as a whole, and is not looked at before.
        if state != State::Loading {
            self.links[slot as usize].fill(0);
            if key.level() == 0 {
                self.compact.drop_pieces(&self.links, key);
            }
        }
        self.link(slot);
        Some(slot)
    }

    /// A slot for a frozen copy of `slot`, out of the promised ones (`grow`s only in recovery).
    pub fn freeze_copy(&mut self, slot: u32) -> u32 {
        let copy = self.take().expect("a slot was promised for this copy");
        let (birth, prev_birth) =
            (self.meta[slot as usize].birth, self.meta[slot as usize].prev_birth);
        let (shared_with, entry) =
            (self.meta[slot as usize].shared_with, self.meta[slot as usize].entry);
        let key = self.meta[slot as usize].key;
        let m = &mut self.meta[copy as usize];
        m.key = key;
        m.state = State::Frozen;
        m.pins = 0;
        m.birth = birth;
        m.prev_birth = prev_birth;
        m.shared_with = shared_with;
        m.entry = entry;
        self.links.copy_within(slot as usize..slot as usize + 1, copy as usize);
        copy
    }

    /// Gives back a frozen copy.
    pub fn drop_frozen(&mut self, slot: u32) {
        let m = &mut self.meta[slot as usize];
        assert_eq!(m.state, State::Frozen);
        m.state = State::Free;
        self.free.push(slot);
    }

    /// Removes a node that could not be read, or one of a tree that is gone.
    pub fn remove(&mut self, slot: u32) {
        let m = &self.meta[slot as usize];
        assert!(m.pins == 0 && m.waiters.is_empty());
        if m.state == State::Clean {
            self.idle -= 1;
        }
        self.unlink(slot);
        self.meta[slot as usize].state = State::Free;
        self.free.push(slot);
    }

    /// Pins a node. False: it is idle and pinning it would leave at most `reserve` slots that could
    /// be had, promised ones not counted.
    #[must_use]
    #[inline(always)]
    pub fn pin(&mut self, slot: u32, reserve: usize) -> bool {
        let m = &self.meta[slot as usize];
        if m.pins == 0 && m.state == State::Clean {
            if self.spare() <= reserve {
                return false;
            }
            self.idle -= 1;
        }
        let m = &mut self.meta[slot as usize];
        m.pins += 1;
        self.refer(slot);
        true
    }

    /// The node has been used.
    #[inline]
    pub fn refer(&mut self, slot: u32) {
        self.marks[slot as usize] |= REFERENCED;
    }

    /// True while the node is being read.
    #[inline]
    pub fn is_loading(&self, slot: u32) -> bool {
        self.marks[slot as usize] & LOADING != 0
    }

    #[inline(always)]
    pub fn unpin(&mut self, slot: u32) {
        let m = &mut self.meta[slot as usize];
        assert!(m.pins > 0, "a node was unpinned too often");
        m.pins -= 1;
        if m.pins == 0 && m.state == State::Clean {
            self.idle += 1;
        }
    }

    /// Marks what a leaf that has been read owns as set before the freeze whose consistency point
    /// is under way, if one is: what was said about that in RAM went with its eviction.
    pub fn mark_unsealed(&mut self, slot: u32) {
        let own = |link: &&mut u64| **link & ADDRESS != 0 && **link & READ_ONLY == 0;
        self.links[slot as usize].iter_mut().filter(own).for_each(|link| *link |= self.unsealed);
    }

    /// Changes the state of a pinned node.
    pub fn set_state(&mut self, slot: u32, state: State) {
        let m = &mut self.meta[slot as usize];
        assert!(m.pins > 0, "only a pinned node changes its state");
        assert!(state != State::Loading, "a node is read when it is inserted");
        m.state = state;
        // What has been read may be changed from now on.
        if self.marks[slot as usize] & LOADING != 0 {
            self.marks[slot as usize] &= !LOADING;
            self.reading.end();
            if m.key.level() == 0 {
                self.compact.drop_pieces(&self.links, m.key);
            }
        }
    }

    /// True if any block of `first .. first + count` is held by a write-like request.
    pub fn busy(&self, slot: u32, first: u16, count: u16) -> bool {
        let busy = &self.meta[slot as usize].busy;
        if count == 1 {
            let (word, mask) = place(first);
            return busy[word] & mask != 0;
        }
        spans(first, count).any(|(word, mask)| busy[word] & mask != 0)
    }

    #[inline(always)]
    pub fn set_busy(&mut self, slot: u32, first: u16, count: u16) {
        let busy = &mut self.meta[slot as usize].busy;
        let mut set = |(word, mask): (usize, u64)| {
            assert_eq!(busy[word] & mask, 0, "two writes hold one block");
            busy[word] |= mask;
        };
        if count == 1 { set(place(first)) } else { spans(first, count).for_each(set) }
    }

    #[inline(always)]
    pub fn clear_busy(&mut self, slot: u32, first: u16, count: u16) {
        let busy = &mut self.meta[slot as usize].busy;
        let mut clear = |(word, mask): (usize, u64)| {
            assert_eq!(busy[word] & mask, mask, "a block was released twice");
            busy[word] &= !mask;
        };
        if count == 1 { clear(place(first)) } else { spans(first, count).for_each(clear) }
    }

    /// Forgets every clean node of a tree that is gone.
    pub fn purge(&mut self, tree: u32) {
        for slot in 0..self.meta.len() as u32 {
            let m = &self.meta[slot as usize];
            if m.state == State::Clean && m.key.tree() == tree {
                assert_eq!(m.pins, 0, "a node of a deleted tree is in use");
                self.remove(slot);
            }
        }
        self.compact.purge(&self.links, tree);
    }
}

/// The word and the mask of one block.
#[inline]
fn place(block: u16) -> (usize, u64) {
    (usize::from(block) / 64 % (LINKS / 64), 1 << (block % 64))
}

/// The words and masks that cover `first .. first + count`.
fn spans(first: u16, count: u16) -> impl Iterator<Item = (usize, u64)> {
    let (first, end) = (usize::from(first), usize::from(first) + usize::from(count));
    (first / 64..end.div_ceil(64)).map(move |word| {
        let low = first.max(word * 64) - word * 64;
        let high = end.min(word * 64 + 64) - word * 64;
        (word, (u64::MAX >> (64 - (high - low))) << low)
    })
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
