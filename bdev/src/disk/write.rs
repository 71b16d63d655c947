//! Stages of a write: find the leaf, hold the blocks, decide where the data goes, write it, log it.
//!
//! A part is either whole blocks within one leaf, or one block of which only some sectors are
//! written; the latter reads the old block into a page, merges, and writes the page as a block.

use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::engine::{Class, Engine, tag};
use crate::format::journal::Record;
use crate::format::node;
use crate::limits::{LEVEL_BITS, LINKS, RUNS_MAX, SYSTEM_READS};
use crate::map::node_cache::{Key, State};
use crate::map::radix::{Found, TAG_SHIFT, freeze_tag};
use crate::page::{copy_in, crc_of};
use crate::slots::{Kind, NONE, Run, Stage};
use crate::space::{Grant, Use};
use crate::status::Status;
use crate::types::BLOCK_SIZE;

/// Outcome of asking for what a write needs.
pub(crate) enum Admit {
    Go,
    Park,
    Fail(Status),
}

impl Engine {
    pub(crate) fn advance_write(&mut self, index: u32) {
        loop {
            let go = match self.slots[index].stage {
                Stage::Locate if self.slots[index].kind == Kind::Write => {
                    self.write_extent_of_part(index);
                    self.lock_leaf(index, true) && self.write_admit(index)
                }
                Stage::Locate if !self.slots[index].partial => {
                    // The piece of a block is zeroed; the rest of the request frees whole blocks.
                    return self.advance_discard(index);
                }
                Stage::Locate => {
                    self.write_extent_of_part(index);
                    self.lock_leaf(index, false) && self.zero_admit(index)
                }
                Stage::RmwRead => self.rmw_merge(index),
                Stage::Data => self.data_done(index),
                Stage::Free
                | Stage::WaitNode
                | Stage::WaitBusy
                | Stage::Parked
                | Stage::Reading
                | Stage::Journal
                | Stage::Flush => unreachable!("a write in a stage it does not have"),
            };
            if !go {
                return;
            }
        }
    }

    /// Chooses the next part: whole blocks up to the leaf's end, or a piece of one block.
    fn write_extent_of_part(&mut self, index: u32) {
        let op = &mut self.slots[index];
        let at = op.offset + op.done;
        let left = op.len - op.done;
        op.leaf_index = at >> (12 + LEVEL_BITS);
        op.first = ((at >> 12) % LINKS as u64) as u16;
        op.inner = (at % BLOCK_SIZE as u64) as u16;
        op.partial = op.inner != 0 || left < BLOCK_SIZE as u64;
        if op.partial {
            op.count = 1;
            op.part_bytes = left.min(BLOCK_SIZE as u64 - u64::from(op.inner)) as u32;
        } else {
            op.count = (left >> 12).min((LINKS - op.first as usize) as u64) as u16;
            op.part_bytes = u32::from(op.count) << 12;
        }
    }

    /// Pins the part's leaf and holds its blocks. False: the operation waits or is over.
    /// `create`: a leaf that does not exist is made; otherwise `leaf` stays [`NONE`].
    pub(crate) fn lock_leaf(&mut self, index: u32, create: bool) -> bool {
        let op = &self.slots[index];
        let (tree, disk, leaf) = (op.tree, op.disk, op.leaf_index);
        let end = op.offset + op.len;
        if let Some(status) = self.refuses_writes(index, disk, end) {
            self.finish(index, status);
            return false;
        }
        let slot = match self.find_leaf(tree, leaf) {
            Found::Hit(slot) if self.cache.pin(slot, self.cache_reserve()) => slot,
            Found::Hit(_) => {
                self.park(index);
                return false;
            }
            Found::Absent if !create => return true,
            Found::Absent => {
                let key = Key::new(tree, 0, leaf);
                let Some(slot) = self.cache.insert(key, State::Clean, self.cache_reserve()) else {
                    self.park(index);
                    return false;
                };
                let found = self.disks[disk as usize].as_ref().expect("attached");
                let meta = &mut self.cache.meta[slot as usize];
                meta.birth = found.epoch;
                meta.shared_with = found.newest;
                slot
            }
            Found::Loading(slot) => {
                self.slots[index].stage = Stage::WaitNode;
                self.cache.meta[slot as usize].waiters.push(&mut self.slots, index);
                return false;
            }
            Found::NoRoom => {
                self.park(index);
                return false;
            }
            Found::Lost => {
                self.finish(index, Status::Corrupt);
                return false;
            }
        };
        let op = &mut self.slots[index];
        op.leaf = slot;
        let (first, count) = (op.first, op.count);
        if self.held_up(slot, first, count) {
            self.slots[index].stage = Stage::WaitBusy;
            self.cache.meta[slot as usize].waiters.push(&mut self.slots, index);
            return false;
        }
        true
    }

