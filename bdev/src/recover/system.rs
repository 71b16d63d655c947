//! Reading the pairs: catalogue, disk records, snapshot logs; and who descends from whom.
//!
//! Each pair must be of the generation that was committed: the superblock's sums say so for the
//! catalogue and the records, a disk's record for its log. An older copy is as good as none.

use super::{LANE_BLOCKS, Recovery, Stage};
use crate::canary::{Canary, planted};
use crate::disk::{Disk, LogBlock, Root, Snap};
use crate::engine::Engine;
use crate::error::Error;
use crate::format::disk_record::{self, REAP_LIVE, REAP_NONE, State as RecordState};
use crate::format::extent::CATALOGUE_ENTRIES;
use crate::format::pairs::{Amiss, Verdict};
use crate::format::snapshot_log;
use crate::format::{Damage, Header, Kind, Side, pick_side, proof_of_later, unseal};
use crate::journal_scan::Scan;
impl Engine {
    /// Opens both copies of the pair whose first copy is at place `at` of lane 0.
    fn pair(
        &self,
        recovery: &Recovery,
        at: usize,
        kind: Kind,
        address: u64,
    ) -> Result<(Side, Header), Damage> {
        pick_side(self.copies(recovery, at, kind, address), self.superblock.generation)
    }

    fn copies(
        &self,
        recovery: &Recovery,
        at: usize,
        kind: Kind,
        address: u64,
    ) -> [Result<Header, Damage>; 2] {
        [0, 1].map(|side| {
            let block = recovery.block(0, at + side);
            unseal(block, kind, self.store, self.shard, address + side as u64)
        })
    }

    /// The same for a pair in the system area, which is number `index` there: notes its generation,
    /// and whether it is from later than the superblock.
    fn system_pair(
        &mut self,
        recovery: &mut Recovery,
        at: usize,
        kind: Kind,
        index: usize,
    ) -> Result<(Side, Header), Damage> {
        let address = self.superblock.geometry.pair_block(index);
        let copies = self.copies(recovery, at, kind, address);
        if let Some(later) = proof_of_later(&copies, self.superblock.generation) {
            let text = format!("blocks {address} and {} are of point {later}", address + 1);
            recovery.newer.get_or_insert(text);
        }
        let first = self.superblock.geometry.catalogue_pairs * u64::from(kind == Kind::DiskRecord);
        let found = pick_side(copies, self.superblock.generation).and_then(|(side, h)| {
            match h.index + first == index as u64 {
                true => Ok((side, h)),
                false => Err(Damage::Identity),
            }
        });
        assert_eq!(self.checkpoint.generations.len(), index);
        self.checkpoint.generations.push(found.map_or(0, |(_, h)| h.generation));
        found
    }

    pub(super) fn recover_catalogue(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let g = self.superblock.geometry;
        if recovery.cursor == g.catalogue_pairs {
            recovery.enter(Stage::Records);
            return Ok(true);
        }
        let count = (g.catalogue_pairs - recovery.cursor).min(LANE_BLOCKS as u64 / 2);
        let start = g.catalogue + 2 * recovery.cursor;
        if !self.have(recovery, start, 2 * count as usize) {
            return Ok(false);
        }
        for i in 0..count as usize {
            let pair = recovery.cursor as usize + i;
            let found = self.system_pair(recovery, 2 * i, Kind::Catalogue, pair);
            let adopted = found.and_then(|(side, _)| {
                let block = recovery.block(0, 2 * i + side.current);
                self.space.adopt_catalogue(pair, block, side.current, side.stale_other)
            });
            if let Err(damage) = adopted {
                self.lose_catalogue(pair, &damage.to_string());
            }
        }
        recovery.cursor += count;
        Ok(true)
    }

    fn lose_catalogue(&mut self, pair: usize, why: &str) {
        self.space.seal_catalogue(pair);
        let first = pair * CATALOGUE_ENTRIES;
        let block = self.superblock.geometry.pair_block(pair);
        let text = format!(
            "the catalogue of extents {first} and up (block {block}) is damaged ({why}); their free blocks are not used"
        );
        self.event(true, text);
    }

