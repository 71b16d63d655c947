//! What a journal holds: up to its end, and past it for what may be missing. For recovery, check.
//!
//! ```text
//!   tail                 lost      durable                end
//!    ├── a ── b ── c ──── ✗ ─── e ──┼── f ── g ── ✗ ── i ── ...
//!    │        promised: all of it   │  never promised: as far as it goes without a gap
//!    └─ the highest `durable` in any block after the tail ─┘
//! ```
//!
//! Below `durable` a missing block is a loss: blocks after it say which disks it was about, these
//! are sealed, and the others go on. That is sound: records name a disk and its blocks, and no
//! block changes hands between disks before the next consistency point. From `durable` on a missing
//! block is the end, as a power cut leaves it.

use crate::canary::{Canary, planted};
use crate::format::Block;
use crate::format::journal::{self as frame, BEFORE, Frame, Touched};
use crate::format::superblock::Superblock;
use crate::replays::Replays;
use crate::types::Uuid;

/// Blocks without anything in a row after which nothing more is looked for.
const GAP_MAX: u64 = 1024;

/// A journal block that was read.
struct Seen {
    lsn: u64,
    frame: Frame,
}

/// A journal being read.
#[derive(Default)]
pub(crate) struct Scan {
    tail: u64,
    blocks: u64,
    /// Next block to be read.
    pub lsn: u64,
    seen: Vec<Seen>,
    records: Replays,
    /// Blocks that are damaged, but say that they are what they should be, and about which disks.
    rotten: Vec<(u64, Touched)>,
    /// What proves that a later consistency point than the superblock's has committed.
    pub newer: Option<String>,
    /// Highest incarnation and consistency point in any block.
    pub highest: (u64, u64),
}

impl Scan {
    /// The journal as `superblock` describes it.
    pub fn new(superblock: &Superblock) -> Scan {
        let tail = superblock.journal_tail;
        let blocks = superblock.geometry.journal_blocks;
        Scan { tail, blocks, lsn: tail, records: Replays::new(tail), ..Scan::default() }
    }

    /// Blocks still to be read, from `lsn` on; 0: that was all.
    pub fn left(&self) -> u64 {
        let gap = self.lsn - self.seen.last().map_or(self.tail, |s| s.lsn + 1);
        if gap >= GAP_MAX { 0 } else { self.blocks - (self.lsn - self.tail) }
    }

    /// True once a block was missing: nothing that is read now is sure to be replayed.
    pub fn past_end(&self) -> bool {
        (self.seen.len() as u64) < self.lsn - self.tail
    }

    /// Takes the next block, which was read from `address`; `None`: it could not be read.
    pub fn take(
        &mut self,
        block: Option<&Block>,
        address: u64,
        superblock: &Superblock,
        store: Uuid,
        shard: u16,
    ) {
        let lsn = self.lsn;
        self.lsn += 1;
        let known = self.records.len();
        if !block.is_some_and(|block| self.take_read(lsn, block, address, superblock, store, shard))
        {
            self.records.truncate(known);
            self.records.push_missing(lsn);
        }
    }

    /// True if it is the block that should be there.
    fn take_read(
        &mut self,
        lsn: u64,
        block: &Block,
        address: u64,
        superblock: &Superblock,
        store: Uuid,
        shard: u16,
    ) -> bool {
        let Ok(frame) = frame::open(block, store, shard, address) else {
            let claims = frame::claims(block, store, lsn, superblock.incarnation);
            self.rotten.extend(claims.map(|disks| (lsn, disks.unwrap_or(Touched::ALL))));
            return false;
        };
        self.highest.0 = self.highest.0.max(frame.incarnation);
        self.highest.1 = self.highest.1.max(frame.point);
        let newer =
            frame.incarnation > superblock.incarnation || frame.point > superblock.generation;
        if newer && self.newer.is_none() {
            let text = format!("journal block {} (block {address}) was written later", frame.lsn);
            self.newer = Some(text);
        }
        let same = frame.incarnation == superblock.incarnation || planted(Canary::ReplayTwice);
        if frame.lsn != lsn || !same {
            return false;
        }
        let whole = frame::records(block, frame.count, |record| self.records.push(lsn, &record));
        match whole {
            Ok(()) => self.seen.push(Seen { lsn, frame }),
            Err(_) => self.rotten.push((lsn, Touched::ALL)),
        }
        whole.is_ok()
    }

