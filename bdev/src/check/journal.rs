//! What the journal of a store that was not closed names: accounted for, as its replay would.
//!
//! A record's blocks are not in the bitmaps yet, and nobody else's; they are the journal's until
//! the store is opened. A block the tree drops at replay is still the tree's.

use super::report::{FindingKind, Severity};
use super::system::{Shard, Slot};
use crate::error::Error;
use crate::format::disk_record::State;
use crate::format::journal::{Record, Touched};
use crate::journal_scan::Scan;
use crate::limits::LINKS;
use crate::replays::Entry;
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
        let mut scan = Scan::new(&self.superblock);
        while scan.left() > 0 {
            self.scan_block(&mut scan);
        }
        self.note_later(scan.newer.as_deref(), scan.highest);
        let (all, end) = scan.replay();
        for replay in all.iter() {
            match &replay.entry {
                Entry::Record(record) => {
                    self.report.counts.journal_records += 1;
                    self.account(replay.lsn, record);
                }
                Entry::Lost(touched) => self.find_hole(replay.lsn, *touched),
            }
        }
        if scan.rotten_at(end).is_some() {
            let at = self.journal_address(end);
            let text = format!(
                "journal block {end} (block {at}), the last one, is torn or rotten: writes that it held are lost, which no later block says were durable"
            );
            self.find(Severity::Note, FindingKind::Journal, Some(at), text);
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
        Ok(())
    }

    fn journal_address(&self, lsn: u64) -> u64 {
        let g = self.geometry();
        g.journal + lsn % g.journal_blocks
    }

    fn scan_block(&mut self, scan: &mut Scan) {
        let (lsn, mut block) = (scan.lsn, [0; BLOCK_SIZE]);
        let address = self.journal_address(lsn);
        let read = self.reader.read(address, &mut block);
        if let (Err(error), false) = (&read, scan.past_end()) {
            let text = format!("journal block {lsn} (block {address}): {error}");
            self.find(Severity::Error, FindingKind::Io, Some(address), text);
        }
        let found = read.is_ok().then_some(&block);
        scan.take(found, address, &self.superblock, self.store, self.number as u16);
    }

    /// A journal block is lost that had been promised.
    fn find_hole(&mut self, lsn: u64, touched: Touched) {
        let at = self.journal_address(lsn);
        let live = |slot: &u32| self.disk(*slot).is_some_and(|d| d.record.state == State::Live);
        let slots = 0..self.slots.len() as u32;
        let names: Vec<String> = slots
            .filter(|slot| touched.has(*slot) && live(slot))
            .map(|slot| self.disk_name(slot))
            .collect();
        let text = format!(
            "journal block {lsn} (block {at}) is damaged or missing, but was durable when later ones were written: acknowledged writes are lost; opening the store seals {}",
            if names.is_empty() { "nothing".to_string() } else { names.join(", ") }
        );
        self.find(Severity::Error, FindingKind::Journal, Some(at), text);
        self.holes.push(lsn);
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
