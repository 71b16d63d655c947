//! First phase of a consistency point: the frozen leaves and the nodes above them, version by
//! version, leaves first, out of place and in long sequential runs.
//!
//! Leaves come sorted, so at most one node a level is open at a time:
//!
//! ```text
//!  path[2] ─┐            a leaf is written and linked into path[1]; when the next leaf lies under
//!  path[1] ─┴─┐          another parent, path[1] is written and linked into path[2], and so on
//!  leaf, leaf, leaf ...
//! ```

use super::checkpoint::{Dropped, Step, Undecided};
use crate::canary::{Canary, planted};
use crate::disk::{Root, level_for};
use crate::engine::{Engine, EngineState};
use crate::format::node::{self, NodeInfo, NodeRef};
use crate::limits::{CHUNK_BLOCKS, LEVEL_BITS, LINKS};
use crate::map::node_cache::{Key, State};
use crate::map::radix::Found;
use crate::page::PageId;
use crate::slots::NONE;
use crate::space::{Grant, Use};

impl Engine {
    pub(crate) fn nodes_step(&mut self) -> Step {
        let c = &mut self.checkpoint;
        let Some(&(mut version)) = c.versions.get(c.version) else {
            assert_eq!(c.at, c.entries.len(), "a dirty leaf of no known version");
            return Step::Done;
        };
        if !c.begun {
            version.end = c.end_of(&version);
            c.versions[c.version].end = version.end;
            if version.live && version.end == c.at {
                c.version += 1;
                return Step::Go;
            }
            if !self.begin_version() {
                return Step::Wait;
            }
        }
        let top = self.disk(version.disk).root.level;
        if self.checkpoint.at == version.end {
            for level in 1..=top {
                if self.checkpoint.path[level as usize] != NONE && !self.close_node(level) {
                    return Step::Wait;
                }
            }
            self.end_version();
            return Step::Go;
        }
        let index = self.checkpoint.next_leaf().expect("a version ends at its last leaf").index;
        for level in 1..=top {
            let open = self.checkpoint.path[level as usize];
            let wanted = index >> (LEVEL_BITS * u32::from(level));
            if open != NONE
                && self.cache.meta[open as usize].key.index() != wanted
                && !self.close_node(level)
            {
                return Step::Wait;
            }
        }
        for level in (1..=top).rev() {
            if self.checkpoint.path[level as usize] == NONE
                && !self.open_node(level, index >> (LEVEL_BITS * u32::from(level)))
            {
                return Step::Wait;
            }
        }
        if self.write_leaf() { Step::Go } else { Step::Wait }
    }

    fn disk(&self, id: u32) -> &crate::disk::Disk {
        self.disks[id as usize].as_ref().expect("a disk with versions exists")
    }

    /// Makes the tree high enough for the version's last leaf. False: wait for a cache slot.
    fn begin_version(&mut self) -> bool {
        let c = &self.checkpoint;
        let version = c.versions[c.version];
        let last = c.last_before(version.end).map_or(0, |e| e.index);
        let need = level_for(last);
        let root = self.disk(version.disk).root;
        if root.address == 0 && self.checkpoint.path == [NONE; 4] {
            // An empty tree has no height yet; but a taller empty one keeps its keys valid.
            let disk = self.disks[version.disk as usize].as_mut().expect("exists");
            disk.root.level = need.max(root.level);
        } else {
            while self.disk(version.disk).root.level < need {
                if !self.grow_tree(version.disk, version.epoch) {
                    return false;
                }
            }
        }
        self.checkpoint.begun = true;
        true
    }

    /// Puts a new root above the old one.
    fn grow_tree(&mut self, id: u32, epoch: u64) -> bool {
        let root = self.disk(id).root;
        let level = root.level + 1;
        let Some(slot) = self.cache.insert(Key::new(id, level, 0), State::Open, 0) else {
            return false;
        };
        self.cache.links[slot as usize][0] = node::link_to(root.address, root.generation);
        self.cache.meta[slot as usize].birth = epoch;
        // A root that grows twice in one go hangs below the next: it is written on closing.
        self.checkpoint.path[level as usize] = slot;
        let disk = self.disks[id as usize].as_mut().expect("exists");
        disk.root.level = level;
        disk.root = disk.root.emptied();
        true
    }

