//! The radix map: finding a leaf, loading what is missing, and changing links.

use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::disk::Root;
use crate::engine::{Class, Engine, VIEW_TREES, tag};
use crate::format::node::{self, NodeRef};
use crate::limits::{LEVEL_BITS, LEVEL_MAX, LINKS, SYSTEM_READS};
use crate::map::adopt::Adopted;
use crate::map::node_cache::{Key, Promoted, State};
use crate::page::PageId;
use crate::slots::{List, NONE, Stage};
use crate::status::{BaseError, Status};
use crate::types::BLOCK_SIZE;

/// Where a leaf is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// In this slot.
    Hit(u32),
    /// Nothing is mapped there.
    Absent,
    /// This slot is being read; wait there.
    Loading(u32),
    /// No slot or page can be had now.
    NoRoom,
    /// The node above it was damaged.
    Lost,
}

/// Bits of a cached link of a leaf that tell when it was set.
pub(crate) const TAG_SHIFT: u32 = 48;

/// The mark of links set after freeze number `freeze`; never 0, which means "long ago".
pub(crate) fn freeze_tag(freeze: u64) -> u64 {
    (freeze % 0x7fff + 1) << TAG_SHIFT
}

impl Engine {
    /// The root of a tree, `None` if the tree is gone.
    fn root_of(&self, tree: u32) -> Option<Root> {
        if tree < VIEW_TREES {
            return self.disks[tree as usize].as_ref().map(|d| d.root);
        }
        let mut views = self.attachments.iter().filter_map(|a| a.target);
        views.find(|a| a.tree == tree).map(|a| a.root)
    }

    /// Leaf `index` of `tree`, if it is in the cache.
    #[inline]
    pub(crate) fn leaf_at_hand(&mut self, tree: u32, index: u64) -> Option<u32> {
        let slot = self.cache.find(Key::new(tree, 0, index))?;
        if self.cache.is_loading(slot) {
            return None;
        }
        self.stats.cache_hits += 1;
        Some(slot)
    }

    /// The block (0: a hole) where `bytes` from the beginning of block `first` of a leaf lie, if
    /// there is a compact copy of the leaf, or of a piece of it, and they are one run of that.
    #[inline]
    pub(crate) fn compact_run(
        &mut self,
        tree: u32,
        leaf: u64,
        first: u16,
        bytes: usize,
    ) -> Option<u64> {
        let (key, want) = (Key::new(tree, 0, leaf), bytes.div_ceil(BLOCK_SIZE));
        let (run, of_piece) = self.cache.run_kept(key, first, want)?;
        let (start, blocks) = run;
        self.stats.cache_piece_hits += u64::from(of_piece);
        if blocks * BLOCK_SIZE < bytes {
            return None;
        }
        self.stats.cache_hits += 1;
        self.stats.cache_compact_hits += 1;
        Some(start)
    }

    /// Finds leaf `index` of `tree`, starting the read of the next missing node on the way.
    pub(crate) fn find_leaf(&mut self, tree: u32, index: u64) -> Found {
        if let Some(slot) = self.leaf_at_hand(tree, index) {
            return Found::Hit(slot);
        }
        if let Some(slot) = self.cache.find(Key::new(tree, 0, index)) {
            self.cache.want_whole(slot);
            return Found::Loading(slot);
        }
        if let Some(copy) = self.cache.find_compact(Key::new(tree, 0, index)) {
            return match self.cache.promote(copy, self.cache_reserve()) {
                Promoted::NoRoom => Found::NoRoom,
                Promoted::Slot(slot) => {
                    self.stats.cache_hits += 1;
                    self.stats.cache_promotions += 1;
                    Found::Hit(slot)
                }
            };
        }
        self.find_way(tree, index)
    }

    /// The same for a leaf of which nothing is in the cache.
    pub(crate) fn find_way(&mut self, tree: u32, index: u64) -> Found {
        let Some(root) = self.root_of(tree) else { return Found::Absent };
        if index >> (LEVEL_BITS * u32::from(root.level)) != 0 {
            return Found::Absent;
        }
        // The nearest cached ancestor knows the way.
        for level in 1..=root.level {
            let key = Key::new(tree, level, index >> (LEVEL_BITS * u32::from(level)));
            let Some(slot) = self.cache.find(key) else { continue };
            self.cache.refer(slot);
            if self.cache.is_loading(slot) {
                return Found::Loading(slot);
            }
            let child = index >> (LEVEL_BITS * u32::from(level - 1));
            let link = self.cache.links[slot as usize][child as usize % LINKS];
            let node = NodeRef::of_link(link);
            match node.address {
                0 => return Found::Absent,
                node::LOST => return Found::Lost,
                _ => {}
            }
            return self.load_node(Key::new(tree, level - 1, child), node, self.cache_reserve());
        }
        if root.address == 0 {
            return Found::Absent;
        }
        let child = index >> (LEVEL_BITS * u32::from(root.level));
        self.load_node(Key::new(tree, root.level, child), root.node(), self.cache_reserve())
    }