    /// True if a write-like request on these blocks of a leaf has to wait for others.
    pub(crate) fn held_up(&self, slot: u32, first: u16, count: u16) -> bool {
        // Behind those who wait already: a long request must get its turn among short ones.
        let waited_for = !self.cache.meta[slot as usize].waiters.is_empty();
        (waited_for || self.cache.busy(slot, first, count)) && !planted(Canary::BusyForgotten)
    }

    /// Why a write-like request cannot go on, if so.
    fn refuses_writes(&self, index: u32, disk: u32, end: u64) -> Option<Status> {
        if self.failed.is_some() {
            return Some(Status::IoError);
        }
        let size = self.disks[disk as usize].as_ref().map_or(0, |d| d.size);
        let trim = self.slots[index].kind == Kind::Trim;
        (end > size && !trim).then_some(Status::OutOfRange)
    }

    /// Gives the leaf up again and waits for resources.
    pub(crate) fn unlock_and_park(&mut self, index: u32) {
        self.release_leaf(index);
        self.park(index);
    }

    /// Lets go of the blocks and the leaf, and wakes who waits for them.
    #[inline(always)]
    pub(crate) fn release_leaf(&mut self, index: u32) {
        let op = &mut self.slots[index];
        let slot = std::mem::replace(&mut op.leaf, NONE);
        let (first, count) = (op.first, op.count);
        if std::mem::take(&mut op.locked) {
            self.cache.clear_busy(slot, first, count);
            self.unpark |= !self.parked.is_empty();
        }
        self.wake_leaf(slot);
        self.cache.unpin(slot);
    }

    /// Zeroing a piece of a hole needs nothing; of a mapped block, a partial write.
    fn zero_admit(&mut self, index: u32) -> bool {
        let op = &self.slots[index];
        let slot = op.leaf;
        let mapped =
            slot != NONE && self.cache.links[slot as usize][op.first as usize] & node::ADDRESS != 0;
        if mapped {
            return self.write_admit(index);
        }
        if slot != NONE {
            self.release_leaf(index);
        }
        self.part_over(index)
    }

    /// Decides between in place and redirect and takes what it needs.
    fn write_admit(&mut self, index: u32) -> bool {
        let op = &self.slots[index];
        let in_place = self.can_overwrite(op.leaf, op.disk, op.first, op.count);
        let admit = if in_place { self.admit_in_place(index) } else { self.admit_redirect(index) };
        match admit {
            Admit::Park => {
                self.unlock_and_park(index);
                return false;
            }
            Admit::Fail(status) => {
                self.release_leaf(index);
                self.finish(index, status);
                return false;
            }
            Admit::Go => {}
        }
        let op = &mut self.slots[index];
        op.in_place = in_place;
        op.locked = true;
        let (slot, first, count) = (op.leaf, op.first, op.count);
        self.cache.set_busy(slot, first, count);
        if in_place {
            let found = self.disks[self.slots[index].disk as usize].as_mut().expect("attached");
            found.in_place += 1;
            self.slots[index].epoch = found.epoch;
            self.stats.writes_in_place += 1;
        } else {
            self.stats.writes_redirected += 1;
        }
        if self.slots[index].partial {
            self.stats.writes_partial += 1;
            return self.rmw_read(index);
        }
        self.issue_runs(index)
    }