    /// All catalogue blocks and records are read: are they what was committed?
    fn judge_pairs(&mut self, recovery: &mut Recovery) -> Result<(), Error> {
        if let Some(proof) = recovery.newer.take() {
            return Err(self.superblock_lost(&proof));
        }
        let (sums, generations) = (&self.superblock.sums, &self.checkpoint.generations);
        if planted(Canary::PairOld) {
            return Ok(());
        }
        for amiss in sums.amiss(generations, self.superblock.generation) {
            // Were it written, the sums would have to follow from what was committed.
            self.checkpoint.generations[amiss.index] = amiss.due.unwrap_or(amiss.found);
            if amiss.found > 0 {
                self.lose_pair(amiss);
            }
        }
        Ok(())
    }

    fn lose_pair(&mut self, amiss: Amiss) {
        let g = self.superblock.geometry;
        let pair = amiss.index as u64;
        let why = amiss.text(g.pair_block(amiss.index));
        match pair.checked_sub(g.catalogue_pairs) {
            None => self.lose_catalogue(amiss.index, &why),
            Some(slot) => {
                self.free_records.retain(|(free, _)| u64::from(*free) != slot);
                self.scrub.retain(|free| u64::from(*free) != slot);
                if !self.lost.contains(&(slot as u32)) {
                    self.lose_disk(slot as u32, &why);
                }
            }
        }
    }

    pub(super) fn recover_records(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let used = self.superblock.records_used;
        if recovery.cursor == used {
            self.judge_pairs(recovery)?;
            recovery.enter(Stage::Logs);
            return Ok(true);
        }
        let count = (used - recovery.cursor).min(LANE_BLOCKS as u64 / 2);
        let start = self.superblock.geometry.records + 2 * recovery.cursor;
        if !self.have(recovery, start, 2 * count as usize) {
            return Ok(false);
        }
        for i in 0..count as usize {
            let slot = recovery.cursor as usize + i;
            let index = self.superblock.geometry.record_pair(slot as u64);
            let found = self.system_pair(recovery, 2 * i, Kind::DiskRecord, index);
            let disk = found.and_then(|(side, _)| {
                let record = disk_record::read(recovery.block(0, 2 * i + side.current))?;
                if record.state == RecordState::Free {
                    self.free_records.push((slot as u32, side.current));
                    if side.stale_other {
                        self.scrub.push(slot as u32);
                    }
                }
                self.disk_from(record, side)
            });
            match disk {
                Ok(disk) => self.disks.push(disk),
                Err(damage) => {
                    self.disks.push(None);
                    self.lose_disk(slot as u32, &format!("its record is damaged: {damage}"));
                }
            }
        }
        recovery.cursor += count;
        Ok(true)
    }

    fn disk_from(
        &self,
        record: disk_record::DiskRecord,
        side: Side,
    ) -> Result<Option<Box<Disk>>, Damage> {
        let linkable = |block| block == 0 || self.space.geometry.linkable(block);
        let pair = |block| linkable(block) && linkable(block + 1);
        if record.state == RecordState::Free {
            return Ok(None);
        }
        let dated = record.root == 0 || record.root_generation <= self.superblock.generation;
        if !linkable(record.root) || !dated || (record.log_head != 0 && !pair(record.log_head)) {
            return Err(Damage::Content);
        }
        let mut disk = Box::new(Disk::new(record.name, record.uuid, record.size, record.created));
        let (address, level) = (record.root, record.root_level);
        disk.root = Root { address, level, generation: record.root_generation };
        disk.epoch = record.epoch;
        disk.mapped = record.mapped;
        disk.origin = record.origin;
        disk.adopted = record.adopted;
        disk.born = record.born;
        disk.deleting = record.state == RecordState::Deleting;
        disk.reaping = record.reaping;
        disk.reap_cursor = record.reap_cursor;
        disk.log_sums = record.log_sums;
        disk.sealed = record.sealed;
        disk.blob = record.blob;
        disk.side = side.current;
        disk.fresh = false;
        disk.dirty = side.stale_other;
        // Filled in from the log, newest block first.
        disk.log = Vec::new();
        if record.log_head != 0 {
            let count = usize::try_from(record.log_blocks).map_err(|_| Damage::Content)?;
            if count == 0 || count > 1 << 24 {
                return Err(Damage::Content);
            }
            let unread = LogBlock { dirty: false, fresh: false, ..LogBlock::fresh(0) };
            disk.log = vec![unread; count];
            disk.log[count - 1].address = record.log_head;
        }
        Ok(Some(disk))
    }

