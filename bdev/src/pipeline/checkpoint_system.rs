//! The later phases of a consistency point: snapshot logs, bitmaps, catalogue and
//! disk records; and the reading of bitmaps, which allocation needs too.

use super::checkpoint::Step;
use crate::base_io::BaseOp;
use crate::canary::{Canary, planted};
use crate::disk::{Disk, LogBlock};
use crate::engine::{Class, Engine, tag};
use crate::format::disk_record::{self, DiskRecord};
use crate::format::snapshot_log::{self, ENTRIES, LogEntry, Place};
use crate::limits::{BITMAP_RETRIES, CHECKPOINT_BITS_STEP};
use crate::page::PageId;
use crate::space::sealed_text;
use crate::status::BaseError;

impl Engine {
    /// Gives new snapshots a place in their disk's log and writes the blocks that changed.
    pub(crate) fn log_step(&mut self) -> Step {
        let at = self.checkpoint.cursor;
        if at >= self.disks.len() {
            return Step::Done;
        }
        let Some(mut disk) = self.disks[at].take() else {
            self.checkpoint.cursor += 1;
            return Step::Go;
        };
        let step = self.log_of(at as u32, &mut disk);
        self.disks[at] = Some(disk);
        if step == Step::Done {
            self.checkpoint.cursor += 1;
            return Step::Go;
        }
        step
    }

    fn log_of(&mut self, id: u32, disk: &mut Disk) -> Step {
        let epoch = disk.frozen_epoch;
        // Snapshots come in order, so those without a place are the last ones.
        let placed = disk.snaps.partition_point(|s| s.place.is_some());
        for i in placed..disk.snaps.len() {
            if disk.snaps[i].id >= epoch {
                break;
            }
            let block = match disk.log.iter().position(|b| b.used.count_ones() < ENTRIES as u32) {
                Some(block) => block,
                None => match self.take_pair() {
                    Some(address) => {
                        disk.log.push(LogBlock::fresh(address));
                        disk.dirty = true;
                        disk.log.len() - 1
                    }
                    None => return Step::Wait,
                },
            };
            let entry = (!disk.log[block].used).trailing_zeros() as u8;
            disk.log[block].used |= 1 << entry;
            disk.log[block].dirty = true;
            disk.snaps[i].place = Some((block as u32, entry));
        }
        for number in 0..disk.log.len() {
            if disk.log[number].dirty && !self.write_log_block(id, disk, number) {
                return Step::Wait;
            }
        }
        Step::Done
    }

    fn write_log_block(&mut self, id: u32, disk: &mut Disk, number: usize) -> bool {
        let mut entries = [None; ENTRIES];
        for snap in &disk.snaps {
            let Some((block, entry)) = snap.place else { break };
            if block as usize != number {
                continue;
            }
            let root = snap.root.expect("a snapshot with a place has a tree");
            entries[entry as usize] = Some(LogEntry {
                snap: snap.id,
                uuid: snap.uuid,
                label: snap.label,
                time: snap.time,
                root: root.address,
                root_level: root.level,
                root_generation: root.generation,
                size: snap.size,
                mapped: snap.mapped,
                dying: snap.dying,
                ghost: snap.ghost,
                holed: snap.holed,
            });
        }
        let previous = if number == 0 { 0 } else { disk.log[number - 1].address };
        let generation = self.superblock.generation + 1;
        let (store, shard) = (self.store, self.shard);
        let block = &mut disk.log[number];
        loop {
            let side = 1 - block.side;
            let address = block.address + side as u64;
            let place = Place { disk: id, number: number as u64, address, previous, generation };
            if !self.write_page(address, |b| snapshot_log::write(b, &entries, &place, store, shard))
            {
                return false;
            }
            block.side = side;
            disk.log_sums.change(number, block.generation, generation);
            block.generation = generation;
            // The record says which generation of the log counts.
            disk.dirty = true;
            if !std::mem::take(&mut block.fresh) {
                break;
            }
        }
        block.dirty = false;
        true
    }

    /// Enters what was allocated and freed before the freeze into the bitmaps.
    pub(crate) fn bits_step(&mut self) -> Step {
        let allocated = self.checkpoint.old_allocated.len();
        let mut left = CHECKPOINT_BITS_STEP;
        while left > 0 {
            let at = self.checkpoint.cursor;
            let used = at < allocated;
            let run = if used {
                self.checkpoint.old_allocated.get(at)
            } else {
                self.checkpoint.old_freed.get(at - allocated)
            };
            let Some(run) = run else { return Step::Done };
            let (pba, len) = self.checkpoint.piece(run, left);
            let Some(marked) = self.space.mark(pba, len, used) else { return Step::Wait };
            if let Some((extent, block)) = self.space.lie.take() {
                let text = format!(
                    "the bitmap of extent {extent} had block {block} as free, which was in use: nothing is given out of that extent until `lamina check --repair`"
                );
                self.event(true, text);
            }
            self.checkpoint.advance(run, marked);
            left -= marked;
        }
        Step::Go
    }