    /// True if every one of these blocks of a leaf belongs to the live disk alone, can be
    /// overwritten without a torn mix, has a mapping that no replay will check against its data,
    /// and is not being read.
    #[inline(always)]
    pub(crate) fn can_overwrite(&self, slot: u32, id: u32, first: u16, count: u16) -> bool {
        let meta = &self.cache.meta[slot as usize];
        let disk = self.disks[id as usize].as_ref().expect("attached");
        let tears = !self.traits.atomic_4k && !planted(Canary::TornOverwrite);
        let shared = meta.birth < disk.floor().max(disk.guarded);
        if tears || shared && !planted(Canary::SharedOverwritten) {
            return false;
        }
        let links = &self.cache.links[slot as usize];
        let links = &links[usize::from(first)..usize::from(first + count)];
        let checked = self.traits.volatile_cache && !planted(Canary::UnsealedOverwritten);
        let tags = checked.then(|| self.unsealed_tags());
        let own = links.iter().all(|&link| {
            let tag = link >> TAG_SHIFT << TAG_SHIFT;
            link & node::ADDRESS != 0
                && link & node::READ_ONLY == 0
                && tags.is_none_or(|(now, before)| tag != now && tag != before)
        });
        let vba = meta.key.index() * LINKS as u64 + u64::from(first);
        own && !self.being_read(id, vba, u64::from(count))
    }

    /// Tags of links whose records a replay would still check: set since the last freeze, and since
    /// the one before while its checkpoint has not committed.
    fn unsealed_tags(&self) -> (u64, u64) {
        let freezes = self.checkpoint.freezes;
        let now = freeze_tag(freezes);
        let before = if self.checkpoint.uncommitted() { freeze_tag(freezes - 1) } else { now };
        (now, before)
    }

    fn admit_in_place(&mut self, index: u32) -> Admit {
        let op = &mut self.slots[index];
        if op.partial {
            let kept = self.page_reserve + SYSTEM_READS;
            let Some(page) = self.pages.take_above(kept) else { return Admit::Park };
            op.page = Some(page);
        }
        let links = &self.cache.links[op.leaf as usize];
        let links = &links[op.first as usize..(op.first + op.count) as usize];
        let mut runs = 0;
        let mut covered = 0;
        for link in links {
            let pba = link & node::ADDRESS;
            let last = op.runs[..runs].last();
            if last.is_some_and(|run| run.pba + u64::from(run.blocks) == pba) {
                op.runs[runs - 1].blocks += 1;
            } else if runs < RUNS_MAX {
                op.runs[runs] = Run { pba, blocks: 1, crc: 0 };
                runs += 1;
            } else {
                break;
            }
            covered += 1;
        }
        op.run_count = runs as u8;
        cut_part(op, covered);
        Admit::Go
    }

    #[inline(always)]
    pub(crate) fn admit_redirect(&mut self, index: u32) -> Admit {
        let room = self.journal_has_room() && self.checkpoint_has_room();
        if !room || !self.cache.promise(self.cache_reserve()) {
            if self.starved.waits() {
                return Admit::Fail(Status::NoSpace);
            }
            self.checkpoint.urgent = true;
            return Admit::Park;
        }
        if self.slots[index].partial {
            let kept = self.page_reserve + SYSTEM_READS;
            let Some(page) = self.pages.take_above(kept) else {
                self.cache.unpromise();
                return Admit::Park;
            };
            self.slots[index].page = Some(page);
        }
        match self.allocate_runs(index) {
            Admit::Go => {
                self.journal.reserve();
                Admit::Go
            }
            refused => {
                self.cache.unpromise();
                if let Some(page) = self.slots[index].page.take() {
                    self.pages.give(page);
                }
                refused
            }
        }
    }

    #[inline(always)]
    fn allocate_runs(&mut self, index: u32) -> Admit {
        let mut want = u64::from(self.slots[index].count);
        let own = self.replaces_own(index);
        let kept = if own { self.reserve_of_overwrites() } else { self.reserve() };
        let room = self.space.free.saturating_sub(kept);
        if own {
            // In pieces if need be: each gives back what it took.
            want = want.min(room.max(1));
        }
        if room < want {
            return self.no_space(index, own);
        }
        let (mut got, mut runs) = (0, 0);
        while got < want && runs < RUNS_MAX {
            match self.space.allocate(Use::Data, want - got) {
                Grant::Run(pba, len) => {
                    self.slots[index].runs[runs] = Run { pba, blocks: len as u16, crc: 0 };
                    runs += 1;
                    got += len;
                }
                Grant::Wait | Grant::Full if got > 0 => break,
                Grant::Wait => return Admit::Park,
                Grant::Full => return self.no_space(index, own),
            }
        }
        let op = &mut self.slots[index];
        op.run_count = runs as u8;
        cut_part(op, got as u16);
        Admit::Go
    }