    /// A disk that cannot be served; its slot stays taken so that nothing overwrites it.
    fn lose_disk(&mut self, slot: u32, why: &str) {
        let name = self.disks[slot as usize].take().map(|d| d.name.to_string());
        let name = name.unwrap_or_else(|| format!("in record slot {slot}"));
        let block = self.superblock.geometry.records + 2 * u64::from(slot);
        let text = format!("disk {name} (record at block {block}) is not available: {why}");
        self.event(true, text);
        self.lost.push(slot);
    }

    pub(super) fn recover_logs(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let slot = recovery.cursor as usize;
        if slot == self.disks.len() {
            self.link_clones();
            self.tell_sealed();
            recovery.scan = Scan::new(&self.superblock);
            recovery.enter(Stage::Journal);
            return Ok(true);
        }
        let next = self.disks[slot].as_ref().and_then(|d| {
            let at = d.log.iter().rposition(|b| b.used == 0 && !b.fresh)?;
            Some((at, d.log[at].address))
        });
        let Some((number, address)) = next else {
            self.judge_log(slot);
            if let Some(disk) = self.disks[slot].as_mut() {
                disk.log.iter_mut().for_each(|b| {
                    b.fresh = false;
                    b.used &= !(1 << 31);
                });
                disk.snaps.sort_unstable_by_key(|s| s.id);
                disk.refresh_newest();
            }
            recovery.cursor += 1;
            return Ok(true);
        };
        if !self.have(recovery, address, 2) {
            return Ok(false);
        }
        if let Err(damage) = self.adopt_log(recovery, slot, number, address) {
            let why = format!("its snapshot log is damaged: block {address}: {damage}");
            self.lose_disk(slot as u32, &why);
            recovery.cursor += 1;
        }
        Ok(true)
    }

    fn adopt_log(
        &mut self,
        recovery: &Recovery,
        slot: usize,
        number: usize,
        address: u64,
    ) -> Result<(), Damage> {
        let (side, header) = self.pair(recovery, 0, Kind::SnapshotLog, address)?;
        if header.owner != slot as u32 || header.index != number as u64 {
            return Err(Damage::Identity);
        }
        let (entries, previous) = snapshot_log::read(recovery.block(0, side.current))?;
        let geometry = self.space.geometry;
        let disk = self.disks[slot].as_mut().expect("its log is being read");
        let linkable = geometry.linkable(previous) && geometry.linkable(previous + 1);
        if (number > 0) != linkable {
            return Err(Damage::Content);
        }
        // The highest bit says "read" until all blocks are: an empty block looks unread otherwise.
        let mut used = 1u32 << 31;
        for (i, entry) in entries.iter().enumerate() {
            let Some(e) = entry else { continue };
            let dated = e.root_generation <= self.superblock.generation;
            let root = e.root == 0 || geometry.linkable(e.root) && dated;
            let lawful = e.snap < disk.epoch && root;
            if !lawful || disk.snaps.iter().any(|s| s.id == e.snap) {
                return Err(Damage::Content);
            }
            used |= 1 << i;
            let (address, level) = (e.root, e.root_level);
            disk.snaps.push(Snap {
                id: e.snap,
                uuid: e.uuid,
                label: e.label,
                time: e.time,
                size: e.size,
                mapped: e.mapped,
                root: Some(Root { address, level, generation: e.root_generation }),
                written: true,
                drain: 0,
                dying: e.dying,
                ghost: e.ghost,
                holed: e.holed,
                attached: 0,
                clones: 0,
                place: Some((number as u32, i as u8)),
            });
        }
        let block = &mut disk.log[number];
        (block.side, block.used, block.dirty) = (side.current, used, side.stale_other);
        block.generation = header.generation;
        if number > 0 {
            disk.log[number - 1].address = previous;
        }
        Ok(())
    }