    /// Overwrites what was taken for lost and must not come back (`space/rebuild`).
    pub(crate) fn bury_step(&mut self) -> Step {
        while let Some(&at) = self.space.buried.last() {
            if !self.write_page(at, |block| block.fill(0)) {
                return Step::Wait;
            }
            self.space.buried.pop();
        }
        Step::Done
    }

    pub(crate) fn bitmaps_step(&mut self) -> Step {
        let Some(&extent) = self.space.dirty.last() else { return Step::Done };
        let (store, shard) = (self.store, self.shard);
        let generation = self.superblock.generation + 1;
        let mut block = [0; 4096];
        if self.checkpoint.writes.iter().all(|w| w.is_some()) {
            return Step::Wait;
        }
        let address = self.space.write_bitmap(extent, &mut block, store, shard, generation);
        assert!(self.write_page(address, |b| b.copy_from_slice(&block)), "a writer was free");
        Step::Go
    }

    pub(crate) fn catalogue_step(&mut self) -> Step {
        let Some(pair) = self.space.dirty_catalogue() else { return Step::Done };
        if self.checkpoint.writes.iter().all(|w| w.is_some()) {
            return Step::Wait;
        }
        let (store, shard) = (self.store, self.shard);
        let generation = self.superblock.generation + 1;
        let mut block = [0; 4096];
        let address = self.space.write_catalogue(pair, &mut block, store, shard, generation);
        assert!(self.write_page(address, |b| b.copy_from_slice(&block)), "a writer was free");
        self.pair_written(self.superblock.geometry.catalogue_pair(pair as u64), generation);
        Step::Go
    }

    /// The next superblock commits this generation of a pair.
    fn pair_written(&mut self, index: usize, generation: u64) {
        let all = &mut self.checkpoint.generations;
        if index >= all.len() {
            all.resize(index + 1, 0);
        }
        let before = std::mem::replace(&mut all[index], generation);
        self.superblock.sums.change(index, before, generation);
    }

    pub(crate) fn records_step(&mut self) -> Step {
        loop {
            let at = self.checkpoint.cursor;
            if at >= self.disks.len() {
                return self.scrub_step();
            }
            let due = self.disks[at].as_ref().is_some_and(|d| d.dirty);
            if due && !self.write_record(at as u32) {
                return Step::Wait;
            }
            self.checkpoint.cursor += 1;
            if due {
                return Step::Go;
            }
        }
    }

    /// Overwrites, in free record slots, what a checkpoint that never committed left behind.
    fn scrub_step(&mut self) -> Step {
        let Some(&slot) = self.scrub.last() else { return Step::Done };
        // The copy that counts must stay as it is until this checkpoint has committed.
        let free = self.free_records.iter_mut().find(|(s, _)| *s == slot).expect("listed with it");
        let side = 1 - free.1;
        let record = DiskRecord::free();
        let address = self.superblock.geometry.records + 2 * u64::from(slot) + side as u64;
        let (store, shard) = (self.store, self.shard);
        let generation = self.superblock.generation + 1;
        let wrote = self.write_page(address, |b| {
            disk_record::write(b, &record, slot, store, shard, address, generation);
        });
        if !wrote {
            return Step::Wait;
        }
        let free = self.free_records.iter_mut().find(|(s, _)| *s == slot).expect("listed with it");
        free.1 = side;
        self.scrub.pop();
        self.pair_written(self.superblock.geometry.record_pair(u64::from(slot)), generation);
        Step::Go
    }