    /// The first leaf behind the hole that leaf `index` lies in, as far as the nearest cached
    /// ancestor tells.
    pub(crate) fn hole_end(&self, tree: u32, index: u64) -> u64 {
        let Some(root) = self.root_of(tree) else { return index + 1 };
        let past_all = 1 << (LEVEL_BITS * (u32::from(LEVEL_MAX) + 1));
        if index >> (LEVEL_BITS * u32::from(root.level)) != 0 {
            return past_all;
        }
        for level in 1..=root.level {
            let key = Key::new(tree, level, index >> (LEVEL_BITS * u32::from(level)));
            if self.cache.find(key).is_some() {
                let span = LEVEL_BITS * u32::from(level - 1);
                return ((index >> span) + 1) << span;
            }
        }
        if root.address == 0 { past_all } else { index + 1 }
    }

    /// Starts reading the node that `node` leads to.
    pub(crate) fn load_node(&mut self, key: Key, node: NodeRef, reserve: usize) -> Found {
        let pages_kept = self.page_reserve + if reserve > 0 { SYSTEM_READS } else { 0 };
        let Some(page) = self.pages.take_above(pages_kept) else { return Found::NoRoom };
        let Some(slot) = self.cache.insert(key, State::Loading, reserve) else {
            self.pages.give(page);
            return Found::NoRoom;
        };
        self.stats.cache_misses += 1;
        let meta = &mut self.cache.meta[slot as usize];
        meta.node = node;
        meta.entry = page.0;
        self.issue_node_read(slot);
        Found::Loading(slot)
    }

    fn issue_node_read(&mut self, slot: u32) {
        let meta = &self.cache.meta[slot as usize];
        let (address, page) = (meta.node.address, PageId(meta.entry));
        let addr = self.pages.addr(page);
        self.issue(tag(Class::Node, 0, slot), BaseOp::Read, address, addr, 4096);
    }

    pub(crate) fn node_read_done(&mut self, slot: u32, result: Result<(), BaseError>) {
        let meta = &self.cache.meta[slot as usize];
        assert_eq!(meta.state, State::Loading, "a node arrived that nobody waits for");
        let (key, node, page) = (meta.key, meta.node, PageId(meta.entry));
        let outcome = match result {
            Ok(()) => self.adopt_node(slot, key, node, page),
            Err(_) => Err(Status::IoError),
        };
        self.pages.give(page);
        let meta = &mut self.cache.meta[slot as usize];
        meta.entry = NONE;
        let mut waiters = std::mem::replace(&mut meta.waiters, List::EMPTY);
        if outcome == Ok(Adopted::Pieces) {
            self.cache.abandon(slot);
        } else {
            self.cache.set_state(slot, State::Clean);
            self.cache.unpin(slot);
        }
        if outcome.is_err() {
            self.cache.remove(slot);
            self.checkpoint.node_failed(key, outcome == Err(Status::Corrupt));
            if let Some(recovery) = &mut self.recovery {
                recovery.node_failures += 1;
            }
        }
        while let Some(op) = waiters.pop(&mut self.slots) {
            match outcome {
                Ok(_) => {
                    self.slots[op].stage = Stage::Locate;
                    self.ready.push_back(op);
                }
                Err(status) => self.finish(op, status),
            }
        }
        self.unpark = true;
    }

    /// Lets those that wait for blocks of a leaf, or for the leaf, look again.
    #[inline(always)]
    pub(crate) fn wake_leaf(&mut self, slot: u32) {
        if !self.cache.meta[slot as usize].waiters.is_empty() {
            self.wake_waiters(slot);
        }
    }

    #[cold]
    fn wake_waiters(&mut self, slot: u32) {
        let meta = &mut self.cache.meta[slot as usize];
        let mut waiters = std::mem::replace(&mut meta.waiters, List::EMPTY);
        while let Some(op) = waiters.pop(&mut self.slots) {
            // It looks for its leaf again: pins are cheap, stale slots are not.
            let held = std::mem::replace(&mut self.slots[op].leaf, NONE);
            self.cache.unpin(held);
            self.slots[op].stage = Stage::Locate;
            self.ready.push_back(op);
        }
    }

    /// The disk whose tree (or whose snapshot's tree) this is.
    pub(crate) fn disk_of_tree(&self, tree: u32) -> u32 {
        if tree < VIEW_TREES {
            return tree;
        }
        let mut views = self.attachments.iter().filter_map(|a| a.target);
        views.find(|a| a.tree == tree).map_or(0, |a| a.disk)
    }