    /// What is to be replayed, in order, with what is lost in its place; and where the journal
    /// ends. To be asked once.
    pub fn replay(&mut self) -> (Replays, u64) {
        let highest = self.seen.iter().map(|s| s.frame.durable).max();
        let known = highest.filter(|_| !planted(Canary::HoleIgnored));
        let promised = known.map_or(self.tail, |lsn| lsn.max(self.tail));
        let check = |lsn| {
            let at = self.seen.binary_search_by_key(&lsn, |s| s.lsn).expect("it has records");
            !self.seen[at].frame.ordered && lsn >= promised
        };
        let mut records = std::mem::take(&mut self.records);
        let end = records.settle(self.lsn, promised, check, |lsn| self.about(lsn));
        (records, end)
    }

    /// The block at the end of the journal, if it was written, but is torn or rotten; and the disks
    /// it is about.
    pub fn rotten_at(&self, end: u64) -> Option<Touched> {
        self.rotten.iter().find(|(lsn, _)| *lsn == end).map(|(_, touched)| *touched)
    }

    /// The disks that a lost block was about, as blocks after it say.
    fn about(&self, lsn: u64) -> Touched {
        let after = self.seen.partition_point(|s| s.lsn <= lsn);
        let back = |s: &Seen| (s.lsn - lsn) as usize - 1;
        if let Some(next) = self.seen.get(after).filter(|s| back(s) < BEFORE) {
            return next.frame.before[back(next)];
        }
        let later = self.seen.iter().find(|s| s.frame.durable == lsn + 1);
        later.map_or(Touched::ALL, |s| s.frame.promised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::journal::Record;
    use crate::format::superblock::Geometry;
    use crate::replays::{Entry, Replay};
    use crate::types::BLOCK_SIZE;

    const STORE: Uuid = Uuid([4; 16]);

    fn superblock() -> Superblock {
        let geometry = Geometry { journal: 100, journal_blocks: 16, ..Geometry::default() };
        Superblock {
            geometry,
            generation: 5,
            journal_tail: 10,
            incarnation: 3,
            ..Default::default()
        }
    }

    /// Reads a journal of (number, disk, durable) from 10 on; the others are missing.
    fn scan(blocks: &[(u64, u32, u64)]) -> Scan {
        without(blocks, |_| false)
    }

    /// The same journal without one block, or more.
    fn without(blocks: &[(u64, u32, u64)], lost: impl Fn(u64) -> bool) -> Scan {
        let superblock = superblock();
        let mut scan = Scan::new(&superblock);
        let mut before = [Touched::default(); BEFORE];
        while scan.left() > 0 {
            let address = 100 + scan.lsn % 16;
            let found = blocks.iter().find(|b| b.0 == scan.lsn);
            let mut block = [0; BLOCK_SIZE];
            if let Some(&(lsn, disk, durable)) = found {
                Record::Discard { disk, vba: 0, len: 1 }.write(&mut block, 0);
                let mut promised = Touched::default();
                let about = blocks.iter().find(|b| b.0 + 1 == durable);
                about.iter().for_each(|b| promised.add(b.1));
                let frame = Frame {
                    lsn,
                    incarnation: 3,
                    count: 1,
                    durable,
                    before,
                    promised,
                    ..Frame::default()
                };
                frame::finish(&mut block, &frame, STORE, 0, address);
                before.rotate_right(1);
                before[0] = Touched::default();
                before[0].add(disk);
            } else {
                before.rotate_right(1);
                before[0] = Touched::default();
            }
            let found = Some(&block).filter(|_| !lost(scan.lsn));
            scan.take(found, address, &superblock, STORE, 0);
        }
        scan
    }

    /// Numbers of what is replayed (lost ones negative), and the end.
    fn order(scan: &mut Scan) -> (Vec<i64>, u64) {
        let (all, end) = scan.replay();
        let number = |r: Replay| match r.entry {
            Entry::Record(_) => r.lsn as i64,
            Entry::Lost(_) => -(r.lsn as i64),
        };
        (all.iter().map(number).collect(), end)
    }

    #[test]
    fn a_journal_ends_at_its_first_gap_if_nothing_was_promised_behind_it() {
        assert_eq!(order(&mut scan(&[])), (vec![], 10));
        let blocks = [(10, 1, 10), (11, 1, 10), (13, 1, 11), (14, 1, 12)];
        assert_eq!(order(&mut scan(&blocks)), (vec![10, 11], 12));
    }

    #[test]
    fn a_promised_block_is_lost_and_the_others_go_on() {
        let blocks: Vec<(u64, u32, u64)> = (10..20).map(|n| (n, n as u32, n.min(15))).collect();
        for lost in 10..15 {
            let mut scan = without(&blocks, |lsn| lsn == lost);
            let (order, end) = order(&mut scan);
            let due = (10..20).map(|n| if n == lost as i64 { -n } else { n });
            assert_eq!((order, end), (due.collect(), 20));
            let about = scan.about(lost);
            let disks: Vec<u32> = (0..100).filter(|&d| about.has(d)).collect();
            assert_eq!(disks, [lost as u32], "block {lost}");
        }
        // From 15 on nothing was promised.
        assert_eq!(order(&mut without(&blocks, |lsn| lsn == 17)), ((10..17).collect(), 17));
    }

    #[test]
    fn the_last_promised_block_is_named_by_any_later_one() {
        // 13 to 19 were never durable, 12 was, and 20 knows.
        let blocks = [(10, 1, 10), (11, 2, 10), (12, 3, 10), (20, 4, 13)];
        let mut scan = without(&blocks, |lsn| lsn == 12);
        assert_eq!(order(&mut scan), (vec![10, 11, -12], 13));
        assert!(scan.about(12).has(3) && !scan.about(12).has(2));
        // Nobody knows of the one before it, if that is lost as well.
        assert_eq!(scan.about(11), Touched::ALL);
    }

    #[test]
    fn five_lost_blocks_in_a_row_are_known_and_a_sixth_is_not() {
        let blocks: Vec<(u64, u32, u64)> = (10..20).map(|n| (n, n as u32, n)).collect();
        let mut scan = without(&blocks, |lsn| (11..17).contains(&lsn));
        let lost: Vec<i64> = order(&mut scan).0.into_iter().filter(|&n| n < 0).collect();
        assert_eq!(lost, [-11, -12, -13, -14, -15, -16]);
        for lsn in 12..17 {
            let about = scan.about(lsn);
            assert!(about.has(lsn as u32) && !about.has(lsn as u32 + 1), "block {lsn}");
        }
        assert_eq!(scan.about(11), Touched::ALL);
    }

    #[test]
    fn a_block_of_a_later_point_or_incarnation_proves_a_lost_superblock() {
        let superblock = superblock();
        for (incarnation, point, newer) in
            [(3, 5, false), (4, 5, true), (3, 6, true), (2, 4, false)]
        {
            let mut scan = Scan::new(&superblock);
            let mut block = [0; BLOCK_SIZE];
            let frame = Frame { lsn: 10, incarnation, point, ..Frame::default() };
            frame::finish(&mut block, &frame, STORE, 0, 110);
            scan.take(Some(&block), 110, &superblock, STORE, 0);
            assert_eq!(scan.newer.is_some(), newer, "{incarnation} {point}");
        }
    }

    #[test]
    fn a_rotten_block_at_the_end_says_what_it_was() {
        let superblock = superblock();
        let mut scan = Scan::new(&superblock);
        let mut block = [0; BLOCK_SIZE];
        Record::Discard { disk: 6, vba: 0, len: 1 }.write(&mut block, 0);
        let frame = Frame { lsn: 10, incarnation: 3, count: 1, durable: 10, ..Frame::default() };
        frame::finish(&mut block, &frame, STORE, 0, 110);
        block[4000] ^= 1;
        scan.take(Some(&block), 110, &superblock, STORE, 0);
        let about = scan.rotten_at(10).expect("it says that it is block 10");
        assert!(about.has(6) && !about.has(5));
        assert_eq!(scan.replay().1, 10);
    }

    #[test]
    fn the_search_ends_a_bounded_way_behind_the_last_block() {
        let mut scan = Scan { tail: 5000, blocks: 4096, lsn: 5000, ..Scan::default() };
        assert_eq!(scan.left(), 4096);
        scan.lsn = 5000 + GAP_MAX - 1;
        assert_eq!(scan.left(), 4096 - GAP_MAX + 1);
        scan.lsn += 1;
        assert_eq!(scan.left(), 0, "nothing was found");
        let frame = Frame { lsn: 5000 + GAP_MAX - 2, ..Frame::default() };
        scan.seen.push(Seen { lsn: frame.lsn, frame });
        assert_eq!(scan.left(), 4096 - GAP_MAX, "something was, just before");
        scan.lsn = 5000 + 4096;
        assert_eq!(scan.left(), 0, "the whole ring");
    }
}
