//! What the journal of a store that was not closed names: accounted for, as its replay would.
//!
//! A record's blocks are not in the bitmaps yet, and nobody else's; they are the journal's until
//! the store is opened. A block the tree drops at replay is still the tree's.

use super::report::{FindingKind, Severity};
use super::system::{Shard, Slot};
use crate::error::Error;
use crate::format::Block;
use crate::format::disk_record::State;
use crate::format::journal::{self as frame, Frame, Record};
use crate::limits::{JOURNAL_WINDOW, LINKS};
use crate::types::BLOCK_SIZE;
use std::collections::BTreeMap;

/// Blocks that unreplayed records name, as runs (block, length), sorted.
#[derive(Default)]
pub(super) struct JournalRuns {
    runs: Vec<(u64, u64)>,
    /// Records that cannot be replayed, by disk and reason: first one's journal block and disk
    /// block, and how many.
    skipped: BTreeMap<(u32, &'static str), (u64, u64, u64)>,
}

impl JournalRuns {
    /// Sorts the runs; answers the first block that two of them have.
    fn settle(&mut self) -> Option<u64> {
        self.runs.sort_unstable();
        self.runs.windows(2).find(|w| w[0].0 + w[0].1 > w[1].0).map(|w| w[1].0)
    }

    pub fn has(&self, block: u64) -> bool {
        let after = self.runs.partition_point(|r| r.0 <= block);
        after > 0 && block < self.runs[after - 1].0 + self.runs[after - 1].1
    }
}

impl Shard<'_> {
    /// Reads the records that replay would read.
    pub fn check_journal(&mut self) -> Result<(), Error> {
        let blocks = self.geometry().journal_blocks;
        let tail = self.superblock.journal_tail;
        let mut lsn = tail;
        while lsn - tail < blocks {
            let (block, frame) = match self.journal_block(lsn)? {
                Some(found) => found,
                None => break,
            };
            let mut records = Vec::new();
            if frame::records(&block, frame.count, |record| records.push(record)).is_err() {
                let at = self.journal_address(lsn);
                let text = format!("journal block {lsn} (block {at}) holds an impossible record");
                self.find(Severity::Error, FindingKind::Journal, Some(at), text);
                break;
            }
            for record in &records {
                self.report.counts.journal_records += 1;
                self.account(lsn, record);
            }
            lsn += 1;
        }
        for ((disk, why), (lsn, vba, count)) in std::mem::take(&mut self.journal.skipped) {
            let at = self.journal_address(lsn);
            // A disk that a repair gave up: replay passes them over.
            let given_up = matches!(self.slots.get(disk as usize), Some(Slot::Free));
            let severity = if given_up { Severity::Note } else { Severity::Error };
            let text = format!(
                "{count} journal records, the first in journal block {lsn} (block {at}) for disk block {vba}, cannot be replayed: {why}"
            );
            self.find_on(severity, FindingKind::Journal, disk, Some(at), &text);
        }
        if let Some(block) = self.journal.settle() {
            let text = format!("two journal records name block {block}");
            self.find(Severity::Error, FindingKind::Journal, Some(block), text);
        }
        self.find_gap(lsn)
    }

    fn journal_address(&self, lsn: u64) -> u64 {
        let g = self.geometry();
        g.journal + lsn % g.journal_blocks
    }

    /// The journal block that should hold `lsn`, if it does.
    fn journal_block(&mut self, lsn: u64) -> Result<Option<(Block, Frame)>, Error> {
        let address = self.journal_address(lsn);
        let mut block = [0; BLOCK_SIZE];
        if let Err(error) = self.reader.read(address, &mut block) {
            let text = format!("journal block {lsn} (block {address}): {error}");
            self.find(Severity::Error, FindingKind::Io, Some(address), text);
            return Ok(None);
        }
        let opened = frame::open(&block, self.store, self.number as u16, address);
        let fits = |f: &Frame| f.lsn == lsn && f.incarnation == self.superblock.incarnation;
        Ok(opened.ok().filter(fits).map(|frame| (block, frame)))
    }

    fn account(&mut self, lsn: u64, record: &Record) {
        let g = self.geometry();
        let (disk, vba, pba, len) = match *record {
            Record::Write { disk, vba, pba, len, .. } => (disk, vba, Some(pba), u64::from(len)),
            Record::Discard { disk, vba, len } => (disk, vba, None, u64::from(len)),
            Record::Snapshot { disk, .. } => (disk, 0, None, 1),
        };
        let at = self.journal_address(lsn);
        let size = self
            .disk(disk)
            .filter(|d| d.record.state == State::Live)
            .map(|d| d.record.size / BLOCK_SIZE as u64);
        let in_leaf = len > 0 && vba % LINKS as u64 + len <= LINKS as u64;
        let why = match size {
            None => "the disk is not available",
            Some(size) if !in_leaf || vba.saturating_add(len) > size => "it lies outside the disk",
            Some(_) => match pba {
                Some(pba) => {
                    let last = pba.saturating_add(len - 1);
                    let inside = g.linkable(pba)
                        && g.linkable(last)
                        && g.extent_of(pba) == g.extent_of(last);
                    if inside {
                        self.journal.runs.push((pba, len));
                        let held = (pba..=last).find(|&b| self.used.has(b));
                        if let Some(held) = held {
                            let text = format!(
                                "a record in journal block {lsn} (block {at}) names block {held}, which a tree holds already"
                            );
                            let kind = FindingKind::Journal;
                            self.find_on(Severity::Error, kind, disk, Some(held), &text);
                        }
                        return;
                    }
                    "its data lies out of bounds"
                }
                None => return,
            },
        };
        let skipped = self.journal.skipped.entry((disk, why)).or_insert((lsn, vba, 0));
        skipped.2 += 1;
    }

    /// Journal blocks behind the end: left over after a crash, unless one of them knows that what
    /// is missing had been durable.
    fn find_gap(&mut self, end: u64) -> Result<(), Error> {
        let tail = self.superblock.journal_tail;
        for lsn in end..tail.saturating_add(self.geometry().journal_blocks) {
            let Some((_, frame)) = self.journal_block(lsn)? else { continue };
            // On a base that loses nothing, only blocks in flight side by side can be missing.
            let behind = lsn - end > JOURNAL_WINDOW as u64 + 1;
            if frame.flushed > end || (frame.ordered && behind) {
                let at = self.journal_address(end);
                let text = format!(
                    "journal block {end} (block {at}) is damaged or missing, but it was durable when block {lsn} was written: writes from there on are lost"
                );
                self.find(Severity::Error, FindingKind::Journal, Some(at), text);
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_know_their_blocks_and_overlaps() {
        let mut runs =
            JournalRuns { runs: vec![(20, 5), (10, 4), (14, 2)], ..JournalRuns::default() };
        assert_eq!(runs.settle(), None);
        let inside: Vec<u64> = (0..30).filter(|&b| runs.has(b)).collect();
        assert_eq!(inside, [10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24]);
        runs.runs.push((24, 1));
        assert_eq!(runs.settle(), Some(24));
    }
}