    /// Opens the node of `level` at `index` for changes. False: it has to be read, or a slot freed.
    fn open_node(&mut self, level: u8, index: u64) -> bool {
        let version = self.checkpoint.versions[self.checkpoint.version];
        let key = Key::new(version.disk, level, index);
        let slot = match self.cache.find(key) {
            Some(slot) if self.cache.meta[slot as usize].state == State::Loading => return false,
            Some(slot) if self.cache.pin(slot, 0) => slot,
            Some(_) => return false,
            None => {
                let found = self.parent_link(version.disk, level, index);
                let address = found.address;
                let lost = address == node::LOST || self.give_up_on(key, address);
                if self.failed.is_some() {
                    return false;
                }
                if address != 0 && !lost {
                    let found = self.load_node(key, found, 0);
                    assert!(matches!(found, Found::Loading(_) | Found::NoRoom));
                    return false;
                }
                let Some(slot) = self.cache.insert(key, State::Clean, 0) else { return false };
                self.cache.meta[slot as usize].birth = version.epoch;
                if lost {
                    self.event_lost(key, address);
                    self.cache.links[slot as usize].fill(node::LOST);
                }
                slot
            }
        };
        self.cache.set_state(slot, State::Open);
        let end = (index + 1) << (LEVEL_BITS * u32::from(level));
        let floor = self.disk(version.disk).older(version.epoch, end).floor;
        let meta = &mut self.cache.meta[slot as usize];
        if meta.birth < floor {
            meta.birth = version.epoch;
            meta.shared_with = floor.saturating_sub(1);
            for link in self.cache.links[slot as usize].iter_mut().filter(|l| **l != 0) {
                *link |= node::READ_ONLY;
            }
        }
        self.checkpoint.path[level as usize] = slot;
        true
    }

    /// True if a node that the checkpoint needs is damaged: it is replaced by one that says of
    /// everything below, but for what is being written, that it is lost. So the damage costs what
    /// lay below it, as an error and not as zeros, and nothing else of the disk or the shard.
    ///
    /// A node that cannot be read is left alone and the shard fails, since the device may come
    /// back; if it still cannot be read when the store is opened again, it counts as damaged.
    fn give_up_on(&mut self, key: Key, address: u64) -> bool {
        let Some(bad) = self.checkpoint.gave_up_on(key) else { return false };
        if !bad.damaged && self.state == EngineState::Ready {
            let name = self.disk(key.tree()).name;
            self.fail(format!(
                "disk {name}: map node at block {address} cannot be read, so its changes cannot be written"
            ));
            return false;
        }
        true
    }

    fn event_lost(&mut self, key: Key, address: u64) {
        if address == node::LOST {
            return;
        }
        let name = self.disk(key.tree()).name;
        let (level, index) = (key.level(), key.index());
        let first = index << (LEVEL_BITS * u32::from(level) + LEVEL_BITS);
        let text = format!(
            "disk {name}: map node at block {address} (level {level}, index {index}) is replaced; what it led to, from disk block {first} on, is lost"
        );
        self.event(true, text);
    }

    /// What leads to the node of `level` at `index`.
    fn parent_link(&self, disk: u32, level: u8, index: u64) -> NodeRef {
        let root = self.disk(disk).root;
        if level == root.level {
            return root.node();
        }
        let parent = self.checkpoint.path[level as usize + 1];
        assert_ne!(parent, NONE, "a node is opened before its parent");
        NodeRef::of_link(self.cache.links[parent as usize][index as usize % LINKS])
    }

    /// Leads to the node of `level` at `index` that this checkpoint has written, if `address` is
    /// not 0.
    fn set_parent_link(&mut self, disk: u32, level: u8, index: u64, address: u64) {
        let generation = self.superblock.generation + 1;
        let root = &mut self.disks[disk as usize].as_mut().expect("exists").root;
        if level == root.level {
            *root = Root { address, level, generation };
            return;
        }
        let parent = self.checkpoint.path[level as usize + 1];
        let link = node::link_to(address, generation);
        self.cache.links[parent as usize][index as usize % LINKS] = link;
    }

    /// Writes the open node of `level` and links it into its parent. False: no buffer is free.
    fn close_node(&mut self, level: u8) -> bool {
        let slot = self.checkpoint.path[level as usize];
        if !self.write_node(slot, level) {
            return false;
        }
        self.checkpoint.path[level as usize] = NONE;
        true
    }

    fn write_leaf(&mut self) -> bool {
        let c = &self.checkpoint;
        let leaf = c.next_leaf().expect("one is left to be written");
        let (slot, version) = (leaf.slot, c.versions[c.version]);
        assert!(leaf.disk == version.disk && leaf.epoch <= version.epoch, "of another version");
        let frozen = self.cache.meta[slot as usize].state == State::Frozen;
        // Dirty, hence never idle: always pinned.
        let pinned = frozen || self.cache.pin(slot, 0);
        assert!(pinned);
        if !self.write_node(slot, 0) {
            if !frozen {
                self.cache.unpin(slot);
            }
            return false;
        }
        self.checkpoint.at += 1;
        true
    }