    /// True if the part's blocks are surely the live disk's alone: writing them elsewhere frees as
    /// many as it takes, so that it must work on a full store too.
    #[inline(always)]
    fn replaces_own(&self, index: u32) -> bool {
        let op = &self.slots[index];
        let meta = &self.cache.meta[op.leaf as usize];
        let disk = self.disks[op.disk as usize].as_ref().expect("attached");
        let alone = disk.snaps.is_empty() && disk.origin.is_none();
        let unshared = meta.birth > disk.newest.max(disk.guarded);
        let links = &self.cache.links[op.leaf as usize];
        let links = &links[op.first as usize..(op.first + op.count) as usize];
        links.iter().all(|&link| {
            let own = alone || (unshared && link & node::READ_ONLY == 0);
            link & node::ADDRESS != 0 && own
        })
    }

    /// Waits for space that is on its way, or says that there is none.
    pub(crate) fn no_space(&mut self, index: u32, own: bool) -> Admit {
        let over = self.checkpoint.over;
        let waited = self.slots[index].parked_at;
        let patient = waited == 0 || over < waited + 3 || self.reaping() || own;
        self.give_up_hold();
        if self.space_is_coming() && patient {
            if waited == 0 {
                self.slots[index].parked_at = over;
            }
            self.checkpoint.urgent = true;
            return Admit::Park;
        }
        Admit::Fail(Status::NoSpace)
    }

    /// Partial write: fetch the old block. False: waiting for the read.
    fn rmw_read(&mut self, index: u32) -> bool {
        let op = &self.slots[index];
        let page = op.page.expect("a partial write has a page");
        let link = self.cache.links[op.leaf as usize][op.first as usize] & node::ADDRESS;
        self.slots[index].stage = Stage::RmwRead;
        if link == node::LOST {
            self.slots[index].status = Status::Corrupt;
            return true;
        }
        if link == 0 {
            if !planted(Canary::OldBytes) {
                self.pages.bytes_mut(page).fill(0);
            }
            return true;
        }
        let addr = self.pages.addr(page);
        let op = &mut self.slots[index];
        op.outstanding = 1;
        let tag = tag(Class::Op, op.generation, index);
        self.issue(tag, BaseOp::Read, link, addr, BLOCK_SIZE as u32);
        false
    }

    /// Partial write: put the new bytes over the old block and write it.
    fn rmw_merge(&mut self, index: u32) -> bool {
        if self.slots[index].status != Status::Ok {
            return self.data_done(index);
        }
        let op = &self.slots[index];
        let (at, inner, len) = (op.done as usize, op.inner as usize, op.part_bytes as usize);
        let page = op.page.expect("a partial write has a page");
        let zeroes = op.kind != Kind::Write;
        let target = &mut self.pages.bytes_mut(page)[inner..inner + len];
        if zeroes {
            target.fill(0);
        } else {
            copy_in(self.slots.segs(index), at, target);
        }
        self.issue_runs(index)
    }

    /// Starts the data writes of the part. False: waiting for them.
    fn issue_runs(&mut self, index: u32) -> bool {
        let op = &self.slots[index];
        let checked = self.traits.volatile_cache && !op.in_place;
        let (count, partial) = (op.run_count as usize, op.partial);
        let mut at = op.done as usize;
        self.slots[index].stage = Stage::Data;
        for i in 0..count {
            let run = self.slots[index].runs[i];
            let len = usize::from(run.blocks) * BLOCK_SIZE;
            if partial {
                let page = self.slots[index].page.expect("a partial write has a page");
                let (addr, op) = (self.pages.addr(page), &self.slots[index]);
                let tag = tag(Class::Op, op.generation, index);
                self.issue(tag, BaseOp::Write, run.pba, addr, len as u32);
                if checked {
                    self.slots[index].runs[i].crc = crate::crc32c::crc32c(self.pages.bytes(page));
                }
            } else {
                if checked {
                    self.slots[index].runs[i].crc = crc_of(self.slots.segs(index), at, len);
                }
                self.issue_data(index, BaseOp::Write, run.pba * 4096, at, len);
            }
            at += len;
            self.slots[index].outstanding += 1;
        }
        false
    }

