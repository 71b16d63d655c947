//! Discard, write-zeroes and the trim of a shrink: whole blocks become holes through the journal;
//! parts of blocks are zeroed by a partial write, or left alone by a discard.

use crate::canary::{Canary, planted};
use crate::engine::Engine;
use crate::format::journal::Record;
use crate::format::node;
use crate::limits::{LEVEL_BITS, LINKS, NODES_A_LEAF};
use crate::slots::{Kind, NONE, Stage};
use crate::status::Status;
use crate::types::BLOCK_SIZE;

/// Leaves one operation looks at before others get their turn.
const LEAVES_TURN: u32 = 64;

impl Engine {
    pub(crate) fn advance_discard(&mut self, index: u32) {
        for _ in 0..LEAVES_TURN {
            let op = &self.slots[index];
            if op.partial {
                // The zeroing of a partial block goes the way of a partial write.
                return self.advance_write(index);
            }
            if op.stage != Stage::Locate {
                unreachable!("a discard in a stage it does not have")
            }
            if op.done == op.len {
                return self.discard_end(index);
            }
            if !self.discard_part(index) {
                return;
            }
        }
        self.later.push_back(index);
    }

    fn discard_end(&mut self, index: u32) {
        if self.slots[index].fua {
            self.start_flush(index);
        } else {
            self.finish(index, Status::Ok);
        }
    }

    /// One leaf's worth. False: the operation waits or is over.
    fn discard_part(&mut self, index: u32) -> bool {
        let op = &mut self.slots[index];
        let at = op.offset + op.done;
        let left = op.len - op.done;
        let inner = at % BLOCK_SIZE as u64;
        if inner != 0 || left < BLOCK_SIZE as u64 {
            let bytes = left.min(BLOCK_SIZE as u64 - inner);
            if op.kind == Kind::WriteZeroes {
                return self.zero_partial(index);
            }
            op.done += bytes;
            return true;
        }
        op.leaf_index = at >> (12 + LEVEL_BITS);
        op.first = ((at >> 12) % LINKS as u64) as u16;
        op.inner = 0;
        op.count = (left >> 12).min((LINKS - op.first as usize) as u64) as u16;
        op.part_bytes = u32::from(op.count) << 12;
        if !self.lock_leaf(index, false) {
            return false;
        }
        if self.slots[index].leaf == NONE {
            self.skip_hole(index);
            return true;
        }
        if !self.anything_mapped(index) {
            self.release_leaf(index);
            let op = &mut self.slots[index];
            op.done += u64::from(op.part_bytes);
            return true;
        }
        self.discard_admit(index)
    }

    /// Nothing is mapped at the part's leaf: go on behind the whole hole it lies in.
    fn skip_hole(&mut self, index: u32) {
        let op = &self.slots[index];
        let (tree, disk, leaf) = (op.tree, op.disk, op.leaf_index);
        let end = self.hole_end(tree, leaf);
        // Leaves that only exist in RAM so far are in no parent, nor are those being written to.
        let end = self.checkpoint.first_dirty(disk, leaf + 1, end).unwrap_or(end);
        let held = self.slots.ops.iter().filter(|o| o.leaf != NONE && o.tree == tree);
        let held = held.map(|o| o.leaf_index).filter(|i| (leaf + 1..end).contains(i)).min();
        let end = held.unwrap_or(end);
        let op = &mut self.slots[index];
        let whole_blocks = op.len - (op.offset + op.len) % BLOCK_SIZE as u64;
        let to = (end << (12 + LEVEL_BITS)).saturating_sub(op.offset);
        op.done = to.min(whole_blocks).max(op.done + u64::from(op.part_bytes));
    }

    fn anything_mapped(&self, index: u32) -> bool {
        let op = &self.slots[index];
        let links = &self.cache.links[op.leaf as usize];
        let links = &links[op.first as usize..(op.first + op.count) as usize];
        links.iter().any(|link| link & node::ADDRESS != 0)
    }

    /// A piece of a block that is to read as zero: nothing to do over a hole, else a partial write.
    fn zero_partial(&mut self, index: u32) -> bool {
        self.slots[index].partial = true;
        self.advance_write(index);
        false
    }

    fn discard_admit(&mut self, index: u32) -> bool {
        // What is kept back from writes is there for this: the checkpoint needs a few blocks for
        // the leaf and its parents before it gives the freed ones back.
        let leaves = self.leaves_to_write();
        let room = self.space.free > NODES_A_LEAF * (leaves + 1);
        let hopeless = leaves == 0 && !self.space_is_coming();
        if !room && hopeless {
            self.release_leaf(index);
            self.finish(index, Status::NoSpace);
            return false;
        }
        let ready = room && self.journal_has_room() && self.checkpoint_has_room();
        if !ready || !self.cache.promise(self.cache_reserve()) {
            if self.starved.waits() {
                self.release_leaf(index);
                self.finish(index, Status::NoSpace);
                return false;
            }
            self.checkpoint.urgent = true;
            self.unlock_and_park(index);
            return false;
        }
        self.journal.reserve();
        let op = &mut self.slots[index];
        op.locked = true;
        op.in_place = false;
        let (slot, first, count) = (op.leaf, op.first, op.count);
        self.cache.set_busy(slot, first, count);
        if planted(Canary::DiscardUnlogged) {
            self.journal.unreserve();
            self.apply_discard(index);
            return false;
        }
        let op = &mut self.slots[index];
        let vba = op.leaf_index * LINKS as u64 + u64::from(first);
        op.stage = Stage::Journal;
        let record = Record::Discard { disk: op.disk, vba, len: count };
        self.journal_append(index, 1, |_| record);
        false
    }

    /// The record is written: the links become holes.
    pub(crate) fn apply_discard(&mut self, index: u32) {
        let op = &self.slots[index];
        let (slot, disk, count) = (op.leaf, op.disk, u64::from(op.count));
        let vba = op.leaf_index * LINKS as u64 + u64::from(op.first);
        self.cache.unpromise();
        self.apply(slot, disk, vba, None, count);
        if self.part_done(index, Status::Ok) {
            self.ready.push_back(index);
        }
    }
}