    /// Writes the node in `slot` to a fresh block, or drops it if it is empty; settles what becomes
    /// of the block it replaces.
    fn write_node(&mut self, slot: u32, level: u8) -> bool {
        let version = self.checkpoint.versions[self.checkpoint.version];
        let meta = &self.cache.meta[slot as usize];
        let (index, birth, prev_birth) = (meta.key.index(), meta.birth, meta.prev_birth);
        let (frozen, shared_with) = (meta.state == State::Frozen, meta.shared_with);
        let empty = self.cache.links[slot as usize].iter().all(|l| l & node::ADDRESS == 0);
        let mut address = 0;
        if !empty {
            let Some((chunk, page, block)) = self.place_node() else { return false };
            let info = NodeInfo {
                level,
                owner: version.disk,
                index,
                generation: self.superblock.generation + 1,
                birth,
                shared_with,
            };
            address = block;
            let buffer = &mut self.checkpoint.chunks[chunk];
            let links = &self.cache.links[slot as usize];
            node::write(buffer.pages.bytes_mut(page), links, &info, self.store, self.shard, block);
            if !frozen {
                buffer.pins.push(slot);
            }
            self.seal_full_chunk();
        }
        let end = (index + 1) << (LEVEL_BITS * u32::from(level));
        let old = self.parent_link(version.disk, level, index).address;
        let older = self.disk(version.disk).older(version.epoch, end);
        let old = if old == node::LOST { 0 } else { old };
        if old != 0 && prev_birth >= older.floor {
            self.checkpoint.old_freed.push(old, 1);
        } else if old != 0 && !older.certain {
            let (disk, epoch) = (version.disk, version.epoch);
            let dropped = Dropped::Node { level, index };
            self.checkpoint.old_undecided.push(Undecided { disk, epoch, dropped, pba: old });
        }
        self.set_parent_link(version.disk, level, index, address);
        if frozen {
            self.cache.drop_frozen(slot);
        } else {
            self.cache.meta[slot as usize].prev_birth = birth;
            self.cache.set_state(slot, State::Clean);
            if empty {
                self.cache.unpin(slot);
            }
        }
        true
    }

    /// A place for one node: buffer, page in it, block number.
    fn place_node(&mut self) -> Option<(usize, PageId, u64)> {
        if self.checkpoint.run.1 == 0 {
            match self.space.allocate(Use::Metadata, CHUNK_BLOCKS as u64) {
                Grant::Run(pba, len) => self.checkpoint.run = (pba, len),
                Grant::Wait => return None,
                Grant::Full if self.space_is_sought() => return None,
                Grant::Full => {
                    self.fail("no space is left for map nodes".to_string());
                    return None;
                }
            }
        }
        let (next, left) = self.checkpoint.run;
        if let Some(at) = self.checkpoint.filling {
            let chunk = &self.checkpoint.chunks[at];
            if chunk.start + chunk.count as u64 != next {
                self.seal_chunk();
            }
        }
        let at = match self.checkpoint.filling {
            Some(at) => at,
            None => {
                let free = |c: &crate::pipeline::checkpoint::Chunk| !c.writing && c.count == 0;
                let at = self.checkpoint.chunks.iter().position(free)?;
                self.checkpoint.chunks[at].start = next;
                self.checkpoint.filling = Some(at);
                self.checkpoint.outstanding += 1;
                at
            }
        };
        self.checkpoint.run = (next + 1, left - 1);
        if !planted(Canary::NodeUnmarked) {
            self.checkpoint.old_allocated.push(next, 1);
        }
        let chunk = &mut self.checkpoint.chunks[at];
        chunk.count += 1;
        Some((at, PageId(chunk.count as u32 - 1), next))
    }

    fn seal_full_chunk(&mut self) {
        let full = |at: usize| self.checkpoint.chunks[at].count == CHUNK_BLOCKS;
        if self.checkpoint.filling.is_some_and(full) {
            self.seal_chunk();
        }
    }

    /// Sends the buffer that is being filled off, if there is one.
    pub(crate) fn seal_chunk(&mut self) {
        if let Some(at) = self.checkpoint.filling.take() {
            self.issue_chunk(at);
        }
    }

    /// The version's tree is complete: its root is known.
    fn end_version(&mut self) {
        let version = self.checkpoint.versions[self.checkpoint.version];
        let disk = self.disks[version.disk as usize].as_mut().expect("exists");
        disk.dirty = true;
        let root = disk.root;
        if !version.live {
            let snap = disk.snap_mut(version.epoch).expect("a pending snapshot exists");
            snap.root = Some(root);
        }
        self.checkpoint.version += 1;
        self.checkpoint.begun = false;
    }

    /// All versions are written: send the last buffer off and give back what it did not need.
    pub(crate) fn finish_nodes(&mut self) {
        self.seal_chunk();
        let (pba, left) = std::mem::take(&mut self.checkpoint.run);
        if left > 0 {
            self.space.release(pba, left);
        }
    }
}