    fn write_record(&mut self, slot: u32) -> bool {
        let gone = self.checkpoint.gone.contains(&slot);
        let disk = self.disks[slot as usize].as_ref().expect("checked");
        let state = match (gone, disk.deleting) {
            (true, _) => disk_record::State::Free,
            (false, true) => disk_record::State::Deleting,
            (false, false) => disk_record::State::Live,
        };
        let record = DiskRecord {
            state,
            name: disk.name,
            uuid: disk.uuid,
            size: disk.record_size,
            root: disk.root.address,
            root_level: disk.root.level,
            root_generation: disk.root.generation,
            epoch: disk.frozen_epoch,
            mapped: disk.frozen_mapped,
            created: disk.created,
            origin: disk.origin,
            adopted: disk.adopted,
            born: disk.born,
            log_head: disk.log.last().map_or(0, |b| b.address),
            log_blocks: disk.log.len() as u64,
            log_sums: disk.log_sums,
            sealed: disk.sealed,
            reaping: disk.reaping,
            reap_cursor: if planted(Canary::CursorLost) { 0 } else { disk.reap_cursor },
            blob: disk.blob.clone(),
            claims: disk.claims.clone(),
        };
        let (mut side, mut fresh) = (disk.side, disk.fresh);
        let pair = self.superblock.geometry.records + 2 * u64::from(slot);
        let (store, shard) = (self.store, self.shard);
        let generation = self.superblock.generation + 1;
        loop {
            let next = 1 - side;
            let address = pair + next as u64;
            let wrote = self.write_page(address, |b| {
                disk_record::write(b, &record, slot, store, shard, address, generation);
            });
            let disk = self.disks[slot as usize].as_mut().expect("checked");
            if !wrote {
                disk.side = side;
                disk.fresh = fresh;
                return false;
            }
            side = next;
            disk.side = side;
            if !std::mem::take(&mut fresh) {
                disk.fresh = false;
                disk.dirty = false;
                let index = self.superblock.geometry.record_pair(u64::from(slot));
                self.pair_written(index, generation);
                return true;
            }
        }
    }

    /// Starts the read of a bitmap somebody waits for.
    pub(crate) fn load_wanted_bitmap(&mut self) {
        let Some(extent) = self.space.wanted else { return };
        if self.bitmap_load.is_some() {
            return;
        }
        if self.space.loaded(extent) || self.space.load_fresh(extent) {
            self.space.wanted = None;
            self.unpark = true;
            return;
        }
        self.bitmap_load = Some(extent);
        let (first, count) = self.bitmap_copies();
        let address = self.space.geometry.extent_start(extent as u64) + u64::from(first);
        let addr = self.bitmap_pages.addr(PageId(first));
        if count == 1 {
            self.bitmap_pages.bytes_mut(PageId(1 - first)).fill(0);
        }
        self.issue(tag(Class::Bitmap, 0, 0), BaseOp::Read, address, addr, count * 4096);
    }

    /// First copy of a bitmap to be read, and how many: if both cannot be had together, each alone.
    fn bitmap_copies(&self) -> (u32, u32) {
        [(0, 2), (0, 1), (1, 1)][self.bitmap_failures as usize % 3]
    }

    /// Without the device nothing can go on. One block that cannot be read costs the space that it
    /// tells of.
    pub(crate) fn give_bitmap_up(&mut self, extent: usize, gone: bool) {
        if gone {
            self.fail(format!("the bitmap of extent {extent} cannot be read: the device is gone"));
        } else {
            self.space.seal(extent);
            let text = format!(
                "the bitmap of extent {extent} cannot be read; its free blocks are not used"
            );
            self.event(true, text);
        }
    }

    pub(crate) fn bitmap_read_done(&mut self, result: Result<(), BaseError>) {
        let extent = self.bitmap_load.take().expect("a bitmap read in flight");
        self.space.wanted = None;
        let alone = self.bitmap_copies().1 == 1;
        let pages = &self.bitmap_pages;
        let copies = [pages.bytes(PageId(0)), pages.bytes(PageId(1))];
        // The wrong copy of the two says nothing.
        let told = !alone || self.space.knows(extent, copies, self.store, self.shard);
        let result = if told { result } else { result.and(Err(BaseError::Io)) };
        // A passing fault is left alone: whoever still wants the bitmap asks again. Recovery asks
        // only so often.
        if let Some(recovery) = self.recovery.as_mut().filter(|_| result.is_err()) {
            recovery.bitmap_failures = recovery.bitmap_failures.saturating_add(1);
            recovery.device_gone |= result == Err(BaseError::Gone);
        }
        self.bitmap_failures = if result.is_ok() { 0 } else { self.bitmap_failures + 1 };
        if self.bitmap_failures >= BITMAP_RETRIES {
            self.bitmap_failures = 0;
            self.give_bitmap_up(extent, result == Err(BaseError::Gone));
        }
        if result.is_ok() {
            let pages = &self.bitmap_pages;
            let copies = [pages.bytes(PageId(0)), pages.bytes(PageId(1))];
            if let Err(damage) = self.space.load(extent, copies, self.store, self.shard) {
                self.event(true, sealed_text(extent, damage));
            }
        }
        self.unpark = true;
    }
}
