//! The journal's part of recovery: reading it, and sealing the disks that what is lost was about.
//!
//! What had been promised is told from what never was in [`crate::journal_scan`]. If what stands at
//! the end is that very block, but torn or rotten, an event says so: a power cut may have torn it.
//! On a base that tears nothing it has rotted, and counts as lost.

use super::{LANE_BLOCKS, Recovery, Stage, unreadable};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind};
use crate::format::disk_record::Seal;
use crate::format::journal::Touched;

impl Engine {
    /// Reads the journal from its tail on.
    pub(super) fn recover_journal(&mut self, recovery: &mut Recovery) -> Result<bool, Error> {
        let g = self.superblock.geometry;
        let position = recovery.scan.lsn % g.journal_blocks;
        let count = (g.journal_blocks - position).min(LANE_BLOCKS as u64).min(recovery.scan.left());
        if count == 0 {
            self.settle_journal(recovery)?;
            return Ok(true);
        }
        if !self.have(recovery, g.journal + position, count as usize) {
            return Ok(false);
        }
        for i in 0..count as usize {
            let page = recovery.buffer.bytes(Recovery::page(0, i));
            let address = g.journal + position + i as u64;
            let gone = recovery.lanes[0].gone >> i & 1 == 1;
            if gone && !recovery.scan.past_end() {
                return Err(unreadable(address));
            }
            // Past the end nothing more is replayed, it is only looked for what may be missing.
            let block = Some(page).filter(|_| !gone);
            recovery.scan.take(block, address, &self.superblock, self.store, self.shard);
        }
        Ok(true)
    }

    /// All is read that there is.
    fn settle_journal(&mut self, recovery: &mut Recovery) -> Result<(), Error> {
        if let Some(proof) = recovery.scan.newer.take() {
            return Err(self.superblock_lost(&proof));
        }
        let mut scan = std::mem::take(&mut recovery.scan);
        (recovery.records, recovery.lsn) = scan.replay();
        if let Some(touched) = scan.rotten_at(recovery.lsn) {
            let lsn = recovery.lsn;
            // RAM may be torn too: by the death of the process in the middle of a copy.
            if self.traits.atomic_4k && !self.traits.atomic_rw {
                recovery.records.push_lost(lsn, touched);
            } else {
                let text = format!(
                    "journal block {lsn} (block {}), the last one, is torn or rotten: writes that it held are lost, which no later block says were durable",
                    self.journal_address(lsn)
                );
                self.event(false, text);
            }
        }
        recovery.enter(Stage::Verify);
        Ok(())
    }

    /// The superblock is from an earlier consistency point than what it should describe.
    pub(super) fn superblock_lost(&self, proof: &str) -> Error {
        let text = format!(
            "shard {}: the superblocks (blocks 0 and 1) are older than what has been committed: they say consistency point {}, but {proof}; `lamina check --repair --cut-off` goes back to that point",
            self.shard, self.superblock.generation
        );
        Error::new(ErrorKind::Corrupt, text)
    }

    pub(super) fn journal_address(&self, lsn: u64) -> u64 {
        let g = &self.superblock.geometry;
        g.journal + lsn % g.journal_blocks
    }

    /// A journal block is lost: the disks it was about are not used until the loss is accepted.
    pub(super) fn seal_disks(&mut self, lsn: u64, touched: Touched) {
        let mut names = Vec::new();
        for (slot, disk) in self.disks.iter_mut().enumerate() {
            let Some(disk) = disk.as_mut().filter(|d| !d.deleting) else { continue };
            if touched.has(slot as u32) {
                disk.sealed.get_or_insert(Seal { lsn, epoch: disk.epoch });
                disk.dirty = true;
                names.push(disk.name.to_string());
            }
        }
        let sealed = match names.len() {
            0 => "no disk is concerned".to_string(),
            _ => format!("sealed: {}", names.join(", ")),
        };
        let text = format!(
            "journal block {lsn} (block {}) is damaged or missing, but had been durable: acknowledged writes are lost; {sealed}",
            self.journal_address(lsn)
        );
        self.event(true, text);
    }
}
