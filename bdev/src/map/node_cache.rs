//! The node cache: a fixed number of nodes in RAM, found by (tree, level, index).
//!
//! A slot is `Loading` (being read), `Clean` (same as on disk, or empty and absent there), `Dirty`
//! (a checkpoint must write it), `Frozen` (an older version of a leaf kept for a checkpoint, not
//! found by key) or `Open` (an upper node the checkpoint is changing). Clean nodes that nobody pins
//! are evicted by CLOCK, and only by a second chance earned after insertion: a scan passes through
//! without pushing out what is used again.

use crate::format::node::NodeRef;
use crate::limits::LINKS;
use crate::slots::{List, NONE};

/// Key: tree in the high 32 bits, level in 3, index in 29.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(pub u64);

impl Key {
    pub fn new(tree: u32, level: u8, index: u64) -> Key {
        assert!(index < 1 << 29);
        Key(u64::from(tree) << 32 | u64::from(level) << 29 | index)
    }

    pub fn tree(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn level(self) -> u8 {
        (self.0 >> 29) as u8 & 7
    }

    pub fn index(self) -> u64 {
        self.0 & ((1 << 29) - 1)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Free,
    Loading,
    Clean,
    Dirty,
    Frozen,
    Open,
}

/// All of a slot but its links.
pub(crate) struct Meta {
    pub key: Key,
    pub state: State,
    pub referenced: bool,
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
}

pub(crate) struct NodeCache {
    pub links: Vec<[u64; LINKS]>,
    pub meta: Vec<Meta>,
    table: Vec<(u64, u32)>,
    mask: usize,
    free: Vec<u32>,
    hand: usize,
    /// Clean, unpinned slots.
    idle: usize,
    /// Slots promised to admitted requests for copies at apply time.
    promised: usize,
    pub evictions: u64,
}

const EMPTY: (u64, u32) = (u64::MAX, NONE);

impl NodeCache {
    pub fn new(slots: usize) -> NodeCache {
        let mut cache = NodeCache {
            links: Vec::new(),
            meta: Vec::new(),
            table: Vec::new(),
            mask: 0,
            free: Vec::new(),
            hand: 0,
            idle: 0,
            promised: 0,
            evictions: 0,
        };
        cache.grow(slots);
        cache
    }

    /// Adds slots (at start, and in a recovery that needs more than the budget).
    pub fn grow(&mut self, more: usize) {
        let count = self.meta.len() + more;
        self.free.extend((self.meta.len() as u32..count as u32).rev());
        self.links.resize(count, [0; LINKS]);
        self.meta.resize_with(count, || Meta {
            key: Key(u64::MAX),
            state: State::Free,
            referenced: false,
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
        });
        let table = (count * 2).next_power_of_two();
        self.table = vec![EMPTY; table];
        self.mask = table - 1;
        for slot in 0..count as u32 {
            let m = &self.meta[slot as usize];
            if !matches!(m.state, State::Free | State::Frozen) {
                self.link(slot);
            }
        }
    }

    fn home(&self, key: u64) -> usize {
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize & self.mask
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

    fn unlink(&mut self, slot: u32) {
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
        (self.free.len() + self.idle).saturating_sub(self.promised)
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

    /// A free slot, evicting a clean node if need be. It belongs to nobody until `install`ed.
    fn take(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.idle == 0 {
            return None;
        }
        // Two rounds suffice: the first may only clear marks.
        for _ in 0..2 * self.meta.len() + 1 {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.meta.len();
            let m = &mut self.meta[slot];
            if m.state != State::Clean || m.pins > 0 {
                continue;
            }
            if std::mem::take(&mut m.referenced) {
                continue;
            }
            self.idle -= 1;
            self.evictions += 1;
            self.unlink(slot as u32);
            self.meta[slot].state = State::Free;
            return Some(slot as u32);
        }
        unreachable!("an idle node was counted but not found")
    }

    /// A new node under `key`, pinned once; `None` if at most `reserve` slots could be had.
    pub fn insert(&mut self, key: Key, state: State, reserve: usize) -> Option<u32> {
        if self.spare() <= reserve {
            return None;
        }
        let slot = self.take()?;
        let m = &mut self.meta[slot as usize];
        assert!(m.waiters.is_empty() && m.busy == [0; LINKS / 64]);
        m.key = key;
        m.state = state;
        m.referenced = false;
        m.pins = 1;
        m.birth = 0;
        m.prev_birth = 0;
        m.shared_with = 0;
        m.entry = NONE;
        // What is being read will be overwritten as a whole, and is not looked at before.
        if state != State::Loading {
            self.links[slot as usize].fill(0);
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
    pub fn pin(&mut self, slot: u32, reserve: usize) -> bool {
        let m = &mut self.meta[slot as usize];
        if m.pins == 0 && m.state == State::Clean {
            if (self.free.len() + self.idle).saturating_sub(self.promised) <= reserve {
                return false;
            }
            self.idle -= 1;
        }
        m.pins += 1;
        m.referenced = true;
        true
    }

    pub fn unpin(&mut self, slot: u32) {
        let m = &mut self.meta[slot as usize];
        assert!(m.pins > 0, "a node was unpinned too often");
        m.pins -= 1;
        if m.pins == 0 && m.state == State::Clean {
            self.idle += 1;
        }
    }

    /// Changes the state of a pinned node.
    pub fn set_state(&mut self, slot: u32, state: State) {
        let m = &mut self.meta[slot as usize];
        assert!(m.pins > 0, "only a pinned node changes its state");
        m.state = state;
    }

    /// True if any block of `first .. first + count` is held by a write-like request.
    pub fn busy(&self, slot: u32, first: u16, count: u16) -> bool {
        spans(first, count).any(|(word, mask)| self.meta[slot as usize].busy[word] & mask != 0)
    }

    pub fn set_busy(&mut self, slot: u32, first: u16, count: u16) {
        for (word, mask) in spans(first, count) {
            let bits = &mut self.meta[slot as usize].busy[word];
            assert_eq!(*bits & mask, 0, "two writes hold one block");
            *bits |= mask;
        }
    }

    pub fn clear_busy(&mut self, slot: u32, first: u16, count: u16) {
        for (word, mask) in spans(first, count) {
            let bits = &mut self.meta[slot as usize].busy[word];
            assert_eq!(*bits & mask, mask, "a block was released twice");
            *bits &= !mask;
        }
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
    }
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
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn busy_spans_cover_exactly_their_blocks() {
        for first in [0u16, 1, 63, 64, 65, 300, 511] {
            for count in [1u16, 2, 63, 64, 65, 128, 200, 512] {
                if first + count > 512 {
                    continue;
                }
                let mut bits = [0u64; 8];
                spans(first, count).for_each(|(w, m)| bits[w] |= m);
                for i in 0..512u16 {
                    let set = bits[usize::from(i / 64)] >> (i % 64) & 1 == 1;
                    assert_eq!(set, (first..first + count).contains(&i));
                }
            }
        }
    }

    /// The table against a map, through inserts, evictions, pins and removals.
    #[test]
    fn model() {
        let mut cache = NodeCache::new(64);
        let mut pinned: BTreeMap<u64, u32> = BTreeMap::new();
        let mut seed = 1u64;
        for step in 0..200_000u64 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let key = Key::new((seed >> 60) as u32, 0, seed >> 40 & 0xff);
            match cache.find(key) {
                Some(slot) => {
                    assert_eq!(cache.meta[slot as usize].key, key);
                    if let Some(slot) = pinned.remove(&key.0) {
                        cache.unpin(slot);
                    } else if step % 3 == 0 {
                        cache.remove(slot);
                        assert_eq!(cache.find(key), None);
                    }
                }
                None => {
                    assert!(!pinned.contains_key(&key.0), "a pinned node was evicted");
                    if let Some(slot) = cache.insert(key, State::Clean, 4) {
                        pinned.insert(key.0, slot);
                        assert_eq!(cache.find(key), Some(slot));
                    } else {
                        assert!(pinned.len() >= 60);
                    }
                }
            }
            assert_eq!(cache.spare(), 64 - pinned.len());
        }
        assert!(cache.evictions > 1000);
    }
}
