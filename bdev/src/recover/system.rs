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
use crate::format::{Damage, Header, Kind, Side, next_side, pick_side, proof_of_later, unseal};
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
        if kind == Kind::Catalogue {
            let unusable = copies.map(|copy| copy.is_err());
            let next = next_side(&copies, self.superblock.generation);
            self.space.pair_read(index, unusable, next);
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
            "the catalogue of extents {first} and up (block {block}) is damaged ({why}); nothing is given out of them until it is known what is free"
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
            let mut log = (0, 0);
            let disk = found.and_then(|(side, _)| {
                let record = disk_record::read(recovery.block(0, 2 * i + side.current))?;
                if record.log_head != 0 {
                    log = (record.log_head, record.log_blocks);
                }
                if record.state == RecordState::Free {
                    self.free_records.push((slot as u32, side.current));
                    if side.stale_other {
                        self.scrub.push(slot as u32);
                    }
                }
                self.disk_from(record, side)
            });
            recovery.logs.push(log);
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
        let log = match record.log_head {
            0 => true,
            head => pair(head) && (1..1 << 24).contains(&record.log_blocks),
        };
        if !linkable(record.root) || !dated || !log {
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
        disk.claims = record.claims;
        disk.side = side.current;
        disk.fresh = false;
        disk.dirty = side.stale_other;
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
            recovery.trees = self.live_trees();
            let missing = self.space_is_missing();
            recovery.enter(if missing { Stage::Space } else { Stage::Journal });
            return Ok(true);
        }
        let (address, left) = recovery.logs[slot];
        if left == 0 || self.disks[slot].is_none() {
            self.judge_log(slot);
            recovery.cursor += 1;
            return Ok(true);
        }
        if !self.have(recovery, address, 2) {
            return Ok(false);
        }
        match self.adopt_log(recovery, slot, left - 1, address) {
            Ok(previous) => recovery.logs[slot] = (previous, left - 1),
            Err(damage) => {
                let why = format!("its snapshot log is damaged: block {address}: {damage}");
                self.lose_disk(slot as u32, &why);
            }
        }
        Ok(true)
    }

    /// Takes over the newest block of the log that has not been; says where the one before it is.
    /// They come in the order of the log only once all are there (`judge_log`).
    fn adopt_log(
        &mut self,
        recovery: &Recovery,
        slot: usize,
        number: u64,
        address: u64,
    ) -> Result<u64, Damage> {
        let (side, header) = self.pair(recovery, 0, Kind::SnapshotLog, address)?;
        if header.owner != slot as u32 || header.index != number {
            return Err(Damage::Identity);
        }
        let (entries, previous) = snapshot_log::read(recovery.block(0, side.current))?;
        let geometry = self.space.geometry;
        let disk = self.disks[slot].as_mut().expect("its log is being read");
        let linkable = geometry.linkable(previous) && geometry.linkable(previous + 1);
        if (number > 0) != linkable {
            return Err(Damage::Content);
        }
        let mut used = 0;
        for (i, entry) in entries.iter().enumerate() {
            let Some(e) = entry else { continue };
            let dated = e.root_generation <= self.superblock.generation;
            let root = e.root == 0 || geometry.linkable(e.root) && dated;
            if e.snap >= disk.epoch || !root {
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
        disk.log.push(LogBlock {
            address,
            side: side.current,
            generation: header.generation,
            used,
            dirty: side.stale_other,
            fresh: false,
        });
        Ok(previous)
    }

    /// A disk's log is read: is it what its record says?
    fn judge_log(&mut self, slot: usize) {
        let Some(disk) = self.disks[slot].as_mut() else { return };
        disk.log.reverse();
        disk.snaps.sort_unstable_by_key(|s| s.id);
        disk.refresh_newest();
        if let Some(two) = disk.snaps.windows(2).find(|two| two[0].id == two[1].id) {
            let why = format!("its snapshot log is damaged: it has two entries {}", two[0].id);
            return self.lose_disk(slot as u32, &why);
        }
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
        let origin = |slot: usize| {
            let disk = self.disks.get(slot)?.as_ref()?;
            disk.origin.map(|(origin, _)| origin as usize)
        };
        let circular = circular(self.disks.len(), origin);
        let mut lost = Vec::new();
        for (slot, disk) in self.disks.iter().enumerate() {
            let Some(disk) = disk else { continue };
            let reaped = match disk.reaping {
                REAP_NONE => true,
                REAP_LIVE => disk.deleting,
                id => disk.snap(id).is_some_and(|s| !s.ghost && (s.dying || disk.deleting)),
            };
            if circular[slot] {
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

/// Which of `count` disks come to one of themselves again if their origins are followed, or to
/// others that do. Each is looked at once, however long the chains are.
pub(crate) fn circular(count: usize, origin: impl Fn(usize) -> Option<usize>) -> Vec<bool> {
    let (mut circular, mut seen_from) = (vec![false; count], vec![usize::MAX; count]);
    for first in 0..count {
        let (mut chain, mut at) = (Vec::new(), Some(first));
        while let Some(slot) = at.filter(|&slot| slot < count && seen_from[slot] == usize::MAX) {
            seen_from[slot] = first;
            chain.push(slot);
            at = origin(slot);
        }
        let met = at.filter(|&slot| slot < count);
        let round = met.is_some_and(|slot| seen_from[slot] == first || circular[slot]);
        chain.into_iter().for_each(|slot| circular[slot] = round);
    }
    circular
}

#[cfg(test)]
mod tests {
    use super::circular;

    #[test]
    fn only_disks_that_lead_round_in_a_circle_are_circular() {
        // 1 and 2 are each other's, 3 comes from them; 5 comes from 4, 6 from one that is not
        // there.
        let origins = [None, Some(2), Some(1), Some(2), None, Some(4), Some(99), Some(7)];
        let found = circular(origins.len(), |slot| origins[slot]);
        assert_eq!(found, [false, true, true, true, false, false, false, true]);
    }

    #[test]
    fn a_chain_of_all_the_disks_there_can_be_is_followed_once() {
        let count = crate::limits::DISKS_MAX as usize;
        let steps = std::cell::Cell::new(0);
        let up = |slot: usize| {
            steps.set(steps.get() + 1);
            slot.checked_sub(1)
        };
        assert!(circular(count, up).iter().all(|round| !round));
        assert_eq!(steps.replace(0), count);
        let down = |slot: usize| {
            steps.set(steps.get() + 1);
            Some((slot + 1) % count)
        };
        assert!(circular(count, down).iter().all(|round| *round));
        assert_eq!(steps.get(), count);
    }
}