    /// True if `owner` is the disk or one it was cloned from, however far back; where snapshots
    /// between have been deleted, that is no longer known.
    pub(crate) fn may_own(&self, disk: u32, owner: u32) -> bool {
        let mut at = Some(disk);
        // No chain is longer than there are disks.
        for _ in 0..=self.disks.len() {
            let Some(slot) = at else { return false };
            if slot == owner {
                return true;
            }
            match self.disks.get(slot as usize).and_then(|d| d.as_ref()) {
                Some(found) if !found.adopted => at = found.origin.map(|(disk, _)| disk),
                _ => return true,
            }
        }
        false
    }

    /// Makes leaf `slot` the live version of `disk` that may be changed now: what a running
    /// checkpoint or a snapshot still needs of it is copied aside, and links that are shared from
    /// now on are marked.
    #[inline(always)]
    pub(crate) fn make_writable(&mut self, slot: u32, disk: u32) {
        let found = self.disks[disk as usize].as_ref().expect("an attached disk exists");
        let meta = &self.cache.meta[slot as usize];
        let frozen = meta.freeze != self.checkpoint.freezes && !planted(Canary::FrozenLeafChanged);
        if meta.state != State::Dirty || frozen || meta.epoch != found.epoch {
            self.change_version(slot, disk);
        }
    }

    #[inline(never)]
    fn change_version(&mut self, slot: u32, disk: u32) {
        let freeze = self.checkpoint.freezes;
        let found = self.disks[disk as usize].as_ref().expect("an attached disk exists");
        let (epoch, newest, floor) = (found.epoch, found.newest, found.floor());
        let meta = &self.cache.meta[slot as usize];
        if meta.state == State::Dirty {
            let (running, entry) = (meta.freeze != freeze, meta.entry);
            let copy = self.cache.freeze_copy(slot);
            self.checkpoint.retarget(running, entry, copy);
            let meta = &mut self.cache.meta[slot as usize];
            meta.prev_birth = meta.birth;
        }
        let meta = &mut self.cache.meta[slot as usize];
        if meta.birth < floor {
            meta.birth = epoch;
            meta.shared_with = newest;
            let mark = if planted(Canary::MarkForgotten) { 0 } else { node::READ_ONLY };
            // Without a branch, several links at a time.
            for link in &mut self.cache.links[slot as usize] {
                *link |= if *link == 0 { 0 } else { mark };
            }
        }
        let index = meta.key.index();
        meta.epoch = epoch;
        meta.freeze = freeze;
        self.cache.set_state(slot, State::Dirty);
        let entry = self.checkpoint.add_dirty(disk, epoch, index, slot);
        self.cache.meta[slot as usize].entry = entry;
    }

    /// Sets the links of `vba .. vba + len` (one leaf) to `pba ..`, or to holes, and settles what
    /// becomes of the blocks they pointed at. The leaf is pinned and a slot is promised.
    #[inline(always)]
    pub(crate) fn apply(&mut self, slot: u32, disk: u32, vba: u64, pba: Option<u64>, len: u64) {
        self.make_writable(slot, disk);
        let mark = freeze_tag(self.checkpoint.freezes);
        let found = self.disks[disk as usize].as_mut().expect("an attached disk exists");
        let (epoch, newest, ambiguous) = (found.epoch, found.newest, found.ambiguous());
        let shared_with = self.cache.meta[slot as usize].shared_with;
        let first = vba as usize % LINKS;
        let links = &mut self.cache.links[slot as usize][first..first + len as usize];
        let mut mapped = 0i64;
        for (i, link) in links.iter_mut().enumerate() {
            let old = *link;
            *link = pba.map_or(0, |pba| (pba + i as u64) | mark);
            mapped += i64::from(*link != 0) - i64::from(old != 0);
            let address = old & node::ADDRESS;
            if address == 0 {
                continue;
            }
            if old & node::READ_ONLY == 0 {
                self.checkpoint.freed.push(address);
            } else if address == node::LOST {
                // What was there is out of reach; `check --repair` finds it.
            } else if (shared_with != newest || ambiguous) && !planted(Canary::UndecidedLost) {
                self.checkpoint.add_undecided(disk, epoch, vba + i as u64, address);
            }
        }
        if let Some(pba) = pba {
            self.checkpoint.allocated.push(pba, len);
        }
        // The count is for people; one that lies on disk is `check`'s to mend.
        found.mapped = found.mapped.saturating_add_signed(mapped);
        found.dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_of_a_freeze_is_never_none_and_not_that_of_the_next() {
        for freeze in [0, 1, 0x7ffd, 0x7ffe, 0x7fff, 0x8000, u64::MAX - 1] {
            let mark = freeze_tag(freeze);
            assert!(mark > node::READ_ONLY, "{freeze}: {mark:#x}");
            assert_eq!(mark & (node::ADDRESS | node::READ_ONLY), 0, "{freeze}");
            assert_ne!(mark, freeze_tag(freeze + 1), "{freeze}");
        }
    }
}
