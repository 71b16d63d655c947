//! Stages of a read: find the leaf, turn its links into runs, read the runs straight into the
//! request's memory, answer holes with zeros.

use crate::base_io::{BaseIo, BaseOp};
use crate::disk::at_once::run_of;
use crate::engine::{Class, Engine, VIEW_TREES, tag};
use crate::format::node;
use crate::limits::{LEVEL_BITS, LINKS, READ_WINDOW};
use crate::map::node_cache::Key;
use crate::map::radix::Found;
use crate::page::{pieces, zero_out};
use crate::request::Seg;
use crate::slots::{NONE, Stage};
use crate::status::{BaseError, Status};
use crate::types::BLOCK_SIZE;

impl Engine {
    pub(crate) fn advance_read(&mut self, index: u32) {
        loop {
            match self.slots[index].stage {
                Stage::Locate => {
                    if !self.read_locate(index) {
                        return;
                    }
                }
                Stage::Reading => {
                    self.read_issue(index);
                    if self.slots[index].outstanding > 0 {
                        return;
                    }
                    if !self.read_part_done(index) {
                        return;
                    }
                }
                Stage::Free
                | Stage::WaitNode
                | Stage::WaitBusy
                | Stage::Parked
                | Stage::RmwRead
                | Stage::Data
                | Stage::Journal
                | Stage::Flush => unreachable!("a read in a stage it does not have"),
            }
        }
    }

    /// Finds the leaf of the next part. False: the operation waits.
    fn read_locate(&mut self, index: u32) -> bool {
        let op = &mut self.slots[index];
        let at = op.offset + op.done;
        let leaf_bytes = (LINKS * BLOCK_SIZE) as u64;
        op.part_bytes = (op.len - op.done).min(leaf_bytes - at % leaf_bytes) as u32;
        op.leaf_index = at >> (12 + LEVEL_BITS);
        op.first = ((at >> 12) % LINKS as u64) as u16;
        op.inner = (at % BLOCK_SIZE as u64) as u16;
        op.count = (u64::from(op.inner) + u64::from(op.part_bytes)).div_ceil(4096) as u16;
        op.issued = 0;
        let (tree, leaf) = (op.tree, op.leaf_index);
        let (first, bytes) = (op.first, usize::from(op.inner) + op.part_bytes as usize);
        let key = Key::new(tree, 0, leaf);
        let cached = self.cache.find(key);
        let loading = cached.filter(|slot| self.cache.is_loading(*slot));
        if cached == loading
            && let Some(start) = self.compact_run(tree, leaf, first, bytes)
        {
            return self.read_compact(index, start);
        }
        // Of a leaf that is to be read only the piece around a block is wanted.
        let one = self.slots[index].count == 1;
        let found = match loading {
            Some(slot) if one => Found::Loading(slot),
            // A compact copy would have answered.
            None if one && cached.is_none() => self.find_way(tree, leaf),
            _ => self.find_leaf(tree, leaf),
        };
        match found {
            Found::Hit(slot) => {
                if !self.cache.pin(slot, self.cache_reserve()) {
                    self.park(index);
                    return false;
                }
                self.slots[index].leaf = slot;
                if self.must_wait_for_writes(index) {
                    self.slots[index].stage = Stage::WaitBusy;
                    let waiters = &mut self.cache.meta[slot as usize].waiters;
                    waiters.push(&mut self.slots, index);
                    return false;
                }
                self.enter_lane(index);
                self.slots[index].stage = Stage::Reading;
                true
            }
            Found::Absent => {
                let op = &self.slots[index];
                let (at, len) = (op.done as usize, op.part_bytes as usize);
                zero_out(self.slots.segs(index), at, len);
                self.read_advance(index)
            }
            Found::Loading(slot) => {
                if one {
                    self.cache.want_piece(slot, key, first, cached.is_none());
                }
                self.slots[index].stage = Stage::WaitNode;
                self.cache.meta[slot as usize].waiters.push(&mut self.slots, index);
                false
            }
            Found::NoRoom => {
                self.park(index);
                false
            }
            Found::Lost => {
                self.finish(index, Status::Corrupt);
                false
            }
        }
    }

    /// The part is one run of a leaf that has a compact copy, hence one that no write holds. False:
    /// the operation is over.
    fn read_compact(&mut self, index: u32, start: u64) -> bool {
        let op = &self.slots[index];
        let (at, len, skip) = (op.done as usize, op.part_bytes as usize, u64::from(op.inner));
        if start == 0 {
            zero_out(self.slots.segs(index), at, len);
            return self.read_advance(index);
        }
        self.enter_lane(index);
        self.issue_data(index, BaseOp::Read, start * BLOCK_SIZE as u64 + skip, at, len);
        let op = &mut self.slots[index];
        op.issued = op.part_bytes;
        op.outstanding += 1;
        op.stage = Stage::Reading;
        true
    }

    /// Where reads can see half of a write in flight, they queue behind it.
    fn must_wait_for_writes(&self, index: u32) -> bool {
        let op = &self.slots[index];
        !self.traits.atomic_rw && self.cache.busy(op.leaf, op.first, op.count)
    }

    fn enter_lane(&mut self, index: u32) {
        let op = &self.slots[index];
        let first = op.leaf_index * LINKS as u64 + u64::from(op.first);
        let lane = self.begin_read(op.tree, op.disk, first, op.count);
        let op = &mut self.slots[index];
        (op.lane, op.in_lane) = (lane, true);
    }