    /// A disk's log is read: is it what its record says?
    fn judge_log(&mut self, slot: usize) {
        let Some(disk) = self.disks[slot].as_ref() else { return };
        let found: Vec<(usize, u64)> =
            disk.log.iter().enumerate().map(|(number, b)| (number, b.generation)).collect();
        let block = |number: usize| disk.log[number].address;
        let why = match disk.log_sums.judge(&found, self.superblock.generation) {
            Verdict::Committed => return,
            Verdict::One { index, due } => {
                Amiss { index, found: found[index].1, due: Some(due) }.text(block(index))
            }
            Verdict::Unclear => {
                let head = found.len().saturating_sub(1);
                let at = disk.log.last().map_or(0, |b| b.address);
                Amiss { index: head, found: found.last().map_or(0, |f| f.1), due: None }.text(at)
            }
        };
        if !planted(Canary::PairOld) {
            self.lose_disk(slot as u32, &format!("its snapshot log is damaged: {why}"));
        }
    }

    /// Disks that were sealed before.
    fn tell_sealed(&mut self) {
        let refused = |d: &Disk| d.whole(None).err().filter(|_| !d.deleting);
        let texts: Vec<String> =
            self.disks.iter().flatten().filter_map(|d| refused(d)).map(|e| e.message).collect();
        texts.into_iter().for_each(|text| self.event(true, text));
    }

    /// Counts the clones of each snapshot. A clone whose origin could not be opened serves all the
    /// same: its tree is its own.
    fn link_clones(&mut self) {
        self.lose_impossible();
        for slot in 0..self.disks.len() {
            let Some((disk, snap)) = self.disks[slot].as_ref().and_then(|d| d.origin) else {
                continue;
            };
            let origin = self.disks.get_mut(disk as usize).and_then(|d| d.as_mut());
            if let Some(snap) = origin.and_then(|d| d.snap_mut(snap)) {
                snap.clones += u32::from(!planted(Canary::CloneUncounted));
                continue;
            }
            let clone = self.disks[slot].as_mut().expect("just seen");
            clone.origin_lost = true;
            clone.adopted = true;
            let text = format!(
                "disk {}: the snapshot it is a clone of is not available; deleted snapshots and disks give no space back meanwhile",
                clone.name
            );
            self.event(true, text);
            self.bereft = true;
        }
        self.bereft |= !self.lost.is_empty();
        self.count_reapable();
    }

    /// Disks that descend from themselves, or that the reaper is said to be where it cannot be.
    fn lose_impossible(&mut self) {
        let parent = |disks: &[Option<Box<Disk>>], slot: usize| {
            disks.get(slot)?.as_ref()?.origin.map(|(disk, _)| disk as usize)
        };
        let mut lost = Vec::new();
        for (slot, disk) in self.disks.iter().enumerate() {
            let Some(disk) = disk else { continue };
            // No chain is longer than there are disks.
            let mut at = parent(&self.disks, slot);
            let mut steps = 0;
            while let Some(next) = at.filter(|_| steps <= self.disks.len()) {
                at = parent(&self.disks, next);
                steps += 1;
            }
            let reaped = match disk.reaping {
                REAP_NONE => true,
                REAP_LIVE => disk.deleting,
                id => disk.snap(id).is_some_and(|s| !s.ghost && (s.dying || disk.deleting)),
            };
            if at.is_some() {
                lost.push((slot, "it descends from a clone of itself"));
            } else if !reaped {
                lost.push((slot, "its record is damaged: the version being reclaimed is unknown"));
            }
        }
        for (slot, why) in lost {
            self.lose_disk(slot as u32, why);
        }
    }
}