    /// The data is written. True: the operation goes on with its next part.
    fn data_done(&mut self, index: u32) -> bool {
        if let Some(page) = self.slots[index].page.take() {
            self.pages.give(page);
            self.unpark = true;
        }
        let op = &self.slots[index];
        let (status, in_place) = (op.status, op.in_place);
        let status = if planted(Canary::WriteErrorIgnored) { Status::Ok } else { status };
        if in_place {
            self.in_place_done(index);
            return self.part_done(index, status);
        }
        if status != Status::Ok || self.failed.is_some() {
            let failed = if status == Status::Ok { Status::IoError } else { status };
            self.undo_redirect(index);
            return self.part_done(index, failed);
        }
        self.log_write(index);
        false
    }

    /// Puts the part's new blocks into the journal.
    #[inline(always)]
    pub(crate) fn log_write(&mut self, index: u32) {
        let op = &mut self.slots[index];
        op.stage = Stage::Journal;
        let (disk, count) = (op.disk, usize::from(op.run_count));
        let mut vba = op.leaf_index * LINKS as u64 + u64::from(op.first);
        let mut record = move |Run { pba, blocks: len, crc }| {
            let record = Record::Write { disk, vba, pba, len, crc };
            vba += u64::from(len);
            record
        };
        if count == 1 {
            // Nearly always: the others need not be looked at.
            let run = op.runs[0];
            self.journal_append(index, 1, |_| record(run));
        } else {
            let runs = op.runs;
            self.journal_append(index, count, |at| record(runs[at]));
        }
    }

    /// A redirect that came to nothing gives everything back.
    fn undo_redirect(&mut self, index: u32) {
        for i in 0..self.slots[index].run_count as usize {
            let run = self.slots[index].runs[i];
            self.space.release(run.pba, u64::from(run.blocks));
        }
        self.cache.unpromise();
        self.journal.unreserve();
        self.unpark = true;
    }

    /// Snapshots taken while this in-place write was in flight settle when the last one is done.
    fn in_place_done(&mut self, index: u32) {
        let op = &self.slots[index];
        self.in_place_over(op.disk, op.epoch);
    }

    /// The same, for one admitted in `epoch` of its disk.
    pub(crate) fn in_place_over(&mut self, disk: u32, epoch: u64) {
        let disk = self.disks[disk as usize].as_mut().expect("attached");
        disk.in_place -= 1;
        if epoch != disk.epoch {
            for snap in disk.snaps.iter_mut().rev().take_while(|s| s.id >= epoch) {
                snap.drain -= 1;
            }
            self.checkpoint.settled = true;
        }
    }

    /// The part's journal block is written: the map takes the new blocks over.
    #[inline(always)]
    pub(crate) fn apply_write(&mut self, index: u32) {
        let op = &self.slots[index];
        let (slot, disk, count) = (op.leaf, op.disk, op.run_count as usize);
        let mut vba = op.leaf_index * LINKS as u64 + u64::from(op.first);
        self.cache.unpromise();
        for i in 0..count {
            let run = self.slots[index].runs[i];
            self.apply(slot, disk, vba, Some(run.pba), u64::from(run.blocks));
            vba += u64::from(run.blocks);
        }
        if self.part_done(index, Status::Ok) {
            self.ready.push_back(index);
        }
    }

    /// A journal block failed: the part's outcome is unknown, so its blocks stay taken until the
    /// store is reopened.
    pub(crate) fn journal_part_failed(&mut self, index: u32) {
        self.cache.unpromise();
        self.part_done(index, Status::IoError);
    }

    /// Ends a part. True: the operation goes on with the next one.
    #[inline(always)]
    pub(crate) fn part_done(&mut self, index: u32, status: Status) -> bool {
        self.release_leaf(index);
        if status != Status::Ok {
            self.finish(index, status);
            return false;
        }
        self.part_over(index)
    }

    /// On to the next part. True: there is one.
    #[inline(always)]
    fn part_over(&mut self, index: u32) -> bool {
        let op = &mut self.slots[index];
        op.done += u64::from(op.part_bytes);
        op.parked_at = 0;
        op.stage = Stage::Locate;
        op.partial = false;
        if op.done < op.len {
            return true;
        }
        if op.fua && !planted(Canary::FuaForgotten) {
            self.start_flush(index);
        } else {
            self.finish(index, Status::Ok);
        }
        false
    }
}

/// Shortens the part to its first `blocks` blocks; the rest is the next part.
fn cut_part(op: &mut crate::slots::Op, blocks: u16) {
    if blocks < op.count {
        op.count = blocks;
        op.part_bytes = u32::from(blocks) << 12;
    }
}