    fn leave_lane(&mut self, index: u32) {
        let op = &mut self.slots[index];
        assert!(std::mem::take(&mut op.in_lane));
        let first = op.leaf_index * LINKS as u64 + u64::from(op.first);
        let (lane, tree, disk, count) = (op.lane, op.tree, op.disk, op.count);
        self.end_read(lane, tree, disk, first, count);
    }

    /// From now on a read of these blocks of a disk is in flight, whose base blocks are not given
    /// out again until it ends: the lane that it is counted in.
    #[inline]
    pub(crate) fn begin_read(&mut self, tree: u32, disk: u32, first: u64, count: u16) -> u8 {
        self.readers[self.lane] += 1;
        if !self.reading.is_empty() && tree < VIEW_TREES {
            for block in first..first + u64::from(count) {
                self.reading[reading_cell(disk, block)] += 1;
            }
        }
        self.lane as u8
    }

    /// The reverse of [`Engine::begin_read`].
    #[inline]
    pub(crate) fn end_read(&mut self, lane: u8, tree: u32, disk: u32, first: u64, count: u16) {
        self.readers[usize::from(lane)] -= 1;
        if !self.reading.is_empty() && tree < VIEW_TREES {
            for block in first..first + u64::from(count) {
                self.reading[reading_cell(disk, block)] -= 1;
            }
        }
    }

    /// True if a read of one of these blocks may be in flight.
    pub(crate) fn being_read(&self, disk: u32, first: u64, count: u64) -> bool {
        !self.reading.is_empty()
            && (first..first + count).any(|block| self.reading[reading_cell(disk, block)] > 0)
    }

    /// Starts base reads for the part until the window is full; holes are zeroed on the way.
    fn read_issue(&mut self, index: u32) {
        loop {
            let op = &self.slots[index];
            if op.issued == op.part_bytes || op.outstanding >= READ_WINDOW {
                return;
            }
            let from = u32::from(op.inner) + op.issued;
            let (block, skip) = (from as usize / BLOCK_SIZE, from as usize % BLOCK_SIZE);
            let links = &self.cache.links[op.leaf as usize][op.first as usize + block..];
            let (start, len) = run_of(links, skip, (op.part_bytes - op.issued) as usize);
            if start == node::LOST {
                let op = &mut self.slots[index];
                op.status = Status::Corrupt;
                op.part_bytes = op.issued;
                return;
            }
            let at = op.done as usize + op.issued as usize;
            if start == 0 {
                zero_out(self.slots.segs(index), at, len);
            } else {
                self.issue_data(index, BaseOp::Read, start * 4096 + skip as u64, at, len);
                self.slots[index].outstanding += 1;
            }
            self.slots[index].issued += len as u32;
        }
    }

    /// Starts a base operation on bytes `at .. at + len` of the request's own memory.
    pub(crate) fn issue_data(
        &mut self,
        index: u32,
        op: BaseOp,
        offset: u64,
        at: usize,
        len: usize,
    ) {
        let segs = self.slots.segs(index);
        let mut first = Seg::default();
        if segs[0].len >= at + len {
            first = Seg { addr: segs[0].addr + at, len };
        } else {
            pieces(segs, at, len, |seg| {
                if first.len == 0 {
                    first = seg;
                }
            });
        }
        let tag = tag(Class::Op, self.slots[index].generation, index);
        let source = (index, at as u32);
        self.io.push(BaseIo { tag, op, offset, len: len as u32, first, guest: true, source });
    }

    /// The part has been read. False: the operation is over.
    fn read_part_done(&mut self, index: u32) -> bool {
        self.leave_lane(index);
        let slot = std::mem::replace(&mut self.slots[index].leaf, NONE);
        if slot != NONE {
            self.cache.unpin(slot);
        }
        self.unpark |= !self.parked.is_empty();
        if self.slots[index].status != Status::Ok {
            let status = self.slots[index].status;
            self.finish(index, status);
            return false;
        }
        self.read_advance(index)
    }

    /// On to the next part. False: there is none.
    fn read_advance(&mut self, index: u32) -> bool {
        let op = &mut self.slots[index];
        op.done += u64::from(op.part_bytes);
        op.stage = Stage::Locate;
        if op.done < op.len {
            return true;
        }
        self.finish(index, Status::Ok);
        false
    }

    /// A base operation on a request's memory is done.
    pub(crate) fn op_io_done(
        &mut self,
        index: u32,
        generation: u32,
        result: Result<(), BaseError>,
    ) {
        let op = &mut self.slots[index];
        assert!(
            op.generation == generation && op.outstanding > 0,
            "a base operation completed for a request that is over"
        );
        op.outstanding -= 1;
        if let Err(error) = result {
            // Nothing more of this part is issued.
            if op.stage == Stage::Reading {
                op.part_bytes = op.issued;
            }
            self.slots[index].status = self.status_of(error);
        }
        let op = &self.slots[index];
        if op.outstanding == 0 || op.stage == Stage::Reading {
            self.advance(index);
        }
    }
}

impl Engine {
    /// What a request is answered whose data could not be moved.
    pub(crate) fn status_of(&mut self, error: BaseError) -> Status {
        match error {
            BaseError::NoSpace => {
                self.data_found_no_space();
                Status::NoSpace
            }
            BaseError::Io | BaseError::Gone => Status::IoError,
        }
    }
}

fn reading_cell(disk: u32, block: u64) -> usize {
    (block.wrapping_add(u64::from(disk) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51) as usize
}
