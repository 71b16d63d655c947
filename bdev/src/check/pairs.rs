//! Are the pairs those that were committed? As recovery judges it; and what a repair makes of it.

use super::report::{FindingKind, Severity};
use super::system::{Picked, Shard, Slot};
use crate::error::Error;
use crate::format::journal::{BEFORE, Frame, Touched, finish};
use crate::format::pairs::{Amiss, GROUPS, PairSums, Verdict};
use crate::format::snapshot_log;
use crate::format::superblock::Superblock;
use crate::format::{Block, Damage, Kind, generation_of, next_side, proof_of_later, unseal};
use crate::pipeline::superblocks::spare_block;
use crate::types::BLOCK_SIZE;
use std::collections::BTreeSet;

/// What is known of the pairs of the system area.
#[derive(Default)]
pub(super) struct Pairs {
    /// By number: the generation that was committed; that found, where this is not known.
    pub generations: Vec<u64>,
    /// Groups in which it is not.
    unclear: BTreeSet<usize>,
    /// Highest consistency point and incarnation that prove the superblock to be an older one.
    pub later: Option<(u64, u64)>,
}

impl Shard<'_> {
    /// The copy that counts of pair `index` of the system area, which must be number `number` of
    /// its kind.
    pub fn pick_system(&mut self, kind: Kind, index: usize, number: u64) -> Result<Picked, Error> {
        let address = self.geometry().pair_block(index);
        let (store, shard, committed) =
            (self.store, self.number as u16, self.superblock.generation);
        if let Ok(both) = self.reader.pair(address) {
            let copies =
                [0, 1].map(|side| unseal(&both[side], kind, store, shard, address + side as u64));
            if let Some(later) = proof_of_later(&copies, committed) {
                let text = format!("blocks {address} and {} are of point {later}", address + 1);
                self.note_later(Some(&text), (0, later));
            }
        }
        let picked = match self.pick(kind, address)? {
            Picked::Copy(_, _, header) if header.index != number => {
                Picked::Damaged(Damage::Identity)
            }
            other => other,
        };
        let generation = match &picked {
            Picked::Copy(_, _, header) => header.generation,
            Picked::Damaged(_) | Picked::Unreadable(_) => 0,
        };
        self.pairs.generations.resize(index, 0);
        self.pairs.generations.push(generation);
        Ok(picked)
    }

    /// A newer copy of the superblock, where it is kept if block 0 or 1 is bad.
    pub fn spare_superblock(&mut self, newest: &Superblock) -> Option<Superblock> {
        let at = spare_block(&newest.geometry, newest.records_used)?;
        let mut block = Box::new([0; BLOCK_SIZE]);
        self.reader.read(at, &mut block[..]).ok()?;
        let found = Superblock::read(&block, self.store, self.number as u16, at).ok()?;
        (found.geometry == newest.geometry && found.generation > newest.generation).then_some(found)
    }

    /// Which copy of a pair is written, if neither can be used.
    pub fn next_side(&mut self, kind: Kind, address: u64) -> u64 {
        let Ok(both) = self.reader.pair(address) else { return 0 };
        let (store, shard) = (self.store, self.number as u16);
        let copies =
            [0, 1].map(|side| unseal(&both[side], kind, store, shard, address + side as u64));
        next_side(&copies, self.superblock.generation) as u64
    }

    /// Something shows that a later point than the superblock's has committed.
    pub fn note_later(&mut self, proof: Option<&str>, (incarnation, point): (u64, u64)) {
        let Some(proof) = proof else { return };
        let before = self.pairs.later;
        let (old_point, old_incarnation) = before.unwrap_or_default();
        self.pairs.later = Some((old_point.max(point), old_incarnation.max(incarnation)));
        if before.is_none() {
            let text = format!(
                "both superblocks (blocks 0 and 1) are older than what has been committed: they say consistency point {}, but {proof}; none of the shard's disks can be served",
                self.superblock.generation
            );
            self.find(Severity::Error, FindingKind::Superblock, Some(0), text);
        }
    }

    /// All catalogue blocks and records are read: those that are not as they were committed cannot
    /// be used.
    pub fn judge_pairs(&mut self) {
        let committed = self.superblock.generation;
        for amiss in self.superblock.sums.amiss(&self.pairs.generations, committed) {
            self.pairs.generations[amiss.index] = amiss.due.unwrap_or(amiss.found);
            if amiss.due.is_none() {
                self.pairs.unclear.insert(amiss.index % GROUPS);
            }
            if amiss.found > 0 {
                self.lose_pair(amiss);
            }
        }
    }

    fn lose_pair(&mut self, amiss: Amiss) {
        let g = self.geometry();
        let block = g.pair_block(amiss.index);
        let why = amiss.text(block);
        match (amiss.index as u64).checked_sub(g.catalogue_pairs) {
            None => {
                let listed = g.listed(amiss.index);
                self.entries[listed.clone()].fill(None);
                let text = format!(
                    "the catalogue of extents {} to {} cannot be used: {why}; their free blocks are not given out",
                    listed.start,
                    listed.end.max(listed.start + 1) - 1
                );
                self.find(Severity::Error, FindingKind::Catalogue, Some(block), text);
            }
            Some(slot) => {
                let text = format!("its record cannot be used: {why}");
                let kind = FindingKind::Record;
                self.find_on(Severity::Error, kind, slot as u32, Some(block), &text);
                self.slots[slot as usize] = Slot::Lost;
                self.blind = true;
            }
        }
    }

    /// A disk's log is read: is it what its record says? Else, what is wrong with it.
    pub fn judge_log(&mut self, slot: u32, found: &[(usize, u64)], blocks: &[u64]) {
        let Some(disk) = self.disk(slot).filter(|d| d.log_read) else { return };
        let amiss = match disk.record.log_sums.judge(found, self.superblock.generation) {
            Verdict::Committed => return,
            Verdict::One { index, due } => Amiss { index, found: 0, due: Some(due) },
            Verdict::Unclear => Amiss { index: 0, found: 0, due: None },
        };
        let at = found.iter().position(|(number, _)| *number == amiss.index);
        let block = at.map_or(0, |at| blocks[at]);
        let amiss = Amiss { found: at.map_or(0, |at| found[at].1), ..amiss };
        let text = format!("its snapshot log cannot be used: {}", amiss.text(block));
        let kind = FindingKind::SnapshotLog;
        self.find_on(Severity::Error, kind, slot, Some(block), &text);
        self.blind = true;
        // What an older copy says may be deleted, and its blocks somebody else's by now.
        let stale = at.filter(|_| amiss.due.is_some()).map(|_| self.pick(Kind::SnapshotLog, block));
        let stale = match stale {
            Some(Ok(Picked::Copy(copy, _, _))) => snapshot_log::read(&copy).ok(),
            _ => None,
        };
        if let Slot::Disk(disk) = &mut self.slots[slot as usize] {
            disk.log_read = false;
            match stale {
                Some((entries, _)) => {
                    let said = |snap| entries.iter().flatten().any(|e| e.snap == snap);
                    disk.snaps.retain(|e| !said(e.snap));
                }
                None => disk.snaps.clear(),
            }
        }
    }

    /// What the next superblock commits, once these blocks are written.
    fn sums_after(&self, writes: &[(u64, Box<Block>)]) -> PairSums {
        let g = self.geometry();
        let committed = self.superblock.generation;
        let mut after = self.pairs.generations.clone();
        let mut written = vec![false; after.len()];
        for (block, bytes) in writes {
            let Some(index) = g.pair_of(*block).filter(|&index| index < after.len()) else {
                continue;
            };
            // A copy of the one that counts changes nothing.
            let generation = generation_of(bytes);
            if generation > committed {
                (after[index], written[index]) = (generation, true);
            }
        }
        let mut sums = PairSums::default();
        for group in 0..GROUPS {
            let members = || (group..after.len()).step_by(GROUPS);
            let settled =
                !self.pairs.unclear.contains(&group) || members().all(|index| written[index]);
            // What was unclear stays so.
            let mut all = if settled { Default::default() } else { self.superblock.sums.0[group] };
            for index in members() {
                let before = if settled { 0 } else { self.pairs.generations[index] };
                all.change(index, before, after[index]);
            }
            sums.0[group] = all;
        }
        sums
    }

    /// The superblock that commits a repair which has written these blocks.
    pub fn superblock_after(&self, writes: &[(u64, Box<Block>)]) -> Superblock {
        let mut next = self.superblock;
        next.generation += 1;
        if let Some((point, incarnation)) = self.pairs.later {
            // The later points are given up; nothing of them may come alive.
            next.generation = next.generation.max(point + 1);
            next.incarnation = next.incarnation.max(incarnation) + 1;
        }
        next.sums = self.sums_after(writes);
        next
    }

    /// Journal blocks that were promised and are lost, written anew without records: what they held
    /// is given up.
    pub fn fill_holes(&self) -> Vec<(u64, Box<Block>, String)> {
        let g = self.geometry();
        let superblock = &self.superblock;
        let fill = |&lsn: &u64| {
            let address = g.journal + lsn % g.journal_blocks;
            let frame = Frame {
                lsn,
                incarnation: superblock.incarnation,
                durable: superblock.journal_tail,
                before: [Touched::ALL; BEFORE],
                promised: Touched::ALL,
                ..Frame::default()
            };
            let mut block = Box::new([0; BLOCK_SIZE]);
            finish(&mut block, &frame, self.store, self.number as u16, address);
            let text = format!("journal block {lsn}: what it held was given up");
            (address, block, text)
        };
        self.holes.iter().map(fill).collect()
    }
}
